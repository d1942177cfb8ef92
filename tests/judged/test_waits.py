"""The waits between attempts, as the upstream sees them."""

from itertools import pairwise
from statistics import mean

from tests.judged.judge import NO_BACKOFF, Judge
from tests.judged.surface import Surface
from tests.running.crew import Crew

JOBS = 100
BASE_S = 0.1


async def test_waits_grow_and_are_spread(crew: Crew, judge: Judge, surface: Surface) -> None:
    """The purpose of `no_backoff`, for a client with full jitter: each wait is up to twice as long as the one before,
    and no two jobs retry together. llmock itself finds three waits that only shrink, or are all under 50 ms, in one
    call of twenty.
    """
    await crew.worker(upstream_retry_base_s=BASE_S, concurrency=JOBS)
    judge.outage(status=500)
    await crew.all_ended([await crew.submit(model=f"model-{n}", max_attempts=4) for n in range(JOBS)])
    await judge.passes(surface, but={NO_BACKOFF})
    verdict = judge.verdict()
    assert [len(call.attempts) for call in verdict.calls] == [4] * JOBS
    assert len(verdict.findings) <= JOBS / 4
    waits_s = list(
        zip(
            *(
                [after.started_at - before.ended_at for before, after in pairwise(call.attempts)]
                for call in verdict.calls
            ),
            strict=True,
        )
    )
    # tests/unit_worker/test_retry.py checks by how much they grow; a busy machine adds to all of them.
    assert mean(waits_s[0]) < mean(waits_s[-1])
    assert len({round(wait_s, 3) for wait_s in waits_s[-1]}) > JOBS / 2
