"""What a worker reports about the LLM: from the outcomes of its own calls, or of a free check if it makes none."""

from collections.abc import Iterable

import pytest

from shared.job import Usage
from worker.llm_state import LlmState
from worker.outcome import TIMED_OUT, Answered, Breakage, Failure, How, Outcome, Refusal, classify

ANSWERED = Answered(b"{}", Usage(), None)
OVERLOADED = classify(Refusal(529, "overloaded_error"))
REJECTED = classify(Refusal(400, "invalid_request_error"))


def after(outcomes: Iterable[Outcome]) -> LlmState:
    state = LlmState()
    for outcome in outcomes:
        state.note(outcome)
    return state


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([ANSWERED], "reachable"),
        ([REJECTED], "reachable"),
        ([TIMED_OUT], "reachable"),
        ([classify(Refusal(403, "permission_error"))], "reachable"),  # because of one caller's request
        ([classify(Breakage(How.GARBLED))], "reachable"),  # a server's habit, not a failure
        ([classify(Breakage(How.IMPATIENT))], "reachable"),
        ([classify(Breakage(How.FAULTY))], "reachable"),
        ([OVERLOADED], "unreachable"),
        ([classify(Breakage(How.UNREACHABLE))], "unreachable"),
        ([classify(Breakage(How.ENDED_EARLY))], "unreachable"),
        ([classify(Refusal(401, "authentication_error"))], "unreachable"),
        ([classify(Refusal(307))], "unreachable"),  # the base URL is wrong
        ([classify(Refusal(429, "rate_limit_error"))], "unreachable"),
        ([OVERLOADED, ANSWERED], "degraded"),
        ([ANSWERED, OVERLOADED], "degraded"),
        ([OVERLOADED, REJECTED], "degraded"),
        ([OVERLOADED, *[ANSWERED] * 19], "degraded"),
        ([OVERLOADED, *[ANSWERED] * 20], "reachable"),
        ([ANSWERED, *[OVERLOADED] * 20], "unreachable"),
    ],
)
def test_the_last_twenty_calls_decide_the_state_of_the_llm(outcomes: list[Outcome], expected: str) -> None:
    """A refusal shows that the LLM can be reached; a job's own timeout shows nothing."""
    assert after(outcomes).facts["llm"] == expected


def test_without_a_call_there_is_nothing_to_say() -> None:
    assert LlmState().facts == {}


def test_each_call_updates_the_time_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state has its start, and the time of the last call that confirmed it."""
    now_s = 1000.0
    monkeypatch.setattr("worker.llm_state.time.monotonic", lambda: now_s)
    state = after([ANSWERED])
    since_ms = state.facts["llm_since_ms"]
    now_s = 1007.5
    assert state.facts == {"llm": "reachable", "llm_since_ms": since_ms, "llm_age_s": 7}
    state.note(ANSWERED)
    assert state.facts == {"llm": "reachable", "llm_since_ms": since_ms, "llm_age_s": 0}


def test_a_change_wakes_the_reporter() -> None:
    """The first call does, and each call that changes the state; others do not."""
    state = LlmState()
    for outcome, expected in ((ANSWERED, True), (ANSWERED, False), (OVERLOADED, True), (ANSWERED, False)):
        state.changed.clear()
        state.note(outcome)
        assert state.changed.is_set() is expected


@pytest.mark.parametrize(
    ("failure", "state"),
    [
        (None, "reachable"),
        (OVERLOADED, "unreachable"),
        (classify(Breakage(How.UNREACHABLE)), "unreachable"),
        (classify(Refusal(401, "authentication_error")), "unreachable"),
        (classify(Refusal(404, "not_found_error")), "reachable"),  # a gateway may have no list of models
    ],
    ids=["answered", "overloaded", "no connection", "wrong key", "no list"],
)
def test_a_free_check_replaces_earlier_outcomes(failure: Failure | None, state: str) -> None:
    """It is made after a while without calls, whose outcomes are then old."""
    llm_state = LlmState()
    assert llm_state.is_idle(60)
    llm_state.note(ANSWERED)
    llm_state.note(OVERLOADED)
    assert not llm_state.is_idle(60)
    llm_state.note_check(failure)
    assert llm_state.facts["llm"] == state
