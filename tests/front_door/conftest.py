"""Sends raw bytes to an API on a real socket."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.support.served import Served, serving

NO_REDIS = "redis://127.0.0.1:1/0"
"""Nothing listens there: these tests need no Redis."""
_FIRST_BYTE_S = 5.0
A_HEAD = b"GET /health/live HTTP/1.1\r\nHost: api\r\n\r\n"


class Heard(NamedTuple):
    """The bytes received, and whether the API then closed the connection."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The statuses of all responses."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.raw)]


@pytest.fixture
async def door() -> AsyncIterator[Served]:
    """An API with the default bounds."""
    async with serving(NO_REDIS) as running:
        yield running


def port_of(served: Served) -> int:
    return int(served.url.rpartition(":")[2])


async def say(served: Served, raw: bytes, *, patience_s: float = 0.3) -> Heard:
    """Sends bytes, and reads until the API closes the connection or is silent for ``patience_s``."""
    async with connected(served) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(raw)
            await writer.drain()
        return await hear(reader, patience_s=patience_s)


async def hear(reader: asyncio.StreamReader, *, patience_s: float = 5.0) -> Heard:
    """Reads until the connection ends, or nothing more arrives for ``patience_s``; the first byte may take longer.

    Waits twice for half of it: this loop is the API's too, so after a standstill of the machine one wait ends before
    the API could write.
    """
    heard, silences = b"", 0
    while silences < 2:
        try:
            async with asyncio.timeout(patience_s / 2 if heard else _FIRST_BYTE_S):
                piece = await reader.read(1 << 16)
        except TimeoutError:
            silences += 1
            continue
        except ConnectionError:
            return Heard(heard, closed=True)
        if not piece:
            return Heard(heard, closed=True)
        heard += piece
        silences = 0
    return Heard(heard, closed=False)


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
