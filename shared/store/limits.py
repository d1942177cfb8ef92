"""What the scripts say of limits, in our words."""

from collections.abc import Sequence
from typing import Any, Final

from shared.errors import BudgetExceeded, FieldError, InvalidRequest, Problem, RateLimited, TooManyQueued
from shared.limits import LimitState, Measured

_PARTS: Final = 4


def states_of(told: Sequence[bytes]) -> tuple[LimitState, ...]:
    """How the limits stand that a script told of."""
    states = []
    for at in range(0, len(told), _PARTS):
        measured, limit, remaining, reset_ms = told[at : at + _PARTS]
        reset = int(reset_ms)
        states.append(
            LimitState(Measured(measured.decode()), int(limit), int(remaining), reset if reset >= 0 else None)
        )
    return tuple(states)


def problem_of(reply: Sequence[Any]) -> Problem:
    """What ``{'limited', ...}`` or ``{'never', ...}`` says: RateLimited, TooManyQueued, BudgetExceeded or InvalidRequest."""
    if reply[0] == b"never":
        return _never(Measured(reply[1].decode()), int(reply[2]))
    _, code, wait_ms, told = reply
    kind, detail = _REFUSALS[code]
    return kind(detail, retry_after_s=-(-int(wait_ms) // 1000), limits=states_of(told))


_REFUSALS: Final[dict[bytes, tuple[type[RateLimited], str]]] = {
    b"rate_limited": (RateLimited, "The key or its tenant has asked for as much as it may within a minute."),
    b"too_many_queued": (TooManyQueued, "As many jobs of the key or its tenant wait as may wait."),
    b"budget_exceeded": (
        BudgetExceeded,
        "The budget of the key or its tenant is spent. It is whole again when the day, or the month, begins (UTC).",
    ),
}


def _never(measured: Measured, limit: int) -> InvalidRequest:
    """A 429 would say that it fits later."""
    if measured is Measured.TOKENS:
        detail = f"must be at most {limit}, which is the limit of a whole minute"
        return InvalidRequest("The request can never be admitted.", errors=[FieldError("#/max_tokens", detail)])
    return InvalidRequest(f"The batch can never be admitted: {limit} jobs may wait.")
