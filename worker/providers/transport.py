"""The SDK's HTTP client, over aiohttp, with direct access to the body as it arrives.

The SDK has an aiohttp transport of its own, but with it each piece of the body passes through four generators and a context
manager, and each request through httpx2's cookies, redirects and auth flows (docs/decisions has what they cost). Everything
else of the SDK (authentication, headers, errors) stays as it is; it builds the head of equal calls once.
"""

import functools
import io
import re
import urllib.request
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import ContentEncodingError

from shared.completion import GarbledStream
from shared.loopback import is_loopback
from worker.outcome import How

HEADERS: Final = {
    "content-type": "application/json",
    "accept-encoding": "identity",  # bytes are read as they come; the SDK would ask for gzip
    # As ``with_streaming_response`` does: otherwise the SDK reads the whole body before it returns the response.
    "X-Stainless-Raw-Response": "stream",
}
"""The headers that both SDKs send with a request."""

_LIMIT_BYTES = 1 << 20
_MOST_HEADS: Final = 64
_MOST_ERROR_BYTES = 1 << 20
_WORD: Final = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_GZIP: Final = 16 + zlib.MAX_WBITS
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "x-gzip", "deflate", "br", "zstd"})
"""Those that aiohttp or we decode. If the library for one is missing, aiohttp raises an error that says so."""


@functools.lru_cache(maxsize=64)
def connecting_within(connect_timeout_s: float) -> httpx2.Timeout:
    """A request's ``timeout`` for the SDK: it limits only connecting; all other timers are the job's."""
    return httpx2.Timeout(None, connect=connect_timeout_s)


