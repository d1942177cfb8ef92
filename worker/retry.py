"""Whether, and when, a failed attempt is tried again. tenacity drives it; the decisions are pure functions.

Full jitter: the n-th wait is uniform in [0, base · 2^(n-1)], at most the cap (2 s and 60 s by default). A Retry-After
of the upstream is a floor, honoured up to a cap of its own (an hour). For a wait of more than 2 s the job does not keep its
worker's slot: it goes back to the queue, deferred. A fallback is called at once.
"""

import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from shared.job import LONGEST_WAIT_IN_SLOT_S
from worker.outcome import Failure, Outcome


class RetryPolicy(NamedTuple):
    """Bounds of one job's attempts."""

    max_attempts: int
    failures_before: int
    """Attempts that failed in earlier claims."""
    ends_s: float
    """When the job's time is over, by the loop's clock."""
    base_s: float
    cap_s: float
    retry_after_cap_s: float


Attempt = Callable[[], Awaitable[Outcome]]


class Deferred(Exception):
    """The wait is too long to keep the worker's slot.

    ``failures``: 1 if the attempt before it failed; 0 if the governor makes the job wait, which uses up no attempt.
    """

    def __init__(self, delay_s: float, *, code: str, failures: int = 1, announced_s: float | None = None) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s
        self.announced_s = delay_s if announced_s is None else announced_s
        """The wait in the ``retry`` event: a job may be back in the queue before its call may be made."""
        self.code = code
        self.failures = failures


def is_spent(policy: RetryPolicy, failures_here: int) -> bool:
    """Whether the failures use up ``max_attempts``."""
    return policy.failures_before + failures_here >= policy.max_attempts


def wait_s(policy: RetryPolicy, failures_here: int, failure: Failure, jitter: Callable[[float, float], float]) -> float:
    """Seconds until the next attempt."""
    if failure.has_stand_in:
        return 0
    ceiling_s = min(policy.cap_s, policy.base_s * 2 ** (policy.failures_before + failures_here - 1))
    return max(jitter(0, ceiling_s), min(failure.retry_after_s or 0, policy.retry_after_cap_s))


def retrying(
    policy: RetryPolicy,
    *,
    now_s: Callable[[], float],
    before_wait: Callable[[Failure, float], Awaitable[None]],
    sleep: Callable[[float], Awaitable[None]],
    jitter: Callable[[float, float], float] = random.uniform,
) -> Callable[[Attempt], Awaitable[Outcome]]:
    """Repeats an attempt until its outcome is final. Returns the last outcome; raises Deferred.

    ``before_wait(failure, delay_s)`` is called only before a wait in the slot.
    """

    def stop(state: RetryCallState) -> bool:
        return is_spent(policy, state.attempt_number) or now_s() + state.upcoming_sleep >= policy.ends_s

    def wait(state: RetryCallState) -> float:
        return wait_s(policy, state.attempt_number, _failure_of(state), jitter)

    async def before_sleep(state: RetryCallState) -> None:
        delay_s = state.upcoming_sleep
        if delay_s > LONGEST_WAIT_IN_SLOT_S:
            raise Deferred(delay_s, code=_failure_of(state).error.code)
        await before_wait(_failure_of(state), delay_s)

    async def run(attempt: Attempt) -> Outcome:
        first = await attempt()
        if not _is_retryable(first):  # nearly always: tenacity's bookkeeping is 6 % of a job's CPU (measured)
            return first
        had = [first]

        async def next_attempt() -> Outcome:
            return had.pop() if had else await attempt()

        outcome: Outcome = await AsyncRetrying(
            retry=retry_if_result(_is_retryable),
            stop=stop,
            wait=wait,
            before_sleep=before_sleep,
            sleep=sleep,
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )(next_attempt)
        return outcome

    return run


def _is_retryable(outcome: Outcome) -> bool:
    return isinstance(outcome, Failure) and outcome.is_retryable


def _failure_of(state: RetryCallState) -> Failure:
    outcome = state.outcome.result() if state.outcome else None
    assert isinstance(outcome, Failure)
    return outcome
