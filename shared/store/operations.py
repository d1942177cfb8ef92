"""Operations as records: created, claimed piece by piece, counted, cancelled, read. Every call of a caller names the tenant.

``due_operations`` names the tenants whose first open operation has something left to do; the one that waits longest is next.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from shared.api_key import Caller
from shared.errors import IdempotencyKeyReused, NotFound, TenantErased, TooManyQueued
from shared.job import TERMINAL_STATES, new_id
from shared.job_filter import JobFilter
from shared.limits import LimitOf, ReachedLimit
from shared.operation import FOR_ITS_TURN, Operation, OperationAction, OperationCounts, OperationState
from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.idempotency import key_hash
from shared.store.jobs import cancel_arguments, retention
from shared.store.page import Sized, read_page, sized, stretches_of
from shared.store.reads import Reads, Record

_COUNTS: Final = OperationCounts.__struct_fields__
_FIELDS: Final = (
    "tenant", "action", "filter", "state", "caller", "created_ms", "ended_ms", "cursor", "waiting_for", *_COUNTS,
)  # fmt: skip
_MOST_OPEN: Final = 20
_AGAIN_S: Final = 10
_LEASE_MS: Final = 10_000
"""After so much silence another process does the piece again. A piece takes a second or two."""
_STRETCHES: Final = 25
_ERASED_AT_ONCE: Final = 100


class ClaimedOperation(NamedTuple):
    """An operation whose next piece this process does."""

    operation: Operation
    epoch: int


class Piece(NamedTuple):
    """What was done for an operation."""

    cursor: str | None
    """The last job that was looked at. None: nothing was done."""
    is_last: bool = False
    counts: OperationCounts = OperationCounts()
    job_ids: Sequence[str] = ()
    """What is still to be done: jobs that Redis itself cancels or erases; ``counts`` has them as matched."""
    waiting_for: str = ""
    wait_s: float = 0


class OperationPage(NamedTuple):
    """Operations, newest first, and where the next page begins."""

    operations: list[Operation]
    next_after: str | None


class Operations:
    """The operations of a shard."""

    def __init__(self, commands: Commands, settings: Settings, reads: Reads) -> None:
        self._commands = commands
        self._settings = settings
        self._reads = reads

    async def create(
        self,
        caller: Caller,
        action: OperationAction,
        wanted: JobFilter,
        *,
        idempotency_key: str | None = None,
        fingerprint: str = "",
    ) -> tuple[str, bool]:
        """The id of the operation, and whether it is the one that the Idempotency-Key already has.

        Raises IdempotencyKeyReused, TooManyQueued, TenantErased, StorageUnavailable.
        """
        operation_id = new_id("op")
        reply = await self._commands.run(
            "create_operation",
            id=operation_id,
            tenant=caller.tenant,
            action=action,
            filter=msgspec.json.encode(wanted),
            state=OperationState.RUNNING,
            caller=msgspec.json.encode(caller),
            idempotency_hash=key_hash(idempotency_key) if idempotency_key is not None else "",
            fingerprint=fingerprint,
            most=_MOST_OPEN,
        )
        match reply:
            case [b"created"]:
                return operation_id, False
            case [b"replayed", other_id]:
                return other_id.decode(), True
            case [b"reused"]:
                raise IdempotencyKeyReused
            case [b"erasing"]:
                raise TenantErased
        raise TooManyQueued(
            f"{_MOST_OPEN} operations of this tenant have not ended: wait for one of them, or cancel it.",
            retry_after_s=_AGAIN_S,
            reached=ReachedLimit(LimitOf.TENANT, "open_operations", _MOST_OPEN, _MOST_OPEN, 1, None),
        )

    # For the loops of API processes: none of these checks the tenant.

    async def claim(self) -> ClaimedOperation | None:
        """The operation whose next piece is due, for this process to do; None if none is."""
        claimed = await self._commands.run("claim_operation", lease_ms=_LEASE_MS)
        if claimed is None:
            return None
        operation_id, epoch = claimed[0].decode(), int(claimed[1])
        record = await self._commands.call("HMGET", redis_keys.operation(operation_id), *_FIELDS)
        return None if record[0] is None else ClaimedOperation(_operation_of(operation_id, record), epoch)

    async def advance(self, claimed: ClaimedOperation, piece: Piece) -> bool:
        """The piece is done, and counted. False if another process does it again: this one took too long."""
        action, counts = claimed.operation.action, piece.counts
        arguments = cancel_arguments(self._settings)
        return bool(
            await self._commands.run(
                "advance_operation",
                id=claimed.operation.id,
                epoch=claimed.epoch,
                running=OperationState.RUNNING,
                ended=OperationState.ENDED,
                matched=counts.matched,
                done=counts.done,
                skipped=counts.skipped,
                failed=counts.failed,
                cursor=piece.cursor or "",
                is_last=int(piece.is_last),
                waiting_for=piece.waiting_for,
                wait_ms=int(piece.wait_s * 1000),
                action=action if piece.job_ids else "",
                terminal=",".join(sorted(TERMINAL_STATES)),
                **arguments,
                ids=piece.job_ids,
            )
        )

    # What callers ask

    async def get(self, operation_id: str, tenant: str) -> Operation:
        """The operation as it is now. Raises NotFound, also for another tenant's, and TooManyReads."""
        record = await self._reads.one(tenant, redis_keys.operation(operation_id), _FIELDS)
        found = _own_operation_of(operation_id, record, tenant)
        if found is None:
            raise NotFound
        (shown,) = await self._with_turns([found], tenant)
        return shown

    async def page(self, tenant: str, *, after: str | None, limit: int) -> OperationPage:
        """The tenant's operations, newest first. Raises TooManyReads."""
        stretches = stretches_of(self._commands, redis_keys.operation_index(tenant), count=limit + 1)

        async def read(ids: Sequence[str]) -> Sequence[Sized | None]:
            records = await self._reads.some(tenant, [redis_keys.operation(each) for each in ids], _FIELDS)
            return sized(ids, records, lambda each, record: _own_operation_of(each, record, tenant))

        operations, next_after = await read_page(stretches, read, after=after, limit=limit, most_stretches=_STRETCHES)
        return OperationPage(await self._with_turns(operations, tenant), next_after)

    async def _with_turns(self, operations: list[Operation], tenant: str) -> list[Operation]:
        """Says which of them wait for an earlier one."""
        if all(operation.state is not OperationState.RUNNING for operation in operations):
            return operations
        first = [
            each.decode() for each in await self._commands.call("ZRANGE", redis_keys.open_operations(tenant), 0, 0)
        ]
        return [
            msgspec.structs.replace(operation, waiting_for=FOR_ITS_TURN)
            if operation.state is OperationState.RUNNING and operation.id not in first
            else operation
            for operation in operations
        ]

    async def cancel(self, operation_id: str, tenant: str) -> bool:
        """Nothing more is done for it. False if it had ended. Raises NotFound."""
        reply = await self._commands.run(
            "cancel_operation",
            id=operation_id,
            tenant=tenant,
            running=OperationState.RUNNING,
            cancelled=OperationState.CANCELLED,
            retention=retention(self._settings),
        )
        if reply < 0:
            raise NotFound
        return bool(reply)

    async def erase_some(self, tenant: str) -> tuple[int, bool]:
        """Erases the tenant's next operations. Returns how many, and whether there may be more. Safe to repeat."""
        erased, is_more = await self._commands.run("erase_operations", tenant=tenant, most=_ERASED_AT_ONCE)
        return erased, bool(is_more)


def _own_operation_of(operation_id: str, record: Record, tenant: str) -> Operation | None:
    return _operation_of(operation_id, record) if record[0] == tenant.encode() else None


def _operation_of(operation_id: str, record: Record) -> Operation:
    fields: dict[str, Any] = dict(zip(_FIELDS, record, strict=True))
    return Operation(
        id=operation_id,
        tenant=fields["tenant"].decode(),
        action=OperationAction(fields["action"].decode()),
        filter=msgspec.json.decode(fields["filter"], type=JobFilter),
        state=OperationState(fields["state"].decode()),
        counts=OperationCounts(**{name: int(fields[name] or 0) for name in _COUNTS}),
        caller=msgspec.json.decode(fields["caller"], type=Caller),
        created_ms=int(fields["created_ms"]),
        ended_ms=int(fields["ended_ms"]) if fields["ended_ms"] else None,
        cursor=fields["cursor"].decode() if fields["cursor"] else None,
        waiting_for=fields["waiting_for"].decode() if fields["waiting_for"] else None,
    )
