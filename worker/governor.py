"""Decides when an upstream may be called: mirrors the gates, asks for permits, and closes the rows of calls.

The truth is in Redis (shared/store/upstreams.py), shared by all workers. This mirror of it keeps the jobs of a shut route
from being claimed at all: it says to CLAIM how many jobs of each route this worker may start. If a route has no limit and
no trouble, the mirror costs one look a second, and a call costs two scripts: one opens its row, one closes it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from shared.completion import Completion, GarbledStream
from shared.events import OUR_NAMES, EventId, OurEvent
from shared.job import JobSpec, Usage
from shared.limits import reservation_of
from shared.prices import Prices, cost_nano_usd
from shared.routes import Limits, Route
from shared.settings import Settings, routes_of
from shared.store.attempts import call_id_of
from shared.store.queue import UNPRICED, Claim
from shared.store.runtime import Runtime
from shared.store.upstreams import (
    Abandoned,
    CallEnd,
    CallFacts,
    Denied,
    Obstacle,
    Reserved,
    RouteState,
    Verdict,
)
from shared.telemetry import Logger
from shared.usage import LOST, UNMADE
from worker.gates import SHUT, Gates
from worker.outcome import NO_VERDICT, Answered, Failure, Outcome
from worker.rate_limit_headers import Allowance
from worker.redis_trouble import Outage

_MOST_UNCLOSED: Final = 10_000
_KNOWN_ROUTES: Final = 100


class Permit(NamedTuple):
    """One call may be made."""

    call_id: str
    job_id: str
    tenant: str
    key_id: str
    route: Route
    opened_ms: int
    is_probe: bool
    input_estimate: int
    end_user: str = ""


class Spent(NamedTuple):
    """What a call used, as far as it is known."""

    usage: Usage
    is_estimated: bool


class Governor:
    """One for a worker process."""

    def __init__(
        self, runtime: Runtime, settings: Settings, outage: Outage, logger: Logger, now_s: Callable[[], float]
    ) -> None:
        self._upstreams = runtime.upstreams
        self._routes = routes_of(settings)
        self._runtime = runtime
        self._settings = settings
        self._prices = Prices(settings.prices)
        self._outage = outage
        self._logger = logger
        self._open_circuits: set[str] = set()
        self._now_s = now_s
        self._known: dict[str, Route] = {}
        self._open: dict[str, Permit] = {}
        self._unclosed: dict[str, tuple[Permit, CallEnd]] = {}
        """Calls that have ended, but whose rows could not be closed because Redis was away."""
        self._learned: dict[str, Limits] = {}
        self._gates = Gates(
            now_s,
            slots=settings.concurrency,
            has_limits=any(any(rule.limits) for rule in settings.routes.values()),
        )
        self.workers = 1
        """How many workers share the limits. ArqWorker sets it, and the next."""
        self.worker = ""
        """The name of this one."""

    # One call

    async def permit(self, chain: Sequence[Route], claim: Claim, *, attempt: int, is_retry: bool) -> Permit | Denied:
        """A permit for the first route of the chain that may be called; its row in the ledger is open.

        Denied says how long to wait, be it only for room. Waits as long as Redis is away.
        """
        denials: list[Denied] = []
        for route in chain:
            self._know(route)
            call = CallFacts(
                id=call_id_of(claim.id, claim.epoch, attempt),
                tenant=claim.tenant,
                key_id=claim.spec.key_id,
                end_user=claim.spec.end_user or "",
                job_id=claim.id,
                epoch=claim.epoch,
                attempt=attempt,
                model=route.model,
                is_retry=is_retry,
                worker=self.worker,
                may_probe=not self._is_impatient(claim.spec),
                input_estimate=len(claim.request) // 4 + 1,
                output_estimate=max(1, reservation_of(claim.request).max_tokens)
                if self._gates.is_limited(route)
                else 1,
            )
            decision = await self._reserve(route, call)
            if not isinstance(decision, Denied):
                permit = _permit_of(call, route, decision)
                self._open[call.id] = permit
                return permit
            if decision.why is Obstacle.OTHERS:
                return decision  # the route is not shut for other jobs
            denials.append(decision)
            self._gates.denied(route.name, decision)
            if decision.why is not Obstacle.SHUT:
                return decision  # this model can be called soon: fallbacks are for a route that is shut
        return min(denials, key=lambda denial: denial.wait_s)

    def _is_impatient(self, spec: JobSpec) -> bool:
        """Whether the job's own timers are shorter than the settings': then its timeout says nothing about the upstream."""
        first_token_s, idle_s = self._settings.first_token_timeout_s, self._settings.content_idle_timeout_s
        return (
            min(spec.first_token_timeout_s or first_token_s, spec.timeout_s) < first_token_s
            or (spec.content_idle_timeout_s or idle_s) < idle_s
        )

    async def _reserve(self, route: Route, call: CallFacts) -> Reserved | Denied:
        """Reserves the call, however long Redis is away. Repeats with the same id: maybe only the first reply was lost."""
        try:
            return await self._outage.outlast(lambda: self._upstreams.reserve(route, call))
        except asyncio.CancelledError:  # the row may be open, but the call will not be made
            permit = _permit_of(call, route, Reserved(0, is_probe=False))
            self._send(permit, CallEnd(UNMADE, Usage(), is_estimated=False, cost_nano_usd=0))
            raise

    def on_first_content(self, permit: Permit) -> None:
        """The call's first content has arrived. If it is a probe, that is enough to close the circuit."""
        if permit.is_probe:
            self._upstreams.probed(permit.route.name, permit.call_id)

    def close_call(
        self,
        permit: Permit,
        ended: str,
        spent: Spent,
        outcome: Outcome | None,
        allowance: Allowance | None,
        first_token_ms: int | None,
    ) -> int | None:
        """Closes the call's row, at once or when Redis is back. Returns its cost in nano-dollars, None if that is unknown.

        ``first_token_ms``: how long the first content took.
        """
        del self._open[permit.call_id]
        cost = self._cost_of(permit.route.model, spent.usage, permit.opened_ms)
        end = CallEnd(ended, spent.usage, spent.is_estimated, cost)
        if first_token_ms is not None:
            end = end._replace(first_token_ms=permit.opened_ms + first_token_ms)
        if outcome is not None:
            end = _with_verdict(end, outcome, allowance, self._settings.retry_after_cap_s)
            if end.learned == self._learned.get(permit.route.name):
                end = end._replace(learned=Limits())
            elif any(end.learned):
                if len(self._learned) >= _KNOWN_ROUTES:
                    self._learned.clear()  # those of the other routes are sent once more
                self._learned[permit.route.name] = end.learned
        if end.shut_s > 0:
            self._logger.warning("route_shut", route=permit.route.name, code=end.code, shut_s=round(end.shut_s, 3))
            # Noted at once: the next claim may come before Redis publishes it.
            self._gates.denied(permit.route.name, Denied(Obstacle.SHUT, end.shut_s, end.code))
        self._send(permit, end)
        return cost

    def charge(
        self,
        job_id: str,
        cost: int | str,
        *,
        tenant: str,
        key_id: str,
        end_user: str,
        epoch: int = 0,
        last_token_ms: int | None = None,
    ) -> None:
        """Charges a job for calls that no FINISH or RELEASE has charged."""
        self._runtime.jobs.charge(
            job_id,
            cost,
            tenant=tenant,
            key_id=key_id,
            end_user=end_user,
            epoch=epoch,
            last_token_ms=last_token_ms,
        )

    def _send(self, permit: Permit, end: CallEnd) -> None:
        reply = self._upstreams.close_call(permit.route.name, permit.call_id, permit.opened_ms, end)
        reply.add_done_callback(lambda done: self._on_closed(permit, end, done))

    def _on_closed(self, permit: Permit, end: CallEnd, reply: "asyncio.Future[int]") -> None:
        has_failed = reply.cancelled() or reply.exception() is not None
        if has_failed and len(self._unclosed) < _MOST_UNCLOSED:  # beyond it, other workers close the rows as lost
            self._unclosed[permit.call_id] = permit, end
        elif not has_failed and reply.result() > 1:  # another worker closed it as lost, and charged an estimate
            self.charge(
                permit.job_id,
                1 - reply.result(),
                tenant=permit.tenant,
                key_id=permit.key_id,
                end_user=permit.end_user,
            )

    def retry_closing(self) -> None:
        """Closes the rows that could not be closed before, so that no other worker closes them as lost."""
        unclosed, self._unclosed = self._unclosed, {}
        for permit, end in unclosed.values():
            self._send(permit, end)

    def _cost_of(self, model: str, usage: Usage, opened_ms: int) -> int | None:
        if usage == Usage():
            return 0  # a refusal is free, whatever the price
        return cost_nano_usd(model, usage, self._prices, datetime.fromtimestamp(opened_ms / 1000, UTC).date())

    # All calls

    async def quotas(self) -> dict[str, int]:
        """For CLAIM: by route, how many of its jobs this worker may start now; routes without a bound are left out."""
        if self._gates.must_look():
            await self._look()
        return self._gates.quotas()

    def claimed(self, claims: Iterable[Claim], quotas: Mapping[str, int]) -> None:
        """These jobs were started within the quotas."""
        if quotas:
            for claim in claims:
                chain = self._routes.chain_of(claim.spec.model)
                self._gates.claimed(
                    next((route.name for route in chain if quotas.get(route.name) != SHUT), chain[0].name)
                )

    def next_s(self) -> float | None:
        """Seconds until a quota may be larger than now; None if none is bounded."""
        return self._gates.next_s()

    def heard(self) -> None:
        """A gate or a circuit changed somewhere."""
        self._gates.forget()

    async def tick(self) -> None:
        """About once a second: holds our open rows, and closes those that could not be closed or whose worker is dead."""
        self.retry_closing()
        calls = [(permit.route.name, call_id) for call_id, permit in self._open.items()]
        for row in await self._upstreams.hold(calls):
            await self._close_lost(row)
        await self._look()

    async def _look(self) -> None:
        states = await self._upstreams.look(self._known.values())
        self._log_circuits(states)
        limited = {state.name for state in states if state.room is not None}
        for name in self._learned.keys() - limited:  # Redis knows of no limit, or has lost it
            del self._learned[name]
        self._gates.looked(states, workers=self.workers)

    def _log_circuits(self, states: Iterable[RouteState]) -> None:
        """Logs why a model's jobs do not move, and when they do again."""
        is_open = {state.name: state for state in states if state.open_ms is not None}
        for name in is_open.keys() - self._open_circuits:
            self._logger.warning("circuit_opened", route=name, code=is_open[name].why)
        for name in self._open_circuits - is_open.keys():
            self._logger.info("circuit_closed", route=name)
        self._open_circuits = set(is_open)

    async def _close_lost(self, row: Abandoned) -> None:
        """Closes the row of a dead worker's call. Its cost until then is estimated from the job's log."""
        events = await self._runtime.log.read(row.job_id, start=EventId(row.epoch, 0), count=20_000)
        heard = Completion()
        attempt = None
        for event in events:
            if event.id is None or event.id.epoch != row.epoch:
                break
            if event.name in (OurEvent.STARTED, OurEvent.RETRY):
                attempt = msgspec.json.decode(event.data).get("attempt")
            elif attempt == row.attempt and event.name not in OUR_NAMES:
                with contextlib.suppress(GarbledStream):
                    heard.add(event.name, event.data)
        usage = estimated(heard, row.input_estimate)
        cost = self._cost_of(row.model, usage, row.opened_ms)
        end = CallEnd(LOST, usage, is_estimated=True, cost_nano_usd=cost)
        if await self._upstreams.close_call(row.route, row.call_id, row.opened_ms, end):
            self.charge(
                row.job_id,
                UNPRICED if cost is None else cost,
                tenant=row.tenant,
                key_id=row.key_id,
                end_user=row.end_user,
            )

    def _know(self, route: Route) -> None:
        if route.name not in self._known:
            if len(self._known) >= _KNOWN_ROUTES:
                del self._known[next(iter(self._known))]
            self._known[route.name] = route


