"""If the follower's format has no event for a restart, a partly sent answer is not started again."""

import pytest

from shared.job import JobState
from shared.routes import ProviderName
from tests.running.crew import Crew
from tests.running.test_retries import come_due, until_deferred
from tests.support.wait import wait_until

LEASE_S = 0.6


async def test_a_failure_behind_content_is_final(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit("rst=3", may_start_over=False)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.error.retryable) == (JobState.FAILED, "upstream_truncated", True)
    assert len(crew.calls(job_id)) == 1
    assert await crew.names(job_id) == [
        "started",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "failed",
    ]


async def test_a_rate_limit_behind_content_is_not_waited_for(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit("error=3,type=overloaded_error", may_start_over=False)
    job = await crew.ended(job_id)
    assert (job.error and job.error.code) == "upstream_overloaded"
    assert len(crew.calls(job_id)) == 1


A_BEGINNING_AND_NO_MORE = "fin=0x2"
"""For a chat stream, whose blocks begin with their first token: only ``message_start`` is written."""


@pytest.mark.parametrize(
    ("provider", "script"),
    [
        (ProviderName.ANTHROPIC, "fail=500x2"),
        (ProviderName.ANTHROPIC, "rst=headx2"),
        (ProviderName.OPENAI, A_BEGINNING_AND_NO_MORE),
    ],
)
async def test_before_content_it_is_tried_again_and_nobody_hears_of_two_beginnings(crew: Crew, script: str) -> None:
    await crew.worker()
    job_id = await crew.submit(script, may_start_over=False)
    job = await crew.ended(job_id)
    assert (job.state, len(crew.calls(job_id))) == (JobState.SUCCEEDED, 3)
    names = [event.name for event in await crew.events(job_id)]
    assert names.count("message_start") == 1
    assert "reset" not in names


async def test_a_deferred_attempt_without_content_is_made(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit("fail=429x1,retry-after=30", may_start_over=False)
    await until_deferred(crew, job_id)
    await come_due(crew, job_id)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED


async def test_a_dead_workers_answer_is_not_begun_again(crew: Crew) -> None:
    first = await crew.worker(lease_s=LEASE_S)
    job_id = await crew.submit("tokens=200 gap-ms=10", may_start_over=False)
    await crew.begun(job_id)
    await crew.worker(lease_s=LEASE_S)
    await first.killed()
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.error.retryable) == (JobState.FAILED, "worker_lost", True)
    assert len(crew.calls(job_id)) == 1
    assert (await crew.names(job_id))[-2:] == ["reset", "failed"]


@pytest.mark.parametrize("provider", [ProviderName.OPENAI])
async def test_a_dead_workers_job_without_content_is_begun_again(crew: Crew) -> None:
    first = await crew.worker(lease_s=LEASE_S)
    job_id = await crew.submit("stall=0x1", may_start_over=False)
    await wait_until(lambda: any(call.status for call in crew.calls(job_id)), "the answer to begin")
    await crew.worker(lease_s=LEASE_S)
    await first.killed()
    job = await crew.ended(job_id)
    assert (job.state, len(crew.calls(job_id))) == (JobState.SUCCEEDED, 2)
    assert "reset" not in await crew.names(job_id)
