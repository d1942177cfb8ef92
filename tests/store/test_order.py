"""The order in which jobs start: fair between tenants, by place within a flow, by band between bands."""

from collections import Counter

import pytest

from shared.job import Priority
from shared.store import redis_keys
from shared.store.queue import ALONE_TAKEOVERS, SUSPECT_TAKEOVERS
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    all_keys,
    assert_consistent,
    claim,
    claim_one,
    confirm,
    expire_leases,
    finish,
    kind_of,
    lose,
    make_due,
    members,
    now_ms,
    submit,
    submit_many,
)


@pytest.fixture
def many(redis_under_test: RedisUnderTest) -> int:
    """The length of a long queue: as many jobs as each kind of Redis can store in a second."""
    return 2000 if redis_under_test.is_real else 150


async def test_one_tenants_jobs_start_in_the_order_they_came(runtime: Runtime) -> None:
    """However many are claimed at once."""
    ids = await submit_many(runtime, 20)
    started = [found.id for size in (1, 3, 7, 20) for found in await claim(runtime, size)]
    assert started == ids


async def test_a_tenant_with_a_long_queue_delays_another_by_one_slot(runtime: Runtime, many: int) -> None:
    """Thousands wait and one arrives: it is among the next two."""
    await submit_many(runtime, many, tenant="tenant-a")
    await claim(runtime, 5)
    late = await submit(runtime, tenant="tenant-b")
    assert late.id in [found.id for found in await claim(runtime, 2)]


async def test_jobs_that_were_put_back_delay_others_by_at_most_one_slot(runtime: Runtime, many: int) -> None:
    """A worker drains and hands back all of one tenant's jobs."""
    await submit_many(runtime, many, tenant="tenant-a")
    for claimed in await claim(runtime, min(500, many)):
        assert await runtime.queue.release(claimed, reason="drained")
    late = await submit(runtime, tenant="tenant-b")
    assert late.id in [found.id for found in await claim(runtime, 2)]


async def test_jobs_of_a_dead_worker_delay_others_by_at_most_one_slot(runtime: Runtime) -> None:
    """A worker dies with a hundred jobs of one tenant, which all return to their old places."""
    ids = await submit_many(runtime, 100, tenant="tenant-a")
    await claim(runtime, 100)
    await expire_leases(runtime, *ids)
    assert sorted((await runtime.queue.reap()).back) == sorted(ids)
    late = await submit(runtime, tenant="tenant-b")
    assert late.id in [found.id for found in await claim(runtime, 2)]


async def test_jobs_that_become_due_together_delay_others_by_at_most_one_slot(runtime: Runtime) -> None:
    """A hundred of one tenant's jobs were deferred to the same moment."""
    later_ms = await now_ms(runtime) + 3_600_000
    ids = await submit_many(runtime, 100, tenant="tenant-a", not_before_ms=later_ms)
    late = await submit(runtime, tenant="tenant-b")
    await make_due(runtime, *ids)
    assert late.id in [found.id for found in await claim(runtime, 2)]


async def test_tenants_with_work_take_turns(runtime: Runtime) -> None:
    """Three tenants with very different numbers of jobs get equal shares."""
    for tenant, count in (("tenant-a", 90), ("tenant-b", 45), ("tenant-c", 30)):
        await submit_many(runtime, count, tenant=tenant)
    shares = Counter(found.tenant for found in await claim(runtime, 60))
    assert shares == {"tenant-a": 20, "tenant-b": 20, "tenant-c": 20}


async def test_an_idle_tenant_does_not_save_turns(runtime: Runtime) -> None:
    """It gets its share from now on, but does not catch up."""
    await submit_many(runtime, 80, tenant="tenant-a")
    await claim(runtime, 30)
    await submit_many(runtime, 40, tenant="tenant-b")
    shares = Counter(found.tenant for found in await claim(runtime, 20))
    assert shares == {"tenant-a": 10, "tenant-b": 10}


async def test_a_queue_that_drains_and_refills_gains_nothing(runtime: Runtime) -> None:
    """A tenant with one job at a time does not overtake one with many: its last tag is kept."""
    await submit_many(runtime, 60, tenant="tenant-b")
    turns = []
    await submit(runtime, tenant="tenant-a")
    for _ in range(40):
        claimed = await claim_one(runtime)
        turns.append(claimed.tenant)
        if claimed.tenant == "tenant-a":
            await submit(runtime, tenant="tenant-a")
    assert Counter(turns) == {"tenant-a": 20, "tenant-b": 20}


async def test_cancelling_and_submitting_again_gains_nothing(runtime: Runtime) -> None:
    """Leaving the queue does not clear the used turns."""
    await submit_many(runtime, 20, tenant="tenant-b")
    turns = []
    for _ in range(10):
        waiting = await submit(runtime, tenant="tenant-a")
        await runtime.jobs.cancel(waiting.id, "tenant-a")
        await submit(runtime, tenant="tenant-a")
        turns.append((await claim_one(runtime)).tenant)
    assert Counter(turns) == {"tenant-a": 5, "tenant-b": 5}


