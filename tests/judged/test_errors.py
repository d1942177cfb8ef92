"""Every error status that llmock can send, with and without Retry-After."""

import pytest
from llmock import verdict
from llmock.scenarios import Fail, Match

from tests.judged.judge import (
    ANSWER,
    CHECKS,
    FINAL,
    FULL_JITTER,
    GAVE_UP,
    RETRIED,
    RETRIED_NON_RETRYABLE,
    RETRY_AFTER_IGNORED,
    Judge,
    text_of,
)
from tests.judged.surface import ANTHROPIC, Surface
from tests.running.crew import Crew

ALL_STATUSES = range(400, 600)
A_HOT_REQUEST = b'{"model":"m","max_tokens":9,"temperature":"hot","messages":[{"role":"user","content":"Hello."}]}'


def fails(status: int, model: str, *, times: int | None = 1, retry_after: float | None = None, code: str = "") -> Fail:
    """A failure for requests of that model."""
    return Fail(status, retry_after=retry_after, code=code or None, times=times, match=Match(model=model))


def code_of(status: int) -> set[str]:
    """The error codes that a job may have after this status."""
    match status:
        case 401 | 403:
            return {"upstream_auth"}
        case 429:
            return {"upstream_rate_limited"}
        case 529:
            return {"upstream_overloaded"}
        case _ if status in FINAL:
            return {"upstream_rejected"}
    return {"upstream_error", "upstream_overloaded"}


def test_the_judge_has_exactly_the_known_checks() -> None:
    """A newer llmock may have new checks, which need to be read first."""
    assert {check.__name__.strip("_") for check in verdict._CHECKS} == CHECKS


async def test_every_status_once_is_tried_again_or_final(crew: Crew, judge: Judge, surface: Surface) -> None:
    """llmock adds ``retry-after: 1`` to 429, 503, 504 and 529."""
    await crew.worker()
    judge.add(*(fails(status, f"model-{status}") for status in ALL_STATUSES))
    job_ids = {status: await crew.submit(model=f"model-{status}") for status in ALL_STATUSES}
    for status, job_id in job_ids.items():
        job = await crew.ended(job_id)
        if status in FINAL:
            assert job.error is not None
            assert (job.state, job.error.upstream_status, job.error.retryable) == ("failed", status, False)
            assert job.error.code in code_of(status)
            assert job.attempts == 1
        else:
            assert text_of(job) == ANSWER
            assert job.attempts == 2
    await judge.passes(surface)
    assert len(await judge.journal()) == sum(1 if status in FINAL else 2 for status in ALL_STATUSES)


