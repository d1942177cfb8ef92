"""CLAIM with quotas: how many jobs of each route may start, and which flows are left as they are."""

import asyncio

import pytest

from shared.job import JobState, Priority
from shared.store import redis_keys
from shared.store.queue import Claim
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import a_submission
from tests.support.redis_servers import on_real_redis
from tests.support.store import (
    assert_consistent,
    make_due,
    make_overdue,
    members,
    now_ms,
    state_of,
    submit,
    submit_many,
)

SHUT = -1


@pytest.fixture
async def runtime(start_runtime: StartRuntime) -> Runtime:
    """Model ``a`` has a stand-in, ``b``; ``long`` has two."""
    return await start_runtime(routes={"a": {"fallback": ["b"]}, "long": {"fallback": ["a", "c"]}})


async def claim(runtime: Runtime, count: int = 20, **quotas: int) -> list[str]:
    """Claims with quotas by model; returns the models of the jobs that start."""
    return [found.spec.model for found in await claims_of(runtime, count, **quotas)]


async def claims_of(runtime: Runtime, count: int = 20, **quotas: int) -> list[Claim]:
    claims, _ = await runtime.queue.claim(
        "worker-1",
        count=count,
        low_count=count,
        takes_suspect=True,
        quotas={f"anthropic/{model}": quota for model, quota in quotas.items()},
    )
    return claims


async def test_a_shut_route_s_jobs_stay_where_they_are(runtime: Runtime) -> None:
    """They do not change, and keep their places in the fair order."""
    ids = await submit_many(runtime, 3, model="m") + await submit_many(runtime, 2, model="n")
    ready = redis_keys.SHARD + "ready:normal"
    flow = redis_keys.flow_of("normal", "tenant-a", "anthropic/m")
    before = await runtime._commands.call("ZSCORE", ready, flow)
    for _ in range(3):
        await claim(runtime, m=SHUT)
    assert await members(runtime, redis_keys.flow(flow)) == ids[:3]
    assert await runtime._commands.call("ZSCORE", ready, flow) == before
    assert [await state_of(runtime, job_id) for job_id in ids] == [JobState.QUEUED] * 3 + [JobState.RUNNING] * 2
    await assert_consistent(runtime, ids)
    assert [found.id for found in await claims_of(runtime)] == ids[:3]


async def test_a_quota_bounds_what_starts(runtime: Runtime) -> None:
    """For that route, over all tenants and bands; other routes' jobs use the free slots."""
    for tenant in ("tenant-a", "tenant-b", "tenant-c"):
        await submit_many(runtime, 3, model="m", tenant=tenant)
        await submit_many(runtime, 2, model="m", tenant=tenant, priority=Priority.LOW)
    await submit_many(runtime, 4, model="n")
    assert sorted(await claim(runtime, m=5)) == ["m"] * 5 + ["n"] * 4
    assert await claim(runtime, m=0) == []
    assert await claim(runtime, 3, m=5) == ["m"] * 3
    assert await claim(runtime) == ["m"] * 7


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 4),
        ({"a": SHUT}, 4),
        ({"a": SHUT, "b": 3}, 3),
        ({"a": SHUT, "b": 0}, 0),
        ({"a": SHUT, "b": SHUT}, 0),
        ({"a": 0}, 0),
        ({"a": 0, "b": 9}, 0),
        ({"a": 1, "b": SHUT}, 1),
        ({"b": SHUT}, 4),
        ({"b": 0}, 4),
        ({"c": SHUT}, 4),
    ],
)
async def test_a_stand_in_is_used_if_the_route_is_shut(runtime: Runtime, quotas: dict[str, int], expected: int) -> None:
    """Not if it is only full, since it will have room again."""
    ids = await submit_many(runtime, 4, model="a")
    assert len(await claim(runtime, **quotas)) == expected
    await assert_consistent(runtime, ids)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({"long": SHUT, "a": SHUT}, 2),
        ({"long": SHUT, "a": SHUT, "c": 1}, 1),
        ({"long": SHUT, "a": 1, "c": SHUT}, 1),
        ({"long": SHUT, "a": SHUT, "c": SHUT}, 0),
    ],
)
async def test_a_chain_is_followed_to_its_end(runtime: Runtime, quotas: dict[str, int], expected: int) -> None:
    """The first route that is not shut counts; a stand-in's own stand-ins do not."""
    await submit_many(runtime, 2, model="long")
    assert len(await claim(runtime, **quotas)) == expected


async def test_flows_that_share_a_route_share_its_quota(runtime: Runtime) -> None:
    """Flows that use it as a stand-in, and its own."""
    await submit_many(runtime, 4, model="a")
    await submit_many(runtime, 4, model="b")
    started = await claim(runtime, a=SHUT, b=5)
    assert sorted(started) in (["a"] * 2 + ["b"] * 3, ["a"] * 3 + ["b"] * 2)


async def test_tenants_take_turns_within_a_quota(runtime: Runtime) -> None:
    """Among the jobs that may start, as without quotas."""
    for tenant in ("tenant-a", "tenant-b", "tenant-c"):
        await submit_many(runtime, 5, model="m", tenant=tenant)
    for _ in range(3):
        assert {found.tenant for found in await claims_of(runtime, m=3)} == {"tenant-a", "tenant-b", "tenant-c"}


