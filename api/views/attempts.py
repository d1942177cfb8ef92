"""What was tried for a job, as its caller sees it: one object for each call to the LLM."""

from collections.abc import Sequence
from typing import Final

import msgspec

from shared.clock import to_rfc3339
from shared.job import Usage
from shared.store.attempts import Attempt

_encode: Final = msgspec.json.Encoder().encode


class AttemptView(msgspec.Struct, frozen=True):
    """A call to the LLM. What is not known yet, or never will be, is null."""

    attempt: int
    provider: str
    model: str
    """The one that was called, by the LLM's own name for it."""
    route: str
    worker: str
    begun_at: str
    first_token_at: str | None
    ended_at: str | None
    outcome: str | None
    message: str | None
    upstream_status: int | None
    usage: Usage | None
    is_estimated: bool
    cost_usd: float | None


class AttemptList(msgspec.Struct, frozen=True):
    """The attempts of a job."""

    data: list[AttemptView]


def render_attempts(attempts: Sequence[Attempt]) -> bytes:
    """The attempts as one line of JSON."""
    return _encode(AttemptList([_view_of(attempt) for attempt in attempts]))


def _view_of(attempt: Attempt) -> AttemptView:
    provider, _, model = attempt.route.partition("/")
    return AttemptView(
        attempt=attempt.attempt,
        provider=provider,
        model=model,
        route=attempt.route,
        worker=attempt.worker,
        begun_at=to_rfc3339(attempt.begun_ms),
        first_token_at=_time(attempt.first_token_ms),
        ended_at=_time(attempt.ended_ms),
        outcome=attempt.outcome,
        message=attempt.message,
        upstream_status=attempt.upstream_status,
        usage=attempt.usage,
        is_estimated=attempt.is_estimated,
        cost_usd=attempt.cost_usd,
    )


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else to_rfc3339(time_ms)
