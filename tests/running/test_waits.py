"""The times in ``waiting_for`` come true: the job starts within a second of the time that it was given."""

from collections.abc import Awaitable, Callable

import pytest

from shared.clock import from_rfc3339
from shared.routes import RouteRule
from shared.waiting import NotBefore, Reason, Retry, RouteShut, Shut
from tests.running.crew import FAST, Crew, Hand
from tests.running.test_retries import until_deferred
from tests.support.store import look_anew, now_ms
from tests.support.upstreams import let_pass


async def _reasons(hand: Hand, job_id: str) -> list[Reason]:
    await look_anew(hand.runtime)
    (waiting_for,) = await hand.runtime.waits.of([(job_id, FAST)])
    return list(waiting_for or ())


async def _for_later(crew: Crew, _hand: Hand) -> str:
    return await crew.submit(not_before_ms=await now_ms(crew.runtime) + 2_500)


async def _failed_once(crew: Crew, _hand: Hand) -> str:
    job_id = await crew.submit("fail=500x1,retry-after=3")
    await until_deferred(crew, job_id)
    return job_id


async def _of_a_shut_route(crew: Crew, _hand: Hand) -> str:
    await crew.ended(await crew.submit("fail=429,retry-after=3", max_attempts=1))
    return await crew.submit()


async def _of_a_full_route(crew: Crew, hand: Hand) -> str:
    await crew.ended(await crew.submit())
    async with hand.worker._claiming:  # what it knew from before the call was reserved would let a second job start
        hand.worker._governor._gates.forget()
        await hand.worker._governor.quotas()
    await look_anew(hand.runtime)
    job_id = await crew.submit()
    await let_pass(crew.runtime, 58)
    return job_id


@pytest.mark.parametrize(
    ("begin", "kind", "because"),
    [
        (_for_later, NotBefore, None),
        (_failed_once, Retry, None),
        (_of_a_shut_route, RouteShut, Shut.RETRY_AFTER),
        (_of_a_full_route, RouteShut, Shut.MINUTE_FULL),
    ],
    ids=["not_before", "retry", "retry_after", "minute_full"],
)
async def test_a_job_starts_within_a_second_of_the_time_that_it_was_given(
    crew: Crew, begin: Callable[[Crew, Hand], Awaitable[str]], kind: type[Reason], because: Shut | None
) -> None:
    """Neither before nor after it."""
    routes = {FAST: RouteRule(requests_per_minute=1)} if because is Shut.MINUTE_FULL else {}
    hand = await crew.worker(routes=routes)
    job_id = await begin(crew, hand)
    reason = (await _reasons(hand, job_id))[0]
    assert isinstance(reason, kind), reason
    if isinstance(reason, RouteShut):
        assert reason.because is because
    until = getattr(reason, "until", None)
    assert until is not None
    await crew.ended(job_id)
    started = [event for event in await crew.events(job_id) if event.name == "started"][-1]
    assert started.id is not None
    assert -100 <= started.id.epoch - from_rfc3339(until) <= 1_000  # an epoch is the time of its claim
