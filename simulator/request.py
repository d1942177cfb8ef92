"""What the simulator needs from a request of either API, and how it refuses one.

Each API parses and checks its own requests; what both need is here.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

OTHER_BLOCK_TOKENS = 100
"""Input tokens of an image, a document or any other part that is not text."""


class Refused(Exception):
    """The request is invalid. The API's own error envelope is made from this."""

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        """The invalid member, for an API whose errors name it in a member of its own."""
        self.code = code
        """For an API whose errors have a code."""


@dataclass(frozen=True, slots=True)
class Request:
    model: str
    max_tokens: int
    stream: bool
    usage_wanted: bool
    """Whether the client asked for the usage in the stream."""
    prompt: str
    """The text of the last user message."""
    input_tokens: int
    tool: str
    """The name of the first tool offered, for an answer that calls one."""
    has_parts: bool = False
    """Whether the content of a message is a list, in a chat completion."""


def input_tokens(texts: Iterable[str], others: int, tools: object) -> int:
    """One token a word, as in the answer. `others` is the number of parts that are not text."""
    words = sum(len(text.split()) for text in texts) + others * OTHER_BLOCK_TOKENS
    return max(1, words + (len(json.dumps(tools).split()) if tools else 0))


def name_or_default(name: object) -> str:
    return name if isinstance(name, str) else "simulated_tool"
