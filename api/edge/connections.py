"""The connections of the API. They bound what uvicorn's HTTP protocol leaves unbounded.

Invariant: no client, whatever it sends, does not send or does not read, holds a connection for longer than its
deadline, more memory than its bound, or a file that others need. The connections of one server share a
:class:`Connections`, which ``cli/serve.py`` makes. A client that sends no HTTP, or sends too slowly or too much, gets a
small problem document if its connection can still carry one. It is counted, and logged at most once a minute.
docs/decisions/0019 says what this uses of uvicorn, and why.
"""

import asyncio
import contextlib
import functools
import resource
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.http.errors import PROBLEM_JSON, document
from api.http.security_headers import PRIVATE
from shared.errors import HeadTooLarge, InvalidRequest, Problem, RequestTimeout, TooManyConnections
from shared.job import new_id
from shared.telemetry import get_logger

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGISendEvent
    from uvicorn.config import Config
    from uvicorn.server import ServerState

MOST_HEAD_BYTES: Final = 64 << 10
MOST_HEADERS: Final = 100
_MOST_PER_BODY_BYTE: Final = 16
"""Bytes on the wire for one byte of a body: a chunk of one byte has 6, or 13 if its size is written in eight digits."""
KEEP_ALIVE_S: Final = 75.0
_HEAD_S: Final = 10.0
"""How long a head may take, from the opening of the connection, and from the first byte of each request."""
_LINGER_S: Final = 5.0
"""How long a client may read its last response. A close at once could be a reset, which loses the response."""
_STALLED_S: Final = 30.0
_LEAST_READ_BYTES: Final = 32 << 10
"""A client that reads less than this in _STALLED_S, although more waits for it, is cut."""
_MOST_PIPELINED: Final = 16
_TICK_S: Final = 0.25
_LOG_EVERY_S: Final = 60.0
_OTHER_FILES: Final = 64
"""File descriptors kept for other uses: Redis, log, event loop, listeners, and modules that are loaded late."""


@dataclass(frozen=True)
class Bounds:
    """How many connections a process takes, and for how long."""

    connections: int
    """Connections beyond these get a 503, unless they ask for the health of the process."""
    spare: int
    """Extra connections, kept just long enough to be sent that 503; beyond these a connection is closed at once."""
    keep_alive_s: float
    head_s: float = _HEAD_S
    linger_s: float = _LINGER_S
    stalled_s: float = _STALLED_S


