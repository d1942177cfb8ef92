"""Whether a process is really up: used by `dev` while it starts, and by the health checks of containers.

An API process responds to HTTP; a worker registers in Redis under its host's name and its pid.
"""

import asyncio
import contextlib
import http.client
import socket

from cli.errors import CommandError
from shared.errors import Problem
from shared.settings import Settings
from shared.store.runtime import open_runtime

_TIMEOUT_S = 2.0


def probe_api(port: int) -> None:
    """Raise CommandError unless the API of this machine or container responds."""
    if http_status("127.0.0.1", port, "/health/live") != 200:
        raise CommandError(f"No API responds on port {port}.")


def probe_worker(settings: Settings) -> None:
    """Raise CommandError unless a worker of this machine or container is alive."""
    if not worker_lives(settings):
        raise CommandError("No worker of this host is registered in Redis.")


def worker_lives(settings: Settings, pid: int | None = None) -> bool:
    """Whether a worker of this host, or the one with this pid, is registered in Redis; False without Redis."""
    beginning = f"{socket.gethostname()}-" if pid is None else f"{socket.gethostname()}-{pid}-"
    try:
        names = asyncio.run(_worker_names(settings))
    except (Problem, TimeoutError):
        return False
    return any(name.startswith(beginning) for name in names)


async def _worker_names(settings: Settings) -> list[str]:
    async with asyncio.timeout(_TIMEOUT_S), open_runtime(settings, process_name="tokenspool-probe") as runtime:
        return [worker["name"] for worker in await runtime.workers.living()]


def http_status(host: str, port: int, path: str) -> int | None:
    """The status of a GET, or None without a response in time."""
    try:
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
