"""The API on a real socket, spoken to in bytes."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.support.served import Served, serving

NO_REDIS = "redis://127.0.0.1:1/0"
"""The front door needs none."""
A_HEAD = b"GET /health/live HTTP/1.1\r\nHost: api\r\n\r\n"


class Heard(NamedTuple):
    """What came, and whether the other side closed behind it."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """Of all answers."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.raw)]


@pytest.fixture
async def door() -> AsyncIterator[Served]:
    """With the usual bounds."""
    async with serving(NO_REDIS) as running:
        yield running


def port_of(served: Served) -> int:
    """Where it listens."""
    return int(served.url.rpartition(":")[2])


async def say(served: Served, raw: bytes, *, patience_s: float = 0.3) -> Heard:
    """Sends it, and reads until the other side closes or has been silent for a while."""
    async with connected(served) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(raw)
            await writer.drain()
        return await hear(reader, patience_s=patience_s)


async def hear(reader: asyncio.StreamReader, *, patience_s: float = 5.0) -> Heard:
    """What comes until the end, or until nothing does."""
    heard = b""
    while True:
        try:
            async with asyncio.timeout(patience_s):
                piece = await reader.read(1 << 16)
        except TimeoutError:
            return Heard(heard, closed=False)
        except ConnectionError:
            return Heard(heard, closed=True)
        if not piece:
            return Heard(heard, closed=True)
        heard += piece


@contextlib.asynccontextmanager
async def connected(
    served: Served, *, receive_buffer: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """An open connection."""
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port_of(served)))
    reader, writer = await asyncio.open_connection(sock=client)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
