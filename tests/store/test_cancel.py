"""CANCEL ends a job at once in every state; the second of two commands gets the state that won."""

import asyncio

import pytest

from shared.errors import NotFound
from shared.events import EventId
from shared.job import JobState, Step
from shared.store import redis_keys
from shared.store.queue import Ending, Finished
from shared.store.runtime import Runtime
from tests.support.builders import a_text_delta, an_id
from tests.support.store import (
    append,
    assert_consistent,
    claim,
    claim_one,
    finish,
    job_of,
    listening,
    lose,
    make_overdue,
    now_ms,
    record_of,
    start,
    submit,
    submit_many,
)


async def test_a_waiting_job_ends_without_ever_having_a_log(runtime: Runtime) -> None:
    """Its followers are told on the channel, and the record keeps the id of that event."""
    first, second = await submit_many(runtime, 2)
    async with listening(runtime, redis_keys.events(first)) as heard:
        assert await runtime.jobs.cancel(first, "tenant-a")
        (event,) = await heard.events()
    job = await job_of(runtime, first)
    assert (job.state, job.end_id, job.started_ms, job.error) == (JobState.CANCELLED, str(event.id), None, None)
    assert event.name == "cancelled"
    assert event.id is not None
    assert event.id.seq == 0
    assert not await runtime._commands.call("EXISTS", redis_keys.log(first))
    assert [found.id for found in await claim(runtime, 5)] == [second]
    await assert_consistent(runtime, [first, second])


async def test_a_running_job_ends_at_once_and_its_worker_is_told(runtime: Runtime) -> None:
    """The terminal event stands in an epoch of its own, above all that the worker wrote or may still write."""
    claimed = await start(runtime)
    await append(runtime, claimed, a_text_delta("Hel"))
    async with (
        listening(runtime, redis_keys.events(claimed.id)) as heard,
        listening(runtime, redis_keys.plain("control")) as control,
    ):
        assert await runtime.jobs.cancel(claimed.id, claimed.tenant)
        (event,) = await heard.events()
        assert await control.all() == [f"cancel {claimed.id}".encode()]
    job = await job_of(runtime, claimed.id)
    assert (job.state, job.end_id) == (JobState.CANCELLED, str(event.id))
    stored = await runtime.log.read(claimed.id)
    assert stored[-1] == event
    assert event.id is not None
    assert event.id > EventId(claimed.epoch, 10_000_000)
    await assert_consistent(runtime, [claimed.id])


@pytest.mark.parametrize("how", ["deferred at birth", "deferred by a retry", "back after a death"])
async def test_a_job_that_waits_for_any_other_reason_ends_too(runtime: Runtime, how: str) -> None:
    """In no queue is anything left of it."""
    if how == "deferred at birth":
        job_id = (await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)).id
    else:
        claimed = await start(runtime)
        job_id = claimed.id
        if how == "deferred by a retry":
            await runtime.queue.release(claimed, reason="upstream_failed", delay_s=60, retry_event=b"{}")
        else:
            await lose(runtime, claimed)
    async with listening(runtime, redis_keys.plain("control")) as control:
        assert await runtime.jobs.cancel(job_id, "tenant-a")
        assert await control.all() == []
    assert (await job_of(runtime, job_id)).state is JobState.CANCELLED
    assert await claim(runtime, 5) == []
    await assert_consistent(runtime, [job_id])


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
async def test_a_job_that_has_ended_stays_as_it_is(runtime: Runtime, state: JobState) -> None:
    """Promise 1: terminal is for ever. The caller reads what won."""
    job_id = (await submit(runtime)).id
    if state is JobState.CANCELLED:
        await runtime.jobs.cancel(job_id, "tenant-a")
    elif state is JobState.EXPIRED:
        await make_overdue(runtime, job_id)
        await runtime.jobs.expire()
    else:
        step = Step.SUCCEED if state is JobState.SUCCEEDED else Step.FAIL
        await finish(runtime, await claim_one(runtime), Ending(step))
    record = await record_of(runtime, job_id)
    async with listening(runtime, redis_keys.events(job_id)) as heard:
        assert not await runtime.jobs.cancel(job_id, "tenant-a")
        assert await heard.all() == []
    assert await record_of(runtime, job_id) == record
    assert (await job_of(runtime, job_id)).state is state


async def test_nobody_cancels_what_is_anothers_or_absent(runtime: Runtime) -> None:
    """Promise 7: both are the same NotFound."""
    submission = await submit(runtime, tenant="tenant-a")
    for job_id, tenant in ((submission.id, "tenant-b"), (an_id(), "tenant-a"), (submission.id, "")):
        with pytest.raises(NotFound):
            await runtime.jobs.cancel(job_id, tenant)
    assert (await job_of(runtime, submission.id)).state is JobState.QUEUED


async def test_of_a_finish_and_a_cancel_one_wins(runtime: Runtime) -> None:
    """Whichever is first at Redis: there is one terminal event, and both are told."""
    for number in range(10):
        claimed = await start(runtime)
        cancel, end = runtime.jobs.cancel(claimed.id, claimed.tenant), finish(runtime, claimed)
        if number % 2:
            was_cancelled, reply = await asyncio.gather(cancel, end)
        else:
            reply, was_cancelled = await asyncio.gather(end, cancel)
        assert reply.outcome is (Finished.REFUSED if was_cancelled else Finished.ENDED)
        terminal = [event.name for event in await runtime.log.read(claimed.id) if event.is_terminal]
        assert terminal == ["cancelled" if was_cancelled else "succeeded"]
        assert (await job_of(runtime, claimed.id)).state == terminal[0]
