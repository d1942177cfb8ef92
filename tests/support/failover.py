"""Two Redis servers behind one address, and a failover from one to the other that leaves every old connection open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from cli.embedded_redis import EmbeddedRedis
from tests.support.wait import wait_until


@dataclass
class Pair:
    """A primary and its replica behind one ``url``, as behind a DNS name with a short TTL or a virtual address."""

    primary: EmbeddedRedis
    replica: EmbeddedRedis
    url: str = ""
    target: EmbeddedRedis | None = None

    async def fail_over(self, *, is_replicated_back: bool = True) -> None:
        """Promotes the replica, which has all acknowledged writes, and points the address to it. The old primary
        becomes a replica that keeps its connections, serves reads and refuses writes. ``is_replicated_back``: it
        follows the new one.
        """
        with asking(self.primary) as old, asking(self.replica) as new:
            old.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            await wait_until(lambda: self._is_level(old, new), "a replica that is level")
            new.replicaof("NO", "ONE")
            self.target = self.replica
            old.replicaof("127.0.0.1", self.replica.port if is_replicated_back else 1)
            old.execute_command("CLIENT", "UNPAUSE")
        self.primary, self.replica = self.replica, self.primary

    @staticmethod
    def _is_level(old: Any, new: Any) -> bool:
        written = old.info("replication")["master_repl_offset"]
        return bool(new.info("replication").get("slave_repl_offset", -1) >= written)


@contextmanager
def asking(server: EmbeddedRedis) -> Iterator[Any]:
    """A client of this server, wherever the address points. Any: redis-py's types are unions of sync and async."""
    with redis.Redis.from_url(server.url) as client:
        yield client


@asynccontextmanager
async def a_pair() -> AsyncIterator[Pair]:
    """A replica in sync with its primary; the address points to the primary."""
    options = {"repl-diskless-sync-delay": "0"}  # otherwise the first sync begins after 5 s
    with EmbeddedRedis(options=options) as primary, EmbeddedRedis(options=options) as replica:
        with asking(replica) as client:
            client.replicaof("127.0.0.1", primary.port)
            await wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica")
        pair = Pair(primary, replica, target=primary)
        async with _forwarding(pair):
            yield pair


@asynccontextmanager
async def _forwarding(pair: Pair) -> AsyncIterator[None]:
    """Forwards connections; each stays with the server to which it was opened."""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        finally:
            writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert pair.target is not None
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", pair.target.port)
            writers.append(server_writer)
            await asyncio.gather(carry(reader, server_writer), carry(server_reader, writer))

    forwarder = await asyncio.start_server(serve, "127.0.0.1")
    pair.url = f"redis://127.0.0.1:{forwarder.sockets[0].getsockname()[1]}/0"
    try:
        yield
    finally:
        forwarder.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
