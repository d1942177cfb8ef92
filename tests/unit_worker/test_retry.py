"""Whether a failed attempt is retried, and after how long."""

import math
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import JobError
from shared.job import LONGEST_WAIT_IN_SLOT_S
from worker.outcome import TIMED_OUT, Breakage, Failure, How, Outcome, Refusal, classify
from worker.retry import Deferred, RetryPolicy, is_spent, retrying, wait_s

OVERLOADED = classify(Refusal(529, "overloaded_error"))
REJECTED = classify(Refusal(400, "invalid_request_error"))
NO_ANSWER_YET = classify(Breakage(How.ENDED_EARLY))

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 10),
    failures_before=st.integers(0, 9),
    ends_s=st.just(math.inf),
    base_s=st.floats(0.001, 10),
    cap_s=st.floats(0.001, 600),
    retry_after_cap_s=st.floats(0.001, 7200),
)
jitters = st.floats(0, 1)


def a_policy(
    *, max_attempts: int = 3, failures_before: int = 0, ends_s: float = math.inf, retry_after_cap_s: float = 3600
) -> RetryPolicy:
    return RetryPolicy(max_attempts, failures_before, ends_s, 0.5, 60, retry_after_cap_s)


def at_most(share: float) -> Callable[[float, float], float]:
    """Jitter that always falls at this share of the ceiling."""
    return lambda low, high: low + share * (high - low)


def asked_to_wait(retry_after_s: float) -> Failure:
    return classify(Refusal(429, "rate_limit_error", retry_after_s=retry_after_s))


class Upstream:
    """Returns these outcomes, one per attempt, on a clock that only waiting moves."""

    def __init__(self, *outcomes: Outcome, attempt_takes_s: float = 0) -> None:
        self.calls = 0
        self.waits_s: list[float] = []
        self.announced: list[tuple[Failure, float]] = []
        self.now_s = 0.0
        self._outcomes = list(outcomes)
        self._attempt_takes_s = attempt_takes_s

    async def attempt(self) -> Outcome:
        self.calls += 1
        self.now_s += self._attempt_takes_s
        return self._outcomes.pop(0)

    async def sleep(self, delay_s: float) -> None:
        self.waits_s.append(delay_s)
        self.now_s += delay_s

    async def before_wait(self, failure: Failure, delay_s: float) -> None:
        self.announced.append((failure, delay_s))

    async def ask(self, policy: RetryPolicy, *, share: float = 1.0) -> Outcome:
        """Runs the attempts; returns the last outcome, or raises Deferred."""
        asking: Callable[[Callable[[], Awaitable[Outcome]]], Awaitable[Outcome]] = retrying(
            policy,
            now_s=lambda: self.now_s,
            before_wait=self.before_wait,
            sleep=self.sleep,
            jitter=at_most(share),
        )
        return await asking(self.attempt)


@pytest.mark.parametrize(
    ("failures", "ceiling_s"),
    [(1, 0.5), (2, 1), (3, 2), (4, 4), (7, 32), (8, 60), (9, 60)],
    ids=lambda value: f"{value}",
)
def test_the_ceiling_doubles_with_each_failure_up_to_the_cap(failures: int, ceiling_s: float) -> None:
    assert wait_s(a_policy(), failures, OVERLOADED, at_most(1)) == ceiling_s


def test_failures_of_earlier_claims_count_for_the_ceiling() -> None:
    assert wait_s(a_policy(failures_before=2), 1, OVERLOADED, at_most(1)) == 2


@given(policy=policies, failures=st.integers(1, 10), share=jitters)
def test_the_wait_is_anywhere_between_nothing_and_the_ceiling(policy: RetryPolicy, failures: int, share: float) -> None:
    """Full jitter: workers that failed together do not retry together."""
    ceiling_s = min(policy.cap_s, policy.base_s * 2 ** (policy.failures_before + failures - 1))
    assert wait_s(policy, failures, OVERLOADED, at_most(share)) == pytest.approx(share * ceiling_s)