async def test_flows_that_were_never_served_leave_nothing(runtime: Runtime) -> None:
    """Jobs of a thousand models are submitted and cancelled without a worker: no tag is kept."""
    for number in range(30):
        waiting = await submit(runtime, model=f"model-{number}")
        await runtime.jobs.cancel(waiting.id, "tenant-a")
    left = Counter(kind_of(name) for name in await all_keys(runtime._commands))
    of_tenant = {"index": 1, "labels": 1, "held_bytes": 1, "kept_bytes": 1, "kept_due": 1}
    assert left == {"job": 30, "places": 1, "ended": 1, **of_tenant}


async def test_tags_before_the_clock_are_dropped(runtime: Runtime) -> None:
    """Tenants without waiting jobs need as little memory as possible."""
    for number in range(10):
        await submit(runtime, tenant=f"tenant-{number}")
    await claim(runtime, 10)
    await submit_many(runtime, 3)
    await claim(runtime, 3)
    assert await runtime._commands.call("ZCARD", f"{redis_keys.SHARD}turns:normal") == 1


async def test_a_higher_band_starts_first(runtime: Runtime) -> None:
    """Whichever job came first."""
    low = await submit(runtime, priority=Priority.LOW)
    normal = await submit(runtime, priority=Priority.NORMAL)
    high = await submit(runtime, priority=Priority.HIGH)
    assert [found.id for found in await claim(runtime, 3)] == [high.id, normal.id, low.id]


@pytest.mark.parametrize(
    ("upper", "lower"),
    [(Priority.HIGH, Priority.NORMAL), (Priority.HIGH, Priority.LOW), (Priority.NORMAL, Priority.LOW)],
)
async def test_one_start_in_eight_is_of_the_next_lower_band(runtime: Runtime, upper: Priority, lower: Priority) -> None:
    """So that a busy band never starves the one below it."""
    await submit_many(runtime, 60, priority=upper)
    await submit_many(runtime, 10, priority=lower)
    shares = Counter(found.spec.priority for found in await claim(runtime, 56))
    assert shares == {upper: 49, lower: 7}


async def test_a_worker_keeps_slots_from_batch_items(runtime: Runtime) -> None:
    """``low_count`` bounds the low jobs that it claims, even if nothing else waits."""
    await submit_many(runtime, 10, priority=Priority.LOW)
    assert len(await claim(runtime, 5, low_count=2)) == 2
    assert await claim(runtime, 5, low_count=0) == []
    await submit(runtime)
    shares = Counter(found.spec.priority for found in await claim(runtime, 5, low_count=1))
    assert shares == {Priority.NORMAL: 1, Priority.LOW: 1}


async def test_a_tenant_at_its_limit_is_passed_over(start_runtime: StartRuntime) -> None:
    """Over all workers and bands; each job that ends makes room for one; other tenants are not affected."""
    runtime = await start_runtime(tenant_running_jobs=3)
    await submit_many(runtime, 4, tenant="tenant-a", priority=Priority.HIGH)
    await submit_many(runtime, 4, tenant="tenant-a")
    await submit_many(runtime, 2, tenant="tenant-b")
    claims = [*await claim(runtime, 2, worker="worker-1"), *await claim(runtime, 10, worker="worker-2")]
    assert Counter(found.tenant for found in claims) == {"tenant-a": 3, "tenant-b": 2}
    assert await claim(runtime, 10) == []

    await finish(runtime, next(found for found in claims if found.tenant == "tenant-a"))
    assert [found.tenant for found in await claim(runtime, 10)] == ["tenant-a"]


@pytest.mark.parametrize("how", ["cancelled", "released", "reaped"])
async def test_every_way_to_stop_running_makes_room_for_the_tenant(start_runtime: StartRuntime, how: str) -> None:
    """The tenant's running set is exact."""
    runtime = await start_runtime(tenant_running_jobs=1)
    ids = await submit_many(runtime, 2)
    claimed = await claim_one(runtime)
    assert await claim(runtime) == []
    if how == "cancelled":
        await runtime.jobs.cancel(claimed.id, claimed.tenant)
    elif how == "released":
        await runtime.queue.release(claimed, reason="upstream_failed", delay_s=60)
    else:
        await lose(runtime, claimed)
    assert len(await claim(runtime)) == 1
    await assert_consistent(runtime, ids)


