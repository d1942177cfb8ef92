"""How the service is. Never calls the LLM: the workers write down what they see of it.

``/health`` is for people and dashboards, ``/health/live`` for whoever restarts a process (it does nothing but answer),
``/health/ready`` for load balancers.
"""

import asyncio
from enum import StrEnum
from typing import Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.answers import json_answer
from api.dependencies import Api, ApiState, caller_of
from shared.api_key import Scope
from shared.clock import to_rfc3339
from shared.errors import Problem
from shared.job import JobState
from shared.settings import Auth
from shared.store.upstreams import RouteState

router = APIRouter()


class Health(StrEnum):
    """Whether the service does what it is for."""

    OK = "ok"
    DEGRADED = "degraded"
    """It takes jobs in, or not even that; but some will wait."""


class LlmState(StrEnum):
    """What the workers saw last."""

    REACHABLE = "reachable"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    """No worker called it within the hour."""


class QueueDepth(msgspec.Struct, frozen=True):
    """Jobs that wait and jobs that run."""

    queued: int
    running: int


class Circuit(StrEnum):
    """Whether calls of a route are made."""

    CLOSED = "closed"
    OPEN = "open"
    """Many calls failed: only one at a time is let through, until one is answered."""


class RouteHealth(msgspec.Struct, frozen=True):
    """An upstream and a model that may not be called freely now."""

    route: str
    circuit: Circuit
    open_since: str | None
    shut_for_s: float
    """How long nobody calls it: a Retry-After, or the pause before the next probe. 0: it may be called."""
    reason: str | None
    """One of the codes of ``job.error``, as of the call that shut it."""


class HealthReport(msgspec.Struct, frozen=True):
    """``GET /health``. What only Redis knows is null while it is away."""

    status: Health
    llm: LlmState
    llm_since: str | None
    """Since when the workers see it like that."""
    routes: list[RouteHealth]
    """Those that are shut, or whose circuit is open."""
    redis: str
    workers: int | None
    queue: QueueDepth | None


class _LlmNote(msgspec.Struct):
    state: LlmState = LlmState.UNKNOWN
    since_ms: int | None = None


class _State(msgspec.Struct, frozen=True):
    status: str


_LIVE: Final = msgspec.json.encode(_State("live"))
_READY: Final = msgspec.json.encode(_State("ready"))
_DRAINING: Final = msgspec.json.encode(_State("draining"))
_NO_REDIS: Final = msgspec.json.encode(_State("redis unavailable"))
_RETRY: Final = {"Retry-After": "2"}


@router.get("/health")
async def health(request: Request, api: Api) -> Response:
    """All of it; for callers without the scope ``read`` the status alone. 503 only without Redis."""
    report = await _report_of(api)
    status, headers = (503, _RETRY) if report.queue is None else (200, None)
    if api.settings.auth is Auth.KEYS:
        try:
            await caller_of(request, Scope.READ)
        except Problem:
            return json_answer(msgspec.json.encode(_State(report.status)), status, headers)
    return json_answer(msgspec.json.encode(report), status, headers)


async def _report_of(api: ApiState) -> HealthReport:
    queue = api.runtime.queue
    try:
        note = _llm_note_of(await queue.llm_state())
        routes = [_health_of(state) for state in await api.runtime.upstreams.look() if _is_troubled(state)]
        depth = await queue.depth()
        workers = len(await queue.workers())
    except Problem:
        return HealthReport(Health.DEGRADED, LlmState.UNKNOWN, None, [], "unavailable", None, None)
    llm = note.state
    if llm is LlmState.REACHABLE and any(route.circuit is Circuit.OPEN for route in routes):
        llm = LlmState.DEGRADED
    is_ok = workers > 0 and llm in {LlmState.REACHABLE, LlmState.UNKNOWN} and not api.runtime.memory.is_full
    return HealthReport(
        status=Health.OK if is_ok else Health.DEGRADED,
        llm=llm,
        llm_since=None if note.since_ms is None else to_rfc3339(note.since_ms),
        routes=routes,
        redis="full" if api.runtime.memory.is_full else "ok",
        workers=workers,
        queue=QueueDepth(depth[JobState.QUEUED], depth[JobState.RUNNING]),
    )


@router.get("/health/live")
async def live() -> Response:
    """The process runs."""
    return json_answer(_LIVE)


@router.get("/health/ready")
async def ready(api: Api) -> Response:
    """Whether to send requests here: 503 without Redis, and while the process ends."""
    api.drain.note_poll(asyncio.get_running_loop().time())
    if api.drain.is_begun:
        return json_answer(_DRAINING, 503, _RETRY)
    if not await api.runtime.ping():
        return json_answer(_NO_REDIS, 503, _RETRY)
    return json_answer(_READY)


def _llm_note_of(note: bytes | None) -> _LlmNote:
    """A note that a newer worker wrote in words that we do not know says nothing."""
    try:
        return msgspec.json.decode(note or b"{}", type=_LlmNote)
    except msgspec.DecodeError:
        return _LlmNote()


def _is_troubled(state: RouteState) -> bool:
    return state.open_ms is not None or (state.shut_s > 0 and state.why != "full")


def _health_of(state: RouteState) -> RouteHealth:
    return RouteHealth(
        route=state.name,
        circuit=Circuit.CLOSED if state.open_ms is None else Circuit.OPEN,
        open_since=None if state.open_ms is None else to_rfc3339(state.open_ms),
        shut_for_s=round(state.shut_s, 3),
        reason=state.why or None,
    )
