"""How the service is. Never calls the LLM: the workers write down what they see of it.

``/health`` is for people and dashboards, ``/health/live`` for whoever restarts a process (it does nothing but answer),
``/health/ready`` for load balancers.
"""

from enum import StrEnum
from typing import Final

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from api.answers import json_answer
from api.dependencies import Api
from shared.errors import Problem
from shared.job import JobState

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


class HealthReport(msgspec.Struct, frozen=True):
    """``GET /health``. What only Redis knows is null while it is away."""

    status: Health
    llm: LlmState
    redis: str
    workers: int | None
    queue: QueueDepth | None


class _LlmNote(msgspec.Struct):
    state: LlmState


class _State(msgspec.Struct, frozen=True):
    status: str


_LIVE: Final = msgspec.json.encode(_State("live"))
_READY: Final = msgspec.json.encode(_State("ready"))
_DRAINING: Final = msgspec.json.encode(_State("draining"))
_NO_REDIS: Final = msgspec.json.encode(_State("redis unavailable"))
_RETRY: Final = {"Retry-After": "2"}


@router.get("/health")
async def health(api: Api) -> Response:
    """All of it. 503 only without Redis."""
    queue = api.runtime.queue
    try:
        llm = _llm_state_of(await queue.llm_state())
        depth = await queue.depth()
        workers = len(await queue.workers())
    except Problem:
        report = HealthReport(Health.DEGRADED, LlmState.UNKNOWN, "unavailable", None, None)
        return json_answer(msgspec.json.encode(report), 503, _RETRY)
    is_ok = workers > 0 and llm in {LlmState.REACHABLE, LlmState.UNKNOWN} and not api.runtime.memory.is_full
    report = HealthReport(
        status=Health.OK if is_ok else Health.DEGRADED,
        llm=llm,
        redis="full" if api.runtime.memory.is_full else "ok",
        workers=workers,
        queue=QueueDepth(depth[JobState.QUEUED], depth[JobState.RUNNING]),
    )
    return json_answer(msgspec.json.encode(report))


@router.get("/health/live")
async def live() -> Response:
    """The process runs."""
    return json_answer(_LIVE)


@router.get("/health/ready")
async def ready(api: Api) -> Response:
    """Whether to send requests here: 503 without Redis, and while the process ends."""
    if api.shutdown.is_set():
        return json_answer(_DRAINING, 503, _RETRY)
    if not await api.runtime.ping():
        return json_answer(_NO_REDIS, 503, _RETRY)
    return json_answer(_READY)


def _llm_state_of(note: bytes | None) -> LlmState:
    """A note that a newer worker wrote in words that we do not know says nothing."""
    try:
        return msgspec.json.decode(note or b"", type=_LlmNote).state
    except msgspec.DecodeError:
        return LlmState.UNKNOWN
