"""``/v1/stats``: the figures of the service, over all tenants."""

from typing import Any

import pytest

from api.state.viewers import Viewer, Viewers
from shared.errors import TooManyConnections
from shared.figures import BUCKET_S
from tests.routes.conftest import A_BODY, CalledApi, pointers_of
from tests.support.author import Author
from tests.support.upstreams import a_route, permitted


async def stats_of(api: CalledApi, **query: Any) -> Any:
    """The figures now, not those of the last second."""
    api.state.last_stats.report = None
    response = await api.http.get("/v1/stats", params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def test_it_counts_what_waits_runs_and_has_ended(api: CalledApi) -> None:
    """Jobs of all tenants; an idle service has zeros and nulls."""
    idle = await stats_of(api)
    assert idle["jobs"] == {
        "waiting": 0,
        "startable": 0,
        "running": 0,
        "by_priority": {band: {"startable": 0, "oldest_wait_s": None} for band in ("high", "normal", "low")},
    }
    assert idle["ended_last_minute"] == {"cancelled": 0, "expired": 0, "failed": 0, "succeeded": 0}
    assert (idle["followers"], idle["tokens_per_s"], idle["first_token_ms"]) == (0, 0.0, {"p50": None, "p95": None})
    assert "history" not in idle
    author = await Author.start(api.runtime)
    await author.open()
    await author.say("Hello.")
    await api.submitted()
    await api.submitted({**A_BODY, "job": {"priority": "high"}}, X_Tenant="tenant-b")
    await api.submitted({**A_BODY, "job": {"not_before": "2026-12-24T12:00:00Z"}})
    busy = await stats_of(api)
    assert (busy["jobs"]["waiting"], busy["jobs"]["startable"], busy["jobs"]["running"]) == (3, 2, 1)
    assert {name: band["startable"] for name, band in busy["jobs"]["by_priority"].items()} == {
        "high": 1, "normal": 1, "low": 0,
    }  # fmt: skip
    assert 0 <= busy["jobs"]["by_priority"]["high"]["oldest_wait_s"] < 5
    await author.succeed()
    done = await stats_of(api)
    assert done["ended_last_minute"]["succeeded"] == done["ended_last_hour"]["succeeded"] == 1
    assert done["jobs"]["running"] == 0


async def test_the_history_has_a_value_for_each_bucket(api: CalledApi) -> None:
    """Only if it is asked for."""
    now_ms = (await api.runtime.figures.depths()).now_ms
    number = now_ms // 1000 // BUCKET_S - 3
    fields: list[str | int] = ["waiting", 4, "running", 2, "succeeded", 7, "tokens", 50, "t16", 3]
    await api.runtime._commands.call("HSET", f"ts:{{g}}:figures:{number}", *fields)
    await api.runtime._commands.call(
        "HSET", f"ts:{{g}}:figures:{number + 1}", "waiting", 1, "running", 0, "succeeded", 9
    )
    history = (await stats_of(api, history="true"))["history"]
    lengths = {len(value) for value in history.values() if isinstance(value, list)}
    assert len(lengths) == 1
    assert history["bucket_s"] == BUCKET_S
    assert (history["waiting"][0], history["running"][0], history["tokens"][0]) == (4, 2, 50)
    assert (history["succeeded"][0], history["failed"][0]) == (2, 0)
    assert history["first_token_p50_ms"][0] == pytest.approx(150, rel=0.2)
    assert history["first_token_p95_ms"][1] is None
    response = await api.http.get("/v1/stats", params={"history": "perhaps"})
    assert pointers_of(response) == ["history"]


async def test_workers_routes_and_redis_are_shown(api: CalledApi) -> None:
    """With what is left of a route's limits."""
    facts: dict[str, Any] = {
        "name": "worker-1",
        "version": "1",
        "concurrency": 20,
        "running": 3,
        "draining": 0,
        "tokens_per_s": 12.5,
    }
    await api.runtime.workers.announce("worker-1", facts)
    await api.runtime.workers.announce("worker-2", {"name": "worker-2", "tokens_per_s": "from the future"})
    await permitted(api.runtime, a_route("a-model"))
    await api.runtime._commands.call("HSET", "ts:{g}:route:anthropic/a-model", "limit_requests", 10)
    api.runtime.waits._looked_s = 0
    stats = await stats_of(api)
    first = stats["workers"][0]
    assert (first["name"], first["slots"], first["running"], first["draining"]) == ("worker-1", 20, 3, False)
    assert stats["tokens_per_s"] == 12.5
    (route,) = stats["upstreams"]
    assert route["circuit"] == "closed"
    assert (route["calls_left"], route["requests"]) == (9, {"limit": 10, "left": 9})
    assert route["input_tokens"] is route["output_tokens"] is None
    assert stats["redis"]["used_bytes"] > 0
    assert stats["redis"]["policy"] == "noeviction"


async def test_the_figures_are_worked_out_once_a_second(api: CalledApi) -> None:
    """However many ask."""
    before = await stats_of(api)
    await api.submitted()
    assert (await api.http.get("/v1/stats")).json()["at"] == before["at"]


async def test_a_tenant_may_have_a_hundred_viewers() -> None:
    """One more is refused; those of another tenant are not."""
    viewers = Viewers()
    opened = [Viewer("tenant-a", sees_all=True, newest=0) for _ in range(100)]
    for viewer in opened:
        viewers.check("tenant-a")
        viewers.open(viewer)
    with pytest.raises(TooManyConnections):
        viewers.check("tenant-a")
    viewers.check("tenant-b")
    viewers.close(opened[0])
    viewers.check("tenant-a")


async def test_a_viewer_that_does_not_read_is_asked_to_come_again() -> None:
    """It holds a bounded number of frames."""
    viewer = Viewer("tenant-a", sees_all=True, newest=0)
    for number in range(100):
        viewer.send(b"%d" % number)
    assert [frame async for frame in viewer.frames()] == [b": too much is unread, connect again\n\n"]
    assert len(viewer._unsent) <= 100
