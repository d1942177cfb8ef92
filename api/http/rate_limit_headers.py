"""The headers that report limits: ``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers-10), and
on the surface of the Messages API also its own. Pure.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from shared.limits import WINDOW_S, LimitState, Measured

_OF_THE_MESSAGES_API: Final = {Measured.REQUESTS: "requests", Measured.TOKENS: "tokens"}


def headers_of(limits: Sequence[LimitState], *, on_messages_surface: bool = False) -> dict[str, str]:
    """RateLimit headers for a response, given the limits' current state. Empty without limits."""
    if not limits:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join([_policy_of(state) for state in limits]),
        "RateLimit": ", ".join([_item_of(state) for state in limits]),
    }
    if on_messages_surface:
        headers |= _messages_headers_of(limits)
    return headers


def _policy_of(state: LimitState) -> str:
    window = "" if state.reset_ms is None else f";w={WINDOW_S}"
    return f'"{state.measured}";q={state.limit}{window}'


def _item_of(state: LimitState) -> str:
    reset = "" if state.reset_ms is None else f";t={_reset_s(state.reset_ms)}"
    return f'"{state.measured}";r={state.remaining}{reset}'


def _reset_s(milliseconds: int) -> int:
    """Rounded up, but at most the window, which rounding could exceed: its edge moves in steps of half a second."""
    return min(WINDOW_S, -(-milliseconds // 1000))


def _messages_headers_of(limits: Sequence[LimitState]) -> dict[str, str]:
    headers = {}
    now = datetime.now(UTC).replace(microsecond=0)
    for state in limits:
        name = _OF_THE_MESSAGES_API.get(state.measured)
        if name is not None:
            reset = now + timedelta(seconds=_reset_s(state.reset_ms or 0))
            headers[f"anthropic-ratelimit-{name}-limit"] = str(state.limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(state.remaining)
            headers[f"anthropic-ratelimit-{name}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers
