"""Positions in the queue."""

import pytest

from shared.job import Priority
from shared.store.jobs import Created
from shared.store.runtime import Runtime
from tests.support.builders import a_submission, an_id
from tests.support.store import claim_one, finish, now_ms, places, submit, submit_many


async def test_the_position_is_exact_when_one_flow_waits(runtime: Runtime) -> None:
    """1 starts next; each start moves all others up."""
    ids = await submit_many(runtime, 5)
    assert await places(runtime, ids) == [1, 2, 3, 4, 5]
    await claim_one(runtime)
    assert await places(runtime, ids) == [None, 1, 2, 3, 4]


async def test_the_position_at_submit_equals_that_of_a_read(runtime: Runtime) -> None:
    """Both use the same rule."""
    for number in range(4):
        await submit(runtime, tenant=f"tenant-{number % 2}")
    submission = a_submission()
    created = await runtime.jobs.submit(submission, expires_in_s=60)
    assert isinstance(created, Created)
    assert await places(runtime, [submission.id]) == [created.position]


async def test_with_several_flows_it_is_the_sum_of_the_lesser_of_depth_and_rank(runtime: Runtime) -> None:
    """Other flows count only with the turns that they get before this job."""
    await submit_many(runtime, 100, tenant="tenant-b")
    await submit_many(runtime, 2, tenant="tenant-c")
    ours = await submit_many(runtime, 4, tenant="tenant-a")
    assert await places(runtime, ours) == [1 + 1 + 1, 2 + 2 + 2, 3 + 2 + 3, 4 + 2 + 4]


async def test_all_of_the_bands_above_count(runtime: Runtime) -> None:
    """Lower bands do not count."""
    await submit_many(runtime, 3, priority=Priority.HIGH)
    await submit_many(runtime, 5, priority=Priority.LOW)
    normal = await submit(runtime)
    assert await places(runtime, [normal.id]) == [4]


async def test_past_a_hundred_flows_the_sum_is_scaled_up(runtime: Runtime) -> None:
    """It estimates all flows, not only the hundred that were counted."""
    for number in range(150):
        await submit(runtime, tenant=f"tenant-{number:03d}")
    last = await submit(runtime, tenant="tenant-zzz")
    assert await places(runtime, [last.id]) == [pytest.approx(151, abs=2)]


async def test_what_does_not_wait_in_a_flow_has_no_position(runtime: Runtime) -> None:
    """Jobs that run, have ended, are not due or are unknown."""
    ended = await submit(runtime)
    await finish(runtime, await claim_one(runtime))
    running = await submit(runtime)
    await claim_one(runtime)
    deferred = await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)
    assert await places(runtime, [ended.id, running.id, deferred.id, an_id()]) == [None] * 4
    assert await places(runtime, []) == []
