"""``/v1/stats`` and ``/v1/live``: the figures of the service, once and as a stream. Over all tenants; they name none.

A process works them out at most once a second, for all who ask and for all viewers.
"""

import asyncio
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, Reader
from api.http.headers import EVENT_STREAM, must_accept
from api.http.responses import json_response
from api.openapi import json_of, operation, stream
from api.ops.health import problems_of, routes_shown_to
from api.ops.stats_view import History, StatsView, bucket_view_of, history_of, stats_of
from api.state.api_state import ApiState
from api.state.viewers import Viewer
from api.streams.live_stream import LiveResponse
from api.streams.sse import frame
from shared.api_key import Caller, Scope
from shared.settings import Auth

router = APIRouter()

_EVERY_S: Final = 1.0
_ROUTES_EVERY_S: Final = 30.0
"""How often is looked again which models a tenant uses."""

_EXAMPLE: Final = (
    'event: history\ndata: {"bucket_s":10,…}\n\nevent: stats\ndata: {"at":…}\n\nevent: bucket\ndata: {"from":…}\n\n'
)


@router.get("/v1/stats")
@operation({200: json_of(StatsView, "The figures, at most a second old.")}, (400, 401, 503))
async def read_stats(
    api: Api,
    caller: Reader,
    history: Annotated[bool, Query(description="true: with the last hour, in buckets of ten seconds.")] = False,
) -> Response:
    """How many jobs wait, could start and run, what has ended, and how the upstreams, the workers and Redis are. Over all tenants."""
    stats, newest = await _recent(api)
    if not _sees_all(api, caller):
        names = [route.route for route in stats.upstreams]
        stats = _with_routes(stats, await routes_shown_to(caller.tenant, names, api))
    if history:
        stats = msgspec.structs.replace(stats, history=_history(api, newest))
    return json_response(msgspec.json.encode(stats))


@router.get("/v1/live")
@operation(
    {200: {"description": "The last hour, then the figures each second.", "content": stream(_EXAMPLE)}},
    (400, 401, 406, 503),
)
async def watch_stats(request: Request, api: Api, caller: Reader) -> Response:
    """The figures of `/v1/stats` as server-sent events: `history` once, `stats` each second, and each new ten seconds as
    `bucket`. A client that reconnects begins again with `history`.
    """
    must_accept(request, EVENT_STREAM)
    api.viewers.check(caller.tenant)
    _, newest = await _recent(api)
    first = frame("history", msgspec.json.encode(_history(api, newest)))
    viewer = Viewer(caller.tenant, sees_all=_sees_all(api, caller), newest=newest)
    return LiveResponse(first, viewer, api.viewers, ping_s=api.settings.sse_ping_s)


async def show(api: ApiState) -> None:
    """Sends the viewers the figures of each second, while there are some.

    Never returns; raises Problem if Redis fails.
    """
    clock = asyncio.get_running_loop().time
    shown: dict[str, tuple[float, Collection[str]]] = {}
    while True:
        await api.viewers.some()
        began_s = clock()
        stats, newest = await _recent(api)
        frames: dict[str | None, bytes] = {None: frame("stats", msgspec.json.encode(stats))}
        shown = {tenant: known for tenant, known in shown.items() if began_s - known[0] < _ROUTES_EVERY_S}
        names = [route.route for route in stats.upstreams]
        for tenant in {viewer.tenant for viewer in api.viewers if not viewer.sees_all}:
            if tenant not in shown:
                shown[tenant] = began_s, await routes_shown_to(tenant, names, api)
            frames[tenant] = frame("stats", msgspec.json.encode(_with_routes(stats, shown[tenant][1])))
        bucket = bucket_view_of(api.runtime.figures.buckets, newest)
        new = b"" if bucket is None else frame("bucket", msgspec.json.encode(bucket))
        for viewer in api.viewers:
            own = frames.get(None if viewer.sees_all else viewer.tenant)
            if viewer.newest < newest and new:
                viewer.newest = newest
                viewer.send(new)
            if own is not None:  # else it has come in this moment
                viewer.send(own)
        await asyncio.sleep(max(0.0, began_s + _EVERY_S - clock()))


async def _recent(api: ApiState) -> tuple[StatsView, int]:
    """The figures with all routes, at most a second old, and the number of the newest whole bucket."""
    last, clock = api.last_stats, asyncio.get_running_loop().time
    async with last.lock:
        if last.report is None or clock() - last.at_s >= _EVERY_S * 0.9:
            last.report, last.at_s = await _worked_out(api), clock()
        found: tuple[StatsView, int] = last.report
    return found


async def _worked_out(api: ApiState) -> tuple[StatsView, int]:
    runtime = api.runtime
    depths = await runtime.figures.depths()
    newest = await runtime.figures.read(depths.now_ms)
    await runtime.waits.look()
    workers = runtime.waits.workers
    problems = problems_of(runtime.problems.current, workers)
    return stats_of(
        depths, runtime.figures.buckets, runtime.waits.routes, workers, runtime.memory.facts, problems
    ), newest


def _history(api: ApiState, newest: int) -> History:
    """Made once for each new bucket."""
    last = api.last_history
    if last.report is None or last.at_s != newest:
        last.report, last.at_s = history_of(api.runtime.figures.buckets, newest), newest
    found: History = last.report
    return found


def _sees_all(api: ApiState, caller: Caller) -> bool:
    """Whether the caller may see which models other tenants use."""
    return api.settings.auth is Auth.OFF or Scope.OPERATOR in caller.scopes


def _with_routes(stats: StatsView, shown: Collection[str]) -> StatsView:
    return msgspec.structs.replace(stats, upstreams=[route for route in stats.upstreams if route.route in shown])
