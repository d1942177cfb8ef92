"""Limits of running jobs, queued jobs and budgets: an excess job waits or is refused, and runs when there is room."""

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest

from shared.errors import BudgetExceeded, InvalidRequest, TooManyQueued
from shared.job import JobState, Step
from shared.limits import CallerLimits
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime, open_runtime
from tests.support.builders import a_batch_spec, a_line, a_submission
from tests.support.limits import A_DOLLAR, KEY, TENANT, spent
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    A_RESULT,
    all_keys,
    assert_consistent,
    claim,
    claim_one,
    finish,
    kind_of,
    lose,
    now_ms,
    places,
    receive,
    start_batch,
    state_of,
    submit,
    submit_many,
    ttl_ms,
)

ONE_AT_ONCE: dict[str, Any] = {"key_id": "key-1", "limits": CallerLimits(running_jobs=1)}


async def test_a_tenant_runs_up_to_its_limit_and_the_rest_waits(start_runtime: Any) -> None:
    """Its own limit overrides the setting, and applies from the next claim on."""
    runtime = await start_runtime(tenant_running_jobs=1)
    await runtime.tenants.set("tenant-a", {"running_jobs": 2})
    own = await submit_many(runtime, 5)
    other = await submit_many(runtime, 3, tenant="tenant-b")
    claims = await claim(runtime, 10)
    assert sorted(found.tenant for found in claims) == ["tenant-a", "tenant-a", "tenant-b"]
    assert await claim(runtime, 10) == []
    await finish(runtime, claims[0])
    assert len(await claim(runtime, 10)) == 1
    await runtime.tenants.set("tenant-a", {"running_jobs": 0})
    await runtime.tenants.set("tenant-b", {"running_jobs": 9})
    left = await claim(runtime, 10)
    assert {found.id for found in left if found.tenant == "tenant-b"} <= set(other)
    assert len([found for found in left if found.tenant == "tenant-b"]) == 2
    await assert_consistent(runtime, [*own, *other])


async def test_a_key_runs_up_to_its_limit_however_its_jobs_end(runtime: Runtime) -> None:
    """Other keys of its tenant go on. An end, a cancel and a worker's death each let one more job start."""
    ids = await submit_many(runtime, 4, **ONE_AT_ONCE)
    others = await submit_many(runtime, 2, key_id="key-2")
    claims = await claim(runtime, 10)
    assert {found.id for found in claims} == {ids[0], *others}
    held = next(found for found in claims if found.id == ids[0])
    await finish(runtime, held)
    (second,) = await claim(runtime, 10)
    await runtime.jobs.cancel(second.id, "tenant-a")
    (third,) = await claim(runtime, 10)
    await lose(runtime, third)
    (again,) = await claim(runtime, 10)
    assert (again.id, await claim(runtime, 10)) == (third.id, [])
    # SUBMIT brings a changed limit, which applies to waiting jobs too.
    last = await submit(runtime, key_id="key-1", limits=CallerLimits(running_jobs=2))
    assert [found.id for found in await claim(runtime, 10)] == [ids[3]]
    await assert_consistent(runtime, [*ids, *others, last.id])


async def test_items_of_a_batch_are_parked_for_their_key(runtime: Runtime) -> None:
    """They wait in flows of their key like other jobs."""
    await start_batch(runtime, 5, key_id="key-1", key_limits=CallerLimits(running_jobs=2))
    assert len(await claim(runtime, 10)) == 2
    assert await claim(runtime, 10) == []
    await assert_consistent(runtime)