async def test_a_status_that_stays_fails_the_job_and_is_no_storm(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    statuses = [*RETRIED, 501, 505, 520, 599]
    judge.add(*(fails(status, f"model-{status}", times=None, retry_after=0.05) for status in statuses))
    job_ids = {status: await crew.submit(model=f"model-{status}") for status in statuses}
    for status, job_id in job_ids.items():
        job = await crew.ended(job_id)
        assert job.error is not None
        assert (job.state, job.attempts, job.error.upstream_status) == ("failed", 3, status)
        assert job.error.code in code_of(status)
        assert len(await judge.records_of(crew, job_id)) == 3
    await judge.passes(surface)


async def test_a_job_with_the_most_attempts_causes_no_storm(crew: Crew, judge: Judge, surface: Surface) -> None:
    """Ten attempts are the most that the API allows, and the most that llmock accepts."""
    await crew.worker(upstream_retry_base_s=0.001)
    judge.outage(status=500)
    job = await crew.ended(await crew.submit(max_attempts=10))
    assert (job.state, job.attempts) == ("failed", 10)
    await judge.passes(surface, but=FULL_JITTER)


async def test_an_outage_ends_and_the_jobs_do_not(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    judge.fail(503, times=8, retry_after=0.1)  # too few to open the circuit
    job_ids = [await crew.submit(max_attempts=10) for _ in range(10)]
    assert {text_of(job) for job in await crew.all_ended(job_ids)} == {ANSWER}
    await judge.passes(surface)


@pytest.mark.parametrize("retry_after", [0, 0.2, 1.5, 2.3])
async def test_retry_after_is_waited_for(crew: Crew, judge: Judge, surface: Surface, retry_after: float) -> None:
    """llmock sends whole seconds and ``retry-after-ms``, which counts. Over 2 s the job is deferred."""
    hand = await crew.worker()
    judge.add(*(fails(status, f"model-{status}", retry_after=retry_after) for status in RETRIED))
    jobs = await crew.all_ended([await crew.submit(model=f"model-{status}") for status in RETRIED])
    assert {text_of(job) for job in jobs} == {ANSWER}
    assert {job.attempts for job in jobs} == {2}
    assert bool(hand.log.named("job_deferred")) == (retry_after > 2)
    await judge.passes(surface)


async def test_a_refusal_is_final_even_if_it_asks_to_wait(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker()
    judge.add(*(fails(status, f"model-{status}", retry_after=0.01) for status in sorted(verdict.NON_RETRYABLE)))
    jobs = await crew.all_ended([await crew.submit(model=f"model-{status}") for status in verdict.NON_RETRYABLE])
    assert {(job.state.value, job.attempts) for job in jobs} == {("failed", 1)}
    await judge.passes(surface)


async def test_a_prompt_that_is_too_long_is_final(crew: Crew, judge: Judge, surface: Surface) -> None:
    """As a scripted error of an unknown type, and as llmock's own check.

    One after the other: the scripted error goes to whichever request comes first.
    """
    await crew.worker()
    judge.context_overflow().limits(context_window=50)
    for prompt in ("", "word " * 100):
        job = await crew.ended(await crew.submit(prompt))
        assert job.error is not None
        assert (job.state, job.error.code, job.attempts) == ("failed", "upstream_rejected", 1)
    assert text_of(await crew.ended(await crew.submit())) == ANSWER
    await judge.passes(surface)


async def test_a_request_that_it_cannot_read_is_final(crew: Crew, judge: Judge, surface: Surface) -> None:
    """llmock's own validation, not a scripted error."""
    await crew.worker()
    job = await crew.ended(await crew.submit(request=A_HOT_REQUEST))
    assert job.error is not None
    assert (job.state, job.error.code, job.error.upstream_status) == ("failed", "upstream_rejected", 422)
    await judge.passes(surface)


async def test_a_job_of_a_single_attempt_gives_up(crew: Crew, judge: Judge, surface: Surface) -> None:
    """llmock warns about it, but it is what a caller with one attempt asks for."""
    await crew.worker()
    judge.add(*(fails(status, f"model-{status}") for status in RETRIED))
    jobs = await crew.all_ended([await crew.submit(model=f"model-{status}", max_attempts=1) for status in RETRIED])
    assert {(job.state.value, job.attempts) for job in jobs} == {("failed", 1)}
    await judge.passes(surface, but={GAVE_UP})
    assert await judge.findings() == {GAVE_UP}


async def test_a_retry_after_beyond_the_cap_counts_as_the_cap(crew: Crew, judge: Judge, surface: Surface) -> None:
    """llmock reports it as ignored. The cap (an hour) keeps an upstream's mistake from parking jobs for days."""
    await crew.worker(retry_after_cap_s=0.2)
    judge.rate_limit(retry_after=86_400)
    job = await crew.ended(await crew.submit())
    assert text_of(job) == ANSWER
    await judge.passes(surface, but={RETRY_AFTER_IGNORED})
    first, second = await judge.journal()
    assert second.started_at - first.ended_at >= 0.19


@pytest.mark.parametrize("surface", [ANTHROPIC], indirect=True)
async def test_the_errors_type_overrides_its_status(crew: Crew, judge: Judge, surface: Surface) -> None:
    """llmock looks only at the status. But gateways change statuses, and inside a stream there is none."""
    await crew.worker()
    judge.add(fails(400, "overloaded", code="overloaded_error"), fails(503, "refused", code="invalid_request_error"))
    overloaded, refused = [await crew.submit(model=model) for model in ("overloaded", "refused")]
    assert (await crew.ended(overloaded)).attempts == 2
    assert text_of(await crew.ended(overloaded)) == ANSWER
    job = await crew.ended(refused)
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("upstream_rejected", 1)
    await judge.passes(surface, but={RETRIED_NON_RETRYABLE, GAVE_UP})
    assert await judge.findings() == {RETRIED_NON_RETRYABLE, GAVE_UP}