@given(policy=policies, failures=st.integers(1, 10), share=jitters, retry_after_s=st.floats(0, 1e9))
def test_retry_after_is_a_floor_up_to_the_cap(
    policy: RetryPolicy, failures: int, share: float, retry_after_s: float
) -> None:
    delay_s = wait_s(policy, failures, asked_to_wait(retry_after_s), at_most(share))
    assert min(retry_after_s, policy.retry_after_cap_s) <= delay_s <= max(policy.cap_s, policy.retry_after_cap_s)


def test_a_stand_in_is_asked_at_once() -> None:
    assert wait_s(a_policy(), 1, asked_to_wait(30)._replace(has_stand_in=True), at_most(1)) == 0


@given(policy=policies, failures=st.integers(0, 10))
def test_attempts_are_spent_when_as_many_failed_as_are_allowed(policy: RetryPolicy, failures: int) -> None:
    assert is_spent(policy, failures) == (policy.failures_before + failures >= policy.max_attempts)


async def test_a_failure_that_can_pass_is_tried_again() -> None:
    upstream = Upstream(OVERLOADED, NO_ANSWER_YET, REJECTED)
    assert await upstream.ask(a_policy()) == REJECTED
    assert upstream.waits_s == [0.5, 1]
    assert upstream.announced == [(OVERLOADED, 0.5), (NO_ANSWER_YET, 1)]


@pytest.mark.parametrize("failure", [REJECTED, TIMED_OUT], ids=["rejected", "timed out"])
async def test_a_final_failure_is_not(failure: Failure) -> None:
    upstream = Upstream(failure)
    assert await upstream.ask(a_policy()) == failure
    assert upstream.announced == []


@pytest.mark.parametrize(("max_attempts", "failures_before", "calls"), [(1, 0, 1), (3, 0, 3), (3, 1, 2), (3, 2, 1)])
async def test_the_last_allowed_failure_is_final(max_attempts: int, failures_before: int, calls: int) -> None:
    upstream = Upstream(*[OVERLOADED] * 3)
    policy = a_policy(max_attempts=max_attempts, failures_before=failures_before)
    assert await upstream.ask(policy, share=0.1) == OVERLOADED
    assert upstream.calls == calls
    assert len(upstream.announced) == calls - 1


async def test_a_wait_past_the_end_of_the_job_is_not_begun() -> None:
    """The job then ends with that failure."""
    upstream = Upstream(OVERLOADED, OVERLOADED, attempt_takes_s=3)
    assert await upstream.ask(a_policy(ends_s=6.6)) == OVERLOADED
    assert upstream.waits_s == [0.5]
    assert upstream.calls == 2


async def test_a_retry_after_past_the_end_of_the_job_is_final_at_once() -> None:
    upstream = Upstream(asked_to_wait(30))
    assert await upstream.ask(a_policy(ends_s=20)) == asked_to_wait(30)
    assert upstream.waits_s == []


async def test_up_to_two_seconds_are_waited_in_the_slot() -> None:
    upstream = Upstream(asked_to_wait(LONGEST_WAIT_IN_SLOT_S), REJECTED)
    assert await upstream.ask(a_policy()) == REJECTED
    assert upstream.waits_s == [LONGEST_WAIT_IN_SLOT_S]


async def test_a_longer_wait_gives_the_slot_away() -> None:
    """No event is written here: RELEASE writes the `retry` event."""
    upstream = Upstream(asked_to_wait(2.1))
    with pytest.raises(Deferred) as deferred:
        await upstream.ask(a_policy())
    assert deferred.value.delay_s == 2.1
    assert upstream.waits_s == []
    assert upstream.announced == []


async def test_a_day_of_retry_after_is_cut_to_its_cap() -> None:
    upstream = Upstream(asked_to_wait(86_400))
    with pytest.raises(Deferred) as deferred:
        await upstream.ask(a_policy(retry_after_cap_s=3600))
    assert deferred.value.delay_s == 3600


async def test_the_timeout_of_the_job_is_not_tried_again_although_a_caller_may_try() -> None:
    assert TIMED_OUT.error == JobError("timeout", "The job was not done within its timeout_s.", retryable=True)
    upstream = Upstream(TIMED_OUT)
    assert await upstream.ask(a_policy()) == TIMED_OUT
