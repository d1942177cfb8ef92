"""One delivery attempt: looks the address up, checks it, and sends a POST to that very address.

There is one look-up before the check and none after it, so a name cannot lead elsewhere in between (DNS rebinding). This uses
httpcore2, because httpx2 has redirects, proxies, cookies and decompression that would have to be switched off. Nothing is
logged here, and no error is raised: the Receipt says what happened.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import httpcore2
import httpx2
import msgspec

from shared.webhook_address import Address, Networks, RefusedUrl, Target, may_connect, target_of, unmapped
from shared.webhooks import Reason
from worker.retry_after import retry_after_s
from worker.webhooks.dns import WAIT_S, LookUps, Resolve, addresses_of

_MOST_HEAD_BYTES: Final = 64 << 10
_MOST_BODY_BYTES: Final = 64 << 10
_MOST_ADDRESSES: Final = 4
"""How many addresses of a name are tried, one after the other, each for its share of the time."""
_OURS: Final = frozenset(
    {"host", "user-agent", "content-length", "transfer-encoding", "connection", "accept", "accept-encoding"}
)


class Receipt(msgspec.Struct, frozen=True):
    """How one attempt ended."""

    status: int | None
    """The receiver's HTTP status, whatever it is; None: there was none."""
    reason: Reason | None = None
    """Why there is no status."""
    retry_after_s: float | None = None
    """How long the receiver asks to be left alone."""


UNTRIED: Final = Receipt(None)
"""No attempt was made, since there was no room to look the name up."""


class _Unheard(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Sender:
    """Sends what is signed already. Each attempt has a connection of its own, which is closed when it ends."""

    def __init__(
        self,
        allowed: Networks,
        *,
        user_agent: str,
        timeout_s: float = 15.0,
        ssl_context: ssl.SSLContext | None = None,
        look_up_wait_s: float = WAIT_S,
        resolve: Resolve = addresses_of,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        """``timeout_s`` is for a whole attempt, without the wait for room to look a name up. ``network`` connects to the
        addresses that ``resolve`` found and the check allowed.
        """
        self._allowed = allowed
        self._user_agent = user_agent
        self._timeout_s = timeout_s
        self._ssl_context = ssl_context or httpx2.create_ssl_context()
        self._look_ups = LookUps(resolve, wait_s=look_up_wait_s)
        self._network = network or httpcore2.AnyIOBackend()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, tenant: str = "") -> Receipt:
        """Makes one attempt, within ``timeout_s``; ``UNTRIED`` if it could not begin. Raises nothing but CancelledError.

        ``tenant``: whose share of the look-ups it takes.
        """
        try:
            target = target_of(url)
        except RefusedUrl:
            return Receipt(None, Reason.FORBIDDEN_ADDRESS)
        found = await self._found(target, tenant)
        if found is None:
            return UNTRIED
        heard: Receipt | None = None
        reason = Reason.PROTOCOL
        connections: _Checked | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connections = _Checked(self._network, self._checked(target, await found), self._timeout_s)
                response = await self._head_of_response(target, headers, body, connections)
                heard = _receipt_of(response)
                await connections.skip_body_of(response)
        except TimeoutError:
            reason = Reason.TIMEOUT
        except _Unheard as unheard:
            reason = unheard.reason
        except ssl.SSLError:  # the receiver may send its TLS alert as late as its response
            reason = Reason.TLS
        except Exception:  # noqa: BLE001,S110 a library may raise anything for a stranger's bytes
            pass
        finally:
            if connections is not None:
                await connections.close()
        return heard or Receipt(None, reason)

    async def _found(self, target: Target, tenant: str) -> "asyncio.Future[Sequence[Address]] | None":
        """A future of the host's addresses, which has ended if the host is one. None: there was no room for its look-up."""
        if target.address is None:
            return await self._look_ups.begin(target.host, tenant)
        found: asyncio.Future[Sequence[Address]] = asyncio.get_running_loop().create_future()
        found.set_result([target.address])
        return found

    def _checked(self, target: Target, found: Sequence[Address]) -> Sequence[Address]:
        """The addresses, if it may be sent to all of them. A single forbidden one refuses all: such a name means harm."""
        if not found:
            raise _Unheard(Reason.UNRESOLVABLE)
        for address in found:
            if not may_connect(address, scheme=target.scheme, port=target.port, allowed=self._allowed):
                raise _Unheard(Reason.FORBIDDEN_ADDRESS)
        return found

    async def _head_of_response(
        self, target: Target, headers: Mapping[str, str], body: bytes, connections: "_Checked"
    ) -> httpcore2.Response:
        host = target.host.encode()
        request = httpcore2.Request(
            "POST",
            httpcore2.URL(scheme=target.scheme.encode(), host=host, port=target.port, target=target.path.encode()),
            headers=[
                ("Host", target.authority),
                ("User-Agent", self._user_agent),
                ("Content-Length", str(len(body))),
                ("Accept", "*/*"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
                *((name, value) for name, value in headers.items() if name.lower() not in _OURS),
            ],
            content=body,
        )
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(target.scheme.encode(), host, target.port),
            ssl_context=self._ssl_context,
            network_backend=connections,
        )
        return await connection.handle_async_request(request)


def _receipt_of(response: httpcore2.Response) -> Receipt:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
    return Receipt(response.status, retry_after_s=_asked_pause_s(headers))


def _asked_pause_s(headers: Mapping[str, str]) -> float | None:
    try:
        return retry_after_s(headers)
    except Exception:  # noqa: BLE001 anybody may have written the date, and the parser was made for e-mail
        return None


class _Checked(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that it was given, whatever host it is asked for. Closes the connection that it opened, and
    bounds what is read from it.
    """

    def __init__(self, network: httpcore2.AsyncNetworkBackend, addresses: Sequence[Address], timeout_s: float) -> None:
        self._network = network
        self._addresses = addresses[:_MOST_ADDRESSES]
        self._share_s = timeout_s / len(self._addresses)
        self._raw: httpcore2.AsyncNetworkStream | None = None
        self._left_bytes = [_MOST_HEAD_BYTES]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        for number, address in enumerate(self._addresses, start=1):
            share_s = self._share_s if number < len(self._addresses) else None  # the last one gets what is left
            try:
                self._raw = await self._network.connect_tcp(str(unmapped(address)), port, timeout=share_s)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
            return _Stream(self._raw, self._left_bytes)
        raise _Unheard(Reason.REFUSED_CONNECTION)

    async def skip_body_of(self, response: httpcore2.Response) -> None:
        """Reads some of the body: a receiver may log an error if the connection is closed while it still sends."""
        self._left_bytes[0] = _MOST_BODY_BYTES
        async for _ in response.aiter_stream():
            pass

    async def close(self) -> None:
        """Closes the connection itself: httpcore2 forgets one that is cancelled during its TLS handshake."""
        if self._raw is not None:
            with contextlib.suppress(Exception):
                await self._raw.aclose()


class _Stream(httpcore2.AsyncNetworkStream):
    """Reads no more than is left; distinguishes a failed TLS handshake from a failed connection."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, left_bytes: list[int]) -> None:
        self._stream = stream
        self._left_bytes = left_bytes

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left_bytes[0] <= 0:
            raise _Unheard(Reason.PROTOCOL)
        piece = await self._stream.read(min(max_bytes, self._left_bytes[0]), timeout)
        self._left_bytes[0] -= len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except Exception:  # noqa: BLE001 OpenSSL, anyio and httpcore2 each have their own
            raise _Unheard(Reason.TLS) from None
        return _Stream(stream, self._left_bytes)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
