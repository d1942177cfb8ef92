"""Quotas that refill over time: llmock asks for exactly the missing time."""

import asyncio

from shared.job import JobState
from shared.routes import RouteRule
from tests.judged.judge import ANSWER, Judge, text_of
from tests.judged.surface import Surface
from tests.running.crew import TENANT, Crew
from tests.support.wait import wait_until


async def test_more_jobs_than_requests_a_minute_are_all_answered(crew: Crew, judge: Judge, surface: Surface) -> None:
    """Four a second after the first 240. The worker finds the limit out by calling: its settings have none."""
    await crew.worker(concurrency=50, routes={"*": RouteRule(requests_per_minute=100_000)})
    judge.limits(rpm=240)
    jobs = await crew.all_ended([await crew.submit(max_attempts=10) for _ in range(250)])
    assert {text_of(job) for job in jobs} == {ANSWER}
    await judge.passes(surface)


async def test_a_limit_that_the_upstream_reports_is_never_hit(crew: Crew, judge: Judge, surface: Surface) -> None:
    """It reports the limit in headers: the first 60 requests are answered, and no worker sends more in that minute."""
    await crew.worker(concurrency=10)
    judge.limits(rpm=60)
    job_ids = [await crew.submit() for _ in range(70)]
    await wait_until(lambda: crew.count(JobState.SUCCEEDED, 60), "sixty answers", timeout_s=15)
    await asyncio.sleep(0.5)  # there is no event for nothing happening
    assert await crew.count(JobState.SUCCEEDED, 60)
    assert {record.status for record in await judge.journal()} == {200}
    for job_id in job_ids:
        await crew.runtime.jobs.cancel(job_id, TENANT)


async def test_more_tokens_than_a_minute_has_are_waited_for(crew: Crew, judge: Judge, surface: Surface) -> None:
    """A thousand tokens a second; the first job takes nearly all of them, and each other job 300."""
    await crew.worker()
    judge.limits(tpm=60_000)
    first = await crew.ended(await crew.submit(max_tokens=59_000))
    jobs = await crew.all_ended([await crew.submit(max_tokens=300, max_attempts=10) for _ in range(6)])
    assert {text_of(job) for job in [first, *jobs]} == {ANSWER}
    await judge.passes(surface)
    assert any(record.status == 429 for record in await judge.journal())


async def test_a_request_beyond_the_quota_is_not_asked_for_for_ever(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    judge.limits(tpm=6_000)
    job = await crew.ended(await crew.submit(max_tokens=6_050))
    assert job.error is not None
    assert (job.state, job.error.code, job.attempts) == ("failed", "upstream_rate_limited", 3)
    await judge.passes(surface)
