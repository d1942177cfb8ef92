"""``GET /v1/limits``: what a caller's tenant and key have left, equal to what the scripts count."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.api_key import Scope
from shared.clock import from_rfc3339
from shared.limits import CallerLimits
from shared.store import redis_keys
from shared.store.redis_keys import SHARD
from tests.keys.conftest import make_key
from tests.routes.conftest import CalledApi, StartApi, problem_of
from tests.support.limits import A_DOLLAR, WINDOW_MS, counted
from tests.support.store import all_keys, claim, finish, kind_of, now_ms, submit, submit_many

NAMES = {
    "requests_per_minute",
    "tokens_per_minute",
    "running_jobs",
    "queued_jobs",
    "usd_per_day",
    "usd_per_month",
}


async def read(api: CalledApi, key: str | None = None, **headers: str) -> Any:
    """The response, which must be a 200 that no cache keeps."""
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    response = await api.http.get("/v1/limits", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


async def test_without_limits_all_are_null(start_api: StartApi) -> None:
    """A caller without a key has only its tenant's, and reading writes nothing."""
    api = await start_api(tenant_waiting_share=0)
    await api.submitted()
    before = set(await all_keys(api.runtime._commands))
    found = await read(api)
    assert {kind_of(name) for name in before ^ set(await all_keys(api.runtime._commands))} <= {"figures"}
    assert (list(found), found["key"], found["tenant"].pop("id")) == (
        ["read_at", "scopes", "tenant", "key"],
        None,
        "default",
    )
    assert found["tenant"] == dict.fromkeys([*NAMES, "waiting_bytes"])
    assert abs(from_rfc3339(found["read_at"]) - await now_ms(api.runtime)) < 5_000


async def test_the_settings_limit_a_tenant_without_limits_of_its_own(start_api: StartApi) -> None:
    """They are shown as the tenant's; its own override them."""
    api = await start_api(tenant_running_jobs=7)
    api.runtime.memory.tenant_bytes = 1000
    tenant = (await read(api, X_Tenant="x"))["tenant"]
    assert tenant["running_jobs"] == {"limit": 7, "used": 0, "remaining": 7, "resets_at": None}
    assert tenant["waiting_bytes"]["limit"] == 1000
    await api.runtime.tenants.set("default", {"running_jobs": 2, "waiting_bytes": 500})
    tenant = (await read(api))["tenant"]
    assert (tenant["running_jobs"]["limit"], tenant["waiting_bytes"]["limit"]) == (2, 500)


