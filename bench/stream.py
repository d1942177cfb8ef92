"""How the load client reads a streamed answer: which frames hold text, and which frame marks success.

An answer counts only if every token came once, in the order in which the stand-in wrote them, and the system's success
event ended it. Anything else is a `problem`, and a row with problems has no figure.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field

from bench.upstream import TOKEN_LENGTH


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the tokens are in one system's server-sent events."""

    text_event: bytes
    text_path: tuple[str, ...]  # the path of members to the text in the data
    success_event: bytes
    failure_events: frozenset[bytes]


ANTHROPIC = Dialect(b"content_block_delta", ("delta", "text"), b"message_stop", frozenset({b"error"}))
IN_REQUEST = Dialect(b"delta", ("text",), b"done", frozenset({b"error"}))
TOKENSPOOL = Dialect(
    b"delta",
    ("text",),
    b"succeeded",
    frozenset({b"failed", b"cancelled", b"expired", b"retry", b"reset"}),
)


@dataclass(slots=True)
class Answer:
    """The result of one streamed request; all times are CLOCK_MONOTONIC seconds."""

    sent_s: float
    tokens_expected: int
    first_token_s: float = 0.0  # when the client read the first token
    ended_s: float = 0.0
    problem: str | None = None  # None if the answer is complete
    written_s: array[float] = field(default_factory=lambda: array("d"))  # for each token, when the stand-in wrote it
    received_s: array[float] = field(default_factory=lambda: array("d"))  # and when the client read it

    @property
    def first_token_ms(self) -> float:
        return (self.first_token_s - self.sent_s) * 1000


class StreamReader:
    """Reads a body's bytes into an Answer; pass its `read` to `Connection.send`."""

    def __init__(self, dialect: Dialect, answer: Answer) -> None:
        self._dialect = dialect
        self._answer = answer
        self._rest = b""
        self._ending: bytes | None = None

    def read(self, body: bytes, now_s: float) -> None:
        body = self._rest + body
        if b"\r" in body:
            # A lone CR at the end is kept until the next piece brings its LF.
            body = body.replace(b"\r\n", b"\n")
        *frames, self._rest = body.split(b"\n\n")
        for frame in frames:
            self._read_frame(frame, now_s)

    def close(self, status: int) -> None:
        """Sets `problem` unless the answer is complete and ended with the success event."""
        answer = self._answer
        if status != 200:
            answer.problem = f"HTTP {status}"
        elif self._ending != self._dialect.success_event:
            answer.problem = f"ended with {self._ending!r}"
        elif len(answer.written_s) != answer.tokens_expected:
            answer.problem = f"{len(answer.written_s)} of {answer.tokens_expected} tokens"
        elif any(a >= b for a, b in zip(answer.written_s, answer.written_s[1:], strict=False)):
            answer.problem = "tokens doubled or out of order"

    def _read_frame(self, frame: bytes, now_s: float) -> None:
        event = payload = b""
        for line in frame.split(b"\n"):
            if line.startswith(b"data:"):
                payload = line[5:]
            elif line.startswith(b"event:"):
                event = line[6:].strip()
        if event == self._dialect.text_event:
            self._read_text(payload, now_s)
        elif self._ending in self._dialect.failure_events:
            return  # keep the first failure: an answer after a reset is not what is measured
        elif event == self._dialect.success_event or event in self._dialect.failure_events:
            self._ending = event

    def _read_text(self, payload: bytes, now_s: float) -> None:
        text = json.loads(payload)
        for member in self._dialect.text_path:
            text = text[member]
        answer = self._answer
        if not answer.written_s:
            answer.first_token_s = now_s
        for start in range(0, len(text), TOKEN_LENGTH):
            answer.written_s.append(float(text[start : start + TOKEN_LENGTH]))
            answer.received_s.append(now_s)
