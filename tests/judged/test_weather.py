"""Random faults with many jobs at once. What each job must show follows from llmock's journal."""

import pytest
from llmock.chaos import STREAM_FAULT_KINDS, ChaosSettings, StreamChaos
from llmock.journal import RequestRecord

from tests.judged.judge import (
    ANSWER,
    FINAL,
    FULL_JITTER,
    GAVE_UP,
    TRUNCATED_STREAM_ACCEPTED,
    Judge,
    is_whole,
    text_of,
)
from tests.judged.surface import Surface
from tests.running.crew import Crew

JOBS = 40
MOST_ATTEMPTS = 10
"""With a fault in every fifth answer, no job has so many in a row."""

WEATHERS = {
    # After each 429, 503 and 529 llmock requires a second without requests.
    "errors that pass": (ChaosSettings(error_rates={429: 0.02, 500: 0.14, 503: 0.02, 529: 0.02}), StreamChaos()),
    "errors of all kinds": (ChaosSettings(error_rates=dict.fromkeys(range(400, 600), 0.001)), StreamChaos()),
    "broken streams": (
        ChaosSettings(),
        StreamChaos(tuple((kind, 0.05) for kind in STREAM_FAULT_KINDS), stall_seconds=30, max_after_chunks=15),
    ),
    "all at once": (
        ChaosSettings(latency_ms=5, error_rates={400: 0.02, 408: 0.02, 429: 0.02, 502: 0.02, 529: 0.02}),
        StreamChaos(tuple((kind, 0.025) for kind in STREAM_FAULT_KINDS), stall_seconds=30, chunk_delay_ms=5),
    ),
}


def ends_well(records: list[RequestRecord], surface: Surface, chunks: int) -> bool:
    """Whether the last request got an answer; all earlier failures must have been retryable."""
    epilogue = range(chunks - surface.epilogue, chunks)
    is_enough = {f"stream:{kind}@{place}" for kind in ("truncate", "stall") for place in epilogue}
    # A reset connection may lose what was sent before it, so that an answer may be whole on one side alone.
    may_be_enough = {f"stream:disconnect@{place}" for place in epilogue}
    *before, last = records
    assert not any(
        record.status in FINAL or is_whole(record, surface) or record.fault in is_enough for record in before
    )
    is_answered = is_whole(last, surface) or last.fault in is_enough | may_be_enough
    assert is_answered or last.status in FINAL or len(records) == MOST_ATTEMPTS
    return is_answered


@pytest.mark.parametrize("weather", WEATHERS.values(), ids=WEATHERS.keys())
async def test_every_job_ends_as_the_journal_says(
    crew: Crew, judge: Judge, surface: Surface, weather: tuple[ChaosSettings, StreamChaos]
) -> None:
    _, in_streams = weather
    # Without faults of silence, a busy machine must not look like one.
    silence_s = 1 if in_streams.fault_rates else 10
    await crew.worker(content_idle_timeout_s=silence_s, first_token_timeout_s=2 * silence_s, concurrency=JOBS)
    assert text_of(await crew.ended(await crew.submit(model="in calm"))) == ANSWER
    (calm,) = await judge.journal()
    judge.weather(*weather)
    job_ids = [await crew.submit(max_attempts=MOST_ATTEMPTS) for _ in range(JOBS)]
    jobs = await crew.all_ended(job_ids)
    for job_id, job in zip(job_ids, jobs, strict=True):
        records = await judge.records_of(crew, job_id)
        assert job.attempts == len(records)
        if ends_well(records, surface, calm.chunks_sent):
            assert text_of(job) == ANSWER
        else:
            assert job.error is not None
            assert (job.state, job.error.upstream_status) == ("failed", records[-1].status)
    await judge.passes(surface, but={*FULL_JITTER, *([TRUNCATED_STREAM_ACCEPTED, GAVE_UP] if surface.epilogue else [])})
    assert any(record.fault for record in await judge.journal())