async def test_each_limit_of_key_and_tenant_is_as_it_is_counted(start_api: StartApi) -> None:
    """With jobs that wait, run and have ended; what running jobs may still cost is held from the budgets."""
    api = await start_api(auth="keys")
    runtime = api.runtime
    most = CallerLimits(9, 900_000, 5, 50, 7 * A_DOLLAR, 70 * A_DOLLAR)
    made = await make_key(runtime, limits=most)
    await runtime.tenants.set(
        "tenant-a", {"requests_per_minute": 20, "queued_jobs": 30, "nano_usd_per_day": A_DOLLAR * 8}
    )
    priced: dict[str, Any] = {"model": "claude-sonnet-4-6", "tokens": 100_000, "max_tokens": 100_000}
    ids = await submit_many(runtime, 4, key_id=made.key.id, limits=most, **priced)
    await submit(runtime)  # without a key
    first, second = [found for found in await claim(runtime, 3) if found.id in ids][:2]
    await runtime.queue.release(first, reason="drained", cost=A_DOLLAR // 4)
    found = await read(api, made.text)
    key, tenant = found["key"], found["tenant"]
    assert set(key) == NAMES | {"id"}
    call, owner = runtime._commands.call, f"key:{made.key.id}"
    requests, tokens = await counted(runtime, owner)
    held = int(await call("HGET", f"{SHARD}held_budgets", owner))
    assert held == int(await call("HGET", f"{SHARD}held_budgets", "tenant:tenant-a")) > 0
    running = await call("SCARD", f"{SHARD}key_running:{made.key.id}")
    queued = int(await call("HGET", f"{SHARD}queued_jobs", owner))
    assert (requests, running + queued) == (4, 4)
    assert (key["requests_per_minute"]["used"], key["requests_per_minute"]["remaining"]) == (4, 5)
    assert (key["tokens_per_minute"]["used"], key["tokens_per_minute"]["remaining"]) == (tokens, 900_000 - tokens)
    assert key["running_jobs"] == {"limit": 5, "used": running, "remaining": 5 - running, "resets_at": None}
    assert key["queued_jobs"] == {"limit": 50, "used": queued, "remaining": 50 - queued, "resets_at": None}
    assert tenant["requests_per_minute"]["used"] == 5
    for budget, limit in ((key["usd_per_day"], 7), (key["usd_per_month"], 70), (tenant["usd_per_day"], 8)):
        assert (budget["limit_usd"], budget["spent_usd"], budget["held_usd"]) == (limit, 0.25, held / A_DOLLAR)
        assert budget["remaining_usd"] == pytest.approx(limit - 0.25 - held / A_DOLLAR)
    assert (tenant["usd_per_month"], tenant["tokens_per_minute"], tenant["running_jobs"]) == (None, None, None)
    await finish(runtime, second)


async def test_the_times_are_those_at_which_the_whole_limit_is_free(start_api: StartApi) -> None:
    """A minute's when its last submit has left the window; a budget's when the next day or month begins."""
    api = await start_api()
    await api.runtime.tenants.set(
        "default",
        {
            "requests_per_minute": 5,
            "tokens_per_minute": 50_000,
            "nano_usd_per_day": A_DOLLAR,
            "nano_usd_per_month": A_DOLLAR,
        },
    )
    assert (await read(api))["tenant"]["requests_per_minute"]["resets_at"] is None  # all of it is free
    await api.submitted()
    found = await read(api)
    read_ms = from_rfc3339(found["read_at"])
    for name in ("requests_per_minute", "tokens_per_minute"):
        assert WINDOW_MS - 5_000 < from_rfc3339(found["tenant"][name]["resets_at"]) - read_ms <= WINDOW_MS
    now = datetime.fromtimestamp(read_ms / 1000, UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    for name, end in (("usd_per_day", midnight + timedelta(days=1)), ("usd_per_month", next_month)):
        assert found["tenant"][name]["resets_at"] == f"{end:%Y-%m-%dT%H:%M:%S}.000Z"


async def test_what_exceeds_a_limit_leaves_nothing(start_api: StartApi) -> None:
    """An operator has lowered the limits below what is used."""
    api = await start_api()
    await api.runtime.tenants.set("default", {"requests_per_minute": 9, "queued_jobs": 9, "nano_usd_per_day": 9})
    await api.submitted()
    job = await api.submitted()
    await api.runtime.jobs.charge(job["id"], A_DOLLAR, tenant="default")
    await api.runtime.tenants.set("default", {"requests_per_minute": 1, "queued_jobs": 1})
    tenant = (await read(api))["tenant"]
    assert [(tenant[name]["used"], tenant[name]["remaining"]) for name in ("requests_per_minute", "queued_jobs")] == [
        (2, 0)
    ] * 2
    assert (tenant["usd_per_day"]["spent_usd"], tenant["usd_per_day"]["remaining_usd"]) == (1.0, 0.0)


async def test_a_key_sees_its_own_and_its_tenants_limits_only(start_api: StartApi) -> None:
    """And needs the scope ``read``."""
    api = await start_api(auth="keys")
    most = CallerLimits(requests_per_minute=3, queued_jobs=3)
    busy, idle, other = [
        await make_key(api.runtime, tenant=tenant, limits=most) for tenant in ("tenant-a", "tenant-a", "tenant-b")
    ]
    for tenant in ("tenant-a", "tenant-b"):
        await api.runtime.tenants.set(tenant, {"requests_per_minute": 10})
    assert (await api.submit(Authorization=f"Bearer {busy.text}")).status_code == 202
    used = [
        tuple(found[owner]["requests_per_minute"]["used"] for owner in ("key", "tenant"))
        for found in [await read(api, made.text) for made in (busy, idle, other)]
    ]
    assert used == [(1, 1), (0, 1), (0, 0)]
    sender = await make_key(api.runtime, scopes=frozenset({Scope.SUBMIT}))
    refused = await api.http.get("/v1/limits", headers={"Authorization": f"Bearer {sender.text}"})
    problem_of(refused, 403, "forbidden")
    unknown = await api.http.get("/v1/limits?tenant=tenant-b", headers={"Authorization": f"Bearer {busy.text}"})
    problem_of(unknown, 400, "invalid_request")


async def test_reading_ages_a_window_without_writing_it(start_api: StartApi) -> None:
    """What has left the window does not count, although its buckets are still stored."""
    api = await start_api()
    await api.runtime.tenants.set("default", {"requests_per_minute": 5})
    await api.submitted()
    window = redis_keys.pace("tenant:default")
    fields = await api.runtime._commands.call("HGETALL", window)
    stored = {name.decode(): value.decode() for name, value in zip(fields[::2], fields[1::2], strict=True)}
    head = stored.pop("head")
    ((bucket, amounts),) = stored.items()
    old = int(bucket) - 121
    await api.runtime._commands.call("DEL", window)
    await api.runtime._commands.call("HSET", window, old, amounts, "head", head.replace(bucket, str(old)))
    assert (await read(api))["tenant"]["requests_per_minute"]["used"] == 0
    assert "pace" in {kind_of(name) for name in await all_keys(api.runtime._commands)}
