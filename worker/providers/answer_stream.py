"""Reads the response to a request for a streamed answer: finds out what it is, and gives its events or its failure.

A server that does not stream sends the whole answer as JSON, one that fails may send an error with status 200, and a proxy
may send a page. So the first character of the body decides what it is. The content type is only named in messages.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx2

from shared.completion import GarbledStream
from shared.event_stream import BYTE_ORDER_MARK
from worker.outcome import Breakage, Failure, How, Refusal, UpstreamError, classify
from worker.providers.base import LAST_WORDS_S, PING, UpstreamEvent
from worker.providers.members import any_json
from worker.providers.refusal import is_refusal, page_refusal, refusal_of
from worker.providers.stream_decoder import MOST_BYTES, StreamDecoder
from worker.providers.transport import NETWORK_ERRORS, BodyStream, how_unheard, undecodable
from worker.rate_limit_headers import Allowance
from worker.retry_after import retry_after_s

_CONTENT: Final = ("content_block_delta", "content_block_start")


class AnswerStream:
    """See UpstreamStream."""

    def __init__(self, response: httpx2.Response, decoder: StreamDecoder, allowance: Allowance | None) -> None:
        self.allowance = allowance
        self.lacks = ""
        self._body: BodyStream = response.extensions["body"]
        self._type = response.headers.get("content-type", "").partition(";")[0].strip()[:100] or "no content type"
        self._decoder = decoder
        self._is_sniffed = False
        self._head = b""
        """Bytes that may be the beginning of a byte order mark."""
        self._has_events = False
        self._whole: list[bytes] | None = None
        """The pieces of an answer that is not a stream."""
        self._size = 0
        self._last_s: float | None = None
        """Until when to wait for the end of the response, by the loop's clock."""

    def explain(self, error: GarbledStream) -> str:
        """See UpstreamStream."""
        oddity = self._decoder.oddity
        return f"{error}; {oddity}" if oddity and oddity not in str(error) else str(error)

    @property
    def is_guessed(self) -> bool:
        """See UpstreamStream."""
        return bool(self._decoder.oddity) and self._decoder.missing == "content_block_stop"

    @property
    def is_answered(self) -> bool:
        """See UpstreamStream."""
        return self._decoder.is_answered or self._decoder.is_over

    async def read(self) -> list[UpstreamEvent]:
        """See UpstreamStream."""
        decoder = self._decoder
        try:
            if decoder.failure is not None:
                raise decoder.failure
            while True:
                if self._body.unreadable:
                    raise GarbledStream(f"its content-encoding {self._body.unreadable} cannot be read")
                piece = await (self._last_piece() if self.is_answered else self._body.read_some())
                if not piece:
                    return self._ended()
                if not self._is_sniffed and not (piece := self._sniffed(piece)):
                    return [PING]
                if self._whole is not None:
                    self._keep(piece)
                    return [PING]
                if events := decoder.feed(piece):
                    self._has_events = True
                    if any(event.name in _CONTENT for event in events):
                        self._last_s = None  # the answer goes on: some servers send a finish_reason with each piece
                    return events
                if not decoder.is_over:
                    return [PING]
        except UpstreamError:
            raise
        except GarbledStream as error:
            raise UpstreamError(classify(Breakage(How.GARBLED, self.explain(error)))) from error
        except Exception as error:
            if decoder.is_answered or decoder.is_over:
                return self._ended()
            raise UpstreamError(_broken(error)) from error

    async def _last_piece(self) -> bytes:
        """Reads on for at most LAST_WORDS_S: some servers keep the connection open after the end of their answer."""
        if self._last_s is None:
            self._last_s = asyncio.get_running_loop().time() + LAST_WORDS_S
        try:
            async with asyncio.timeout_at(self._last_s):
                return await self._body.read_some()
        except TimeoutError:
            return b""

    def _sniffed(self, piece: bytes) -> bytes:
        """Decides what the body is, by its first character that is no white space. Returns the bytes so far, or none if that
        character is still to come. No line of an event stream begins like JSON or a page.
        """
        seen = self._head + piece
        if seen.startswith(BYTE_ORDER_MARK):
            seen = seen[len(BYTE_ORDER_MARK) :]
        elif BYTE_ORDER_MARK.startswith(seen):
            self._head = seen
            return b""
        self._head = b""
        seen = seen.lstrip()
        if seen:
            self._is_sniffed = True
            if seen[0] in b"{[":
                self._whole = []
            elif seen[0] in b"<":
                raise GarbledStream(f"it sent {self._type}, which is not an event stream: check its base URL")
        return seen

    def _keep(self, piece: bytes) -> None:
        assert self._whole is not None
        self._whole.append(piece)
        self._size += len(piece)
        if self._size > MOST_BYTES:
            raise GarbledStream(f"its {self._type} is over 32 MiB")

    def _ended(self) -> list[UpstreamEvent]:
        if self._whole:
            body, self._whole, self._has_events = b"".join(self._whole), None, True
            return self._decoder.feed_whole(self._answer_in(body))
        events = self._decoder.end()
        if self._decoder.failure is not None:
            return events  # the next read raises it
        if not self._decoder.has_stopped and self._body.encoding:
            raise GarbledStream(f"its content-encoding {self._body.encoding} ended before {self._decoder.missing}")
        if not events and not self._has_events and self._is_sniffed and self._type != "text/event-stream":
            raise GarbledStream(f"its {self._type} holds no event, and no {self._decoder.missing}: check its base URL")
        if not self._decoder.has_stopped:
            lacks = GarbledStream(f"it ended without {self._decoder.missing}")
            if self.is_guessed:
                raise lacks
            self.lacks = self.explain(lacks)
        return events

    def _answer_in(self, body: bytes) -> dict[str, Any]:
        """The object of an answer that came in one piece. Raises GarbledStream, UpstreamError."""
        value = any_json(body, f"its {self._type}")
        if isinstance(value, dict):
            if value.keys() & {"content", "choices"} and not is_refusal(value):
                return value
            refusal = refusal_of(value, status=200)
            if refusal.message or is_refusal(value):
                raise UpstreamError(classify(refusal))
        raise GarbledStream(f"its {self._type} is not an answer")


