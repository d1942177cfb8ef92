"""Reads how much of their limits callers have used, and turns what the scripts reply about limits into states and problems."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from shared.api_key import Caller
from shared.clock import to_rfc3339
from shared.errors import (
    BudgetExceeded,
    FieldError,
    InvalidRequest,
    Problem,
    RateLimited,
    TenantErased,
    TooManyQueued,
)
from shared.limits import NANO_USD, LimitOf, LimitState, LimitUse, Measured, ReachedLimit, argument_of
from shared.settings import Settings
from shared.store.commands import Commands
from shared.store.memory import Memory
from shared.store.reads import ROW_BYTES, Reads


class LimitsInUse(NamedTuple):
    """The limits that a caller has, by name, and how much of each is used."""

    now_ms: int
    tenant: dict[str, LimitUse]
    key: dict[str, LimitUse]
    """Empty for a caller without a key."""


class Limits:
    """The limits of a shard's tenants and of their keys, as the scripts count them."""

    def __init__(self, commands: Commands, settings: Settings, reads: Reads, memory: Memory) -> None:
        self._commands = commands
        self._settings = settings
        self._reads = reads
        self._memory = memory

    async def of(self, caller: Caller) -> LimitsInUse:
        """All counters of one moment. Raises StorageUnavailable, TooManyReads."""
        async with self._reads.turn(caller.tenant, ROW_BYTES):
            now_ms, *owners = await self._commands.run(
                "read_limits",
                tenant=caller.tenant,
                key=caller.key_id or "",
                key_limits=argument_of(caller.limits),
                tenant_running=self._settings.tenant_running_jobs,
                tenant_bytes=self._memory.tenant_bytes,
            )
        tenant, key = [
            {
                name.decode(): LimitUse(limit, used, held, resets_ms if resets_ms >= 0 else None)
                for name, limit, used, held, resets_ms in owner
            }
            for owner in owners
        ]
        return LimitsInUse(now_ms, tenant, key)


def states_of(flat: Sequence[Any]) -> tuple[LimitState, ...]:
    """The limits' states in a script's reply."""
    return tuple(
        LimitState(Measured(measured.decode()), limit, remaining, reset_ms if reset_ms >= 0 else None, window_s)
        for measured, limit, remaining, reset_ms, window_s in zip(
            flat[::5], flat[1::5], flat[2::5], flat[3::5], flat[4::5], strict=True
        )
    )


def problem_of(reply: Sequence[Any]) -> Problem:
    """For ``{'limited', ...}``, ``{'never', ...}`` or ``{'erasing'}``: RateLimited, TooManyQueued, BudgetExceeded,
    InvalidRequest or TenantErased.
    """
    if reply[0] == b"erasing":
        return TenantErased()
    if reply[0] == b"never":
        return _never(reply[1].decode(), reply[2])
    _, wait_ms, opens_ms, states, of, name, limit, used, needed = reply
    reached = ReachedLimit(
        LimitOf(of.decode()), name.decode(), limit, used, needed, opens_ms if opens_ms >= 0 else None
    )
    return _KINDS[reached.name](
        detail_of(reached, wait_ms), retry_after_s=_seconds(wait_ms), reached=reached, limits=states_of(states)
    )


def detail_of(reached: ReachedLimit, wait_ms: int) -> str:
    """The refusal as a sentence: whose limit, how much of it is used, and what to do."""
    is_budget = reached.name.startswith("usd")
    return _DETAILS[reached.name].format(
        of="This address" if reached.of is LimitOf.ADDRESS else f"The {reached.of.replace('_', ' ')}",
        limit=_dollars(reached.limit) if is_budget else reached.limit,
        used=_dollars(reached.used) if is_budget else reached.used,
        needed=reached.needed,
        wait_s=_seconds(wait_ms),
        opens="" if reached.opens_ms is None else to_rfc3339(reached.opens_ms),
    )


def _seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)


def _dollars(nano: int) -> str:
    return f"${nano / NANO_USD:.6f}".rstrip("0").rstrip(".")


_SET_BY: Final = (
    "An operator sets the limit: tokenspool tenants set --waiting-bytes, or TOKENSPOOL_TENANT_WAITING_SHARE."
)

_KINDS: Final[dict[str, type[RateLimited]]] = {
    "requests_per_minute": RateLimited,
    "tokens_per_minute": RateLimited,
    "queued_jobs": TooManyQueued,
    "waiting_bytes": TooManyQueued,
    "usd_per_day": BudgetExceeded,
    "usd_per_month": BudgetExceeded,
}

_DETAILS: Final = {
    "requests_per_minute": (
        "{of} has made {used} of the {limit} requests that it may make in any 60 s. Try again in {wait_s} s."
    ),
    "tokens_per_minute": (
        "{of} has used {used} of the {limit} tokens that it may use in any 60 s; this request needs {needed}. "
        "Try again in {wait_s} s."
    ),
    "queued_jobs": (
        "{of} has {used} waiting jobs and may have {limit}; this request adds {needed}. Try again after some have started."
    ),
    "waiting_bytes": (
        "The tenant's requests take {used} of the {limit} bytes of Redis that they may take, including those of jobs that "
        "did not succeed; this request adds {needed}. Wait for jobs to end, or erase some that did not succeed. "
        + _SET_BY
    ),
    "usd_per_day": (
        "{of} has spent {used} of its budget of {limit} for the day. Try again at {opens}, when the next day begins (UTC)."
    ),
    "usd_per_month": (
        "{of} has spent {used} of its budget of {limit} for the month. Try again at {opens}, when the next month begins (UTC)."
    ),
}


def _never(name: str, limit: int) -> InvalidRequest:
    """A 400, because a 429 would say that the request fits later."""
    if name == "waiting_bytes":
        return InvalidRequest(
            f"The request can never be accepted: a tenant's requests may take {limit} bytes of Redis. {_SET_BY}"
        )
    if name == Measured.TOKENS:
        detail = f"must be at most {limit}, the limit for a minute"
        return InvalidRequest("The request can never be accepted.", errors=[FieldError("#/max_tokens", detail)])
    return InvalidRequest(f"The batch can never be accepted: at most {limit} jobs may wait.")
