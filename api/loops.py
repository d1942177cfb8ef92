"""The background loops of an API process: they expire overdue jobs, clean up after processes that died, watch Redis's
memory, sample the figures and show them, check that API keys are still valid, and notice the server's stop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from api.edge.server import Server
from api.edge.uvicorn_internals import running_server
from api.jobs import operations
from api.ops import stats
from api.state.api_state import ApiState
from api.state.drain import Phase
from shared.errors import Problem
from shared.settings import Auth
from shared.store.runtime import Runtime
from shared.telemetry import get_logger

_EXPIRE_LOOK_S: Final = 1.0
_EXPIRED_AT_ONCE: Final = 200
_ATTEND_S: Final = 2.0
_UPKEEP_S: Final = 1.0
_OPERATE_LOOK_S: Final = 1.0
_SAMPLE_LATE_S: Final = 0.01
"""The sample is taken this long after a bucket has begun."""
_STOP_LOOK_S: Final = 0.1
_AFTER_A_FAILURE_S: Final = 1.0
_LOGGED_EVERY_S: Final = 60.0

_log = get_logger("api")


def loops_of(api: ApiState) -> dict[str, Coroutine[Any, Any, None]]:
    """The loops by name. None returns or raises before it is cancelled; only ``stop`` returns, after the stop."""
    return {
        "expire": _kept_going("expire", lambda: _expire_jobs(api.runtime)),
        "attend": _kept_going("attend", lambda: _attend(api)),
        "upkeep": _kept_going("upkeep", lambda: _upkeep(api.runtime)),
        "waits": _kept_going("waits", api.relay.notice_waits),
        "operate": _kept_going("operate", lambda: _operate(api)),
        "erase": _kept_going("erase", lambda: _erase_tenants(api.runtime)),
        "sample": _kept_going("sample", lambda: _sample(api.runtime)),
        "live": _kept_going("live", lambda: stats.show(api)),
        "memory": _kept_going("memory", api.runtime.memory.watch),
        **({"keys": _kept_going("keys", api.key_ring.attend)} if api.settings.auth is Auth.KEYS else {}),
        "stop": _stop_with_the_server(api),
    }


async def _kept_going(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Restarts ``work`` whatever ends it, an outage of Redis or a bug. An outage is logged once a minute."""
    clock = asyncio.get_running_loop().time
    logged_s = -_LOGGED_EVERY_S
    while True:
        try:
            await work()
        except Problem as problem:
            if clock() - logged_s >= _LOGGED_EVERY_S:
                logged_s = clock()
                _log.warning("loop_interrupted", loop=name, code=problem.code, detail=problem.reason or problem.detail)
        except Exception as error:  # noqa: BLE001 - whatever it is, the loop goes on
            _log.error("loop_failed", loop=name, exc_info=error)
        await asyncio.sleep(_AFTER_A_FAILURE_S)


async def _expire_jobs(runtime: Runtime) -> None:
    """Ends jobs that have waited too long, on time even if no worker runs.

    Never returns; raises Problem if Redis fails.
    """
    while True:
        ended, next_s = await runtime.jobs.expire(_EXPIRED_AT_ONCE)
        if ended < _EXPIRED_AT_ONCE:
            await asyncio.sleep(_EXPIRE_LOOK_S if next_s is None else min(next_s, _EXPIRE_LOOK_S))


async def _attend(api: ApiState) -> None:
    """Shows in Redis that this process lives: otherwise the attended jobs of its clients are cancelled.

    Never returns; raises Problem if Redis fails.
    """
    while True:
        await api.runtime.jobs.attend(api.name, api.relay.follower_count + api.batch_relay.follower_count)
        await asyncio.sleep(_ATTEND_S)


async def _sample(runtime: Runtime) -> None:
    """Samples the queue for the figures of the last hour, if no other process does.

    Never returns; raises Problem if Redis fails.
    """
    while True:
        left_s = await runtime.figures.sample()
        await asyncio.sleep(left_s + _SAMPLE_LATE_S)


async def _upkeep(runtime: Runtime) -> None:
    """Cleans up after processes that died: continues their batches, and cancels their attended jobs.

    Never returns; raises Problem if Redis fails.
    """
    while True:
        await runtime.batches.advance_due()
        await runtime.jobs.abandon()
        await asyncio.sleep(_UPKEEP_S)


async def _operate(api: ApiState) -> None:
    """Does the operations of tenants, piece by piece.

    Never returns; raises Problem if Redis fails.
    """
    while True:
        if not await operations.advance(api):
            await asyncio.sleep(_OPERATE_LOOK_S)


async def _erase_tenants(runtime: Runtime) -> None:
    """Erases the tenants that are marked for it, one at a time.

    Never returns; raises Problem if Redis fails.
    """
    while True:
        tenant = await runtime.erasures.next()
        while tenant is not None and await runtime.erasures.advance(tenant):
            pass
        await asyncio.sleep(_UPKEEP_S)


async def _stop_with_the_server(api: ApiState) -> None:
    """Drains under uvicorn's own server, whose lifespan ends only after all connections have, and followers'
    connections end only if we end them. Our server (api/edge/server.py) drains by itself. Under any other server,
    nothing drains before the lifespan ends.
    """
    server = running_server()
    if server is None or isinstance(server, Server):
        return
    while True:
        if server.should_exit and api.wind_down(is_hurried=server.force_exit) is Phase.OVER:
            return
        await asyncio.sleep(_STOP_LOOK_S)
