"""FINISH: state, result, terminal event and retention in one step, once."""

import msgspec
import pytest

from shared.errors import JobError
from shared.events import EventId
from shared.job import JobState, Step, Usage
from shared.store import redis_keys
from shared.store.queue import Ending, Finished
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import a_text_delta, an_id
from tests.support.store import (
    A_RESULT,
    append,
    assert_consistent,
    claim_one,
    finish,
    job_of,
    listening,
    lose,
    names_in_log,
    record_of,
    roll_back_log,
    start,
    state_of,
    submit,
    ttl_ms,
)


async def test_a_success_is_whole_at_once(runtime: Runtime) -> None:
    """A client that sees the terminal event can read the result."""
    claimed = await start(runtime)
    await append(runtime, claimed, a_text_delta("Hello."))
    usage = Usage(input_tokens=3, output_tokens=4, cache_read_input_tokens=5)
    ending = Ending(Step.SUCCEED, A_RESULT, usage, first_token_ms=claimed.claimed_ms + 7)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await runtime.queue.finish(claimed, ending, seq=2) == (Finished.ENDED, 0)
        (event,) = await heard.events()
    job = await job_of(runtime, claimed.id, with_result=True)
    assert (job.state, job.has_ended, job.usage, job.error) == (JobState.SUCCEEDED, True, usage, None)
    assert (job.first_token_ms, bytes(job.result or b"")) == (claimed.claimed_ms + 7, A_RESULT)
    assert job.ended_ms is not None
    assert job.ended_ms >= claimed.claimed_ms
    assert (event.id, event.name, msgspec.json.decode(event.data)) == (
        EventId(claimed.epoch, 2),
        "succeeded",
        {"status": "succeeded"},
    )
    assert (await runtime.log.read(claimed.id))[-1] == event
    assert job.end_id == str(event.id)
    await assert_consistent(runtime, [claimed.id])


async def test_a_failure_keeps_its_reason_and_has_no_result(runtime: Runtime) -> None:
    """``error`` is the worker's; nothing else of the attempt is kept."""
    claimed = await start(runtime)
    error = JobError(
        "upstream_overloaded", "The LLM was overloaded on every attempt.", retryable=True, upstream_status=529
    )
    assert (await finish(runtime, claimed, Ending(Step.FAIL, error=error))).outcome is Finished.ENDED
    job = await job_of(runtime, claimed.id, with_result=True)
    assert (job.state, job.error, job.result, job.usage) == (JobState.FAILED, error, None, None)
    assert not await runtime._commands.call("EXISTS", redis_keys.result(claimed.id))
    assert await names_in_log(runtime, claimed.id) == ["started", "failed"]


async def test_a_repeated_finish_replies_that_the_job_has_ended(runtime: Runtime) -> None:
    """Its first reply was lost: it changes nothing, whatever its arguments."""
    claimed = await start(runtime)
    await finish(runtime, claimed)
    job = await job_of(runtime, claimed.id, with_result=True)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        for ending in (Ending(Step.SUCCEED, b'"other"'), Ending(Step.FAIL)):
            assert (await finish(runtime, claimed, ending)).outcome is Finished.ALREADY
        assert await heard.all() == []
    assert await job_of(runtime, claimed.id, with_result=True) == job


@pytest.mark.parametrize("how", ["cancelled", "reaped", "released", "claimed again", "finished by another", "unknown"])
async def test_a_finish_of_a_claim_that_is_over_is_refused(runtime: Runtime, how: str) -> None:
    """The result is dropped; the first ending has won, and record and log do not change."""
    claimed = await start(runtime)
    if how == "cancelled":
        await runtime.jobs.cancel(claimed.id, claimed.tenant)
    elif how == "released":
        await runtime.queue.release(claimed, reason="drained")
    elif how == "unknown":
        claimed = claimed._replace(id=an_id())
    else:
        await lose(runtime, claimed)
        if how != "reaped":
            other = await claim_one(runtime)
            if how == "finished by another":
                await finish(runtime, other)
    record = await record_of(runtime, claimed.id)
    events = await runtime.log.read(claimed.id)
    assert (await finish(runtime, claimed, Ending(Step.SUCCEED, b'"stale"'))).outcome is Finished.REFUSED
    assert await record_of(runtime, claimed.id) == record
    assert await runtime._commands.call("GET", redis_keys.result(claimed.id)) in (None, A_RESULT)
    assert await runtime.log.read(claimed.id) == events