@functools.lru_cache(maxsize=64)
def _aiohttp_timeout(connect_timeout_s: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(sock_connect=connect_timeout_s)


NETWORK_ERRORS: Final = (aiohttp.ClientError, httpx2.HTTPError, OSError)
"""What a connection raises when it breaks. Anything else is a fault on our side of it."""


def how_unheard(error: BaseException) -> tuple[How, BaseException]:
    """Why there was no answer, and the root error: no connection, one that closed when the request may have arrived, or a
    fault of ours.
    """
    how = How.FAULTY
    while True:
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return How.UNREACHABLE, error
        if isinstance(error, NETWORK_ERRORS):
            how = How.UNHEARD
        if error.__cause__ is None:
            return how, error
        error = error.__cause__


def undecodable(error: BaseException) -> str:
    """Which content-encoding aiohttp could not decode, in its words; "" if it was something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ContentEncodingError):
            return cause.message.partition(". ")[0]
        cause = cause.__cause__ or cause.__context__
    return ""


def _body_of(content: bytes) -> bytes | io.BytesIO | None:
    """Large bodies are sent in pieces: in one they would hold up the event loop, and aiohttp warns of it."""
    return io.BytesIO(content) if len(content) > _LIMIT_BYTES else content or None


class BodyStream(httpx2.AsyncByteStream):
    """The body of a response. ``read_some`` is for us, the iterator is for the SDK's error messages."""

    unreadable = ""
    """Its content-encoding, if neither aiohttp nor we can decode it."""
    encoding = ""
    """The content-encoding that was decoded; empty if there was none."""
    _unzip: "zlib._Decompress | None" = None

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            self.unreadable = encoding if _WORD.fullmatch(encoding) else "of no name"
        self.encoding = encoding if encoding in _ENCODINGS and encoding != "identity" else ""
        if encoding == "x-gzip":
            self._unzip = zlib.decompressobj(_GZIP)

    async def read_some(self) -> bytes:
        """What has arrived; waits if nothing has. ``b""`` is the clean end. Raises aiohttp.ClientError, OSError."""
        if self._unzip is None:
            return await self._response.content.readany()
        return await self._read_unzipped(self._unzip)

    async def _read_unzipped(self, unzip: "zlib._Decompress") -> bytes:
        """Decodes ``x-gzip``, the old name of gzip (RFC 9110, 8.4.1.3), which aiohttp does not know."""
        while True:
            packed = unzip.unconsumed_tail or await self._response.content.readany()
            try:
                piece = unzip.decompress(packed, _LIMIT_BYTES)
            except zlib.error:
                raise ContentEncodingError("Can not decode content-encoding: x-gzip") from None
            if piece or not packed:
                return piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """At most 1 MiB, which is enough for any error message. Nothing if the body cannot be decoded."""
        left = 0 if self.unreadable else _MOST_ERROR_BYTES
        while left > 0 and (piece := await self.read_some()):
            left -= len(piece)
            yield piece

    async def aclose(self) -> None:
        """Closes the socket unless the body was read to its end."""
        self._response.release() if self._response.content.at_eof() else self._response.close()


async def read_whole(response: httpx2.Response, most_bytes: int) -> bytes:
    """The whole body; then closes the response. Raises GarbledStream if it is larger, aiohttp.ClientError, OSError."""
    body: BodyStream = response.extensions["body"]
    pieces, size = [], 0
    try:
        while piece := await body.read_some():
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise GarbledStream("the answer is too long")
    finally:
        await response.aclose()
    return b"".join(pieces)


def _proxy_of(url: httpx2.URL) -> str | None:
    """The proxy in the usual variables. It is read once: aiohttp's ``trust_env`` reads them, and ~/.netrc in a thread, per request.

    A loopback address, like that of the LLM that ``dev`` starts, is called without a proxy: few people set NO_PROXY for it.
    """
    if is_loopback(url.host) or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


class _ResponseHandler(ResponseHandler):
    """If the bytes of a body are not valid HTTP, aiohttp 3.14 closes the connection but lets the body's reader wait without end.
    Here the reader gets an error.
    """

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the body is broken"))


class _Connector(aiohttp.TCPConnector):
    def __init__(self, *, limit: int) -> None:
        super().__init__(limit=limit, keepalive_timeout=30)
        handler: type[ResponseHandler] = _ResponseHandler
        self._factory = functools.partial(handler, loop=self._loop)


class _Head(NamedTuple):
    """A request without its body, as aiohttp takes it."""

    request: httpx2.Request
    """The one that it was made from."""
    url: str
    headers: list[tuple[str, str]]
    """Without the length of the body, which aiohttp adds."""
    timeout: aiohttp.ClientTimeout


def _head_of(request: httpx2.Request) -> _Head:
    headers = [(name, value) for name, value in request.headers.multi_items() if name != "content-length"]
    return _Head(request, str(request.url), headers, _aiohttp_timeout(request.extensions["timeout"].get("connect")))


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """One connection pool. Decompresses what came compressed. Does not follow redirects, or retry."""

    def __init__(self, *, connections: int) -> None:
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request, and returns when the head of the response has arrived."""
        return await self.send(_head_of(request), request.content)

    async def send(self, head: _Head, content: bytes) -> httpx2.Response:
        """As ``handle_async_request``, for a head that was made before."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=self._connections),
                auto_decompress=True,  # bounded by read_bufsize; we ask for identity, but not all servers care
                read_bufsize=_LIMIT_BYTES,
                timeout=aiohttp.ClientTimeout(),
            )
            self._proxy = _proxy_of(head.request.url)
        response = await self._session.request(
            head.request.method,
            head.url,
            headers=head.headers,
            data=_body_of(content),
            allow_redirects=False,
            proxy=self._proxy,
            timeout=head.timeout,
        )
        stream = BodyStream(response)
        headers = [(name, value) for name, value in response.raw_headers if name.lower() != b"content-encoding"]
        return httpx2.Response(
            response.status, headers=headers, stream=stream, request=head.request, extensions={"body": stream}
        )

    async def aclose(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()


class DirectClient(httpx2.AsyncClient):
    """An httpx2 client that passes a request straight to its transport: an LLM's API needs no cookies and no redirects."""

    def __init__(self, transport: AiohttpTransport) -> None:
        super().__init__(transport=transport, trust_env=False)
        self.direct = transport

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """Returns the response when its head has arrived. Its body is not read yet."""
        return await self.direct.handle_async_request(request)


class Post(Protocol):
    """``client.post`` of either SDK, for one path."""

    async def __call__(
        self, content: bytes, headers: Mapping[str, Any], timeout: httpx2.Timeout
    ) -> httpx2.Response: ...


class PreparedCalls:
    """Calls to one path. Building a request costs the SDK more time than all else of a call before its first byte, and only the
    body differs: so the SDK sends the first call of each kind, and its head is sent again with the other bodies.
    """

    def __init__(self, post: Post, client: DirectClient) -> None:
        self._post = post
        self._transport = client.direct
        self._heads: dict[object, _Head] = {}

    async def send(self, content: bytes, *, headers: Mapping[str, Any], connect_timeout_s: float) -> httpx2.Response:
        """Returns when the head of a 2xx response has arrived. Raises the SDK's errors, httpx2.HTTPStatusError with a response
        whose body was read, and what the transport raises.
        """
        kind = (*headers.items(), connect_timeout_s)
        head = self._heads.get(kind)
        if head is None:
            response = await self._post(content, headers, connecting_within(connect_timeout_s))
            self._keep(kind, response.request)
            return response
        response = await self._transport.send(head, content)
        if not response.is_success:
            try:
                await response.aread()
            finally:
                await response.aclose()
            response.raise_for_status()
        return response

    def _keep(self, kind: object, request: httpx2.Request) -> None:
        if "idempotency-key" in request.headers:
            return  # each call needs one of its own
        if len(self._heads) >= _MOST_HEADS:  # callers choose some of the headers
            del self._heads[next(iter(self._heads))]
        self._heads[kind] = _head_of(request)
