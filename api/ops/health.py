"""The health of the service. Never calls the LLM: the workers write down what they see of it.

``/health`` is for people and dashboards, ``/health/live`` for whatever restarts processes (it checks nothing),
``/health/ready`` for load balancers.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, caller_of
from api.http.responses import json_response
from api.openapi import json_of, nothing, operation
from api.state.api_state import ApiState
from shared.api_key import Scope
from shared.clock import to_rfc3339
from shared.errors import Problem
from shared.job import JobState
from shared.settings import Auth
from shared.store.redis_problems import RedisProblem
from shared.store.upstreams import RouteState

router = APIRouter()


class Health(StrEnum):
    """Whether the service works as it should."""

    OK = "ok"
    DEGRADED = "degraded"
    """Some jobs will wait, or no jobs are accepted."""


class LlmState(StrEnum):
    """What the living workers saw last."""

    REACHABLE = "reachable"
    DEGRADED = "degraded"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    """No worker has called it within the last hour."""


class QueueDepth(msgspec.Struct, frozen=True):
    """How many jobs wait, and how many run."""

    queued: int
    running: int


class Circuit(StrEnum):
    """Whether calls of a route are let through."""

    CLOSED = "closed"
    OPEN = "open"
    """Too many calls failed: only one at a time is let through, until one succeeds."""


class RouteHealth(msgspec.Struct, frozen=True):
    """A route (an upstream and a model) that may not be called freely now."""

    route: str
    circuit: Circuit
    open_since: str | None
    shut_for_s: float
    """Seconds for which nobody calls it: a Retry-After, or the pause before the next probe. 0: it may be called."""
    reason: str | None
    """Why the call that shut it failed: one of the codes of ``job.error``."""


class HealthReport(msgspec.Struct, frozen=True):
    """``GET /health``. What only Redis knows is null while it is away."""

    status: Health
    llm: LlmState
    llm_since: str | None
    """Since when the workers see it in this state."""
    routes: list[RouteHealth]
    """Those that are shut, or whose circuit is open."""
    redis: str
    redis_problems: list[RedisProblem]
    """What Redis refuses to this process or a worker, why it cannot be reached, or how it may lose jobs."""
    workers: int | None
    queue: QueueDepth | None


class _LlmNote(NamedTuple):
    """What one worker saw."""

    state: LlmState
    since_ms: int
    age_s: int


class _State(msgspec.Struct, frozen=True):
    status: str


_LIVE: Final = msgspec.json.encode(_State("live"))
_READY: Final = msgspec.json.encode(_State("ready"))
_DRAINING: Final = msgspec.json.encode(_State("draining"))
_NO_REDIS: Final = msgspec.json.encode(_State("redis unavailable"))
_RETRY: Final = {"Retry-After": "2"}
_FORGOTTEN_S: Final = 3_600
_WORKED_OUT_EVERY_S: Final = 1.0
_LAST_JOBS: Final = 100
_OUTVOTED_S: Final = 120
"""What a worker saw this long before another's newest call is ignored."""


@router.get("/health")
@operation(
    {
        200: json_of(HealthReport, "The health of the service; only the status without a key that has the scope read."),
        503: json_of(HealthReport, "Redis is away."),
    },
    is_open=True,
)
async def health(request: Request, api: Api) -> Response:
    """The health of the service; only its status for callers without the scope ``read``. 503 only without Redis."""
    report = await _recent_report(api)
    status, headers = (503, _RETRY) if report.queue is None else (200, None)
    if api.settings.auth is Auth.KEYS:
        try:
            # Any query is accepted: load balancers add what they like.
            caller = await caller_of(request, Scope.READ, query=request.query_params)
            report = await _as_told_to(caller.tenant, report, api)
        except Problem:
            return json_response(msgspec.json.encode(_State(report.status)), status, headers)
    return json_response(msgspec.json.encode(report), status, headers)


async def _recent_report(api: ApiState) -> HealthReport:
    """At most one report a second is made: anybody may ask, as often as they like."""
    last = api.last_health
    now_s = asyncio.get_running_loop().time()
    if last.report is None or now_s - last.at_s >= _WORKED_OUT_EVERY_S:
        last.at_s, last.report = now_s, await _report_of(api)
    report: HealthReport = last.report
    return report


async def _as_told_to(tenant: str, report: HealthReport, api: ApiState) -> HealthReport:
    """The report for a tenant. It must not show which models other tenants use: it has only routes of those that this
    tenant used since yesterday, or requested in its last jobs.
    """
    if not report.routes:
        return report
    shown = await routes_shown_to(tenant, [route.route for route in report.routes], api)
    return msgspec.structs.replace(report, routes=[route for route in report.routes if route.route in shown])


