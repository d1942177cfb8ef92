"""The state of the upstreams, shared by all workers, and the ledger of their calls.

A call is reserved before it is made and closed after it has ended, each in one script: limits, gate, circuit and the call's
row in the ledger change together. Such a script never touches a job.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from shared.job import Usage
from shared.routes import Limits, Route
from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands

LEAST_RETRIES: Final = 60
"""Retries a minute that a route always allows, however few calls there are. More may be a tenth of all calls."""

_FOUND_AT_ONCE: Final = 20


class Verdict(StrEnum):
    """What a call showed of its route."""

    OK = "ok"
    TROUBLE = "trouble"
    """Enough of these open its circuit."""
    NONE = "none"


class Obstacle(StrEnum):
    """Why a call may not be made now."""

    SHUT = "shut"
    """A gate, or an open circuit. Nobody may call."""
    FULL = "full"
    """A limit is reached."""
    SPENT = "spent"
    """Retries have used up their share of calls; a first call may be made."""
    OTHERS = "others"
    """The next probe of an open circuit is left to other jobs for a moment."""


class CallFacts(NamedTuple):
    """A call about to be made: its row in the ledger."""

    id: str
    tenant: str
    key_id: str
    """The API key of the job, or empty."""
    job_id: str
    epoch: int
    attempt: int
    model: str
    """The upstream's name for it, by which the call is priced."""
    is_retry: bool
    input_estimate: int
    output_estimate: int
    worker: str = ""
    """The name of the worker that makes it."""
    end_user: str = ""
    """The end user of the job, or empty."""
    may_probe: bool = True
    """Whether its end would say something about the route. Not if the job's own timers are shorter than the settings'."""


class Reserved(NamedTuple):
    """The call may be made, and its row is open."""

    opened_ms: int
    is_probe: bool
    """It is the one call that an open circuit lets through."""


class Denied(NamedTuple):
    """The call may not be made now."""

    why: Obstacle
    wait_s: float
    code: str
    """One of JOB_ERROR_CODES where the upstream is the reason, else empty."""


class CallEnd(NamedTuple):
    """How a call ended."""

    ended: str
    """``succeeded``, ``interrupted`` (cancelled, or taken from its worker), LOST, UNMADE, or one of
    JOB_ERROR_CODES.
    """
    usage: Usage
    is_estimated: bool
    """Whether part of the usage is our estimate."""
    cost_nano_usd: int | None
    """None: the model's price is unknown."""
    verdict: Verdict = Verdict.NONE
    shut_s: float = 0
    """How long nobody may call the route now."""
    code: str = ""
    """Why nobody may call it, one of JOB_ERROR_CODES."""
    learned: Limits = Limits()
    """The limits that the upstream reported."""
    first_token_ms: int | None = None
    message: str = ""
    """Of a failure, without anything that the upstream said: it may quote the prompt, and a row is not erased with its job."""
    upstream_status: int | None = None


class Left(NamedTuple):
    """A limit of a minute, and how much of it is left now."""

    limit: int
    left: int


class RouteState(NamedTuple):
    name: str
    shut_s: float
    """Seconds until it may be called and has room; 0: now."""
    why: str
    """``full``, or one of JOB_ERROR_CODES. If it is not shut, why it last was."""
    open_ms: int | None
    """Since when its circuit is open."""
    room: int | None
    """How many more calls its limits allow now; None: any number."""
    requests: Left | None = None
    """Its limits of a minute as far as they are known, from the settings or from the upstream."""
    input_tokens: Left | None = None
    output_tokens: Left | None = None


class Abandoned(NamedTuple):
    """The row of a call whose worker is silent."""

    call_id: str
    route: str
    tenant: str
    key_id: str
    job_id: str
    epoch: int
    attempt: int
    model: str
    input_estimate: int
    opened_ms: int
    end_user: str


