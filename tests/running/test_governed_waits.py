"""A job without a permit waits: it is not polled, loses no attempts, and pays only once."""

import asyncio
from decimal import Decimal
from typing import Any

from shared.errors import StorageUnavailable
from shared.job import JobState
from shared.prices import OwnPrice
from shared.routes import RouteRule
from tests.running.crew import Crew, replace
from tests.running.ledger import rows_of
from tests.running.test_retries import come_due, until_deferred
from tests.support.wait import wait_until

FIRST, STAND_IN, ELSEWHERE = "sim-t6-g1-f1", "sim-t6-g1-f2", "sim-t6-g1-f3"


async def shut(crew: Crew, model: str) -> None:
    """Shuts the route: the upstream has asked for a pause of a minute."""
    await crew.ended(await crew.submit("fail=429,retry-after=60", model=model, max_attempts=1))


async def test_a_job_submitted_under_other_routes_is_not_claimed_in_a_loop(crew: Crew) -> None:
    """Its flow is named after the API's routes, so that CLAIM finds no gate for it."""
    await crew.worker(routes={FIRST: RouteRule(model=ELSEWHERE)})
    await shut(crew, ELSEWHERE)
    job_id = await crew.submit(model=FIRST)

    async def has_come_back() -> bool:
        return [name for name, _ in await crew.ours(job_id)].count("started") >= 2

    began_s = asyncio.get_running_loop().time()
    await wait_until(has_come_back, "the second claim")
    assert asyncio.get_running_loop().time() - began_s >= 0.9
    assert crew.calls(job_id) == []


async def test_a_stand_in_that_is_shut_does_not_hurry_the_attempts(crew: Crew) -> None:
    """No stand-in is available, so the overloaded route gets a pause."""
    await crew.worker(routes={FIRST: RouteRule(fallback=(STAND_IN,))})
    await shut(crew, STAND_IN)
    began_s = asyncio.get_running_loop().time()
    await crew.ended(await crew.submit("fail=529", model=FIRST, max_attempts=2))
    assert asyncio.get_running_loop().time() - began_s >= 0.9


async def test_what_was_reset_before_a_wait_is_not_reset_after_it(crew: Crew) -> None:
    """The attempt failed after its first words and the next one got no permit: one reset clears what was shown."""
    bound = await crew.worker(routes={FIRST: RouteRule(requests_per_minute=1)}, upstream_retry_base_s=0.01)
    job_id = await crew.submit("end=3x1", model=FIRST)
    await until_deferred(crew, job_id)
    await bound.drained()
    await crew.worker()
    await come_due(crew, job_id)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    assert [name for name, _ in await crew.ours(job_id)] == [
        "started", "retry", "reset", "retry", "started", "succeeded",
    ]  # fmt: skip


async def test_what_is_shown_after_a_reset_is_reset_too(crew: Crew) -> None:
    """The worker that takes over writes it; the reset of the attempt before does not count."""
    hand = await crew.worker(lease_s=1, upstream_retry_base_s=0.01)
    job_id = await crew.submit("end=3x1", model="sim-t100-g20-f1")

    async def is_writing_again() -> bool:
        names = [event.name for event in await crew.runtime.log.read(job_id)]
        return "reset" in names and "content_block_delta" in names[names.index("reset") :]

    await wait_until(is_writing_again, "the second attempt's first words")
    await hand.killed()
    await crew.worker(lease_s=1)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    names = [name for name, _ in await crew.ours(job_id)]
    assert names == ["started", "retry", "reset", "started", "reset", "succeeded"]


async def test_a_release_whose_reply_was_lost_charges_once(crew: Crew) -> None:
    """The worker repeats it, and Redis replies that it was already done."""
    hand = await crew.worker(prices={"*": OwnPrice(input=Decimal(3), output=Decimal(15))})
    release = hand.runtime.queue.release
    answers: list[bool] = []

    async def release_unheard(*arguments: Any, **named: Any) -> bool:
        answers.append(await release(*arguments, **named))
        if len(answers) == 1:
            raise StorageUnavailable
        return answers[-1]

    replace(hand.runtime.queue, "release", release_unheard)
    job_id = await crew.submit("end=5x1 fail=429x2,retry-after=60")
    await wait_until(lambda: len(answers) == 2, "the second release")
    await hand.is_idle()
    assert answers == [True, True]
    cost = sum([row.cost_nano_usd or 0 for row in await rows_of(crew, job_id)])
    assert await crew.field(job_id, "cost_nano_usd") == str(cost)


async def test_a_finish_whose_reply_never_came_charges_once(crew: Crew) -> None:
    """The next renewal shows only that the claim is over, not that this worker ended the job."""
    hand = await crew.worker(lease_s=1, prices={"*": OwnPrice(input=Decimal(3), output=Decimal(15))})
    finish = hand.runtime.queue.finish

    async def finish_unheard(*arguments: Any, **named: Any) -> Any:
        await finish(*arguments, **named)
        await asyncio.Event().wait()

    replace(hand.runtime.queue, "finish", finish_unheard)
    job_id = await crew.submit()
    await crew.ended(job_id)
    await hand.is_idle()
    cost = sum([row.cost_nano_usd or 0 for row in await rows_of(crew, job_id)])
    assert await crew.field(job_id, "cost_nano_usd") == str(cost)
