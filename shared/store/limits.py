"""Turns what the scripts reply about limits into states and problems."""

from collections.abc import Sequence
from typing import Any, Final

from shared.errors import BudgetExceeded, FieldError, InvalidRequest, Problem, RateLimited, TooManyQueued
from shared.limits import LimitState, Measured


def states_of(flat: Sequence[bytes]) -> tuple[LimitState, ...]:
    """The limits' states in a script's reply."""
    return tuple(
        LimitState(
            Measured(measured.decode()), int(limit), int(remaining), int(reset_ms) if int(reset_ms) >= 0 else None
        )
        for measured, limit, remaining, reset_ms in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    )


def problem_of(reply: Sequence[Any]) -> Problem:
    """For ``{'limited', ...}`` or ``{'never', ...}``: RateLimited, TooManyQueued, BudgetExceeded or InvalidRequest."""
    if reply[0] == b"never":
        return _never(reply[1], int(reply[2]))
    _, code, wait_ms, states, *limit = reply
    kind, detail = _REFUSALS[code]
    detail = detail.format(*map(int, limit))
    return kind(detail, retry_after_s=-(-int(wait_ms) // 1000), limits=states_of(states))


_SET_BY: Final = (
    "An operator sets the limit: tokenspool tenants set --waiting-bytes, or TOKENSPOOL_TENANT_WAITING_SHARE."
)

_REFUSALS: Final[dict[bytes, tuple[type[RateLimited], str]]] = {
    b"rate_limited": (RateLimited, "The key or its tenant has reached its limit for a minute."),
    b"too_many_queued": (TooManyQueued, "The key or its tenant has reached its limit of waiting jobs."),
    b"too_many_bytes": (
        TooManyQueued,
        (
            "The tenant's requests may take {} bytes of Redis, including those of jobs that did not succeed. "
            f"Wait for jobs to end, or erase some that did not succeed. {_SET_BY}"
        ),
    ),
    b"budget_exceeded": (
        BudgetExceeded,
        "The budget of the key, its tenant or the end user is spent. It is renewed when the next day, or month, begins (UTC).",
    ),
}


def _never(measured: bytes, limit: int) -> InvalidRequest:
    """A 400, because a 429 would say that the request fits later."""
    if measured == b"waiting_bytes":
        return InvalidRequest(
            f"The request can never be accepted: a tenant's requests may take {limit} bytes of Redis. {_SET_BY}"
        )
    if measured.decode() == Measured.TOKENS:
        detail = f"must be at most {limit}, the limit for a minute"
        return InvalidRequest("The request can never be accepted.", errors=[FieldError("#/max_tokens", detail)])
    return InvalidRequest(f"The batch can never be accepted: at most {limit} jobs may wait.")
