"""The state of the upstreams, shared by all workers, and the ledger of their calls.

A call is reserved before it is made and settled after it, each in one script: what limits bear, what a gate or a circuit
allows, and the call's row in the ledger are one truth. None of it is in one script with a job.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from shared.job import Usage
from shared.routes import Limits, Route
from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.script import script

LEAST_RETRIES: Final = 60
"""A minute, of a route: so many are let through however few calls there are. Beyond them, a tenth of all calls."""

UNMADE: Final = "unmade"
"""How a call ended that was reserved, and never made: its row is taken away."""

_FOUND_AT_ONCE: Final = 20


class Verdict(StrEnum):
    """What a call showed of its route."""

    OK = "ok"
    TROUBLE = "trouble"
    """What opens its circuit."""
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
    """As the upstream knows it: what it is priced by."""
    is_retry: bool
    input_estimate: int
    output_estimate: int
    may_probe: bool = True
    """Whether its end would say something of the route: not of a job with timers of its own that are shorter than all others'."""


class Reserved(NamedTuple):
    """The call may be made, and its row stands."""

    opened_ms: int
    is_probe: bool
    """It is the one call that an open circuit lets through."""


class Denied(NamedTuple):
    """Not now."""

    why: Obstacle
    wait_s: float
    code: str
    """One of JOB_ERROR_CODES where the upstream is the reason, else empty."""


class Settlement(NamedTuple):
    """How a call ended."""

    ended: str
    """``succeeded``, ``interrupted`` (cancelled, or taken from its worker), ``lost`` (its worker died), UNMADE, or one of
    JOB_ERROR_CODES.
    """
    usage: Usage
    is_estimated: bool
    """Whether a part of the usage is a guess of ours."""
    cost_nano_usd: int | None
    """None: nobody knows the model's price."""
    verdict: Verdict = Verdict.NONE
    shut_s: float = 0
    """How long nobody may call the route now."""
    code: str = ""
    """Why, one of JOB_ERROR_CODES."""
    learned: Limits = Limits()
    """What the upstream said of its limits."""


class RouteState(NamedTuple):
    """How things stand with a route."""

    name: str
    shut_s: float
    """Until it may be called, or has room again; 0: now."""
    why: str
    """``full``, or one of JOB_ERROR_CODES; of the last gate, if it is not shut."""
    open_ms: int | None
    """Since when its circuit is open."""
    room: int | None
    """How many more calls its limits bear now; None: any number."""


class Abandoned(NamedTuple):
    """A row whose worker is silent."""

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


class Upstreams:
    """All routes that were called within the hour."""

    def __init__(self, commands: Commands, settings: Settings, urgent: Commands) -> None:
        self._commands = commands
        self._urgent = urgent
        self._hold_ms = int(settings.lease_s * 1000)
        self._row_ms = int(settings.ledger_retention_s * 1000)
        self._usage_ms = int(settings.usage_retention_s * 1000)

    async def reserve(self, route: Route, call: CallFacts) -> Reserved | Denied:
        """Counts the call and opens its row, or says why not. Asked again with the same id it gives the same answer."""
        limits = route.limits
        what, number, rest = await self._commands.run(
            script("reserve"),
            route.name,
            call.id,
            *_arguments(limits),
            int(call.is_retry),
            LEAST_RETRIES,
            call.input_estimate,
            call.output_estimate,
            self._hold_ms,
            self._row_ms,
            int(call.may_probe),
            "tenant",
            call.tenant,
            "key",
            call.key_id,
            "job",
            call.job_id,
            "epoch",
            call.epoch,
            "attempt",
            call.attempt,
            "model",
            call.model,
            "input_estimate",
            call.input_estimate,
        )
        if what == b"go":
            return Reserved(int(number), bool(rest))
        return Denied(Obstacle(what.decode()), int(number) / 1000, rest.decode())

    def settle(self, route: str, call_id: str, opened_ms: int, end: Settlement) -> "asyncio.Future[int]":
        """Closes the row. Not a coroutine: a run that is cancelled has no time to wait. Safe to repeat.

        Gives 0 if it was closed before; else 1, and what it was charged when somebody closed it as lost (nano-dollars).
        """
        learned = end.learned
        return self._commands.run(
            script("settle"),
            route,
            call_id,
            end.ended,
            int(end.is_estimated),
            datetime.fromtimestamp(opened_ms / 1000, UTC).date().isoformat(),
            self._usage_ms,
            end.verdict,
            int(end.shut_s * 1000),
            end.code,
            learned.requests or 0,
            learned.input_tokens or 0,
            learned.output_tokens or 0,
            int(end.cost_nano_usd is not None),
            "input_tokens",
            end.usage.input_tokens,
            "output_tokens",
            end.usage.output_tokens,
            "cache_creation_input_tokens",
            end.usage.cache_creation_input_tokens,
            "cache_read_input_tokens",
            end.usage.cache_read_input_tokens,
            "cost_nano_usd",
            end.cost_nano_usd or 0,
        )

    def probed(self, route: str, call_id: str) -> "asyncio.Future[int]":
        """The probe is being answered: the circuit closes."""
        return self._commands.run(script("probed"), route, call_id)

    async def hold(self, calls: Iterable[tuple[str, str]]) -> list[Abandoned]:
        """These (route, call id) go on. Also gives rows that nobody holds any more: settle them."""
        arguments = [part for pair in calls for part in pair]
        rows = await self._commands.run(script("hold"), self._hold_ms, _FOUND_AT_ONCE, *arguments)
        return [_abandoned_of(row) for row in rows]

    async def look(self, routes: Iterable[Route] = ()) -> list[RouteState]:
        """Every route's state. ``routes`` carry the limits that the settings give them."""
        arguments: list[str | int] = []
        for route in routes:
            arguments += (route.name, *_arguments(route.limits))
        return [_state_of(*state) for state in await self._urgent.run(script("look"), *arguments)]

    async def is_checker(self, every_s: float) -> bool:
        """Whether this worker is the one that asks idle upstreams this time."""
        return bool(await self._commands.call("SET", redis_keys.plain("check"), 1, "NX", "PX", int(every_s * 1000)))


def _arguments(limits: Limits) -> tuple[str | int, ...]:
    return tuple(["" if limit is None else limit for limit in limits])


def _state_of(name: bytes, shut_ms: Any, why: bytes, open_ms: Any, room: Any) -> RouteState:
    return RouteState(
        name.decode(),
        int(shut_ms) / 1000,
        why.decode(),
        int(open_ms) or None,
        int(room) if int(room) >= 0 else None,
    )


def _abandoned_of(row: list[bytes]) -> Abandoned:
    call_id, route, tenant, key_id, job_id, epoch, attempt, model, input_estimate, opened_ms = [
        part.decode() for part in row
    ]
    return Abandoned(
        call_id, route, tenant, key_id, job_id, int(epoch), int(attempt), model, int(input_estimate), int(opened_ms)
    )
