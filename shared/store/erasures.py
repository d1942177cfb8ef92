"""Erases a tenant whole, in pieces, whatever process dies meanwhile.

The tenant is marked first, in its record, which every submit reads: from then on nothing new of it is taken. Whichever process
looks next does the next piece: keys are revoked, then operations, batches, jobs and deliveries are erased. What no index of the tenant
names is found by a walk over all keys of Redis. At the end the mark goes, and the name is free.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from shared.settings import Settings
from shared.store import redis_keys
from shared.store.api_keys import ApiKeys
from shared.store.batches import Batches
from shared.store.commands import Commands
from shared.store.jobs import ERASED_AT_ONCE, Jobs
from shared.store.operations import Operations
from shared.store.webhooks import Webhooks

_LEASE_MS: Final = 3_000
"""A process that is silent for so long has left the erasure to others."""
_SHARE: Final = 3
"""A piece is followed by a pause that is so many times as long: where Redis or the process is busy, others come first."""
_LONGEST_PAUSE_S: Final = 1.0
_KEYS_AT_ONCE: Final = 50
_WALKED_AT_ONCE: Final = 250

_RECORDS: Final = ("job", "batch", "operation", "delivery", "call")
"""Kinds of keys whose names do not say whose they are, but whose values do."""
_LEFT: Final = frozenset({
    "tenant", "erasure", "api_keys",
    "index", "batch_index", "delivery_index", "flow", "parked_flows", "tenant_running", "key_running", "user_running", "unsent", "sending",
    "parked_lanes", "tenant_sending", "kept_bytes",
})  # fmt: skip
"""Kinds of keys that the walk leaves: the mark, the list of keys, by which it finds what they own, and those that are gone with
the last job, batch or delivery in them, because the scripts that erase those keep all their books together.
"""


class ErasureStep(StrEnum):
    """What an erasure does now, in this order."""

    KEYS = "keys"
    OPERATIONS = "operations"
    """Before jobs: one that retries would go on to submit."""
    BATCHES = "batches"
    JOBS = "jobs"
    DELIVERIES = "deliveries"
    REST = "rest"


class Erasure(NamedTuple):
    """How far the erasure of a tenant is."""

    since_ms: int
    step: ErasureStep
    keys_revoked: int
    operations_erased: int
    batches_erased: int
    jobs_erased: int
    """Without the items of batches."""
    jobs_cancelled: int
    """How many of these had not ended."""
    deliveries_erased: int


_COUNTS: Final = Erasure._fields[2:]


class _Piece(NamedTuple):
    """What a piece did, and where the next one begins."""

    step: ErasureStep
    cursor: str = ""
    counts: Sequence[str | int] = ()


class Erasures:
    """The tenants of a shard that are being erased."""

    def __init__(
        self,
        commands: Commands,
        settings: Settings,
        api_keys: ApiKeys,
        operations: Operations,
        batches: Batches,
        jobs: Jobs,
        webhooks: Webhooks,
    ) -> None:
        self._commands = commands
        self._settle_ms = int(settings.lease_s * 1000)
        self._api_keys = api_keys
        self._operations = operations
        self._batches = batches
        self._jobs = jobs
        self._webhooks = webhooks

    async def begin(self, tenant: str) -> None:
        """From now on the tenant's submits are refused, and ``advance`` erases it. Safe to repeat."""
        await self._commands.run("begin_erasure", tenant=tenant)

    async def get(self, tenant: str) -> Erasure | None:
        """None if the tenant is not being erased."""
        since = self._commands.call("HGET", redis_keys.tenant(tenant), "erasing_ms")
        step, *counts = await self._commands.call("HMGET", redis_keys.erasure(tenant), "step", *_COUNTS)
        since_ms = await since
        if since_ms is None:
            return None
        return Erasure(int(since_ms), _step_of(step), *[int(count or 0) for count in counts])

    async def next(self) -> str | None:
        """A tenant that is being erased and that no process works on."""
        tenant: bytes | None = await self._commands.run("next_erasure", lease_ms=_LEASE_MS)
        return tenant.decode() if tenant else None

    async def advance(self, tenant: str) -> bool:
        """Does the next piece, and pauses for the commands of others. False if nothing is left. Safe to repeat."""
        clock = asyncio.get_running_loop().time
        began_s = clock()
        found = await self._note(tenant, "", "")
        if found is None:
            return False
        step, cursor, wait_ms = _step_of(found[0]), found[1].decode(), int(found[2])
        if step is ErasureStep.REST and wait_ms:
            await asyncio.sleep(min(wait_ms / 1000, _LONGEST_PAUSE_S))
            return True
        done = await self._piece(tenant, step, cursor)
        if done is None:
            return False
        await self._note(tenant, done.step, done.cursor, done.counts)
        await asyncio.sleep(min(_SHARE * (clock() - began_s), _LONGEST_PAUSE_S))
        return True

    def _note(
        self, tenant: str, step: str, cursor: str, counts: Sequence[str | int] = ()
    ) -> Awaitable[list[bytes] | None]:
        return self._commands.run(
            "note_erasure",
            tenant=tenant,
            lease_ms=_LEASE_MS,
            settle_ms=self._settle_ms,
            last=ErasureStep.REST,
            step=step,
            cursor=cursor,
            counts=counts,
        )

    async def _piece(self, tenant: str, step: ErasureStep, cursor: str) -> _Piece | None:
        """None: it was the last one."""
        match step:
            case ErasureStep.KEYS:
                return await self._revoke_some(tenant, cursor)
            case ErasureStep.OPERATIONS:
                erased, is_more = await self._operations.erase_some(tenant)
                return _Piece(step if is_more else ErasureStep.BATCHES, counts=("operations_erased", erased))
            case ErasureStep.BATCHES:
                erased, is_more = await self._batches.erase_some(tenant)
                return _Piece(step if is_more else ErasureStep.JOBS, counts=("batches_erased", erased))
            case ErasureStep.JOBS:
                jobs = await self._jobs.erase_some(tenant)
                counts = ("jobs_erased", jobs.erased, "jobs_cancelled", jobs.cancelled)
                return _Piece(step if jobs.is_more else ErasureStep.DELIVERIES, counts=counts)
            case ErasureStep.DELIVERIES:
                erased, is_more = await self._webhooks.erase_some(tenant)
                return _Piece(step if is_more else ErasureStep.REST, counts=("deliveries_erased", erased))
            case ErasureStep.REST:
                return await self._walk(tenant, cursor)

    async def _revoke_some(self, tenant: str, cursor: str) -> _Piece:
        page = await self._api_keys.page(tenant, after=cursor or None, limit=_KEYS_AT_ONCE)
        valid = [key.id for key in page.keys if key.revoked_ms is None]
        for key_id in valid:
            await self._api_keys.revoke(key_id, tenant)
        step = ErasureStep.OPERATIONS if page.next_after is None else ErasureStep.KEYS
        return _Piece(step, page.next_after or "", ("keys_revoked", len(valid)))

    # What no index names

    async def _walk(self, tenant: str, cursor: str) -> _Piece | None:
        """Looks at the next keys of Redis. After the last one the erasure ends, if nothing came in before the mark was seen."""
        ids = self._commands.call("ZRANGE", redis_keys.api_keys(tenant), 0, -1)
        after, names = await self._commands.call("SCAN", cursor or "0", "COUNT", _WALKED_AT_ONCE)
        mine = {("tenant", tenant), *[("key", key_id.decode()) for key_id in await ids]}
        await self._erase_named([name.decode() for name in names], tenant, mine)
        if after != b"0":
            return _Piece(ErasureStep.REST, after.decode())
        await self._unpark_end_users(tenant)
        await self._api_keys.erase_all_of(tenant)
        await self._commands.call("ZREM", redis_keys.plain("usage_tenants"), tenant)
        if await self._commands.run("end_erasure", tenant=tenant):
            return None
        return _Piece(ErasureStep.OPERATIONS)

    async def _unpark_end_users(self, tenant: str) -> None:
        """CLAIM would drop them when their time comes, which may be the end of a month."""
        parked, cursor = redis_keys.plain("parked"), b"0"
        while True:
            pattern = f"user:{tenant}/*"
            cursor, found = await self._commands.call(
                "ZSCAN", parked, cursor, "MATCH", pattern, "COUNT", _WALKED_AT_ONCE
            )
            if found:
                await self._commands.call("ZREM", parked, *found[::2])
            if cursor == b"0":
                return

    async def _erase_named(self, names: Sequence[str], tenant: str, mine: set[tuple[str, str]]) -> None:
        """Erases those of these keys that are the tenant's."""
        kinds = {name: redis_keys.owner_in(name) for name in names}
        records = [name for name in names if kinds[name][0] in _RECORDS]
        owners = [self._commands.call("HGET", name, "tenant") for name in records]
        found = [name for name, owner in zip(records, owners, strict=True) if await owner == tenant.encode()]
        gone = [name for name, (kind, *owner) in kinds.items() if tuple(owner) in mine and kind not in _LEFT]
        gone += [name for name in found if kinds[name][0] in ("call", "operation")]
        for call in [self._commands.call("UNLINK", name) for name in gone]:
            await call
        for name in [name for name in names if kinds[name][0] == "route"]:
            if await self._commands.call("HGET", name, "probe_tenant") == tenant.encode():
                await self._commands.call("HDEL", name, "probe_tenant")
        strays = [name.rpartition(":")[2] for name in found if kinds[name][0] == "job"]
        for start in range(0, len(strays), ERASED_AT_ONCE):
            await self._jobs.erase_some(tenant, strays[start : start + ERASED_AT_ONCE])


def _step_of(text: bytes | None) -> ErasureStep:
    return ErasureStep(text.decode()) if text else ErasureStep.KEYS
