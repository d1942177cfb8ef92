"""Canaries to which nobody may connect, a watched network, and all kinds of receivers, on real sockets."""

import asyncio
import contextlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpcore2
import pytest

from shared.webhook_address import Address, Networks
from tests.support.loopback import is_local
from worker.webhooks.dns import Resolve
from worker.webhooks.sender import Sender

LOOPBACK: Networks = (ipaddress.IPv4Network("127.0.0.0/8"),)
PUBLIC = "93.184.216.34"
HOST = "hooks.example.com"
_CANARY_HOSTS = ("127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "::1")
_PORTS_EACH = 2


class Canaries:
    """Listeners on this machine's addresses. The kernel queues a connection at once, even before it is accepted."""

    def __init__(self) -> None:
        self.listeners: list[socket.socket] = []
        for host in _CANARY_HOSTS:
            for _ in range(_PORTS_EACH):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.socket(family, socket.SOCK_STREAM)
                self.listeners.append(listener)
                try:
                    listener.bind((host, 0))
                except OSError:  # this machine has no IPv6
                    self.listeners.remove(listener)
                    listener.close()
                    continue
                listener.listen(16)
                listener.setblocking(False)
        self.port: int = self.listeners[0].getsockname()[1]

    def urls(self) -> list[str]:
        """A URL for each listener."""
        names = [listener.getsockname()[:2] for listener in self.listeners]
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}/" for host, port in names]

    def connections(self) -> int:
        """The number of connections since the last call."""
        found = 0
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    found += 1
        return found


@pytest.fixture
def canaries() -> Iterator[Canaries]:
    """Asserts at the end of the test that nobody connected to a canary."""
    canaries = Canaries()
    yield canaries
    assert canaries.connections() == 0
    for listener in canaries.listeners:
        listener.close()


class _CountedStream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream, network: "WatchedNetwork") -> None:
        self._stream, self._network = stream, network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        piece = await self._stream.read(max_bytes, timeout)
        self._network.read_bytes += len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _CountedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class WatchedNetwork(httpcore2.AsyncNetworkBackend):
    """Records every address connected to, and redirects those in ``moved`` to ports of this machine."""

    def __init__(self, moved: Mapping[str, str] | None = None, ports: Mapping[int, int] | None = None) -> None:
        self.attempts: list[str] = []
        self.read_bytes = 0
        self._moved, self._ports = moved or {}, ports or {}
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        self.attempts.append(host)
        host = self._moved.get(host, host)
        if not is_local(host):
            raise httpcore2.ConnectError("nobody is there")
        stream = await self._network.connect_tcp(host, self._ports.get(port, port), timeout=timeout)
        return _CountedStream(stream, self)


class Names:
    """A resolver that returns the given addresses look-up by look-up, and then repeats the last ones."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        answer = self._answers[min(len(self.asked), len(self._answers)) - 1]
        return [ipaddress.ip_address(address) for address in answer]


def a_sender(
    allowed: Networks = (),
    *,
    timeout_s: float = 10,
    look_up_wait_s: float = 10,
    network: httpcore2.AsyncNetworkBackend | None = None,
    resolve: Resolve | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Sender:
    """A sender; only tests of the deadline come near the default one."""
    return Sender(
        allowed,
        user_agent="tokenspool-tests",
        timeout_s=timeout_s,
        look_up_wait_s=look_up_wait_s,
        network=network,
        resolve=resolve or Names((PUBLIC,)),
        ssl_context=ssl_context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """A server on this machine, and the requests that it got."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection has ended."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


class StartReceiver(Protocol):
    """Starts a receiver that sends ``answer``, then closes unless it ``hangs``; it stops after the test."""

    async def __call__(
        self,
        answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n",
        *,
        again: bytes = b"",
        hangs: bool = False,
        reads: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> Receiver: ...


@pytest.fixture
async def start_receiver() -> AsyncIterator[StartReceiver]:
    """After the response, ``again`` is sent repeatedly until the sender closes."""
    async with AsyncExitStack() as stack:

        async def start(
            answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n",
            *,
            again: bytes = b"",
            hangs: bool = False,
            reads: bool = True,
            tls: ssl.SSLContext | None = None,
        ) -> Receiver:
            receiver = Receiver()

            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    if reads:
                        head = await reader.readuntil(b"\r\n\r\n")
                        receiver.heads.append(head)
                        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                        receiver.bodies.append(await reader.readexactly(length))
                    writer.write(answer)
                    await writer.drain()
                    while again:
                        writer.write(again)
                        await writer.drain()
                    if hangs:
                        await reader.read()
                except (OSError, EOFError):
                    pass
                finally:
                    receiver.closed.set()
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

            server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
            receiver.port = server.sockets[0].getsockname()[1]
            stack.push_async_callback(_stopped, server)
            return receiver

        yield start


async def _stopped(server: asyncio.Server) -> None:
    server.close()
    await asyncio.wait_for(server.wait_closed(), 5)


@dataclass(frozen=True)
class Certificates:
    """A CA for the test run, and its certificate for HOST."""

    folder: Path

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts only this CA."""
        return ssl.create_default_context(cafile=self.folder / "ca.pem")

    def serving(self) -> ssl.SSLContext:
        """A server's context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "host.pem", self.folder / "host.key")
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made by the openssl command, which every machine with git over https has."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    new_key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    _openssl(
        folder,
        [*new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=tests", "-addext", "keyUsage=keyCertSign"],
    )
    _openssl(
        folder,
        [
            *new_key,
            *("-keyout", "host.key", "-out", "host.pem", "-subj", f"/CN={HOST}", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-addext", f"subjectAltName=DNS:{HOST}", "-addext", "basicConstraints=critical,CA:FALSE"),
        ],
    )
    return Certificates(folder)


def _openssl(folder: Path, arguments: list[str]) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