async def test_bands_keep_their_order_among_what_may_start(runtime: Runtime) -> None:
    """A shut route's urgent jobs delay no others, and are first again when it opens."""
    await submit_many(runtime, 2, model="m", priority=Priority.HIGH)
    await submit_many(runtime, 2, model="n", priority=Priority.LOW)
    await submit_many(runtime, 2, model="n")
    await submit_many(runtime, 2, model="n", priority=Priority.HIGH)
    started = await claims_of(runtime, 4, m=SHUT)
    assert [found.spec.priority for found in started] == ["high", "high", "normal", "normal"]
    assert await claim(runtime) == ["m", "m", "n", "n"]


async def test_jobs_of_a_shut_route_become_due_and_expire_too(runtime: Runtime) -> None:
    """Deferred jobs are promoted and wait. CLAIM skips an overdue job, which EXPIRE ends."""
    due = await submit(runtime, model="m", not_before_ms=await now_ms(runtime) + 60_000)
    late = await submit(runtime, model="m")
    await make_due(runtime, due.id)
    await make_overdue(runtime, late.id)
    assert await claim(runtime, m=SHUT) == []
    assert await runtime._commands.call("ZCARD", redis_keys.plain("deferred")) == 0
    assert await state_of(runtime, late.id) is JobState.QUEUED
    assert (await runtime.jobs.expire())[0] == 1
    assert await claim(runtime, m=1) == ["m"]


async def test_an_ended_job_uses_up_no_quota(runtime: Runtime) -> None:
    """Only jobs that start count."""
    late = await submit_many(runtime, 2, model="m")
    await submit_many(runtime, 2, model="m")
    await make_overdue(runtime, *late)
    assert await claim(runtime, m=1) == ["m"]


async def test_a_tenant_s_limit_and_a_quota_both_hold(start_runtime: StartRuntime) -> None:
    """Whichever is reached first."""
    runtime = await start_runtime(tenant_running_jobs=2)
    for tenant in ("tenant-a", "tenant-b"):
        await submit_many(runtime, 4, model="m", tenant=tenant)
    started = await claims_of(runtime, m=3)
    assert sorted(found.tenant for found in started) in (
        ["tenant-a"] * 2 + ["tenant-b"],
        ["tenant-a"] + ["tenant-b"] * 2,
    )
    assert len(await claims_of(runtime, m=9)) == 1


@pytest.mark.parametrize(
    "model", ["a>b", "x>y", "x>anthropic/n", "a:b", "::", ">", ">>", "'\"\\", "日本", "%d", "[^>]+", " "]
)
async def test_a_model_may_be_called_anything(runtime: Runtime, model: str) -> None:
    """Its jobs start, do not use other routes' quotas, and are not blocked."""
    await submit_many(runtime, 2, model=model)
    await submit(runtime, model="n")
    assert sorted(await claim(runtime, other=SHUT)) == sorted([model, model, "n"])
    await submit(runtime, model=model)
    await submit(runtime, model="n")
    assert "n" in await claim(runtime, **{model: 1, "n": 1})


@on_real_redis
@pytest.mark.timeout(120)  # takes seconds; a busy machine needs more
async def test_thousands_of_flows_that_wait_for_a_gate_block_nobody(runtime: Runtime) -> None:
    """Each CLAIM skips the first 200 flows that may not start and parks 500 others, which come back later."""
    waiting = [a_submission(tenant=f"tenant-{number}", model="m") for number in range(4_900)]
    for start in range(0, 4_900, 700):
        await asyncio.gather(*(runtime.jobs.submit(each, expires_in_s=3600) for each in waiting[start : start + 700]))
    ids = [each.id for each in waiting] + await submit_many(runtime, 3, model="n", tenant="tenant-last")
    found: list[str] = []
    for _ in range(10):  # a worker with free slots claims again at once
        found = found or await claim(runtime, m=SHUT)
    assert found == ["n"] * 3
    assert await runtime._commands.call("ZCARD", f"{redis_keys.SHARD}ready:normal") == 200
    ids.append((await submit(runtime, model="n", tenant="tenant-last")).id)
    assert sorted(await claim(runtime, m=2)) == ["m", "m", "n"]
    await assert_consistent(runtime, ids)
    await runtime._commands.call("ZADD", redis_keys.plain("parked"), 1, "gated:")  # the time to come back has passed
    for _ in range(30):
        await claim(runtime, 1)  # the gate is open
        await runtime._commands.call("ZADD", redis_keys.plain("parked"), "XX", 1, "gated:")
    assert not await runtime._commands.call("EXISTS", f"{redis_keys.SHARD}parked_flows:gated::normal")
    await assert_consistent(runtime, ids)


async def test_a_model_s_name_forges_no_chain(runtime: Runtime) -> None:
    """A job of a full route must not start because its model's name contains the name of a free route."""
    await submit(runtime, model="m>anthropic/n")
    assert await claim(runtime, **{"m>anthropic/n": SHUT, "n": 5}) == []
