"""An API that sends the bytes a test gives it: one response per connection, in order.

After its last response it is gone: the next connection is refused.
"""

import json
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self

JOB_ID = "job_01m84bdq4t7w9k2p5x8r3n6v0c"


class Then(Enum):
    """What happens to a connection after its response."""

    CLOSE = "an orderly end"
    RESET = "a reset, as when the machine is gone"
    HOLD = "silence, until the client goes"


@dataclass(frozen=True)
class Answer:
    """The bytes of a response. If there are none, the connection just ends."""

    content: bytes
    then: Then = Then.CLOSE


@dataclass(frozen=True)
class Request:
    """A received request; the names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class FakeApi:
    """Listens from its creation on, and sends its responses during the ``with`` block."""

    def __init__(self, *answers: Answer) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self._thread = threading.Thread(target=self._play, name="fake api")
        self._open: socket.socket | None = None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Request] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._open is not None:
            with suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _play(self) -> None:
        with self._listener:
            for answer in self._answers:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    self._open = connection
                    if (request := _read_request(connection)) is None:
                        continue
                    self.requests.append(request)
                    connection.sendall(answer.content)
                    _leave(connection, answer.then)


def _read_request(connection: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        if not (piece := connection.recv(65_536)):
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65_536)
    return Request(method, path, headers, body)


def _leave(connection: socket.socket, then: Then) -> None:
    match then:
        case Then.CLOSE:
            pass
        case Then.RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        case Then.HOLD:
            while connection.recv(65_536):
                pass


def frame(name: str, data: Any, event_id: str = "") -> bytes:
    """One server-sent event."""
    lines = [f"id: {event_id}"] if event_id else []
    return "\n".join([*lines, f"event: {name}", f"data: {json.dumps(data)}", "", ""]).encode()


def delta(text: str, event_id: str = "") -> bytes:
    """A delta of the answer."""
    return frame("delta", {"text": text}, event_id)


def job(status: str = "queued", **members: Any) -> dict[str, Any]:
    """The members of a job that the command line reads."""
    return {"id": JOB_ID, "type": "job", "status": status, **members}


def succeeded(event_id: str = "9-9") -> bytes:
    """The terminal event of a success."""
    return frame("succeeded", job("succeeded"), event_id)


def stream(*frames: bytes, then: Then = Then.CLOSE, whole: bool = True) -> Answer:
    """A 200 with these frames. Without ``whole`` the body is cut, which HTTP does not allow."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in frames if piece)
    end = b"0\r\n\r\n" if whole and then is Then.CLOSE else b""
    return Answer(head + b"Connection: close\r\n\r\n" + chunks + end, then)


def answer(status: int, body: Any = b"", **headers: str) -> Answer:
    """Any other response; a body that is not bytes is sent as JSON. ``retry_after="3"`` is the header Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    length = [] if status == 204 else [f"Content-Length: {len(content)}"]
    head = [f"HTTP/1.1 {status} Whatever", *lines, *length, "Connection: close", "", ""]
    return Answer("\r\n".join(head).encode() + content)


def problem(status: int, detail: str, *, errors: Any = (), **headers: str) -> Answer:
    """A problem document."""
    document = {"title": "A title", "status": status, "detail": detail, "errors": errors}
    return answer(status, document, content_type="application/problem+json", **headers)


GONE = Answer(b"", Then.RESET)
"""No response at all."""
