"""Serves the API in the test's own event loop, with uvicorn, real sockets and a real Redis."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import uvicorn

from api.app import create_app
from api.edge.connections import KEEP_ALIVE_S, Bounds, Connections, bounds_of, open_files
from api.state.api_state import ApiState
from api.state.relay import Relay
from shared.settings import load_settings
from tests.support.wait import wait_until

_LOOK_S = 0.001
_LOOKS = 100
"""After so many, uvicorn itself waits for the connections that are still open."""


class _Server(uvicorn.Server):
    """Leaves the signals of the test process alone, and is quick to stop: uvicorn looks ten times a second, which many
    tests would wait for.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begins the shutdown."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    async def main_loop(self) -> None:
        """uvicorn's, except that it does not sleep through a stop."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, without its pause if all connections have ended."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(_LOOKS):
            if not self.server_state.connections and not self.server_state.tasks:
                await self.lifespan.shutdown()
                return
            await asyncio.sleep(_LOOK_S)
        await super().shutdown(sockets)


@dataclass(frozen=True)
class Served:
    """A running API."""

    url: str
    api: ApiState
    server: uvicorn.Server
    connections: Connections

    @property
    def relay(self) -> Relay:
        return self.api.relay


@contextlib.asynccontextmanager
async def serving(redis_url: str, *, bounds: Bounds | None = None, **settings: Any) -> AsyncIterator[Served]:
    """An API on a free port; ``settings`` are members of Settings. It stops as after SIGTERM.

    ``bounds`` limit its connections, if the usual limits are too wide for a test.
    """
    # Without a protocol, asyncio's own loop leaves Nagle's algorithm on, which costs 40 ms a response.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    app = create_app(load_settings(**{"redis_url": redis_url, "auth": "off", "allowed_hosts": "*", **settings}))
    connections = Connections(bounds or bounds_of(0, KEEP_ALIVE_S, open_files()))
    server = _Server(
        uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", connections.protocol),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
            timeout_graceful_shutdown=2,
        )
    )
    running = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    await wait_until(lambda: server.started or running.done(), "the API")
    if running.done():
        await running
    api: ApiState = server.lifespan.state["api"]
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", api, server, connections)
    finally:
        api.stop()
        server.stop()
        await running