def bounds_of(max_connections: int, keep_alive_s: float, open_files: int) -> Bounds:
    """``max_connections``: 0 for as many as ``open_files``, the process's limit, leaves room for. Pure."""
    room = max(open_files - _OTHER_FILES, 16)
    spare = max(4, min(256, room // 8))
    most = room - spare
    return Bounds(min(max_connections, most) if max_connections else most, spare, keep_alive_s)


def standard(**given: Any) -> "BoundedConnection":
    """For ``uvicorn --factory api.app:create_app --http api.edge.connections:standard``: as many connections as the
    limit of open files allows.
    """
    return _standard_connections().protocol(**given)


@functools.cache
def _standard_connections() -> "Connections":
    return Connections(bounds_of(0, KEEP_ALIVE_S, open_files()))


def open_files() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


class _Waiting:
    """Connections with the same time limit, the oldest first. Adding or removing one takes no timer."""

    __slots__ = ("_since_s", "act", "after_s")

    def __init__(self, after_s: float, act: "Callable[[BoundedConnection], None]") -> None:
        self.after_s = after_s
        self.act = act
        self._since_s: dict[BoundedConnection, float] = {}

    def __len__(self) -> int:
        return len(self._since_s)

    def add(self, connection: "BoundedConnection", now_s: float) -> None:
        self._since_s.pop(connection, None)
        self._since_s[connection] = now_s

    def discard(self, connection: "BoundedConnection") -> None:
        self._since_s.pop(connection, None)

    def oldest(self, now_s: float) -> "tuple[float, BoundedConnection] | None":
        """The oldest connection, after the share of its time limit that it has used: from 0 to 1."""
        first = next(iter(self._since_s.items()), None)
        return None if first is None else ((now_s - first[1]) / self.after_s, first[0])

    def end_overdue(self, now_s: float) -> None:
        while (first := next(iter(self._since_s.items()), None)) is not None and now_s - first[1] >= self.after_s:
            self.discard(first[0])
            self.act(first[0])


class Connections:
    """What the connections of a server share: their count, their deadlines, and counts of what was refused."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.refused: Counter[str] = Counter()
        """By reason, since the start of the process."""
        self.count = 0
        self.silent = _Waiting(bounds.head_s, BoundedConnection.end_silent)
        """Opened, and nothing has come yet."""
        self.idle = _Waiting(bounds.keep_alive_s, BoundedConnection.end_silent)
        """The response is sent, and nothing has come since."""
        self.hurried = _Waiting(min(1.0, bounds.head_s), BoundedConnection.end_late_head)
        """Over the bound, with a second for the head: then it gets a 503, or a response if it asks for the health."""
        self.late = _Waiting(bounds.head_s, BoundedConnection.end_late_head)
        """A part of a head has come."""
        self.leaving = _Waiting(bounds.linger_s, BoundedConnection.abort)
        """Done, but the client may still be reading."""
        self.dismissed = _Waiting(bounds.linger_s, BoundedConnection.abort)
        """The same for connections over the bound: closing one makes no room for others."""
        self.stalled = _Waiting(bounds.stalled_s, BoundedConnection.end_stalled)
        """The client reads more slowly than we write."""
        self._all = (self.silent, self.idle, self.hurried, self.late, self.leaving, self.dismissed, self.stalled)
        self._tick: asyncio.TimerHandle | None = None
        self._logged_s = float("-inf")
        self._logged: Counter[str] = Counter()
        self._log = get_logger("front_door")

    def protocol(self, **given: Any) -> "BoundedConnection":
        """Makes the protocol of one connection, for uvicorn's ``http`` setting."""
        return BoundedConnection(shared=self, **given)

    def wait(self, waiting: _Waiting, connection: "BoundedConnection") -> None:
        """Starts the connection's deadline."""
        loop = connection.loop
        waiting.add(connection, loop.time())
        if self._tick is None:
            self._tick = loop.call_later(_TICK_S, self._look, loop)

    def stop_waiting(self, connection: "BoundedConnection") -> None:
        """Ends all deadlines except that for a client that does not read. Called once the head has come."""
        self.silent.discard(connection)
        self.idle.discard(connection)
        self.hurried.discard(connection)
        self.late.discard(connection)

    def forget(self, connection: "BoundedConnection") -> None:
        """Ends all deadlines of a connection that is gone."""
        for waiting in self._all:
            waiting.discard(connection)

    def count_in(self, connection: "BoundedConnection") -> _Waiting | None:
        """Counts a connection and returns what it waits in: ``hurried`` if it is one too many, None if there
        is not even room for a 503.

        If the process is full, this closes the silent or finished connection that has used most of its time, and never
        one whose request is being worked on.
        """
        self.count += 1
        connection.is_counted = True
        now_s = connection.loop.time()
        if self.count <= self.bounds.connections or self._make_room(
            now_s, self.idle, self.silent, self.late, self.leaving
        ):
            return self.silent
        most = self.bounds.connections + self.bounds.spare
        if self.count <= most or self._make_room(now_s, self.hurried, self.dismissed):
            return self.hurried
        return None

    def count_out(self, connection: "BoundedConnection") -> None:
        """Takes it out of the count: it is closed, or will be in the loop's next turn."""
        if connection.is_counted:
            connection.is_counted = False
            self.count -= 1

    def _make_room(self, now_s: float, *kinds: _Waiting) -> bool:
        oldest = max(
            (found for kind in kinds if (found := kind.oldest(now_s))), key=lambda found: found[0], default=None
        )
        if oldest is None:
            return False
        connection = oldest[1]
        self.forget(connection)
        self.count_out(connection)
        self.note("made_room", connection.loop)
        connection.abort()
        return True

    def note(self, reason: str, loop: asyncio.AbstractEventLoop) -> None:
        """Counts a refusal. Logs at most one line a minute, so that an attack does not fill the disk as well."""
        self.refused[reason] += 1
        now_s = loop.time()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            new = self.refused - self._logged
            self._logged = self.refused.copy()
            with contextlib.suppress(OSError):  # a full disk: logged a minute later, and the connection goes on
                self._log.warning("connections_refused", connections=self.count, **new)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        try:
            for waiting in self._all:
                waiting.end_overdue(now_s)
        finally:  # whatever goes wrong with one connection, the others keep their deadlines
            self._tick = loop.call_later(_TICK_S, self._look, loop) if any(self._all) else None


class _Cycle(RequestResponseCycle):
    """A request and its response. If the response begins before the whole body has come, the connection closes after
    it: what comes next may be the rest of the body or another request, and nothing shows which.
    """

    lingers = False
    is_framed_by_close = False
    """HTTP/1.0 has no chunks (RFC 9112, 6.1): a response without a length ends with the connection."""

    async def send(self, message: "ASGISendEvent") -> None:
        self._frame(message)
        if self.more_body and not self.response_started:
            self.keep_alive = False
            await super().send(message)
            # uvicorn would close after the last byte: a client that still sends would be reset and lose the response.
            self.keep_alive = self.lingers = True
            return
        await super().send(message)

    def _frame(self, message: "ASGISendEvent") -> None:
        if message["type"] == "http.response.start":
            if self.scope["http_version"] == "1.0" and not any(
                name.lower() == b"content-length" for name, _ in message.get("headers", [])
            ):
                self.is_framed_by_close = True
                self.chunked_encoding = False  # else uvicorn would send chunks
        elif message["type"] == "http.response.body" and self.is_framed_by_close:
            self.expected_content_length = len(message.get("body", b""))


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol of one connection, with bounds and deadlines."""

    def __init__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        shared: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = shared
        self.is_counted = False
        """Whether it is in the count of connections."""
        self._is_over = False
        """Whether it is over the bound of connections."""
        self._is_deaf = False
        """Whether we ignore all further bytes."""
        self._in_head = False
        self._head_bytes = 0
        self._body_bytes = 0
        """Bytes of the body in the piece that is being parsed."""
        self._frame_bytes = 0
        """Bytes of framing in the body so far, beyond those that its own bytes account for."""
        self._begun = 0
        """How many requests began in the piece that is being parsed."""
        self._active: RequestResponseCycle | None = None
        """The request that is being worked on; uvicorn's ``cycle`` is the newest that came."""
        self._unread_bytes = 0
        """How much was unsent when we last checked whether the client reads."""
        self._is_leaving = False
        self.pipeline: deque[tuple[RequestResponseCycle, ASGI3Application]] = deque()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        waiting = self._shared.count_in(self)
        self._is_over = waiting is not self._shared.silent
        if waiting is None:
            self._is_deaf = True
            self._shared.note(TooManyConnections.code, self.loop)
            self.transport.write(_response(TooManyConnections(), self.server_state.default_headers))
            self.transport.close()
            self._leave()
            return
        self._shared.wait(waiting, self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.count_out(self)
        self._shared.forget(self)
        # uvicorn informs only the newest request that its client is gone.
        for cycle in (self._active, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        newest = cast("RequestResponseCycle | None", self.cycle)
        was_in_head, was_in_body = self._in_head, newest is not None and newest.more_body
        self._begun = self._body_bytes = 0
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._break_off(
                cause if isinstance(cause, Problem) else InvalidRequest("The request is not valid HTTP/1.1.")
            )
            return
        if newest is not None and was_in_body:
            self._count_frame(newest, len(data))
        if not self._in_head:
            return
        if not self._begun:
            self._head_bytes += len(data)
        else:
            # The part of a head in one piece with the end of another request is not counted: it is one read at most.
            self._head_bytes = len(data) if self._begun == 1 and not was_in_body and not was_in_head else 0
            self._shared.stop_waiting(self)
            self._shared.wait(self._shared.hurried if self._is_over else self._shared.late, self)
        if self._head_bytes > MOST_HEAD_BYTES:
            self._break_off(HeadTooLarge())

    def _parse(self, data: bytes) -> None:
        """Raises HttpParserError."""
        while not self._is_deaf:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if not self._is_deaf:
                    self._ignore_upgrade()

    def _ignore_upgrade(self) -> None:
        """Reads the request as if it had no Upgrade, which a server may ignore (RFC 9110, 7.8).

        The parser stops at the end of such a head, and would take the body for the next request. So a new parser reads
        the same head without Upgrade, with the headers that say where the body ends, and goes on from there.
        """
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._begun -= 1  # it is the same request
        self.parser.feed_data(head)

    def _count_frame(self, cycle: RequestResponseCycle, size: int) -> None:
        """Counts the sizes and extensions of chunks, and trailers, since the parser keeps them. Framing in one piece
        with the head is not counted: it is one read at most. A large body does not allow more framing after it.
        """
        if not cycle.more_body:
            self._frame_bytes = 0
            return
        self._frame_bytes = max(0, self._frame_bytes + size - _MOST_PER_BODY_BYTE * self._body_bytes)
        if self._frame_bytes > MOST_HEAD_BYTES:
            self._break_off(HeadTooLarge())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._shared.wait(self._shared.stalled, self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._is_leaving:
            self._shared.stalled.discard(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._in_head = True
        self._begun += 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: it comes while the request is being worked on, and must not become a header of it
        if len(self.headers) >= MOST_HEADERS:
            raise HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._is_deaf:
            return
        if sum([len(name) + len(value) for name, value in self.headers], len(self.url)) > MOST_HEAD_BYTES:
            raise HeadTooLarge
        self._check_head()
        if self.parser.should_upgrade():
            return  # it is read again, see _ignore_upgrade
        self._shared.stop_waiting(self)
        if self._is_over and not self.url.startswith(b"/health"):
            raise TooManyConnections
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._is_deaf = True
            self.pipeline[0][0].keep_alive = False
            self._shared.note("pipelined", self.loop)
            return
        super().on_headers_complete()
        if self._is_over:
            self.cycle.keep_alive = False

    def _check_head(self) -> None:
        """Raises InvalidRequest for what the parser accepts although two readers could read it in two ways."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise InvalidRequest("The request is not HTTP/1.1.")
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise InvalidRequest("Send exactly one Host header.")
        if self.parser.get_method() == b"CONNECT":
            # The trap: the parser stops after such a head, whatever its headers say.
            raise InvalidRequest("This server is not a proxy.")
        if not self.url.startswith(b"/"):
            self._check_target(hosts)
        for name, value in self.headers:
            if name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
                raise InvalidRequest("The only supported Transfer-Encoding is chunked.")

    def _check_target(self, hosts: list[bytes]) -> None:
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            return
        scheme, _, rest = self.url.partition(b"://")
        authority, slash, _ = rest.partition(b"/")
        if scheme.lower() not in (b"http", b"https") or not slash or [authority.lower()] != [h.lower() for h in hosts]:
            raise InvalidRequest("The target of a request must be a path of this host.")

    def on_body(self, body: bytes) -> None:
        if not self._is_deaf:
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_deaf and not self.parser.should_upgrade():
            super().on_message_complete()

    # What uvicorn calls.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        cycle.__class__ = _Cycle
        self._active = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self._on_task_done)
        self.tasks.add(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self.transport.is_closing():  # also if the response broke off
            self._leave()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        cycle = self._active
        if self.transport.is_closing():
            self._leave()
            return
        if cycle is not None and cast("_Cycle", cycle).lingers:
            self._hang_up()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._in_head:
            self._shared.wait(self._shared.idle, self)

    def shutdown(self) -> None:
        """Called at the server's stop: closes now, or after the response to a request that is being worked on."""
        if self._active is None or self._active.response_complete:
            self.transport.close()
            self._leave()
        else:
            self._active.keep_alive = False

    # How a connection ends.

    def end_silent(self) -> None:
        """Closes a connection on which no request came in time."""
        self.transport.close()
        self._leave()

    def end_late_head(self) -> None:
        """Refuses a request whose head did not come in time."""
        self._break_off(RequestTimeout())

    def end_stalled(self) -> None:
        """Cuts the client, unless it has read enough since the last check. Nothing is added while this much waits."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes and self._unread_bytes - unread_bytes < _LEAST_READ_BYTES:
            self._shared.note("did_not_read", self.loop)
            self.abort()
        else:
            self._linger(unread_bytes)

    def abort(self) -> None:
        """Closes at once, and drops what is unsent."""
        self.transport.abort()

    def _break_off(self, problem: Problem) -> None:
        """Ignores all further bytes, and closes. Sends the problem first, unless earlier requests still wait for a
        response: then the connection closes after the last of those.
        """
        if self._is_deaf:  # too many pipelined requests, and after them no HTTP
            return
        self._is_deaf = True
        self._shared.stop_waiting(self)
        self._shared.note(problem.code, self.loop)
        newest = cast("RequestResponseCycle | None", self.cycle)
        if newest is not None and newest.more_body and not newest.response_complete:  # the problem is in its body
            if newest.response_started:
                self.abort()
                return
            newest.disconnected = True
            newest.waiting_for_100_continue = False  # or uvicorn would ask for it after our response
            newest.message_event.set()
        outstanding = [cycle for cycle, _ in self.pipeline if not cycle.disconnected]
        self.pipeline = deque((cycle, app) for cycle, app in self.pipeline if not cycle.disconnected)
        if self._active is not None and not self._active.response_complete and not self._active.disconnected:
            outstanding.append(self._active)
        if outstanding:
            outstanding[0].keep_alive = False
            return
        self.transport.write(_response(problem, self.server_state.default_headers))
        self._hang_up()

    def _hang_up(self) -> None:
        """Closes our side, and goes on reading until the client closes its own, or for _LINGER_S. Closing both at once
        would reset the connection of a client that still sends, and lose the response.
        """
        self._is_deaf = True
        self._shared.stop_waiting(self)
        self.flow.resume_reading()
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
        self._leave()

    def _leave(self) -> None:
        self._shared.stop_waiting(self)
        if self in self.connections and not self._is_leaving:
            self._is_leaving = True
            self._linger(self.transport.get_write_buffer_size())

    def _linger(self, unread_bytes: int) -> None:
        self._unread_bytes = unread_bytes
        done = self._shared.dismissed if self._is_over else self._shared.leaving
        self._shared.wait(self._shared.stalled if unread_bytes else done, self)


def _response(problem: Problem, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    request_id = new_id("req")
    body = document(problem, request_id)
    headers = [
        *default_headers,
        *PRIVATE,
        (b"content-type", PROBLEM_JSON.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
    ]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after_s))
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body])