async def test_thousands_of_parked_flows_block_nobody(real_redis: RedisUnderTest) -> None:
    """A tenant over its limit has a job for each of 5,500 models, all with earlier tags than the others' jobs."""
    async with open_runtime(load_settings(redis_url=real_redis.url), process_name="tests", timeout_s=10) as runtime:
        await runtime.tenants.set("tenant-a", {"running_jobs": 1})
        for start in range(0, 5500, 500):
            calls = [
                runtime.jobs.submit(a_submission(model=f"model-{number}"), expires_in_s=3600)
                for number in range(start, start + 500)
            ]
            await asyncio.gather(*calls)
        await runtime._commands.call("SET", f"{redis_keys.SHARD}clock:normal", 10_000)
        other = await submit(runtime, tenant="tenant-b")
        assert await asyncio.wait_for(_claimed_by(runtime, "tenant-b"), 10) == other.id
        assert await runtime._commands.call("ZCARD", f"{redis_keys.SHARD}ready:normal") == 0  # CLAIM reads none of them


async def _claimed_by(runtime: Runtime, tenant: str) -> str:
    """Claims as a worker with free slots does: as long as CLAIM says to come again at once."""
    while True:
        for found in await claim(runtime, 5):
            if found.tenant == tenant:
                return found.id


async def test_what_was_parked_comes_back_one_turn_at_a_time(runtime: Runtime) -> None:
    """A tenant that waited with thirty models has not saved thirty turns."""
    await runtime.tenants.set("tenant-a", {"running_jobs": 1})
    ids = [(await submit(runtime, model=f"model-{number}")).id for number in range(30)]
    ids += await submit_many(runtime, 100, tenant="tenant-b")
    await claim(runtime, 40)
    await runtime.tenants.set("tenant-a", {"running_jobs": 0})
    shares = Counter(found.tenant for found in await claim(runtime, 20))
    assert 9 <= shares["tenant-a"] <= 11  # the tenant with the first turn may get one more
    await assert_consistent(runtime, ids)


async def test_a_tenant_that_is_parked_repeatedly_keeps_its_share(runtime: Runtime) -> None:
    """With one job at a time for many models it takes turns with a tenant that has a hundred waiting."""
    await runtime.tenants.set("tenant-a", {"running_jobs": 1})
    for number in range(30):
        await submit(runtime, model=f"model-{number}")
    await submit_many(runtime, 100, tenant="tenant-b")
    turns: Counter[str] = Counter()
    while turns.total() < 40:
        claimed = await claim_one(runtime)
        turns[claimed.tenant] += 1
        await finish(runtime, claimed)
    assert turns == {"tenant-a": 20, "tenant-b": 20}


async def test_parked_jobs_have_a_place_and_can_be_cancelled(runtime: Runtime) -> None:
    """They delay nobody, and leave nothing."""
    ids = await submit_many(runtime, 4, **ONE_AT_ONCE)
    (held,) = await claim(runtime, 10)
    other = await submit(runtime, tenant="tenant-b")
    assert await places(runtime, [*ids[1:], other.id]) == [2, 3, 4, 1]
    late = await submit(runtime, **ONE_AT_ONCE)  # its flow is parked
    await assert_consistent(runtime, [*ids, other.id, late.id])
    for job_id in (*ids[1:], late.id):
        await runtime.jobs.cancel(job_id, "tenant-a")
    await runtime.jobs.cancel(other.id, "tenant-b")
    await finish(runtime, held)
    assert await claim(runtime, 10) == []
    left = {kind_of(name) for name in await all_keys(runtime._commands)}
    assert not left & {"flow", "ready", "parked", "parked_flows"}


async def test_a_parked_owner_is_checked_again_without_an_event(runtime: Runtime) -> None:
    """On a new day its budget is full again, but no script runs then."""
    ids = await submit_many(runtime, 2, key_id="key-1", limits=CallerLimits(nano_usd_per_day=A_DOLLAR))
    (first,) = await claim(runtime)
    await runtime.queue.finish(first, Ending(Step.SUCCEED, A_RESULT), seq=first.next_seq, cost=A_DOLLAR)
    _, waits_s = await runtime.queue.claim("worker-1", count=10, low_count=10, takes_suspect=True)
    assert waits_s is not None
    assert 0 < waits_s <= 10
    for name in await all_keys(runtime._commands):
        if kind_of(name) == "spend":
            await runtime._commands.call("DEL", name)
    assert await claim(runtime, 10) == []
    await runtime._commands.call("ZADD", redis_keys.plain("parked"), "XX", await now_ms(runtime) - 1, KEY)
    assert [found.id for found in await claim(runtime, 10)] == ids[1:]


