"""An attempt that must wait long frees its slot, and nothing is forgotten until the next attempt."""

import pytest

from shared.events import OurEvent
from shared.job import JobState
from shared.store import redis_keys
from tests.running.crew import Crew
from tests.running.providers import on_each_provider
from tests.support.store import make_due
from tests.support.wait import wait_until

OTHER = "sim-t6-g1-f2"
"""A model with its own route and gate."""


async def is_deferred(crew: Crew, job_id: str) -> bool:
    return await crew.runtime._commands.call("ZSCORE", redis_keys.plain("deferred"), job_id) is not None


async def until_deferred(crew: Crew, job_id: str) -> None:
    await wait_until(lambda: is_deferred(crew, job_id), "the job to be deferred")


async def come_due(crew: Crew, job_id: str) -> None:
    """Makes the job due, and wakes a worker."""
    await crew.open_gates()
    await make_due(crew.runtime, job_id)
    await crew.runtime._commands.call("PUBLISH", redis_keys.plain("wake"), b"")


@on_each_provider
async def test_a_long_retry_after_defers_the_job_and_frees_the_slot(crew: Crew) -> None:
    hand = await crew.worker(concurrency=1)
    job_id = await crew.submit("fail=429x1,retry-after=30")
    await until_deferred(crew, job_id)
    assert await crew.state(job_id) is JobState.QUEUED
    other = await crew.submit(model=OTHER)  # its upstream has asked for a pause
    assert (await crew.ended(other)).state is JobState.SUCCEEDED, "the slot is free meanwhile"
    assert len(crew.calls(job_id)) == 1
    due_ms = float(await crew.runtime._commands.call("ZSCORE", redis_keys.plain("deferred"), job_id))
    seconds, _ = await crew.runtime._commands.call("TIME")
    assert 25 <= due_ms / 1000 - int(seconds) <= 31

    await come_due(crew, job_id)
    job = await crew.ended(job_id)

    assert job.state is JobState.SUCCEEDED
    assert job.attempts == 2
    assert await crew.ours(job_id) == [
        (OurEvent.STARTED, {"attempt": 1}),
        (OurEvent.RETRY, {"attempt": 2, "reason": "upstream_rate_limited", "delay_ms": 30_000}),
        (OurEvent.STARTED, {"attempt": 2}),
        (JobState.SUCCEEDED, {"status": "succeeded"}),
    ]
    (line,) = hand.log.named("job_deferred")
    assert (line["attempt"], line["code"], line["delay_s"]) == (1, "upstream_rate_limited", 30)


@on_each_provider
async def test_what_followers_saw_before_the_wait_is_reset_after_it(crew: Crew) -> None:
    await crew.worker(upstream_retry_base_s=1000, upstream_retry_cap_s=500)
    job_id = await crew.submit("end=3x1 gap-ms=15")
    await until_deferred(crew, job_id)
    await come_due(crew, job_id)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    names = [name for name, _ in await crew.ours(job_id)]
    assert names == ["started", "retry", "started", "reset", "succeeded"]
    assert ("reset", {"attempt": 2, "reason": "upstream_failed"}) in await crew.ours(job_id)


async def test_the_log_says_how_each_attempt_ended(crew: Crew) -> None:
    """It has the code, the status and the kind of failure, but not the upstream's words, which may quote the prompt."""
    hand = await crew.worker(upstream_retry_base_s=0.01)
    job_id = await crew.submit("end=3x1 fail=529x2 fail=400x3")
    assert (await crew.ended(job_id)).state is JobState.FAILED
    succeeded = await crew.ended(await crew.submit())
    *lines, last = hand.log.named("attempt_ended")
    assert (last["job_id"], last["outcome"], last["how"]) == (succeeded.id, "succeeded", None)
    assert succeeded.usage is not None
    assert (last["output_tokens"], last["is_estimated"]) == (succeeded.usage.output_tokens, False)
    logged = [
        (line["attempt"], line["outcome"], line["upstream_status"], line["how"], line["is_retryable"]) for line in lines
    ]
    assert logged == [
        (1, "upstream_truncated", None, "ended_early", True),
        (2, "upstream_overloaded", 529, None, True),
        (3, "upstream_rejected", 400, None, False),
    ]
    for line in lines:
        assert line["job_id"] == job_id
        assert line["route"] == "anthropic/sim-t6-g1-f1"
        assert 0 <= line["took_ms"] < 10_000
        assert set(line) == {
            "job_id", "attempt", "prompt_hash", "model", "running_ms", "route", "outcome", "upstream_status", "how",
            "is_retryable", "took_ms", "first_token_ms", "input_tokens", "output_tokens", "is_estimated", "cost_nano_usd",
        }  # fmt: skip


