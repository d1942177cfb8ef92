"""Why queued jobs wait: what their tenants, their API keys, their routes and the workers hold back."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final, NamedTuple

from shared.clock import to_rfc3339
from shared.job import Job
from shared.routes import Route
from shared.settings import Settings, routes_of
from shared.store.commands import Commands
from shared.store.reads import PIECE_BYTES, ROW_BYTES, Reads
from shared.store.upstreams import RouteState, Upstreams
from shared.store.workers import Workers
from shared.waiting import Budget, NotBefore, NoWorker, Reason, Retry, RouteShut, RunningJobs, Shut, Turn, WaitingFor

FLOWS_COUNTED: Final = 100
"""Flows that are counted for a queue position before it is scaled up. Each takes Redis 1 µs."""

_FRESH_S: Final = 0.5
_STEADY_MS: Final = 500
"""A route's time is measured anew with each look. It counts as the same if it moved by less than this."""
_BRIEF_S: Final = 0.05
"""LOOK's time for a route that has no room for one more call at once: nobody knows when one ends."""
_KNOWN_ROUTES: Final = 100
_NANO: Final = 1_000_000_000


class _Hold(NamedTuple):
    """A reason, and when it ends if that is known."""

    until_ms: int | None
    reason: Reason


class Waits:
    """Of a shard's jobs. What it knows of routes and workers is up to half a second old."""

    def __init__(
        self, commands: Commands, settings: Settings, reads: Reads, upstreams: Upstreams, workers: Workers
    ) -> None:
        self._commands = commands
        self._reads = reads
        self._upstreams = upstreams
        self._workers = workers
        self._tenant_limit = settings.tenant_running_jobs
        self._routes = routes_of(settings)
        self._limited: dict[str, Route] = {}
        """Routes with limits in the settings that some job has asked for: LOOK must be given their limits."""
        self._states: dict[str, RouteState] = {}
        self._until_ms: dict[str, int] = {}
        self._is_served = True
        """Whether a worker lives that does not drain."""
        self.workers: list[dict[str, str]] = []
        """The facts that each living worker announces."""
        self._looked_s = 0.0
        self._look_lock = asyncio.Lock()

    async def of(self, jobs: Sequence[tuple[str, str]], *, tenant: str | None = None) -> list[WaitingFor | None]:
        """What holds each job back, given as (id, model); None if it does not wait. At most a hundred at once.

        ``tenant``: the caller, if one asks; then it may raise TooManyReads. Checks no job's tenant.
        """
        if not jobs:
            return []
        size = ROW_BYTES if len(jobs) == 1 else PIECE_BYTES
        async with self._reads.turn(tenant, size) if tenant is not None else nullcontext():
            now, flows, *waits = await self._commands.run(
                "waits",
                most_flows=FLOWS_COUNTED,
                tenant_limit=self._tenant_limit,
                ids=[job_id for job_id, _ in jobs],
            )
        if not any(waits):
            return [None] * len(jobs)
        chains = [self._routes.chain_of(model) for _, model in jobs]
        await self.look({route for chain in chains for route in chain})
        now_ms = int(now)
        holds_of_flows = [[_hold_of(*hold) for hold in holds] for holds in flows]
        holds: dict[tuple[int, tuple[Route, ...]], list[_Hold]] = {}  # jobs of a flow share them
        found: list[WaitingFor | None] = []
        for wait, chain in zip(waits, chains, strict=True):
            if not wait:
                found.append(None)
                continue
            number, position, due_ms, attempts = map(int, wait)
            if (number, chain) not in holds:
                holds[number, chain] = [*holds_of_flows[number - 1], *self._shut(chain, now_ms)]
            found.append(_waiting_for(holds[number, chain], position, due_ms, attempts, is_served=self._is_served))
        return found

    async def of_new(self, job: Job, position: int) -> WaitingFor | None:
        """The same for a job that was just created. ``position``: as SUBMIT replied. Mostly without asking Redis."""
        if position < 0:
            return (NotBefore(to_rfc3339(job.spec.not_before_ms or job.created_ms)),)
        if position == 0:
            return (await self.of([(job.id, job.spec.model)]))[0]
        holds = self._shut(self._routes.chain_of(job.spec.model), job.created_ms)
        return _waiting_for(holds, position, 0, 0, is_served=self._is_served)

    async def look(self, routes: Iterable[Route] = ()) -> None:
        """Looks at the routes and the workers, unless what is known is fresh."""
        unknown = {route.name: route for route in routes if any(route.limits) and route.name not in self._limited}
        async with self._look_lock:
            clock = asyncio.get_running_loop().time
            if not unknown and self._looked_s and clock() - self._looked_s < _FRESH_S:
                return
            self._limited = dict(list((self._limited | unknown).items())[-_KNOWN_ROUTES:])
            states, workers = await asyncio.gather(self._upstreams.look(self._limited.values()), self._workers.living())
            self._states = {state.name: state for state in states}
            self._until_ms = {name: until_ms for name, until_ms in self._until_ms.items() if name in self._states}
            self.workers = workers
            self._is_served = any(worker.get("draining") != "1" for worker in workers)
            self._looked_s = clock()

    @property
    def routes(self) -> Mapping[str, RouteState]:
        """The routes that were called within the hour, by name, as ``look`` saw them."""
        return self._states

    def _shut(self, chain: Sequence[Route], now_ms: int) -> list[_Hold]:
        """The route of the chain that may be called first, unless one may be called now: as CLAIM skips a gated flow."""
        shut: list[tuple[float, _Hold]] = []
        for route in chain:
            state = self._states.get(route.name)
            if state is None or (state.shut_s <= 0 and state.open_ms is None):
                return []
            shut.append((state.shut_s, self._hold_of_route(state, now_ms)))
            if state.why == "full" and state.open_ms is None:
                return [shut[-1][1]]  # a fallback is for a route that is shut, not for one that is full
        return [min(shut, key=lambda each: each[0])[1]]

    def _hold_of_route(self, state: RouteState, now_ms: int) -> _Hold:
        if state.open_ms is not None:
            return _Hold(None, RouteShut(state.name, Shut.CIRCUIT, None, to_rfc3339(state.open_ms)))
        if state.why == "full" and state.shut_s <= _BRIEF_S:
            return _Hold(None, RouteShut(state.name, Shut.FULL, None, None))
        age_s = asyncio.get_running_loop().time() - self._looked_s
        until_ms = now_ms + int((state.shut_s - age_s) * 1000)
        if abs(self._until_ms.get(state.name, 0) - until_ms) < _STEADY_MS:
            until_ms = self._until_ms[state.name]
        self._until_ms[state.name] = until_ms
        because = Shut.MINUTE_FULL if state.why == "full" else Shut.RETRY_AFTER
        return _Hold(until_ms, RouteShut(state.name, because, to_rfc3339(until_ms), None))