# Queued jobs


async def test_the_limit_of_waiting_jobs_includes_items_of_batches(runtime: Runtime) -> None:
    """A batch counts completely from its start on, and a cancel makes room."""
    await runtime.tenants.set("tenant-a", {"queued_jobs": 5})
    begun = await start_batch(runtime, 3)
    first = await submit(runtime)
    with pytest.raises(TooManyQueued) as refused:
        await start_batch(runtime, 2)
    assert refused.value.retry_after_s == 5
    assert [(state.measured, state.limit, state.remaining, state.reset_ms) for state in refused.value.limits] == [
        ("queued_jobs", 5, 1, None)
    ]
    second = await submit(runtime)
    with pytest.raises(TooManyQueued):
        await submit(runtime)
    await runtime.jobs.cancel(first.id, "tenant-a")
    third = await submit(runtime)
    await runtime.batches.cancel(begun.id, "tenant-a")
    await runtime.batches.advance_all(begun.id)
    await start_batch(runtime, 2)
    await assert_consistent(runtime, [first.id, second.id, third.id])


async def test_a_started_batch_is_counted_before_its_items_wait(runtime: Runtime) -> None:
    """Nobody can exceed the limit while its items are queued portion by portion."""
    limits = CallerLimits(queued_jobs=4)
    with pytest.raises(InvalidRequest):
        await receive(runtime, 5, key_id="key-1", key_limits=limits)
    begun = await receive(runtime, 4, key_id="key-1", key_limits=limits)
    await runtime.batches.start(begun.id, "tenant-a", a_batch_spec(key_id="key-1"), expires_in_s=60, key_limits=limits)
    with pytest.raises(TooManyQueued):
        await submit(runtime, key_id="key-1", limits=limits)
    await runtime.batches.advance_all(begun.id)
    claims = await claim(runtime, 4)
    await submit(runtime, key_id="key-1", limits=limits)
    await runtime.queue.release(claims[0], reason="drained")  # a job that is put back may exceed the limit
    for found in claims[1:]:
        await runtime.queue.release(found, reason="drained")
    with pytest.raises(TooManyQueued):
        await submit(runtime, key_id="key-1", limits=limits)


async def test_counts_are_gone_when_nothing_waits(runtime: Runtime) -> None:
    """A tenant whose jobs are gone leaves no counters."""
    await submit_many(runtime, 3, key_id="key-1")
    for found in await claim(runtime, 3):
        await finish(runtime, found)
    assert "queued_jobs" not in {kind_of(name) for name in await all_keys(runtime._commands)}


# Budgets


@pytest.mark.parametrize("span", ["day", "month"])
@pytest.mark.parametrize("whose", ["key", "tenant"])
async def test_a_spent_budget_refuses_submits_and_parks_what_waits(runtime: Runtime, whose: str, span: str) -> None:
    """Running jobs go on, so the overshoot is at most their cost."""
    name = f"nano_usd_per_{span}"
    members: dict[str, Any] = {"key_id": "key-1"}
    if whose == "key":
        members["limits"] = CallerLimits(**{name: A_DOLLAR})
    else:
        await runtime.tenants.set("tenant-a", {name: A_DOLLAR})
    ids = await submit_many(runtime, 5, **members)
    running = await claim(runtime, 2)
    for found in running:
        await runtime.queue.finish(found, Ending(Step.SUCCEED, A_RESULT), seq=found.next_seq, cost=A_DOLLAR)
    assert await claim(runtime, 10) == []
    assert [await state_of(runtime, job_id) for job_id in ids[2:]] == [JobState.QUEUED] * 3
    with pytest.raises(BudgetExceeded) as refused:
        await submit(runtime, **members)
    longest_s = 86_400 if span == "day" else 31 * 86_400
    assert 0 < (refused.value.retry_after_s or 0) <= longest_s
    assert (
        await spent(runtime, KEY) == await spent(runtime, TENANT) == [2 * A_DOLLAR] * 2
    )  # of the month and of the day
    if whose == "tenant":
        await runtime.tenants.set("tenant-a", {name: 10 * A_DOLLAR})
        assert len(await claim(runtime, 10)) == 3
    await assert_consistent(runtime, ids)


