"""Reads an upstream's limits from its headers: Anthropic's ``anthropic-ratelimit-*`` and OpenAI's ``x-ratelimit-*``.

The upstream may send anything: what cannot be understood is ignored.
"""

import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from shared.routes import Limits


class Allowance(NamedTuple):
    """What the headers of a response say about the route's limits."""

    limits: Limits = Limits()
    """Those that they name."""
    exhausted_s: float = 0
    """For how many seconds no request is left."""


_MOST: Final = 1 << 40
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SPAN_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def anthropic_allowance(headers: Mapping[str, str], *, now_s: float | None = None) -> Allowance | None:
    """``anthropic-ratelimit-<what>-{limit,remaining,reset}``; a reset is an RFC 3339 time."""
    if "anthropic-ratelimit-requests-limit" not in headers and "anthropic-ratelimit-input-tokens-limit" not in headers:
        return None
    names = ("requests", "input-tokens", "output-tokens")
    limits = Limits(*[_count(headers.get(f"anthropic-ratelimit-{name}-limit")) or None for name in names])
    reset_s = _until(headers.get("anthropic-ratelimit-requests-reset", ""), now_s)
    remaining = _count(headers.get("anthropic-ratelimit-requests-remaining"))
    return Allowance(limits, _until_one(remaining, limits.requests, reset_s))


def openai_allowance(headers: Mapping[str, str]) -> Allowance | None:
    """``x-ratelimit-{limit,remaining,reset}-requests``; a reset is a span like ``6m0s``. The limit of tokens is ignored: it
    counts input and output together, unlike ours. A 429 shows when it is reached.
    """
    if "x-ratelimit-limit-requests" not in headers:
        return None
    limit = _count(headers["x-ratelimit-limit-requests"]) or None
    reset_s = _span_s(headers.get("x-ratelimit-reset-requests", ""))
    return Allowance(
        Limits(requests=limit), _until_one(_count(headers.get("x-ratelimit-remaining-requests")), limit, reset_s)
    )


def _until_one(remaining: int | None, limit: int | None, reset_s: float) -> float:
    """Seconds until one request is free. ``reset_s`` is until all are: the limit refills evenly, so the first comes sooner."""
    return reset_s / limit if remaining == 0 and limit else 0


def _count(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 15:
        return None
    return min(int(text), _MOST)


def _until(text: str, now_s: float | None) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        return 0.0
    return max(0.0, moment.timestamp() - (time.time() if now_s is None else now_s))


def _span_s(text: str) -> float:
    if not re.fullmatch(rf"(?:{_SPAN.pattern})+", text) or len(text) > 32:
        return 0.0
    return sum(float(number) * _SPAN_S[unit] for number, unit in _SPAN.findall(text))