def failure_of_call(error: Exception, allowance_of: Callable[[Mapping[str, str]], Allowance | None]) -> Failure:
    """Why a call got no answer. ``error`` is what either SDK raises, or anything that the transport raises."""
    response = getattr(error, "response", None)
    if isinstance(response, httpx2.Response):
        return classify(refusal_in(response))._replace(allowance=allowance_of(response.headers))
    if type(error).__name__ == "APITimeoutError":
        return classify(Breakage(How.UNANSWERED))
    if encoding := undecodable(error):
        return classify(Breakage(How.GARBLED, encoding))
    how, root = how_unheard(error)
    return classify(Breakage(how, f"calling it raised {type(root).__name__}" if how is How.FAULTY else ""))


def refusal_in(response: httpx2.Response) -> Refusal:
    """The refusal in a response whose status is not 2xx. The SDK has read its body."""
    if response.is_redirect:
        return Refusal(response.status_code, message=f"it redirects to {_place_of(response)}: check its base URL")
    try:
        body = response.content
    except httpx2.StreamError:
        body = b""
    return page_refusal(body, status=response.status_code, retry_after_s=retry_after_s(response.headers))


def _place_of(response: httpx2.Response) -> str:
    """Where a redirect leads, which shows what is wrong with the base URL. Names no host and no query: callers read this."""
    asked = response.request.url
    try:
        url = asked.join(response.headers.get("location", ""))
    except (httpx2.InvalidURL, ValueError):
        return "nowhere"
    place = url.path[:200]
    if url.host != asked.host:
        place += " on another host"
    return place if url.scheme == asked.scheme else f"{place} by {url.scheme}"


def _broken(error: Exception) -> Failure:
    """Why an answer broke off."""
    if encoding := undecodable(error):
        return classify(Breakage(How.GARBLED, encoding))
    if isinstance(error, NETWORK_ERRORS):
        return classify(Breakage(How.CUT))
    return classify(Breakage(How.FAULTY, f"reading its answer raised {type(error).__name__}"))