@on_each_provider
@pytest.mark.parametrize("retry_after", ["date+30", "30.0", "61", "86400", "9" * 30])
async def test_a_retry_after_of_any_form_defers(crew: Crew, retry_after: str) -> None:
    """A time above the cap counts as the cap."""
    await crew.worker(retry_after_cap_s=60)
    job_id = await crew.submit(f"fail=529x1,retry-after={retry_after}")
    await until_deferred(crew, job_id)
    _, retry, *_ = await crew.ours(job_id)
    assert 28_000 <= retry[1]["delay_ms"] <= 60_000
    await come_due(crew, job_id)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED


@on_each_provider
@pytest.mark.parametrize("retry_after", ["soon", "-1", "inf", "nan", "0"])
async def test_an_invalid_retry_after_does_not_defer(crew: Crew, retry_after: str) -> None:
    await crew.worker()
    job_id = await crew.submit(f"fail=529x1,retry-after={retry_after}")
    assert (await crew.ended(job_id)).attempts == 2


@on_each_provider
async def test_every_failure_counts_once_whether_waited_for_in_the_slot_or_deferred(crew: Crew) -> None:
    """Two short waits, a long one, a short one and the last attempt make five calls for five attempts."""
    await crew.worker()
    job_id = await crew.submit("ok=1x0 fail=500x2 fail=429x3,retry-after=30 fail=500x4 fail=500x5", max_attempts=5)
    await until_deferred(crew, job_id)
    assert await crew.field(job_id, "failures") == "3"
    assert await crew.field(job_id, "attempts") == "3"
    await come_due(crew, job_id)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.error.code, job.attempts, len(crew.calls(job_id))) == ("upstream_error", 5, 5)
    assert [retry["attempt"] for name, retry in await crew.ours(job_id) if name == "retry"] == [2, 3, 4, 5]


async def test_attempts_are_spent_over_all_claims(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit("fail=429,retry-after=30", max_attempts=2)
    await until_deferred(crew, job_id)
    await come_due(crew, job_id)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.error.code, job.attempts, len(crew.calls(job_id))) == ("upstream_rate_limited", 2, 2)


async def test_the_last_attempt_ends_the_job_however_long_the_upstream_asks_to_wait(crew: Crew) -> None:
    await crew.worker()
    job = await crew.ended(await crew.submit("fail=429,retry-after=30", max_attempts=1))
    assert (job.state, job.attempts) == (JobState.FAILED, 1)


async def test_a_wait_past_the_jobs_own_time_is_a_failure_now(crew: Crew) -> None:
    await crew.worker()
    job = await crew.ended(await crew.submit("fail=429,retry-after=30", timeout_s=20))
    assert job.error is not None
    assert (job.state, job.error.code, job.attempts) == (JobState.FAILED, "upstream_rate_limited", 1)


async def test_cancelling_a_deferred_job_is_the_end_of_it(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit("fail=429,retry-after=30")
    await until_deferred(crew, job_id)
    assert await crew.runtime.jobs.cancel(job_id, "tenant-a")
    assert (await crew.ended(job_id)).state is JobState.CANCELLED
    assert not await is_deferred(crew, job_id)
