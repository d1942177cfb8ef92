"""One HTTP/1.1 connection: parses requests, and sends the steps of their scripts when they are due.

It is an asyncio protocol and not an ASGI application, because faults need the socket itself, and because a token must
be cheap: all tokens due at once share one write. It never stops reading, so it notices a client's close at once.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

import httptools

from simulator.messages import MESSAGES
from simulator.pulse import Pulse
from simulator.record import Call, Ended, Record
from simulator.request import Refused
from simulator.script import HOLD_S, Script, Then, refusal_script
from simulator.wire import Step

MAX_REQUEST_BYTES = 33 * 1024 * 1024
"""The real API's limit of 32 MB for a body, plus room for the head."""

MAX_WAITING_REQUESTS = 64
"""Requests pipelined on one connection; a client that sends more is cut off."""

MAX_WRITE_BYTES = 256 * 1024
"""Bytes of steps due together that are written before other connections get a turn."""

PREPARED_STEPS = 64
"""Steps made in one go: with warm caches that costs half as much as making each when it is due."""


@dataclass(slots=True)
class HttpRequest:
    method: str = ""
    path: str = ""
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case; the last of several wins."""
    body: bytes = b""
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    script: Script
    call: Call | None = None
    """The line of the record that this response fills in."""


class Connection(asyncio.Protocol):
    def __init__(
        self,
        respond: Callable[[HttpRequest], Response],
        record: Record,
        pulse: Pulse,
        open_connections: set["Connection"],
    ) -> None:
        self._respond = respond
        self._record = record
        self._pulse = pulse
        self._open_connections = open_connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._request = HttpRequest()
        self._body: list[bytes] = []
        self._request_bytes = 0
        self._waiting: deque[HttpRequest] = deque()
        self._response: Response | None = None
        self._keep_alive = True
        self._steps: deque[Step] = deque()
        """The next steps of the response's script; empty only at the script's end."""
        self._due_s = 0.0
        """When the first of `_steps` is due."""
        self._tick_ms: int | None = None
        self._soon: asyncio.Handle | None = None
        self._is_writable = True

    # The socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's TCP transport is not a subclass
        self._open_connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._request_bytes += len(data)
        if self._request_bytes > MAX_REQUEST_BYTES:
            self._refuse(413, "Request exceeds the maximum allowed number of bytes")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400, "The request is not HTTP/1.1")

    def eof_received(self) -> None:
        # A half-close counts as a close: no SDK closes its sending side and goes on reading.
        self._client_gone()

    def connection_lost(self, _error: Exception | None) -> None:
        self._client_gone()
        self._open_connections.discard(self)

    def pause_writing(self) -> None:
        self._is_writable = False
        self._cancel_timers()

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._response is None:
            self._begin_waiting()
        else:
            self.play()

    def abort(self) -> None:
        """Called when the server shuts down."""
        self._stop_playing("shutdown")
        self._transport.abort()

    def _client_gone(self) -> None:
        self._waiting.clear()
        self._stop_playing("client_closed")

    def _refuse(self, status: int, message: str) -> None:
        self._waiting.clear()
        if self._response is None:
            # The path of an unparsable request is not known, so its error is always in the Messages envelope.
            for step in refusal_script(MESSAGES, Refused(message, status), "req_simulated").steps:
                self._transport.write(step.data)
        self._transport.close()

    # The parser's side

    def on_message_begin(self) -> None:
        self._request = HttpRequest()
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._request.path, _, self._request.query = url.decode("latin-1").partition("?")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._request.headers.get("expect", "").lower() == "100-continue" and self._response is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._transport.is_closing():
            return  # the response before this request ended the connection
        self._request_bytes = 0
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.body = b"".join(self._body)
        request.keep_alive = self._parser.should_keep_alive()
        if self._response is None:
            self._begin(request)
        elif len(self._waiting) < MAX_WAITING_REQUESTS:
            self._waiting.append(request)
        else:
            self._transport.abort()

    # Playing a script

    def _begin(self, request: HttpRequest) -> None:
        response = self._respond(request)
        self._response = response
        self._keep_alive = request.keep_alive
        if response.call is not None:
            response.call.status = response.script.status
            response.call.faults = response.script.faults
            response.call.output_tokens = response.script.output_tokens
        self._due_s = self._loop.time()
        self._prepare(response)
        self.play()

    def _prepare(self, response: Response) -> None:
        self._steps.extend(islice(response.script.steps, PREPARED_STEPS))
        if self._steps:
            self._due_s += self._steps[0].after_ms / 1_000

    def play(self) -> None:
        """Sends all that is due; then waits for the next step or for the reader, or ends the response."""
        self._tick_ms = self._soon = None
        response = self._response
        if response is None:
            return
        now_s = self._loop.time()
        late_s = now_s - self._due_s
        data, tokens = self._take_due(response, now_s)
        if data:
            self._transport.write(data)
        if response.call is not None:
            self._note(response.call, len(data), tokens, late_s)
        if not self._is_writable:
            return  # resume_writing calls play() again: a response ends only after its last byte has left this process
        if not self._steps:
            self._end(response)
        elif self._due_s > now_s:
            self._tick_ms = self._pulse.at(self._due_s, self)
        else:
            self._soon = self._loop.call_soon(self.play)

    def _take_due(self, response: Response, now_s: float) -> tuple[bytes, int]:
        """The bytes of one write, and the number of tokens in them."""
        steps = self._steps
        pieces: list[bytes] = []
        data_bytes = tokens = 0
        while steps and self._due_s <= now_s and data_bytes < MAX_WRITE_BYTES:
            step = steps[0]
            if step.alone and pieces:
                break
            steps.popleft()
            pieces.append(step.data)
            data_bytes += len(step.data)
            tokens += step.tokens
            if steps:
                self._due_s += steps[0].after_ms / 1_000
            else:
                self._prepare(response)
            if step.alone:
                break
        return b"".join(pieces), tokens

    def _note(self, call: Call, data_bytes: int, tokens: int, late_s: float) -> None:
        call.bytes_sent += data_bytes
        call.tokens_sent += tokens
        call.max_late_s = max(call.max_late_s, late_s)
        if tokens:
            if call.first_token_s is None:
                call.first_token_s = time.monotonic()
            self._record.changed()

    def _end(self, response: Response) -> None:
        then = response.script.then
        if then is Then.HOLD:
            self._soon = self._loop.call_later(HOLD_S, self._transport.abort)
            return
        self._stop_playing(response.script.ended)
        if then is Then.RESET:
            # Closing a socket whose SO_LINGER is 0 s sends RST instead of FIN.
            peer: socket.socket = self._transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        elif then is Then.CLOSE or not self._keep_alive:
            self._transport.close()
        elif self._waiting:
            self._soon = self._loop.call_soon(self._begin_waiting)

    def _begin_waiting(self) -> None:
        self._soon = None
        if self._waiting and self._response is None:
            self._begin(self._waiting.popleft())

    def _stop_playing(self, ended: Ended) -> None:
        self._cancel_timers()
        response, self._response = self._response, None
        self._steps.clear()
        if response is not None and response.call is not None:
            self._record.end(response.call, ended)

    def _cancel_timers(self) -> None:
        if self._tick_ms is not None:
            self._pulse.cancel(self._tick_ms, self)
        if self._soon is not None:
            self._soon.cancel()
        self._tick_ms = self._soon = None
