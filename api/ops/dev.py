"""``/dev``: what only ``tokenspool dev`` serves, so that its user can see a worker die and another take over."""

import os
import signal
import socket
from typing import Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, Operator
from api.http.body import read_json
from api.http.members import Body, read
from api.http.responses import json_response
from shared.errors import NotFound

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})

router = APIRouter(include_in_schema=False)


class KillRequest(Body):
    """Which worker dies."""

    worker: str
    """Its name, as in a job's attempts."""


class Killed(msgspec.Struct, frozen=True):
    """The worker that died."""

    worker: str


@router.post("/dev/kill-worker")
async def kill_worker(request: Request, api: Api, caller: Operator) -> Response:
    """Kill a worker of this machine by SIGKILL. 404 if no such worker lives here, and for a caller from elsewhere."""
    if request.client is None or request.client.host not in _LOOPBACK:
        raise NotFound
    name = read(KillRequest, await read_json(request, caller)).worker
    host, pid = _place_of(name)
    living = [facts["name"] for facts in await api.runtime.workers.living()]
    if name not in living or host != socket.gethostname():
        raise NotFound
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        raise NotFound from None
    api.log.warning("worker_killed", worker=name)
    return json_response(msgspec.json.encode(Killed(name)))


def _place_of(worker: str) -> tuple[str, int]:
    """The host and the process id in a worker's name."""
    host, _, rest = worker.rpartition("-")[0].rpartition("-")
    return host, int(rest) if rest.isdecimal() else 0
