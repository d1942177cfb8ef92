"""What workers add to the figures of the service."""

from collections.abc import Mapping

import pytest

from shared.errors import StorageUnavailable
from tests.running.crew import STEADY, TENANT, Crew, replace
from tests.support.wait import wait_until


async def test_tokens_and_first_tokens_reach_the_figures(crew: Crew) -> None:
    """At the end as many tokens as the upstream reported, also of an attempt that failed; a job's first token once."""
    hand = await crew.worker()
    job_ids = [await crew.submit("tokens=30"), await crew.submit("end=3x1 tokens=20"), await crew.submit("fail=400")]
    jobs = await crew.all_ended(job_ids)
    await hand.drained()
    reported = sum(job.usage.output_tokens for job in jobs if job.usage is not None)
    await crew.runtime.figures.read((await crew.runtime.figures.depths()).now_ms)
    buckets = crew.runtime.figures.buckets.values()
    assert reported <= sum(bucket.tokens for bucket in buckets) <= reported + 10
    assert sum(sum(bucket.first_tokens.values()) for bucket in buckets) == 2
    outcomes = (await crew.runtime.figures.depths()).ended
    assert outcomes == {"succeeded": 2, "failed upstream_rejected": 1}


async def test_tokens_are_counted_while_an_answer_is_under_way(crew: Crew) -> None:
    """And announced as a rate, by the worker that hears them."""
    hand = await crew.worker()
    job_id = await crew.submit(model=STEADY)
    await crew.begun(job_id, 20)

    async def is_announced() -> bool:
        (facts,) = await crew.runtime.workers.living()
        return float(facts["tokens_per_s"]) > 5

    await wait_until(is_announced, "a rate")

    async def is_added() -> bool:
        await crew.runtime.figures.read((await crew.runtime.figures.depths()).now_ms)
        return sum(bucket.tokens for bucket in crew.runtime.figures.buckets.values()) > 20

    await wait_until(is_added, "tokens in the ring")
    assert job_id in hand.running
    await crew.runtime.jobs.cancel(job_id, TENANT)
    await hand.is_idle()


async def test_figures_that_redis_did_not_take_are_sent_again(crew: Crew) -> None:
    """They are counted once."""
    hand = await crew.worker()
    figures = hand.worker._context.figures
    add = hand.runtime.figures.add

    async def refuse(_: Mapping[str, int]) -> None:
        raise StorageUnavailable

    replace(hand.runtime.figures, "add", refuse)
    figures._unsent.update({"tokens": 7})
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await figures.send(at_once=True)
    replace(hand.runtime.figures, "add", add)
    for _ in range(2):
        await figures.send(at_once=True)
    await crew.runtime.figures.read((await crew.runtime.figures.depths()).now_ms)
    assert sum(bucket.tokens for bucket in crew.runtime.figures.buckets.values()) == 7
