"""The headers that report limits: ``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers-10), and
on the surface of the Messages API also its own. Pure.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from shared.limits import LimitState, Measured

_OF_THE_MESSAGES_API: Final = {Measured.REQUESTS: "requests", Measured.TOKENS: "tokens"}
_NAMES: Final = {
    Measured.REQUESTS: "requests",
    Measured.TOKENS: "tokens",
    Measured.QUEUED_JOBS: "queued_jobs",
    Measured.USD_PER_DAY: "micro_usd_per_day",
    Measured.USD_PER_MONTH: "micro_usd_per_month",
}
"""Budgets are in millionths of a dollar: a structured field's integers have at most 15 digits, too few for billionths."""


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
    window = "" if state.reset_ms is None else f";w={state.window_s}"
    return f'"{_NAMES[state.measured]}";q={_amount(state, state.limit)}{window}'


def _item_of(state: LimitState) -> str:
    reset = "" if state.reset_ms is None else f";t={_reset_s(state)}"
    return f'"{_NAMES[state.measured]}";r={_amount(state, state.remaining)}{reset}'


def _amount(state: LimitState, amount: int) -> int:
    return amount // 1000 if state.measured.startswith("usd") else amount


def _reset_s(state: LimitState) -> int:
    """Rounded up, but at most the window, which rounding could exceed: the edge of a minute moves in steps of half a second."""
    return min(state.window_s, -(-(state.reset_ms or 0) // 1000))


def _messages_headers_of(limits: Sequence[LimitState]) -> dict[str, str]:
    headers = {}
    now = datetime.now(UTC).replace(microsecond=0)
    for state in limits:
        name = _OF_THE_MESSAGES_API.get(state.measured)
        if name is not None:
            reset = now + timedelta(seconds=_reset_s(state))
            headers[f"anthropic-ratelimit-{name}-limit"] = str(state.limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(state.remaining)
            headers[f"anthropic-ratelimit-{name}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers
