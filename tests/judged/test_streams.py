"""Streams that end, stall or turn into garbage at every place where they can, and late answers."""

from typing import get_args

import pytest
from llmock.chaos import ChaosSettings
from llmock.scenarios import Delay, Match, SlowFirstToken, StreamFault, StreamFaultKind

from tests.judged.judge import (
    ANSWER,
    FULL_JITTER,
    GAVE_UP,
    MALFORMED_CHUNK_IGNORED,
    TRUNCATED_STREAM_ACCEPTED,
    Judge,
    is_whole,
    text_of,
)
from tests.judged.surface import Surface
from tests.running.crew import Crew

IMPATIENT = {"first_token_timeout_s": 0.6, "content_idle_timeout_s": 0.4}
LESS_IMPATIENT = {"first_token_timeout_s": 2.5, "content_idle_timeout_s": 1.5}
"""For a dozen paced answers at once: on a busy machine, good answers may be late too."""
KINDS: tuple[StreamFaultKind, ...] = get_args(StreamFaultKind)
CODES: dict[StreamFaultKind, str] = {
    "disconnect": "upstream_truncated",
    "truncate": "upstream_truncated",
    "malformed": "upstream_truncated",
    "stall": "upstream_error",
}


ENOUGH_IN_ITS_EYES: dict[StreamFaultKind, str] = {"truncate": TRUNCATED_STREAM_ACCEPTED, "disconnect": GAVE_UP}
"""llmock's finding if an answer without only its epilogue is not requested again."""


async def chunks_of_an_answer(crew: Crew, judge: Judge) -> int:
    """The number of chunks of a whole answer."""
    assert text_of(await crew.ended(await crew.submit(model="unbroken"))) == ANSWER
    (record,) = await judge.journal()
    return record.chunks_sent


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_breaks_anywhere_is_no_answer(
    crew: Crew, judge: Judge, surface: Surface, kind: StreamFaultKind
) -> None:
    """Before each chunk in turn, including the first and the last. Paced, so that llmock notices when we close."""
    await crew.worker(**LESS_IMPATIENT)
    places = range(await chunks_of_an_answer(crew, judge))
    judge.pace(30).add(*(StreamFault(kind, after_chunks=place, match=Match(model=f"at-{place}")) for place in places))
    job_ids = {place: await crew.submit(model=f"at-{place}") for place in places}
    for place, job_id in job_ids.items():
        job = await crew.ended(job_id)
        assert text_of(job) == ANSWER, place
        records = await judge.records_of(crew, job_id)
        assert records[0].fault == f"stream:{kind}@{place}"
        is_epilogue = kind != "malformed" and place >= len(places) - surface.epilogue
        is_enough = is_epilogue or (kind == "malformed" and place in surface.pings)
        assert len(records) == job.attempts == (1 if is_enough else 2), place
        if not is_epilogue:
            assert [is_whole(record, surface) for record in records] == ([True] if is_enough else [False, True])
    await judge.passes(surface, but={ENOUGH_IN_ITS_EYES[kind]} if kind in ENOUGH_IN_ITS_EYES else set())


@pytest.mark.parametrize("after_chunks", [0, 6])
@pytest.mark.parametrize("kind", KINDS)
async def test_streams_that_always_break_are_a_failure(
    crew: Crew, judge: Judge, surface: Surface, kind: StreamFaultKind, after_chunks: int
) -> None:
    """After three times the job fails without a result. llmock assumes that a client which stops retrying accepted what
    it got; from outside this looks the same, whatever the number of attempts.
    """
    await crew.worker(**IMPATIENT)
    judge.add(StreamFault(kind, after_chunks=after_chunks, times=None))
    job_id = await crew.submit()
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.attempts, job.result) == ("failed", CODES[kind], 3, None)
    assert len(await judge.journal()) == 3
    await judge.passes(surface, but={*FULL_JITTER, TRUNCATED_STREAM_ACCEPTED, MALFORMED_CHUNK_IGNORED})
    seen_as = {"truncate": {TRUNCATED_STREAM_ACCEPTED}, "malformed": {MALFORMED_CHUNK_IGNORED}}
    assert await judge.findings() - FULL_JITTER <= seen_as.get(kind, set())


async def test_one_job_meets_all_of_them(crew: Crew, judge: Judge, surface: Surface) -> None:
    """Its followers have seen four beginnings and one answer."""
    await crew.worker(**IMPATIENT)
    judge.add(*(StreamFault(kind, after_chunks=6) for kind in KINDS)).pace(5)
    job_id = await crew.submit(max_attempts=5)
    job = await crew.ended(job_id)
    assert (text_of(job), job.attempts) == (ANSWER, 5)
    assert [name for name, _ in await crew.ours(job_id)] == ["started", *["retry", "reset"] * 4, "succeeded"]
    await judge.passes(surface, but=FULL_JITTER)


async def test_a_slow_answer_within_the_limits_is_an_answer(crew: Crew, judge: Judge, surface: Surface) -> None:
    """General latency, a delay before the head, a slow first token, and pauses between chunks."""
    await crew.worker()
    judge.weather(ChaosSettings(latency_ms=50)).pace(15)
    judge.add(Delay(0.2, match=Match(model="delayed")), SlowFirstToken(0.2, match=Match(model="slow", stream=True)))
    judge.stall(after_chunks=5, seconds=0.3)
    job_ids = [await crew.submit(model=model) for model in ("delayed", "slow", "stalled", "usual")]
    jobs = await crew.all_ended(job_ids)
    assert {(text_of(job), job.attempts) for job in jobs} == {(ANSWER, 1)}
    await judge.passes(surface)


async def test_what_comes_too_late_is_asked_for_again(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker(**IMPATIENT)
    judge.add(Delay(1.2, match=Match(model="delayed")), SlowFirstToken(30, match=Match(model="slow", stream=True)))
    job_ids = [await crew.submit(model=model) for model in ("delayed", "slow")]
    jobs = await crew.all_ended(job_ids)
    assert {(text_of(job), job.attempts) for job in jobs} == {(ANSWER, 2)}
    await judge.passes(surface)
    assert len(await judge.journal()) == 4


async def test_an_answer_that_never_comes_fails_the_job(crew: Crew, judge: Judge, surface: Surface) -> None:
    await crew.worker(**IMPATIENT)
    judge.slow_first_token(30, times=None)
    job = await crew.ended(await crew.submit())
    assert job.error is not None
    assert (job.state, job.error.code, job.attempts) == ("failed", "upstream_error", 3)
    await judge.passes(surface, but=FULL_JITTER)
