"""The APIs of llmock that our workers can call. A new one is a value here and a name in ACTIVE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Surface:
    """One wire format, of several that llmock breaks in the same ways."""

    name: str
    """As llmock calls it."""
    settings: Callable[[str], dict[str, Any]]
    """What leads a worker to a base URL."""
    pings: frozenset[int] = frozenset()
    """Which chunks of a stream carry nothing, counted from 0."""
    epilogue: int = 0
    """How many of the last chunks hold nothing of the answer: without them it is whole, however the stream ends."""


ANTHROPIC = Surface(
    "anthropic",
    lambda base_url: {"anthropic_base_url": base_url, "anthropic_api_key": "made-up"},
    pings=frozenset({2}),
    epilogue=1,
)
"""message_start, content_block_start, ping, the pieces of text, and three ends, of which message_stop says nothing new."""

OPENAI = Surface(
    "openai",
    lambda base_url: {"provider": "openai", "openai_base_url": base_url, "openai_api_key": "made-up"},
    epilogue=2,
)
"""Chat completions have no pings. Behind the finish_reason come the usage, which many servers leave out, and
``[DONE]``; llmock wants both."""

ACTIVE = [ANTHROPIC, OPENAI]
