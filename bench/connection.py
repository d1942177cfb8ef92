"""One raw HTTP/1.1 connection of the load client.

It carries one request at a time and is kept alive between them. A read costs a few microseconds, so that the server
is what is measured. It reads bodies that are chunked, have a length or end with the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

BodyReader = Callable[[bytes, float], None]
"""Called with decoded pieces of the body and the CLOCK_MONOTONIC second at which they were read."""


class Broken(Exception):
    """The connection ended before the response was complete."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    fields: bytes  # the raw status line and header lines

    def field(self, name: bytes) -> bytes | None:
        """The value of the first field with this name, which must be in lower case."""
        position = self.fields.lower().find(b"\r\n" + name + b":")
        if position < 0:
            return None
        return self.fields[position + len(name) + 3 :].split(b"\r\n", 1)[0].strip()


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._head: Head | None = None
        self._chunked = False
        self._body_left_bytes: int | None = None
        self._read_body: BodyReader = _ignore
        self._response: asyncio.Future[Head] | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, read_body: BodyReader | None = None) -> asyncio.Future[Head]:
        """Writes one request; the future gets the head after the whole body was read, or Broken.

        Only one request may be in progress.
        """
        assert self._transport is not None
        assert self._response is None
        self._read_body = read_body or _ignore
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._response

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses of asyncio's

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        if self._response is None:
            return
        if self._head is not None and not self._chunked and self._body_left_bytes is None:
            self._complete()  # the close marks the end of this body
        else:
            self._break_off("the connection ended before the response did")

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        if self._received:
            data = self._received + data
            self._received = b""
        if self._head is None:
            head_end = data.find(b"\r\n\r\n")
            if head_end < 0:
                self._received = data
                return
            self._begin_body(data[:head_end])
            data = data[head_end + 4 :]
        if self._chunked:
            self._read_chunks(data, now_s)
        else:
            self._read_counted(data, now_s)

    def _begin_body(self, head: bytes) -> None:
        status_line, _, _ = head.partition(b"\r\n")
        self._head = Head(int(status_line.split(b" ", 2)[1]), head)
        self._chunked = self._head.field(b"transfer-encoding") == b"chunked"
        length = self._head.field(b"content-length")
        self._body_left_bytes = None if length is None else int(length)
        if self._head.status in (204, 304):
            self._body_left_bytes = 0

    def _read_chunks(self, data: bytes, now_s: float) -> None:
        pieces = []
        position = 0
        last_seen = False
        while (line_end := data.find(b"\r\n", position)) >= 0:
            start = line_end + 2
            end = start + int(data[position:line_end].partition(b";")[0], 16)
            if len(data) < end + 2:
                break
            position = end + 2
            if start == end:
                last_seen = True
                break
            pieces.append(data[start:end])
        self._received = data[position:]
        if pieces:
            self._read_body(pieces[0] if len(pieces) == 1 else b"".join(pieces), now_s)
        if last_seen:
            self._complete()

    def _read_counted(self, data: bytes, now_s: float) -> None:
        if data:
            self._read_body(data, now_s)
        if self._body_left_bytes is not None:
            self._body_left_bytes -= len(data)
            if self._body_left_bytes <= 0:
                self._complete()

    def _complete(self) -> None:
        response, head = self._response, self._head
        self._response = self._head = None
        assert head is not None
        if head.field(b"connection") == b"close":
            self.close()
        if response is not None and not response.done():
            response.set_result(head)

    def _break_off(self, reason: str) -> None:
        response = self._response
        self._response = self._head = None
        if response is not None and not response.done():
            response.set_exception(Broken(reason))


def _ignore(_: bytes, __: float) -> None:
    return


async def connect(port: int) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await asyncio.wait_for(loop.create_connection(Connection, "127.0.0.1", port), timeout=10)
    return connection