async def test_being_passed_over_costs_no_turn(start_runtime: StartRuntime) -> None:
    """A tenant at its limit keeps its place in the order of flows; serving it late does not set the clock back."""
    runtime = await start_runtime(tenant_running_jobs=1)
    await submit_many(runtime, 3, tenant="tenant-a")
    first = await claim_one(runtime)
    await submit_many(runtime, 10, tenant="tenant-b")
    for _ in range(3):
        await finish(runtime, await claim_one(runtime))
    await finish(runtime, first)
    clock = int(await runtime._commands.call("GET", f"{redis_keys.SHARD}clock:normal"))
    assert (await claim_one(runtime)).tenant == "tenant-a"
    assert int(await runtime._commands.call("GET", f"{redis_keys.SHARD}clock:normal")) >= clock > 1


async def _suspects(runtime: Runtime, count: int) -> list[str]:
    """Jobs that lost their workers together, often enough that each must run apart."""
    ids = await submit_many(runtime, count)
    for _ in range(ALONE_TAKEOVERS):
        for claimed in await claim(runtime, count):
            await confirm(runtime, claimed)
        await expire_leases(runtime, *ids)
        assert (await runtime.queue.reap()).back == ids
    return ids


async def _lone_suspect(runtime: Runtime) -> list[str]:
    suspect, other = await _suspects(runtime, 2)
    await runtime.jobs.cancel(other, "tenant-a")
    return [suspect]


async def test_suspects_start_together_until_they_died_together(runtime: Runtime) -> None:
    """Jobs that lost two workers by chance do not wait for each other."""
    ids = await submit_many(runtime, 20)
    for _ in range(SUSPECT_TAKEOVERS):
        for claimed in await claim(runtime, 20):
            await confirm(runtime, claimed)
        await expire_leases(runtime, *ids)
        assert (await runtime.queue.reap()).back == ids
    assert len(await claim(runtime, 20, takes_suspect=False)) == 20


async def test_a_worker_runs_at_most_one_suspect(runtime: Runtime) -> None:
    """Jobs that lost a worker together run apart afterwards, so the next death shows which of them was the cause."""
    one, other = await _suspects(runtime, 2)
    harmless = await submit(runtime)
    assert [found.id for found in await claim(runtime, 10, takes_suspect=True)] == [one, harmless.id]
    assert await claim(runtime, 10, takes_suspect=False) == []
    (found,) = await claim(runtime, 10, worker="worker-2", takes_suspect=True)
    assert (found.id, found.takeovers) == (other, ALONE_TAKEOVERS)


async def test_a_suspect_does_not_delay_jobs_after_it(runtime: Runtime) -> None:
    """A worker that may not claim it skips it, in the same flow and in others."""
    (suspect,) = await _lone_suspect(runtime)
    same_flow = await submit(runtime)
    other_flow = await submit(runtime, tenant="tenant-b")
    started = {found.id for found in await claim(runtime, 10, takes_suspect=False)}
    assert started == {same_flow.id, other_flow.id}
    assert [found.id for found in await claim(runtime, 10, takes_suspect=True)] == [suspect]


async def test_a_suspect_alone_in_its_flow_does_not_delay_other_flows(runtime: Runtime) -> None:
    """Its flow is the next in turn, but has no other job."""
    await _lone_suspect(runtime)
    earlier, later = await submit_many(runtime, 2, tenant="tenant-z")
    assert [found.id for found in await claim(runtime, 1, takes_suspect=False)] == [earlier]
    first_flow, second_flow = await members(runtime, f"{redis_keys.SHARD}ready:normal")
    assert ("tenant-a" in first_flow, "tenant-z" in second_flow) == (True, True)
    assert [found.id for found in await claim(runtime, 1, takes_suspect=False)] == [later]


async def test_a_tenant_with_many_models_delays_another_by_one_slot(runtime: Runtime) -> None:
    """Using more models gives no more turns."""
    for number in range(30):
        await submit(runtime, tenant="tenant-a", model=f"model-{number}")
    await claim(runtime, 2)
    late = await submit(runtime, tenant="tenant-b")
    assert late.id in [found.id for found in await claim(runtime, 2)]


async def test_a_tenant_with_many_models_is_not_set_back_either(runtime: Runtime) -> None:
    """Two tenants, one with thirty models and one with one, take turns."""
    for number in range(30):
        await submit(runtime, tenant="tenant-a", model=f"model-{number}")
    others = set(await submit_many(runtime, 30, tenant="tenant-b"))
    first = [found.id for found in await claim(runtime, 40)]
    assert 19 <= len(others.intersection(first)) <= 21


async def test_turns_that_were_not_used_are_given_back(runtime: Runtime) -> None:
    """A tenant that cancels waiting jobs does not wait longer because of them."""
    for number in range(20):
        gone = await submit(runtime, tenant="tenant-a", model=f"model-{number}")
        await runtime.jobs.cancel(gone.id, "tenant-a")
    mine = await submit(runtime, tenant="tenant-a")
    await submit_many(runtime, 20, tenant="tenant-b")
    assert mine.id in [found.id for found in await claim(runtime, 2)]