class Upstreams:
    """All routes that were called within the hour."""

    def __init__(self, commands: Commands, settings: Settings, urgent: Commands) -> None:
        self._commands = commands
        self._urgent = urgent
        self._hold_ms = int(settings.lease_s * 1000)
        self._row_ms = int(settings.ledger_retention_s * 1000)
        self._usage_ms = int(settings.usage_retention_s * 1000)

    async def reserve(self, route: Route, call: CallFacts) -> Reserved | Denied:
        """Counts the call and opens its row, or says why not. A second call with the same id gives the same reply."""
        requests, input_tokens, output_tokens, concurrency = _arguments(route.limits)
        what, number, rest = await self._commands.run(
            "reserve",
            route=route.name,
            id=call.id,
            most_requests=requests,
            most_input=input_tokens,
            most_output=output_tokens,
            most_running=concurrency,
            is_retry=int(call.is_retry),
            least_retries=LEAST_RETRIES,
            input_estimate=call.input_estimate,
            output_estimate=call.output_estimate,
            lease_ms=self._hold_ms,
            row_ms=self._row_ms,
            may_probe=int(call.may_probe),
            tenant=call.tenant,
            key=call.key_id,
            end_user=call.end_user,
            job=call.job_id,
            epoch=call.epoch,
            attempt=call.attempt,
            model=call.model,
            worker=call.worker,
        )
        if what == b"go":
            return Reserved(int(number), bool(rest))
        return Denied(Obstacle(what.decode()), int(number) / 1000, rest.decode())

    def close_call(self, route: str, call_id: str, opened_ms: int, end: CallEnd) -> "asyncio.Future[int]":
        """Closes the row. Not a coroutine, because a cancelled run cannot wait. Safe to repeat.

        The future gives 0 if the row was closed before; else 1, plus the cost (nano-dollars) that was counted when another
        worker closed it as lost.
        """
        amounts = [*msgspec.structs.asdict(end.usage).items(), ("cost_nano_usd", end.cost_nano_usd or 0)]
        return self._commands.run(
            "close_call",
            route=route,
            id=call_id,
            ended=end.ended,
            is_estimated=int(end.is_estimated),
            today=datetime.fromtimestamp(opened_ms / 1000, UTC).date().isoformat(),
            usage_ms=self._usage_ms,
            verdict=end.verdict,
            shut_ms=int(end.shut_s * 1000),
            code=end.code,
            learned_requests=end.learned.requests or 0,
            learned_input=end.learned.input_tokens or 0,
            learned_output=end.learned.output_tokens or 0,
            is_priced=int(end.cost_nano_usd is not None),
            first_token_ms="" if end.first_token_ms is None else end.first_token_ms,
            message=end.message,
            upstream_status="" if end.upstream_status is None else end.upstream_status,
            amounts=[part for amount in amounts for part in amount],
        )

    def probed(self, route: str, call_id: str) -> "asyncio.Future[int]":
        """The upstream has begun to answer the probe: the circuit closes."""
        return self._commands.run("probed", route=route, id=call_id)

    async def hold(self, calls: Iterable[tuple[str, str]]) -> list[Abandoned]:
        """Renews the hold on these (route, call id). Also returns the rows that no worker holds any more: close them."""
        flat = [part for call in calls for part in call]
        rows = await self._commands.run("hold", lease_ms=self._hold_ms, most=_FOUND_AT_ONCE, calls=flat)
        return [_abandoned_of(row) for row in rows]

    async def look(self, routes: Iterable[Route] = ()) -> list[RouteState]:
        """The state of the routes. Those in ``routes`` have limits in the settings."""
        limited = [part for route in routes for part in (route.name, *_arguments(route.limits))]
        return [_state_of(*state) for state in await self._urgent.run("look", limited=limited)]

    async def is_checker(self, every_s: float) -> bool:
        """Whether this worker is the one that checks idle upstreams this time."""
        return bool(await self._commands.call("SET", redis_keys.plain("check"), 1, "NX", "PX", int(every_s * 1000)))


def _arguments(limits: Limits) -> tuple[str | int, ...]:
    return tuple(["" if limit is None else limit for limit in limits])


def _state_of(name: bytes, shut_ms: Any, why: bytes, open_ms: Any, room: Any, *minute: int) -> RouteState:
    limits = [Left(*pair) if pair[0] >= 0 else None for pair in zip(minute[::2], minute[1::2], strict=True)]
    return RouteState(
        name.decode(),
        int(shut_ms) / 1000,
        why.decode(),
        int(open_ms) or None,
        int(room) if int(room) >= 0 else None,
        *limits,
    )


def _abandoned_of(row: list[bytes]) -> Abandoned:
    *names, epoch, attempt, model, input_estimate, opened_ms, end_user = [part.decode() for part in row]
    return Abandoned._make((*names, int(epoch), int(attempt), model, int(input_estimate), int(opened_ms), end_user))
