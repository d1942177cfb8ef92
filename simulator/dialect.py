"""What an API must be able to say so that `script` can play it: its errors, its answers, and the frames of its streams.

`messages` and `chat` are the two. Nothing here or in `script` knows which members an API's JSON has, and no dialect knows what is played
when: the faults are the same for all.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from simulator.answer import Answer
from simulator.request import Refused, Request
from simulator.wire import Json


class Speech(Protocol):
    """One answer, said."""

    def whole(self) -> Json:
        """The answer in one piece."""

    def start(self) -> bytes:
        """The stream's first frame, which `no-start` leaves out."""

    def restart(self) -> bytes:
        """A first frame in the wrong place."""

    def block_start(self, index: int) -> Iterable[bytes]:
        """What comes before a block's first token."""

    def token(self, kind: str, index: int, text: str) -> bytes:
        """One token of the block, or nothing if it is said elsewhere. Under load nearly all frames are these."""

    def block_end(self, index: int) -> Iterable[bytes]:
        """What follows a block's last token."""

    def stop_reason(self) -> bytes:
        """The frame that says why the answer ends, which `no-stop-reason` leaves out."""

    def end(self) -> Iterable[bytes]:
        """What comes behind the place STOP and ends the stream."""

    def stray(self, name: str) -> bytes | None:
        """The frame that does not belong, by the name of the oddity; None for an oddity that is no frame."""


class Dialect(Protocol):
    """One API; its methods are pure."""

    @property
    def request_id_header(self) -> str: ...

    @property
    def ping(self) -> bytes:
        """A frame that says nothing."""

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raises Refused for a request without a key."""

    def not_found(self, method: str, path: str) -> Refused: ...

    def unknown_model(self, name: str) -> Refused: ...

    def refusal(self, refused: Refused, request_id: str) -> Json:
        """The error envelope that the request deserved."""

    def failure(self, status: int, error_type: str | None, code: str | None, message: str, request_id: str) -> Json:
        """The error envelope that a fault asks for; without a type or a code, it is the status's."""

    def status_of(self, error_type: str | None) -> int:
        """The HTTP status that goes with an error's type; 500 for one that the API does not have."""

    def error_frame(self, envelope: Json) -> bytes: ...

    def models(self, names: Sequence[str], query: Mapping[str, list[str]]) -> Json:
        """The page of the models that the query asks for. Raises Refused for a query that the API does not have."""

    def model(self, name: str) -> Json: ...

    def speech(self, request: Request, answer: Answer, odd: frozenset[str]) -> Speech:
        """`odd` are names of words.ODD, those that the API does not know among them."""
