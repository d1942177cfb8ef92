"""What the simulator needs of a request, whichever API it came by, and the one way to refuse it.

Reading a request and checking it as the real API does is each API's own matter; what is common to that stands here.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

OTHER_BLOCK_TOKENS = 100
"""What an image, a document or any other part that is not text counts."""


class Refused(Exception):
    """The request is refused, as it deserved; the API's own envelope is made of this."""

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        """The member that is wrong, for an API whose errors name it apart from the message."""
        self.code = code
        """What is wrong, for an API whose errors have a code."""


@dataclass(frozen=True, slots=True)
class Request:
    model: str
    max_tokens: int
    stream: bool
    usage_wanted: bool
    """Whether a stream is to tell its usage."""
    prompt: str
    """The text of the last user message."""
    input_tokens: int
    tool: str
    """The name of the first tool that was offered, for an answer that calls one."""
    has_parts: bool = False
    """Whether the content of a message is a list, in a chat completion."""


def input_tokens(texts: Iterable[str], others: int, tools: object) -> int:
    """One a word, as in the answer. `others` are the parts that are no text."""
    words = sum(len(text.split()) for text in texts) + others * OTHER_BLOCK_TOKENS
    return max(1, words + (len(json.dumps(tools).split()) if tools else 0))


def name_or_default(name: object) -> str:
    """Of the first tool that was offered."""
    return name if isinstance(name, str) else "simulated_tool"
