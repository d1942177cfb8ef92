"""Over all tenants: what waits longest, what runs longest, who spends, which workers live."""

from datetime import UTC, datetime
from typing import Any

import pytest

from shared.job import Priority
from tests.routes.conftest import CalledApi, pointers_of
from tests.support.store import claim, claim_one, now_ms, start_batch, start_earlier, submit
from tests.support.upstreams import a_route, closed, permitted

_LATER_MS = 3_600_000


async def _listed(api: CalledApi, sort: str, tenant: str = "*", **query: Any) -> list[dict[str, Any]]:
    response = await api.http.get("/v1/jobs", params={"sort": sort, "tenant": tenant, **query})
    assert response.status_code == 200, response.text
    page = response.json()
    assert (page["has_more"], page["next"]) == (False, None)
    found: list[dict[str, Any]] = page["data"]
    return found


async def test_the_oldest_waiting_jobs_of_all_tenants(api: CalledApi) -> None:
    """Of every band and flow, those of a tenant without room too; neither running jobs nor those of later."""
    runtime = api.runtime
    await runtime.tenants.set("full", {"running_jobs": 1})
    await submit(runtime, tenant="full")
    running = await claim_one(runtime)
    parked = await submit(runtime, tenant="full")
    assert await claim(runtime) == []  # it parks the flow
    low = await submit(runtime, tenant="b", priority=Priority.LOW)
    high = await submit(runtime, tenant="c", priority=Priority.HIGH)
    item = (await start_batch(runtime, 1, tenant="d")).job_ids[0]
    await submit(runtime, tenant="e", not_before_ms=await now_ms(runtime) + _LATER_MS)
    newest = await submit(runtime, tenant="b")
    jobs = await _listed(api, "oldest_waiting")
    assert [job["id"] for job in jobs] == sorted([parked.id, low.id, high.id, item, newest.id])
    assert {job["tenant"] for job in jobs} == {"full", "b", "c", "d"}
    assert running.id not in {job["id"] for job in jobs}
    assert [job["id"] for job in await _listed(api, "oldest_waiting", limit=2)] == [parked.id, low.id]
    assert [job["id"] for job in await _listed(api, "oldest_waiting", tenant="b")] == [low.id, newest.id]


async def test_the_longest_running_jobs_of_all_tenants(api: CalledApi) -> None:
    """By their first start, not by their submit."""
    runtime = api.runtime
    claims = []
    for tenant in ("a", "b", "c"):
        await submit(runtime, tenant=tenant)
        claims.append(await claim_one(runtime))
    await start_earlier(runtime, claims[1], 50_000)
    await start_earlier(runtime, claims[2], 90_000)
    order = [claims[2].id, claims[1].id, claims[0].id]
    assert [job["id"] for job in await _listed(api, "longest_running")] == order
    assert [job["id"] for job in await _listed(api, "longest_running", limit=1)] == order[:1]
    assert [job["id"] for job in await _listed(api, "longest_running", tenant="b")] == [claims[1].id]


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ({"sort": "oldest_waiting", "tenant": "*", "status": "queued", "after": "job_1"}, {"after", "status"}),
        ({"sort": "oldest_waiting"}, {"tenant"}),
        ({"sort": "newest", "tenant": "*"}, {"sort"}),
        ({"tenant": "*"}, {"tenant"}),
    ],
)
async def test_a_sort_goes_with_a_tenant_alone(api: CalledApi, query: dict[str, str], pointers: set[str]) -> None:
    """Every other parameter is named."""
    response = await api.http.get("/v1/jobs", params=query)
    assert response.status_code == 400
    assert set(pointers_of(response)) == pointers


async def test_usage_of_all_tenants_is_split_by_tenant(api: CalledApi) -> None:
    """As the ledger counted it; a tenant sees its own name at most."""
    runtime = api.runtime
    for tenant, tokens in (("a", 3), ("b", 5)):
        call_id, _ = await permitted(runtime, a_route(), tenant=tenant)
        await closed(runtime, a_route(), call_id, is_estimated=False, cost_nano_usd=tokens)
    report = (await api.http.get("/v1/usage", params={"tenant": "*", "group_by": "tenant"})).json()
    assert [(row["tenant"], row["calls"], row["cost_nano_usd"]) for row in report["data"]] == [("a", 1, 3), ("b", 1, 5)]
    assert report["total"]["cost_nano_usd"] == 8
    one = (await api.http.get("/v1/usage", params={"tenant": "b", "group_by": "tenant"})).json()
    assert [(row["tenant"], row["cost_nano_usd"]) for row in one["data"]] == [("b", 5)]
    first = (await api.http.get("/v1/usage", params={"tenant": "*", "group_by": "tenant", "limit": 1})).json()
    rest = await api.http.get("/v1/usage", params={"tenant": "*", "group_by": "tenant", "after": first["next"]})
    assert [row["tenant"] for row in rest.json()["data"]] == ["b"]
    own = (await api.http.get("/v1/usage", params={"group_by": "tenant"}, headers={"X-Tenant": "a"})).json()
    assert [(row["tenant"], row["cost_nano_usd"]) for row in own["data"]] == [("a", 3)]


async def test_workers_are_listed_as_they_announce_themselves(api: CalledApi) -> None:
    """One of another release too, which says less."""
    facts: dict[str, str | int] = {
        "name": "w-2",
        "version": "1.2",
        "concurrency": 100,
        "running": 7,
        "draining": 1,
        "llm": "degraded",
    }
    await api.runtime.workers.announce("w-2", facts)
    await api.runtime.workers.announce("w-1", {"name": "w-1", "running": 0})
    first, second = (await api.http.get("/v1/workers")).json()["data"]
    assert (first["name"], first["version"], first["slots"], first["draining"]) == ("w-1", None, 0, False)
    seen = datetime.fromisoformat(second.pop("last_seen_at"))
    assert abs((datetime.now(UTC) - seen).total_seconds()) < 60
    assert second == {
        "name": "w-2",
        "type": "worker",
        "version": "1.2",
        "slots": 100,
        "running": 7,
        "draining": True,
        "llm": "degraded",
    }


async def test_settings_that_are_not_valid_are_named(api: CalledApi) -> None:
    """And nothing is created."""
    body = {"queued_jobs": 0, "usd_per_day": -1, "log_retention_s": 0, "nonsense": 1, "tokens_per_minute": True}
    for method in ("PUT", "PATCH"):
        response = await api.http.request(method, "/v1/tenants/acme", json=body)
        assert response.status_code == 400
        assert set(pointers_of(response)) == {f"#/{name}" for name in body}
    assert (await api.http.get("/v1/tenants/acme")).status_code == 404
    assert (await api.http.get("/v1/tenants", params={"after": "a b"})).status_code == 400