def _permit_of(call: CallFacts, route: Route, row: Reserved) -> Permit:
    return Permit(
        call.id,
        call.job_id,
        call.tenant,
        call.key_id,
        route,
        row.opened_ms,
        row.is_probe,
        call.input_estimate,
        call.end_user,
    )


def estimated(heard: Completion, input_estimate: int) -> Usage:
    """Estimates what a call used whose end did not arrive. Chat completions report even the input only at the end."""
    try:
        reported = heard.usage
    except GarbledStream:
        reported = Usage()
    has_input = reported.input_tokens or reported.cache_creation_input_tokens or reported.cache_read_input_tokens
    return msgspec.structs.replace(
        reported,
        input_tokens=reported.input_tokens if has_input else input_estimate,
        output_tokens=max(reported.output_tokens, heard.tokens_heard),
    )


def _with_verdict(end: CallEnd, outcome: Outcome, allowance: Allowance | None, cap_s: float) -> CallEnd:
    """Adds what the outcome shows of the route."""
    match outcome:
        case Answered():
            exhausted_s = min(allowance.exhausted_s, cap_s) if allowance else 0
            learned = allowance.limits if allowance else Limits()
            return end._replace(
                verdict=Verdict.OK,
                shut_s=exhausted_s,
                code="upstream_rate_limited" if exhausted_s else "",
                learned=learned,
            )
        case Failure(error, retry_after_s, said):
            allowance = said or allowance
            wait_s = retry_after_s or 0 if outcome.is_retryable else 0
            verdict = Verdict.NONE if outcome.how in NO_VERDICT else Verdict.OK
            return end._replace(
                verdict=Verdict.TROUBLE if outcome.opens_circuit else verdict,
                shut_s=min(max(wait_s, allowance.exhausted_s if allowance else 0), cap_s),
                code=error.code,
                learned=allowance.limits if allowance else Limits(),
                message=outcome.own_words or error.message,
                upstream_status=error.upstream_status,
            )
