"""Starts the simulator: `serve` blocks until SIGTERM or SIGINT; `running` is for a test's own event loop.

The caller chooses the port; 0 picks a free one.
"""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from simulator.connection import Connection
from simulator.pulse import Pulse
from simulator.record import Call, Record
from simulator.routes import Routes

BACKLOG_CONNECTIONS = 2_048

OPEN_FILES = 65_536


@dataclass(slots=True)
class Simulator:
    """A running simulator, as a test in the same process sees it."""

    url: str
    """The anthropic SDK's `base_url`; append `/v1` for the openai SDK."""
    record: Record
    _routes: Routes

    @property
    def calls(self) -> list[Call]:
        """All calls so far, including those still in progress, oldest first."""
        return list(self.record.calls)

    @property
    def words(self) -> str:
        """Words put before every prompt, e.g. `fail=529` for an upstream that is down. The setter raises WordError."""
        return self._routes.words

    @words.setter
    def words(self, words: str) -> None:
        self._routes.words = words

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5) -> None:
        """Waits until the condition holds; checks it whenever a call begins, sends a token or ends."""
        changed = asyncio.Event()
        listener = changed.set
        self.record.listeners.append(listener)
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await changed.wait()
                    changed.clear()
        finally:
            self.record.listeners.remove(listener)


@asynccontextmanager
async def running(host: str = "127.0.0.1", port: int = 0, *, words: str = "") -> AsyncIterator[Simulator]:
    """A simulator in this event loop; on exit, all its connections are aborted."""
    record = Record()
    routes = Routes(record)
    routes.words = words
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    pulse = Pulse(loop)
    server = await loop.create_server(
        lambda: Connection(routes.respond, record, pulse, connections), host, port, backlog=BACKLOG_CONNECTIONS
    )
    try:
        name = f"[{host}]" if ":" in host else host
        yield Simulator(f"http://{name}:{server.sockets[0].getsockname()[1]}", record, routes)
    finally:
        server.close()
        for connection in list(connections):
            connection.abort()
        await server.wait_closed()


def serve(host: str = "127.0.0.1", port: int = 0, *, words: str = "") -> None:
    """Serves until SIGTERM or SIGINT, then returns at once. Prints one line with its URL on standard output."""
    import uvloop

    _allow_many_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(host, port, words))


async def _serve(host: str, port: int, words: str) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with running(host, port, words=words) as simulator:
        print(f"simulator listening on {simulator.url}", flush=True)  # noqa: T201 - what a parent process waits for
        await stopped.wait()


def _allow_many_connections() -> None:
    """A load test opens more connections than the usual limit of 1,024 open files allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
