"""What `script` needs from an API: how it writes its errors, its answers and the frames of its streams.

`messages` and `chat` are the two. Only a dialect knows the members of its API's JSON, and only `script` knows what is
sent when, so both APIs have the same faults.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from simulator.answer import Answer
from simulator.request import Refused, Request
from simulator.wire import Json


class Speech(Protocol):
    """Writes one answer as the API's JSON and frames."""

    def whole(self) -> Json:
        """The whole answer, for a response that is not a stream."""

    def start(self) -> bytes:
        """The stream's first frame; `no-start` leaves it out."""

    def restart(self) -> bytes:
        """A first frame in the wrong place."""

    def block_start(self, index: int) -> Iterable[bytes]:
        """Frames before a block's first token."""

    def token(self, kind: str, index: int, text: str) -> bytes:
        """The frame of one token; empty if another frame has that token. Under load nearly all frames are these."""

    def block_end(self, index: int) -> Iterable[bytes]:
        """Frames after a block's last token."""

    def stop_reason(self) -> bytes:
        """The frame with the stop reason; `no-stop-reason` leaves it out."""

    def end(self) -> Iterable[bytes]:
        """Frames after the place STOP, which end the stream."""

    def stray(self, name: str) -> bytes | None:
        """The unexpected frame that this oddity inserts; None if it inserts none."""


class Dialect(Protocol):
    """One API; its methods are pure."""

    @property
    def request_id_header(self) -> str: ...

    @property
    def ping(self) -> bytes:
        """A frame without content."""

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raises Refused for a request without a key."""

    def not_found(self, method: str, path: str) -> Refused: ...

    def unknown_model(self, name: str) -> Refused: ...

    def refusal(self, refused: Refused, request_id: str) -> Json:
        """The error envelope for an invalid request."""

    def failure(self, status: int, error_type: str | None, code: str | None, message: str, request_id: str) -> Json:
        """The error envelope of a fault; the type and the code default to the status's."""

    def status_of(self, error_type: str | None) -> int:
        """The HTTP status of an error type; 500 for a type that the API does not have."""

    def error_frame(self, envelope: Json) -> bytes: ...

    def models(self, names: Sequence[str], query: Mapping[str, list[str]]) -> Json:
        """The page of models that the query asks for. Raises Refused for an invalid query."""

    def model(self, name: str) -> Json: ...

    def speech(self, request: Request, answer: Answer, odd: frozenset[str]) -> Speech:
        """`odd` are names from words.ODD, including those that do not concern this API."""
