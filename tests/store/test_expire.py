"""EXPIRE ends jobs that waited too long, without a worker: ``expired`` if they never started, else by their timeout."""

import pytest

from shared.job import JobState
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.support.redis_servers import on_real_redis
from tests.support.store import (
    assert_consistent,
    claim_one,
    job_of,
    listening,
    lose,
    make_overdue,
    names_in_log,
    now_ms,
    start,
    state_of,
    submit,
    submit_many,
    ttl_ms,
)


async def test_a_job_that_never_started_expires(runtime: Runtime) -> None:
    """With its terminal event on the channel, and its lifetime from now."""
    submission = await submit(runtime)
    async with listening(runtime, redis_keys.events(submission.id)) as heard:
        await make_overdue(runtime, submission.id)
        ended, next_s = await runtime.jobs.expire()
        assert (ended, next_s) == (1, None)
        (event,) = await heard.events()
    job = await job_of(runtime, submission.id)
    assert (job.state, job.error, job.end_id) == (JobState.EXPIRED, None, str(event.id))
    assert event.name == "expired"
    assert await ttl_ms(runtime, redis_keys.job(submission.id)) is not None
    await assert_consistent(runtime, [submission.id])


@pytest.mark.parametrize("how", ["put back", "deferred", "taken from the dead"])
async def test_a_job_that_had_started_has_timed_out(runtime: Runtime, how: str) -> None:
    """``failed``, code ``timeout``, with the end in its log."""
    claimed = await start(runtime)
    if how == "put back":
        await runtime.queue.release(claimed, reason="drained")
    elif how == "deferred":
        await runtime.queue.release(claimed, reason="upstream_failed", delay_s=60)
    else:
        await lose(runtime, claimed)
    await make_overdue(runtime, claimed.id)
    assert (await runtime.jobs.expire())[0] == 1
    job = await job_of(runtime, claimed.id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("timeout", True)
    assert await names_in_log(runtime, claimed.id) == ["started", "failed"]
    assert str((await runtime.log.read(claimed.id))[-1].id) == job.end_id
    await assert_consistent(runtime, [claimed.id])


async def test_a_running_job_does_not_expire(runtime: Runtime) -> None:
    """Its worker ends it; ``expires_in_s`` is for what never started."""
    claimed = await start(runtime, expires_in_s=1)
    await make_overdue(runtime, claimed.id)
    assert (await runtime.jobs.expire())[0] == 0
    assert await state_of(runtime, claimed.id) is JobState.RUNNING


async def test_what_has_time_left_stays_and_the_caller_learns_when_to_come_again(runtime: Runtime) -> None:
    """The earliest end of all that wait."""
    await submit(runtime, expires_in_s=100)
    await submit(runtime, expires_in_s=30)
    ended, next_s = await runtime.jobs.expire()
    assert ended == 0
    assert next_s == pytest.approx(30, abs=5)


async def test_a_job_deferred_past_its_expiry_cannot_be(runtime: Runtime) -> None:
    """``expires_in_s`` counts from ``not_before``."""
    due_ms = await now_ms(runtime) + 50_000
    await submit(runtime, not_before_ms=due_ms, expires_in_s=10)
    _, next_s = await runtime.jobs.expire()
    assert next_s == pytest.approx(60, abs=5)


@on_real_redis
async def test_a_great_many_expire_in_portions(runtime: Runtime) -> None:
    """200 a call, and the caller is asked to come again at once."""
    ids = await submit_many(runtime, 250)
    await make_overdue(runtime, *ids)
    assert await runtime.jobs.expire() == (200, 0)
    assert await runtime.jobs.expire() == (50, None)
    await assert_consistent(runtime, ids)


@pytest.mark.parametrize("how", ["get", "get_many", "list"])
async def test_reading_an_overdue_job_ends_it_first(runtime: Runtime, how: str) -> None:
    """Nobody sees ``queued`` after the time is over, whatever loop was late."""
    submission = await submit(runtime)
    await make_overdue(runtime, submission.id)
    if how == "get":
        found = await runtime.jobs.get(submission.id, "tenant-a")
    elif how == "get_many":
        (first,) = await runtime.jobs.get_many([submission.id], "tenant-a")
        assert first is not None
        found = first
    else:
        (found,) = (await runtime.jobs.list("tenant-a", after=None, limit=5)).jobs
    assert found.state is JobState.EXPIRED
    assert found.end_id is not None


async def test_a_read_shortly_before_the_end_does_not_end_it(runtime: Runtime) -> None:
    """Our clock only says when to ask; Redis's decides."""
    submission = await submit(runtime, expires_in_s=4)
    assert (await runtime.jobs.get(submission.id, "tenant-a")).state is JobState.QUEUED
    assert await state_of(runtime, submission.id) is JobState.QUEUED


async def test_reading_one_job_leaves_others_to_the_loops(runtime: Runtime) -> None:
    """A read costs what it reads."""
    asked, other = await submit_many(runtime, 2)
    await make_overdue(runtime, asked, other)
    await runtime.jobs.get(asked, "tenant-a")
    assert await state_of(runtime, other) is JobState.QUEUED


async def test_a_job_expires_once(runtime: Runtime) -> None:
    """However many loops come by."""
    submission = await submit(runtime)
    await claim_one(runtime)
    await runtime.jobs.cancel(submission.id, "tenant-a")
    await runtime._commands.call("ZADD", redis_keys.plain("waiting"), 1, submission.id)  # as a lost race would leave it
    assert (await runtime.jobs.expire())[0] == 0
    assert await state_of(runtime, submission.id) is JobState.CANCELLED
    await assert_consistent(runtime, [submission.id])
