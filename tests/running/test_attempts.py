"""What was tried for a job: one entry for each call to the LLM, from the ledger."""

import pytest

from shared.errors import JobError
from shared.job import JobState
from shared.store.attempts import Attempt
from tests.running.crew import FAST, STEADY, TENANT, Crew
from tests.running.ledger import rows_of
from tests.running.providers import on_each_provider
from tests.running.test_ledger import PRICES, closed, fall_silent
from tests.running.test_retries import come_due, until_deferred
from tests.support.contents import kinds_that_hold
from tests.support.wait import wait_until

LEASE_S = 0.6


async def attempts_of(crew: Crew, job_id: str) -> list[Attempt]:
    """All of them, compared with the upstream's record and with the ledger."""
    attempts = await crew.runtime.attempts.of(job_id, TENANT)
    rows = await rows_of(crew, job_id)
    assert [attempt.attempt for attempt in attempts] == [row.attempt for row in rows]
    assert len(attempts) == len(crew.calls(job_id))
    return attempts


def outcomes_of(attempts: list[Attempt]) -> list[tuple[int, str | None]]:
    """Number and outcome of each."""
    return [(attempt.attempt, attempt.outcome) for attempt in attempts]


@on_each_provider
async def test_every_call_says_how_it_ended(crew: Crew) -> None:
    hand = await crew.worker(prices=PRICES)
    job_id = await crew.submit("fail=500x1 end=3x2 gap-ms=5")
    job = await crew.ended(job_id)
    await closed(crew, job_id)
    first, second, third = attempts = await attempts_of(crew, job_id)
    assert outcomes_of(attempts) == [(1, "upstream_error"), (2, "upstream_truncated"), (3, "succeeded")]
    assert {attempt.worker for attempt in attempts} == {hand.worker.name}
    assert {attempt.route for attempt in attempts} == {f"{crew.provider}/{FAST}"}
    assert (first.upstream_status, first.first_token_ms, first.cost_usd) == (500, None, 0)
    assert (second.upstream_status, second.is_estimated) == (None, True)
    assert third.usage == job.usage
    assert third.message is None
    assert job.cost_usd == pytest.approx(sum(attempt.cost_usd or 0 for attempt in attempts))
    for attempt in (second, third):
        assert attempt.first_token_ms is not None
        assert attempt.ended_ms is not None
        assert attempt.begun_ms <= attempt.first_token_ms <= attempt.ended_ms


async def test_what_the_upstream_said_is_in_the_record_and_not_in_the_ledger(crew: Crew) -> None:
    """It may quote the prompt, and a row is not erased with its job."""
    await crew.worker()
    job_id = await crew.submit("fail=529x1,message=quoted fail=400x2,message=quoted")
    job = await crew.ended(job_id)
    await closed(crew, job_id)
    first, last = await attempts_of(crew, job_id)
    assert isinstance(job.error, JobError)
    assert (first.message, last.message) == ("The LLM was overloaded.", job.error.message)
    assert "quoted" in job.error.message
    assert await kinds_that_hold(crew.runtime._commands, "quoted") == {"job"}


async def test_attempts_of_several_claims_are_listed_in_order(crew: Crew) -> None:
    """A long wait puts the job back; the next claim goes on counting."""
    await crew.worker()
    job_id = await crew.submit("fail=500x1 fail=429x2,retry-after=30 fail=500x3")
    await until_deferred(crew, job_id)
    assert outcomes_of(await attempts_of(crew, job_id)) == [(1, "upstream_error"), (2, "upstream_rate_limited")]
    await come_due(crew, job_id)
    await crew.ended(job_id)
    await closed(crew, job_id)
    assert [attempt.attempt for attempt in await attempts_of(crew, job_id)] == [1, 2, 3]


async def test_a_dead_workers_call_has_an_unknown_end(crew: Crew) -> None:
    """Until another worker closes its row, it looks like a running one."""
    dying = await crew.worker(lease_s=LEASE_S, prices=PRICES)
    job_id = await crew.submit("stall=3x1")
    await crew.begun(job_id, 3)
    (running,) = await attempts_of(crew, job_id)
    assert (running.outcome, running.ended_ms, running.usage, running.cost_usd) == (None, None, None, None)
    heir = await crew.worker(lease_s=LEASE_S, prices=PRICES)
    fall_silent(dying)
    await dying.killed()
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    await closed(crew, job_id)
    lost, succeeded = await attempts_of(crew, job_id)
    assert (lost.outcome, lost.ended_ms, lost.is_estimated) == ("worker_lost", None, True)
    assert lost.cost_usd
    assert (lost.worker, succeeded.worker) == (dying.worker.name, heir.worker.name)


async def test_a_cancelled_call_was_interrupted(crew: Crew) -> None:
    hand = await crew.worker()
    job_id = await crew.submit(model=STEADY)
    await crew.begun(job_id, 2)
    assert await crew.runtime.jobs.cancel(job_id, TENANT)
    await hand.is_idle()
    await closed(crew, job_id)
    assert outcomes_of(await attempts_of(crew, job_id)) == [(1, "interrupted")]
    (line,) = hand.log.named("attempt_ended")
    assert (line["outcome"], line["is_estimated"]) == ("interrupted", True)


async def test_a_job_that_waits_without_a_call_has_none(crew: Crew) -> None:
    """Claims that got no permit are not attempts."""
    await crew.worker()
    blocker = await crew.submit("fail=429,retry-after=30", max_attempts=5)
    await until_deferred(crew, blocker)
    job_id = await crew.submit()
    assert await crew.runtime.attempts.of(job_id, TENANT) == []
    assert await crew.runtime.jobs.cancel(job_id, TENANT)
    assert await crew.runtime.jobs.cancel(blocker, TENANT)
    await wait_until(lambda: crew.count(JobState.CANCELLED, 2), "both ends")
