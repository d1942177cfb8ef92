"""Running jobs, queued jobs and budgets: what is over them waits or is refused, and goes on when there is room."""

from typing import Any

import pytest

from shared.errors import BudgetExceeded, InvalidRequest, TooManyQueued
from shared.job import JobState, Step
from shared.limits import CallerLimits
from shared.store import keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.builders import a_batch_spec
from tests.support.limits import A_DOLLAR, KEY, TENANT, spent
from tests.support.store import (
    A_RESULT,
    all_keys,
    assert_consistent,
    claim,
    finish,
    kind_of,
    lose,
    receive,
    start_batch,
    state_of,
    submit,
    submit_many,
    ttl_ms,
)

ONE_AT_ONCE: dict[str, Any] = {"key_id": "key-1", "limits": CallerLimits(running_jobs=1)}


async def test_a_tenant_runs_so_many_at_once_and_the_rest_waits(start_runtime: Any) -> None:
    """Its own limit goes before the setting, and holds from the next claim on."""
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


async def test_a_key_runs_so_many_at_once_whatever_becomes_of_them(runtime: Runtime) -> None:
    """Other keys of its tenant go on; an end, a cancel and a death each let one more start."""
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
    # A change is heard by SUBMIT, and holds for those that wait too.
    last = await submit(runtime, key_id="key-1", limits=CallerLimits(running_jobs=2))
    assert [found.id for found in await claim(runtime, 10)] == [ids[3]]
    await assert_consistent(runtime, [*ids, *others, last.id])


async def test_items_of_a_batch_are_parked_for_their_key(runtime: Runtime) -> None:
    """They wait in flows of their key as other jobs do."""
    await start_batch(runtime, 5, key_id="key-1", key_limits=CallerLimits(running_jobs=2))
    assert len(await claim(runtime, 10)) == 2
    assert await claim(runtime, 10) == []
    await assert_consistent(runtime)


# Queued jobs


async def test_so_many_jobs_may_wait_items_of_batches_included(runtime: Runtime) -> None:
    """A batch counts whole, from its start on, and a cancel makes room."""
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


async def test_a_batch_that_stands_is_counted_before_its_items_wait(runtime: Runtime) -> None:
    """Nobody gets past the limit while its pieces are being started."""
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
    await runtime.queue.release(claims[0], reason="drained")  # what is put back may exceed it
    for found in claims[1:]:
        await runtime.queue.release(found, reason="drained")
    with pytest.raises(TooManyQueued):
        await submit(runtime, key_id="key-1", limits=limits)


async def test_counts_are_gone_when_nothing_waits(runtime: Runtime) -> None:
    """Nothing is left of a tenant that only passed by."""
    await submit_many(runtime, 3, key_id="key-1")
    for found in await claim(runtime, 3):
        await finish(runtime, found)
    assert "queued_jobs" not in {kind_of(name) for name in await all_keys(runtime.commands)}


# Budgets


@pytest.mark.parametrize("span", ["day", "month"])
@pytest.mark.parametrize("whose", ["key", "tenant"])
async def test_a_spent_budget_refuses_submits_and_parks_what_waits(runtime: Runtime, whose: str, span: str) -> None:
    """What runs goes on: the overshoot is at most that."""
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
    assert await spent(runtime, KEY) == await spent(runtime, TENANT) == [2 * A_DOLLAR] * 2  # the month, and the day
    if whose == "tenant":
        await runtime.tenants.set("tenant-a", {name: 10 * A_DOLLAR})
        assert len(await claim(runtime, 10)) == 3
    await assert_consistent(runtime, ids)


async def test_what_was_spent_is_remembered_as_long_as_it_matters(runtime: Runtime) -> None:
    """Two days, and 62: a day and a month are over by then, wherever they began."""
    await submit(runtime, key_id="key-1")
    (found,) = await claim(runtime)
    await runtime.queue.release(found, reason="drained", cost=5)
    await runtime.jobs.charge(found.id, 7)
    month, day = sorted(name for name in await all_keys(runtime.commands) if kind_of(name) == "spend" and KEY in name)
    assert [await ttl_ms(runtime, name) for name in (day, month)] == [
        pytest.approx(days * 86_400_000, abs=60_000) for days in (2, 62)
    ]
    assert await spent(runtime, KEY) == [12, 12]
    assert day == keys.spend(KEY, day.rpartition(":")[2])
    assert day.startswith(month)


# Retention


async def test_a_tenants_own_retention_goes_before_the_setting(runtime: Runtime) -> None:
    """Of results, logs and batches; everything of an ended job that holds content has an end."""
    await runtime.tenants.set("tenant-a", {"result_retention_ms": 60_000, "log_retention_ms": 5_000})
    await submit(runtime)
    (found,) = await claim(runtime)
    await finish(runtime, found)
    begun = await start_batch(runtime, 2)
    for item in await claim(runtime, 2):
        await finish(runtime, item)
    for key, most_ms in (
        (keys.job(found.id), 60_000),
        (keys.result(found.id), 60_000),
        (keys.log(found.id), 5_000),
        (keys.batch(begun.id), 60_000),
        (keys.log(begun.job_ids[0]), 5_000),
    ):
        assert 0 < (await ttl_ms(runtime, key) or 0) <= most_ms, key
    with_content = ("job", "result", "log", "batch", "batch_items", "batch_invalid", "batch_ended", "idempotency")
    for name in await all_keys(runtime.commands):
        if kind_of(name) in with_content:
            assert await ttl_ms(runtime, name) is not None, name
