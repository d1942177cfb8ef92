"""``/health``: what people, restart checks and load balancers see, with and without Redis."""

import asyncio
import json
from typing import Any

import pytest

from cli.embedded_redis import EmbeddedRedis
from tests.routes.conftest import CalledApi, called_api

NOT_PERSISTENT = {
    "code": "not_persistent",
    "detail": "Redis keeps no append-only file, so a restart loses jobs: set its appendonly to yes.",
}


async def test_without_a_worker_the_service_is_degraded(api: CalledApi) -> None:
    """It takes jobs in, and nobody runs them."""
    response = await api.http.get("/health")
    assert response.status_code == 200
    report = response.json()
    assert all(problem == NOT_PERSISTENT for problem in report.pop("redis_problems")), (
        "as the server of the tests is set"
    )
    assert report == {
        "status": "degraded", "llm": "unknown", "llm_since": None, "routes": [], "redis": "ok", "workers": 0, "queue": {"queued": 0, "running": 0},
    }  # fmt: skip


async def test_with_a_worker_and_a_queue_it_is_ok(api: CalledApi) -> None:
    """That no worker has called the LLM yet is no fault."""
    await api.runtime.workers.announce("worker-1", {"running": 0})
    await api.submitted()
    report = (await api.http.get("/health")).json()
    assert report["status"] == "ok"
    assert report["workers"] == 1
    assert report["queue"] == {"queued": 1, "running": 0}


@pytest.mark.parametrize(
    ("notes", "llm", "since_ms", "status"),
    [
        ([("reachable", 1, 0)], "reachable", 1, "ok"),
        ([("degraded", 1, 0)], "degraded", 1, "degraded"),
        ([("unreachable", 1, 0)], "unreachable", 1, "degraded"),
        ([("from the future", 1, 0)], "unknown", None, "ok"),
        ([("reachable", "garbage", 0)], "unknown", None, "ok"),
        ([("reachable", 1, 3600)], "unknown", None, "ok"),
        ([("reachable", 1, 0), ("reachable", 5, 30)], "reachable", 5, "ok"),
        ([("reachable", 1, 0), ("unreachable", 5, 30)], "degraded", 5, "degraded"),
        ([("unreachable", 5, 0), ("reachable", 1, 0)], "degraded", 5, "degraded"),
        ([("unreachable", 2, 0), ("unreachable", 5, 0)], "unreachable", 5, "degraded"),
        ([("unreachable", 2, 200), ("reachable", 5, 0)], "reachable", 5, "ok"),
    ],
)
async def test_the_llm_is_what_all_workers_saw(
    api: CalledApi, notes: list[tuple[Any, Any, Any]], llm: str, since_ms: int | None, status: str
) -> None:
    """The API never calls it. None overwrites another; what is two minutes older than the newest call counts no more."""
    for number, (state, since, age_s) in enumerate(notes):
        facts = {"llm": state, "llm_since_ms": since, "llm_age_s": age_s}
        await api.runtime.workers.announce(f"worker-{number}", facts)
    report = (await api.http.get("/health")).json()
    assert (report["llm"], report["status"]) == (llm, status)
    assert report["llm_since"] == (None if since_ms is None else f"1970-01-01T00:00:00.00{since_ms}Z")


async def test_what_a_worker_has_against_redis_is_named(api: CalledApi) -> None:
    """Said once, whoever sees it; and in other words than ours, not at all."""
    refused = {"code": "no_permission", "detail": "It lacks a right."}
    for number in range(2):
        await api.runtime.workers.announce(f"worker-{number}", {"redis_problems": json.dumps([refused])})
    await api.runtime.workers.announce("worker-3", {"redis_problems": '["from the future"]'})
    report = (await api.http.get("/health")).json()
    assert (report["status"], report["redis"]) == ("degraded", "refusing")
    assert [each for each in report["redis_problems"] if each != NOT_PERSISTENT] == [refused]


async def test_a_redis_that_fills_up_degrades_the_service(api: CalledApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submits are refused then."""
    await api.runtime.workers.announce("worker-1", {"running": 0})
    stays_full = property(lambda _: True, lambda *_: None)  # the next look would find that it is not
    monkeypatch.setattr(type(api.runtime.memory), "is_full", stays_full, raising=False)
    report = (await api.http.get("/health")).json()
    assert (report["redis"], report["status"]) == ("full", "degraded")


async def test_a_process_that_ends_is_not_ready(api: CalledApi) -> None:
    """It lives all the same."""
    assert (await api.http.get("/health/ready")).status_code == 200
    api.state.stop()
    response = await api.http.get("/health/ready")
    assert (response.status_code, response.json()) == (503, {"status": "draining"})
    assert (await api.http.get("/health/live")).status_code == 200


async def test_health_needs_no_tenant(api: CalledApi) -> None:
    """Whoever restarts processes has no key."""
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await api.http.get(path, headers={"X-Tenant": "not valid!"})).status_code == 200


_CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/jobs", {"prompt": "x"}),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/jobs/job_01m84bdq4t7w9k2p5x8r3n6v0c", None),
    ("GET", "/v1/jobs/job_01m84bdq4t7w9k2p5x8r3n6v0c/events", None),
    ("POST", "/v1/jobs/job_01m84bdq4t7w9k2p5x8r3n6v0c/cancel", None),
    ("POST", "/v1/jobs/job_01m84bdq4t7w9k2p5x8r3n6v0c/retry", None),
    ("DELETE", "/v1/jobs/job_01m84bdq4t7w9k2p5x8r3n6v0c", None),
    ("POST", "/complete", {"prompt": "x"}),
    ("POST", "/complete/stream", {"prompt": "x"}),
]


async def test_without_redis_every_call_is_503_soon_and_heals(own_server: EmbeddedRedis) -> None:
    """After one wait for Redis (1.5 s and a tick; the bound is for slow machines), never two in a row."""
    async with called_api(redis_url=own_server.url) as api:
        job = await api.submitted()
        own_server.kill()
        async with asyncio.timeout(3):
            answers = await asyncio.gather(*[api.http.request(m, path, json=body) for m, path, body in _CALLS])
        for answer in answers:
            assert answer.status_code == 503
            assert answer.json()["code"] == "storage_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        async with asyncio.timeout(3):
            health, ready, live = await asyncio.gather(
                *[api.http.get(path) for path in ("/health", "/health/ready", "/health/live")]
            )
        assert (health.status_code, health.json()["redis"]) == (503, "unavailable")
        assert ready.status_code == 503
        assert live.status_code == 200
        assert api.state.relay.follower_count == 0
        own_server.restart()
        assert (await api.job(job["id"]))["id"] == job["id"]
        assert (await api.submit()).status_code == 202