def _hold_of(kind: bytes, what: bytes, *numbers: bytes) -> _Hold:
    owner: Any = kind.decode()
    if what == b"running":
        limit, running = map(int, numbers)
        return _Hold(None, RunningJobs(owner, limit, running))
    limit, spent, held, next_ms = map(int, numbers)
    until_ms = next_ms if spent >= limit else None
    period: Any = what.decode()
    until = None if until_ms is None else to_rfc3339(until_ms)
    return _Hold(until_ms, Budget(owner, period, limit / _NANO, spent / _NANO, held / _NANO, until))


def _waiting_for(holds: list[_Hold], position: int, due_ms: int, attempts: int, *, is_served: bool) -> WaitingFor:
    if due_ms:
        until = to_rfc3339(due_ms)
        own: Reason = NotBefore(until) if attempts < 0 else Retry(until, attempts + 1)
        # What ends sooner, or at any moment, does not hold it back now.
        holds = [_Hold(due_ms, own), *(hold for hold in holds if (hold.until_ms or 0) > due_ms + _STEADY_MS)]
    reasons = [hold.reason for hold in sorted(holds, key=lambda hold: -(hold.until_ms or 0))]
    if due_ms:
        return tuple(reasons)
    if not is_served:
        reasons.insert(0, NoWorker())
    if position > 1 or not reasons:
        reasons.append(Turn(position))
    return tuple(reasons)