PRICED: dict[str, Any] = {"model": "claude-sonnet-4-6", "tokens": 100_000, "max_tokens": 100_000}
"""Costs at most 1.50 USD for its output."""


@pytest.mark.parametrize("whose", ["key", "tenant"])
async def test_a_budget_is_exceeded_by_one_job_at_most(runtime: Runtime, whose: str) -> None:
    """The most that a running job may cost is reserved until its cost is known."""
    members = {"key_id": "key-1", **PRICED}
    if whose == "key":
        members["limits"] = CallerLimits(nano_usd_per_day=A_DOLLAR // 100)
    else:
        await runtime.tenants.set("tenant-a", {"nano_usd_per_month": A_DOLLAR // 100})
    ids = await submit_many(runtime, 60, **members)
    (running,) = await claim(runtime, 60)
    await assert_consistent(runtime, ids)
    assert await claim(runtime, 60) == []
    await runtime.queue.finish(running, Ending(Step.SUCCEED, A_RESULT), seq=running.next_seq, cost=1)
    (running,) = await claim(runtime, 60)  # the job was cheap, so there is room for another
    await runtime.queue.finish(running, Ending(Step.SUCCEED, A_RESULT), seq=running.next_seq, cost=A_DOLLAR // 100)
    assert await claim(runtime, 60) == []
    await assert_consistent(runtime, ids)


async def test_a_budget_runs_as_many_jobs_as_it_can_pay(runtime: Runtime) -> None:
    """With 4 dollars three jobs run, as three may cost more than that. However one ends, another one starts."""
    members = {"key_id": "key-1", "limits": CallerLimits(nano_usd_per_day=4 * A_DOLLAR), **PRICED}
    ids = await submit_many(runtime, 8, **members)
    first, second, third = await claim(runtime, 60)
    await lose(runtime, first)
    assert [found.id for found in await claim(runtime, 60)] == [first.id]
    await runtime.jobs.cancel(second.id, "tenant-a")
    await runtime.queue.release(third, reason="upstream_failed")
    assert len(await claim(runtime, 60)) == 2
    await assert_consistent(runtime, ids)


async def test_items_of_a_batch_reserve_a_budget_too(runtime: Runtime) -> None:
    """They reserve by what their requests ask for."""
    request = msgspec.json.encode({"model": "claude-sonnet-4-6", "max_tokens": 100_000, "messages": []})
    items = [a_line(line, model="claude-sonnet-4-6", request=request) for line in range(1, 4)]
    await start_batch(runtime, items, key_id="key-1", key_limits=CallerLimits(nano_usd_per_day=A_DOLLAR))
    assert len(await claim(runtime, 10)) == 1
    await assert_consistent(runtime)


async def test_a_model_without_a_price_reserves_nothing(runtime: Runtime) -> None:
    """Its cost is unknown, and nothing is charged for it either."""
    limits = CallerLimits(nano_usd_per_day=1)
    await submit_many(runtime, 5, key_id="key-1", limits=limits, model="unknown", tokens=9, max_tokens=9)
    assert len(await claim(runtime, 10)) == 5


@pytest.mark.parametrize("epoch_told", [True, False])
async def test_a_cancelled_and_erased_job_is_still_charged(runtime: Runtime, epoch_told: bool) -> None:
    """A call that ends, or is found lost, after its job was erased is charged to the tenant and the key."""
    limits = CallerLimits(nano_usd_per_day=A_DOLLAR)
    await submit(runtime, key_id="key-1", limits=limits)
    (found,) = await claim(runtime)
    await runtime.jobs.cancel(found.id, "tenant-a")
    await runtime.jobs.erase(found.id, "tenant-a")
    await runtime.jobs.charge(
        found.id, A_DOLLAR, tenant="tenant-a", key_id="key-1", epoch=found.epoch if epoch_told else 0
    )
    assert await spent(runtime, KEY) == await spent(runtime, TENANT) == [A_DOLLAR] * 2
    with pytest.raises(BudgetExceeded):
        await submit(runtime, key_id="key-1", limits=limits)
    assert not await runtime._commands.call("EXISTS", redis_keys.job(found.id))


async def test_the_limits_of_a_key_are_known_as_long_as_its_jobs_wait(runtime: Runtime) -> None:
    """The jobs are due in sixty days, and the key submits nothing meanwhile."""
    in_sixty_days_ms = await now_ms(runtime) + 60 * 86_400_000
    for _ in range(2):
        await submit(runtime, not_before_ms=in_sixty_days_ms, **ONE_AT_ONCE)
    await submit(runtime, **ONE_AT_ONCE)
    await submit(runtime, key_id="key-1", limits=CallerLimits(running_jobs=2))
    assert (await ttl_ms(runtime, f"{redis_keys.SHARD}key_limits:key-1") or 0) > 60 * 86_400_000


async def test_what_was_spent_is_remembered_as_long_as_it_matters(runtime: Runtime) -> None:
    """For two days and for 62 days: by then a day or a month is over, in every time zone."""
    await submit(runtime, key_id="key-1")
    (found,) = await claim(runtime)
    await runtime.queue.release(found, reason="drained", cost=5)
    await runtime.jobs.charge(found.id, 7, tenant="tenant-a")
    month, day = sorted(name for name in await all_keys(runtime._commands) if kind_of(name) == "spend" and KEY in name)
    assert [await ttl_ms(runtime, name) for name in (day, month)] == [
        pytest.approx(days * 86_400_000, abs=60_000) for days in (2, 62)
    ]
    assert await spent(runtime, KEY) == [12, 12]
    assert day == redis_keys.spend(KEY, day.rpartition(":")[2])
    assert day.startswith(month)


# Retention


async def test_a_log_goes_with_its_result_at_the_latest(start_runtime: Any) -> None:
    """It holds the same answer, and could not be erased after its job is gone."""
    runtime = await start_runtime(result_retention_s=600)
    await runtime.tenants.set("tenant-b", {"log_retention_ms": 30 * 86_400_000})
    for tenant in ("tenant-a", "tenant-b"):
        await submit(runtime, tenant=tenant)
    for found in await claim(runtime, 2):
        await finish(runtime, found)
        assert 0 < (await ttl_ms(runtime, redis_keys.log(found.id)) or 0) <= 600_000


async def test_a_tenants_own_retention_overrides_the_setting(runtime: Runtime) -> None:
    """For results, logs and batches. Everything of an ended job that holds content has a TTL."""
    await runtime.tenants.set("tenant-a", {"result_retention_ms": 60_000, "log_retention_ms": 5_000})
    await submit(runtime)
    (found,) = await claim(runtime)
    await finish(runtime, found)
    begun = await start_batch(runtime, 2)
    for item in await claim(runtime, 2):
        await finish(runtime, item)
    for key, most_ms in (
        (redis_keys.job(found.id), 60_000),
        (redis_keys.result(found.id), 60_000),
        (redis_keys.log(found.id), 5_000),
        (redis_keys.batch(begun.id), 60_000),
        (redis_keys.log(begun.job_ids[0]), 5_000),
    ):
        assert 0 < (await ttl_ms(runtime, key) or 0) <= most_ms, key
    with_content = ("job", "result", "log", "batch", "batch_items", "batch_invalid", "batch_ended", "idempotency")
    for name in await all_keys(runtime._commands):
        if kind_of(name) in with_content:
            assert await ttl_ms(runtime, name) is not None, name
