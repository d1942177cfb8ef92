"""The APIs of llmock that our workers can call. A new one is a value here and a name in ACTIVE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Surface:
    """One wire format; llmock breaks all of them in the same ways."""

    name: str
    """llmock's name for it."""
    settings: Callable[[str], dict[str, Any]]
    """From a base URL to the settings of a worker that calls it."""
    pings: frozenset[int] = frozenset()
    """The chunks of a stream without content, counted from 0."""
    epilogue: int = 0
    """The number of last chunks without any content: if only these are missing, the answer is whole."""


ANTHROPIC = Surface(
    "anthropic",
    lambda base_url: {"anthropic_base_url": base_url, "anthropic_api_key": "made-up"},
    pings=frozenset({2}),
    epilogue=1,
)
"""message_start, content_block_start, ping, the text, and three ends, of which message_stop adds nothing."""

OPENAI = Surface(
    "openai",
    lambda base_url: {"provider": "openai", "openai_base_url": base_url, "openai_api_key": "made-up"},
    epilogue=2,
)
"""Chat completions have no pings. After the finish_reason come the usage, which many servers leave out, and
``[DONE]``; llmock requires both."""

ACTIVE = [ANTHROPIC, OPENAI]