async def routes_shown_to(tenant: str, names: Iterable[str], api: ApiState) -> set[str]:
    """Those of the routes whose models this tenant has used since yesterday, or requested in its last jobs."""
    today = datetime.now(UTC).date()
    used = api.runtime.usage.days(tenant, today - timedelta(days=1), today)
    models = {row.model async for rows in used for row in rows}
    page = await api.runtime.jobs.list(tenant, after=None, limit=_LAST_JOBS)
    chains = [api.routes.chain_of(model) for model in models | {job.spec.model for job in page.jobs}]
    own = {route.name for chain in chains for route in chain}
    return {name for name in names if name in own or name.partition("/")[2] in models}


async def _report_of(api: ApiState) -> HealthReport:
    try:
        routes = [health_of(state) for state in await api.runtime.upstreams.look() if _is_troubled(state)]
        depth = await api.runtime.queue.depth()
        workers = await api.runtime.workers.living()
    except Problem:
        problems = api.runtime.problems.current
        return HealthReport(Health.DEGRADED, LlmState.UNKNOWN, None, [], "unavailable", problems, None, None)
    llm, since_ms = _merged(map(_llm_note_of, workers))
    if llm is LlmState.REACHABLE and any(route.circuit is Circuit.OPEN for route in routes):
        llm = LlmState.DEGRADED
    problems = problems_of(api.runtime.problems.current, workers)
    redis = "full" if api.runtime.memory.is_full else "ok" if all(each.is_warning for each in problems) else "refusing"
    is_ok = bool(workers) and llm in {LlmState.REACHABLE, LlmState.UNKNOWN} and redis == "ok"
    return HealthReport(
        status=Health.OK if is_ok else Health.DEGRADED,
        llm=llm,
        llm_since=None if since_ms is None else to_rfc3339(since_ms),
        routes=routes,
        redis=redis,
        redis_problems=problems,
        workers=len(workers),
        queue=QueueDepth(depth[JobState.QUEUED], depth[JobState.RUNNING]),
    )


@router.get("/health/live")
@operation({200: nothing("The process runs.")})
async def live() -> Response:
    """The process runs."""
    return json_response(_LIVE)


@router.get("/health/ready")
@operation({200: nothing("Send requests."), 503: nothing("Send none.")})
async def ready(api: Api) -> Response:
    """Whether to send requests here: 503 without Redis, and while the process drains."""
    api.drain.note_poll(asyncio.get_running_loop().time())
    if api.drain.is_begun:
        return json_response(_DRAINING, 503, _RETRY)
    if not await api.runtime.ping():
        return json_response(_NO_REDIS, 503, _RETRY)
    return json_response(_READY)


def _llm_note_of(worker: Mapping[str, str]) -> _LlmNote | None:
    """None if the worker has made no call, or is of a newer release whose words we do not know."""
    try:
        return _LlmNote(LlmState(worker["llm"]), int(worker["llm_since_ms"]), int(worker["llm_age_s"]))
    except (KeyError, ValueError):
        return None


def _merged(found: Iterable[_LlmNote | None]) -> tuple[LlmState, int | None]:
    """What all workers together see, and since when (ms). If they differ, some calls get through: degraded."""
    notes = [note for note in found if note is not None and note.age_s < _FORGOTTEN_S]
    newest_s = min((note.age_s for note in notes), default=0)
    notes = [note for note in notes if note.age_s - newest_s <= _OUTVOTED_S]
    states = {note.state for note in notes}
    if len(states) > 1:
        return LlmState.DEGRADED, min(note.since_ms for note in notes if note.state is not LlmState.REACHABLE)
    return (notes[0].state, max(note.since_ms for note in notes)) if notes else (LlmState.UNKNOWN, None)


def _problems_of(worker: Mapping[str, str]) -> list[RedisProblem]:
    """Empty if the worker is of a newer release with another form of them."""
    try:
        return msgspec.json.decode(worker.get("redis_problems", "[]"), type=list[RedisProblem])
    except msgspec.DecodeError:
        return []


def problems_of(own: Iterable[RedisProblem], workers: Iterable[Mapping[str, str]]) -> list[RedisProblem]:
    """What this process and the workers have against Redis, each once."""
    return list(dict.fromkeys([*own, *(each for worker in workers for each in _problems_of(worker))]))


def _is_troubled(state: RouteState) -> bool:
    return state.open_ms is not None or (state.shut_s > 0 and state.why != "full")


def health_of(state: RouteState) -> RouteHealth:
    """Whether a route may be called freely."""
    return RouteHealth(
        route=state.name,
        circuit=Circuit.CLOSED if state.open_ms is None else Circuit.OPEN,
        open_since=None if state.open_ms is None else to_rfc3339(state.open_ms),
        shut_for_s=round(state.shut_s, 3),
        reason=state.why or None,
    )