async def test_a_finish_ahead_of_the_log_gets_the_missing_seq(runtime: Runtime) -> None:
    """The terminal event never hides a gap. The worker sends the tail again, then finishes."""
    claimed = await start(runtime)
    hel, lo = a_text_delta("Hel"), a_text_delta("lo")
    await append(runtime, claimed, hel, lo)
    await roll_back_log(runtime, claimed.id, keep=2)
    assert await finish(runtime, claimed, seq=3) == (Finished.INCOMPLETE, 2)
    assert await state_of(runtime, claimed.id) is JobState.RUNNING
    assert await append(runtime, claimed, lo, seq=2) == 3
    assert (await finish(runtime, claimed, seq=3)).outcome is Finished.ENDED
    assert [event.id for event in await runtime.log.read(claimed.id)] == [
        EventId(claimed.epoch, seq) for seq in range(4)
    ]


async def test_a_finish_behind_the_log_ends_at_its_top(runtime: Runtime) -> None:
    """The reply of an append was lost: the terminal event comes after its events."""
    claimed = await start(runtime)
    await append(runtime, claimed, a_text_delta("Hel"), a_text_delta("lo"))
    assert (await finish(runtime, claimed, seq=1)).outcome is Finished.ENDED
    assert (await job_of(runtime, claimed.id)).end_id == f"{claimed.epoch}-3"


async def test_a_late_finish_of_an_expired_lease_counts_if_no_worker_took_the_job(runtime: Runtime) -> None:
    """The answer is complete and paid for."""
    claimed = await start(runtime)
    await runtime._commands.call("ZADD", redis_keys.plain("running"), "XX", 1, claimed.id)
    assert (await finish(runtime, claimed)).outcome is Finished.ENDED


async def test_the_end_sets_the_ttl_of_all_keys_of_a_job(start_runtime: StartRuntime) -> None:
    """Log, record, result and idempotency record by their settings; the latter at least as long as the record."""
    runtime = await start_runtime(log_retention_s=100, result_retention_s=1_000, idempotency_retention_s=2_000)
    claimed = await start(runtime, idempotency_key="order 7")
    (idempotency,) = [
        name.decode()
        for name in (
            await runtime._commands.call("SCAN", 0, "MATCH", redis_keys.idempotency("tenant-a", "*"), "COUNT", 1000)
        )[1]
    ]
    names = (redis_keys.log(claimed.id), redis_keys.job(claimed.id), idempotency)
    assert [await ttl_ms(runtime, name) for name in names] == [None, None, None]
    await finish(runtime, claimed)
    lifetimes_ms = [await ttl_ms(runtime, name) for name in (*names, redis_keys.result(claimed.id))]
    assert lifetimes_ms == [pytest.approx(seconds * 1000, abs=5_000) for seconds in (100, 1_000, 2_000, 1_000)]


async def test_an_idempotency_key_outlives_no_sooner_than_its_job(start_runtime: StartRuntime) -> None:
    """With a short setting, the same key must not make a second job while the first can be read."""
    runtime = await start_runtime(result_retention_s=1_000, idempotency_retention_s=10)
    submission = await submit(runtime, idempotency_key="order 7")
    await runtime.jobs.cancel(submission.id, submission.tenant)
    (name,) = (
        await runtime._commands.call("SCAN", 0, "MATCH", redis_keys.idempotency("tenant-a", "*"), "COUNT", 1000)
    )[1]
    assert await ttl_ms(runtime, name.decode()) == pytest.approx(1_000_000, abs=5_000)


async def test_a_result_is_there_only_once_the_job_has_succeeded(runtime: Runtime) -> None:
    """It is read at the same moment as the record, and never with a state that has no result."""
    claimed = await start(runtime)
    await runtime._commands.call(
        "SET", redis_keys.result(claimed.id), A_RESULT, "EX", 60
    )  # FINISH ran between two reads
    assert (await job_of(runtime, claimed.id, with_result=True)).result is None
    assert (await job_of(runtime, claimed.id)).result is None
