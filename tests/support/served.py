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


class _Server(uvicorn.Server):
    """Leaves the signals of the test process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


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
    listener = socket.socket()
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
        server.should_exit = True
        await running
