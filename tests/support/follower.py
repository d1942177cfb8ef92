"""Follows a job as a browser does: a raw connection, a parser, and the last event id for the next connection.

A test can cut it at any byte. It keeps what each of its connections showed.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.sse_frames import Frame, SseFrames
from tests.support.wait import wait_until

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
_AGAIN_S = 0.05


class Cut(Exception):
    """The connection ended in the middle of the response."""


class Response:
    """One HTTP response on its own connection, read piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self._is_chunked = False
        self._left = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()

    def cut(self) -> None:
        """Aborts the connection."""
        self.writer.transport.abort()

    async def read_head(self) -> None:
        """Raises Cut."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Cut from error
        first, *lines = head.rstrip("\r\n").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._is_chunked = self.headers.get("transfer-encoding") == "chunked"
        self._left = int(self.headers.get("content-length", 0))

    async def read_some(self, most: int = 1 << 16) -> bytes:
        """A piece of the body; ``b""`` at its clean end. Raises Cut if the connection ends first."""
        try:
            if self._left == 0:
                if not self._is_chunked:
                    return b""
                self._left = int(await self._reader.readuntil(b"\r\n"), 16)
                if self._left == 0:
                    return b""
            piece = await self._reader.read(min(most, self._left))
            if not piece:
                raise Cut
            self._left -= len(piece)
            if self._left == 0 and self._is_chunked:
                await self._reader.readexactly(2)
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise Cut from error
        return piece

    async def read(self) -> bytes:
        """The whole body."""
        pieces = []
        while piece := await self.read_some():
            pieces.append(piece)
        return b"".join(pieces)

    async def json(self) -> Any:
        """The whole body, decoded from JSON."""
        return json.loads(await self.read())


@asynccontextmanager
async def asking(
    url: str,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[Response]:
    """Sends one request on a new connection. Raises OSError if nobody listens, Cut if no head arrives."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20 if receive_buffer is None else receive_buffer)
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await loop.sock_connect(connection, (parts.hostname, parts.port))
    except BaseException:
        connection.close()
        raise
    transport, protocol = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), sock=connection)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}"]
    if body is not None:
        lines += [f"Content-Length: {len(content)}"]
        if "Content-Type" not in (headers or {}):
            lines += ["Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    async with Response(reader, writer) as response:
        await response.read_head()
        yield response


async def ask(
    url: str, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: Any = None
) -> tuple[int, Any, dict[str, str]]:
    """Returns the status, the body decoded from JSON (None if it is empty) and the headers."""
    async with asking(url, path, method=method, headers=headers, body=body) as response:
        content = await response.read()
        return response.status, json.loads(content) if content else None, response.headers


@dataclass
class Connection:
    """What one connection showed."""

    asked_id: str | None
    """The Last-Event-ID of its request."""
    status: int = 0
    frames: list[Frame] = field(default_factory=list)
    opened_s: float = 0
    ended: str = ""
    """``terminal``, ``eof`` (a clean end without a terminal event), ``cut`` or ``refused``."""


@dataclass
class Follower:
    """Follows one job over any number of connections. It reconnects to the next of ``urls`` in turn."""

    urls: list[str]
    job_id: str
    form: str = "text"
    tenant: str | None = None
    last_event_id: str = ""
    connections: list[Connection] = field(default_factory=list)
    at_s: dict[str, float] = field(default_factory=dict)
    """By event id, when it was first read, by the loop's clock."""
    retry_ms: int | None = None
    comments: list[str] = field(default_factory=list)

    @property
    def frames(self) -> list[Frame]:
        """All frames of all connections, in order."""
        return [frame for connection in self.connections for frame in connection.frames]

    @property
    def ids(self) -> list[str]:
        """The ids of all frames that have one."""
        return [frame.id for frame in self.frames if frame.id is not None]

    @property
    def last(self) -> Frame | None:
        """The newest frame."""
        return next((connection.frames[-1] for connection in reversed(self.connections) if connection.frames), None)

    @property
    def has_ended(self) -> bool:
        """Whether it has seen a terminal event."""
        return self.last is not None and self.last.event in TERMINAL

    @property
    def text(self) -> str:
        """The text that a client would show now: ``reset`` clears it, ``snapshot`` replaces it."""
        return text_of_frames(self.frames)

    async def follow_once(self, *, most_bytes: int | None = None) -> Connection:
        """Makes one connection; reads to the terminal event, the end, or ``most_bytes``. Does not raise Cut."""
        url = self.urls[len(self.connections) % len(self.urls)]
        connection = Connection(self.last_event_id or None, opened_s=asyncio.get_running_loop().time())
        self.connections.append(connection)
        headers = {"Accept": "text/event-stream"}
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        if self.tenant:
            headers["X-Tenant"] = self.tenant
        try:
            async with asking(url, f"/v1/jobs/{self.job_id}/events?format={self.form}", headers=headers) as response:
                connection.status = response.status
                if response.status != 200:
                    connection.ended = "refused"
                    return connection
                await self._read(response, connection, most_bytes)
        except (Cut, OSError):
            connection.ended = connection.ended or "cut"
        return connection

    async def follow(self, *, again_s: float = _AGAIN_S) -> Self:
        """Reconnects until it has seen the terminal event."""
        while not self.has_ended:
            connection = await self.follow_once()
            if connection.status == 204:
                raise AssertionError(f"{self.job_id}: 204 to a follower that saw no end, at {self.last_event_id}")
            if connection.status not in (0, 200, 503):
                raise AssertionError(f"{self.job_id}: {connection.status} to a follower")
            if not self.has_ended:
                await asyncio.sleep(again_s)
        return self

    async def _read(self, response: Response, connection: Connection, most_bytes: int | None) -> None:
        parser = SseFrames()
        left = most_bytes
        loop = asyncio.get_running_loop()
        try:
            while left is None or left > 0:
                piece = await response.read_some(1 << 16 if left is None else left)
                if left is not None:
                    left -= len(piece)
                for frame in parser.feed(piece):
                    connection.frames.append(frame)
                    if frame.id is not None:
                        self.last_event_id = frame.id
                        self.at_s.setdefault(frame.id, loop.time())
                    if frame.event in TERMINAL:
                        connection.ended = "terminal"
                if not piece:
                    connection.ended = connection.ended or "eof"
                    return
            connection.ended = connection.ended or "cut"
        finally:
            self.retry_ms = parser.retry_ms or self.retry_ms
            self.comments += parser.comments


async def following(follower: Follower, *, is_waiting: bool = False) -> asyncio.Task[Follower]:
    """Starts to follow; returns after the first event of the log (``is_waiting``: after any frame; the log is empty)."""
    task = asyncio.create_task(follower.follow(), name="follower")
    await wait_until(
        lambda: bool(follower.frames if is_waiting else follower.ids) or task.done(), "the follower's first event"
    )
    return task


def text_of_frames(frames: list[Frame]) -> str:
    """The text that a client shows after these frames, of either format."""
    text = ""
    for frame in frames:
        match frame.event:
            case "reset":
                text = ""
            case "snapshot":
                text = json.loads(frame.data)["text"]
            case "delta":
                text += json.loads(frame.data)["text"]
            case "content_block_delta":
                delta = json.loads(frame.data)["delta"]
                text += delta["text"] if delta["type"] == "text_delta" else ""
            case _:
                pass
    return text
