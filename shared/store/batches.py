"""Batches as records: received in slices, started, counted, cancelled, read, erased. Every call names the tenant.

No script touches more than a few hundred items, so what concerns a whole batch is done in pieces. The record says how far
that has come. ``due`` names the batches that have something left to do; whichever process looks next goes on with them.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from shared.batch import (
    BATCH_TRANSITIONS,
    ITEM_PRIORITY,
    Batch,
    BatchCounts,
    BatchSpec,
    BatchState,
    BatchStep,
    EndedItem,
    InvalidItem,
    NewItem,
)
from shared.errors import (
    INVALID_LINE,
    JOB_ERROR_CODES,
    IdempotencyKeyReused,
    InvalidCursor,
    NotEnded,
    NotFound,
    QueueFull,
)
from shared.estimates import Estimates
from shared.job import JobState, Usage, prompt_hash_of
from shared.limits import NO_LIMITS, CallerLimits, LimitState, argument_of, reservation_of
from shared.settings import Settings, routes_of
from shared.store import limits, redis_keys
from shared.store.commands import Commands
from shared.store.compression import stored
from shared.store.idempotency import key_hash
from shared.store.jobs import cancel_arguments, cost_usd_of, retention
from shared.store.memory import Memory
from shared.store.page import Sized, read_page, sized, stretches_of
from shared.store.reads import Reads, Record
from shared.webhooks import JOB_EVENTS, stored_form

SLICE_ITEMS: Final = 250
"""Requests of one ``add``, and items of one ``advance``: they take Redis a few milliseconds."""
SLICE_BYTES: Final = 1 << 20
"""Encoding and writing four times as many holds the event loop for 10 ms (measured)."""

_LARGE_BYTES: Final = 128 << 10

_RECEIVING_MS: Final = 20_000
"""A body that has been silent for this long is given up; its API process may be dead."""

_USAGE: Final = tuple(Usage.__struct_fields__)
_COUNTS: Final = tuple(BatchCounts.__struct_fields__)
_FAILURES: Final = {f"failed:{code}": code for code in JOB_ERROR_CODES if code != INVALID_LINE}
"""The record's fields that count failed items by the code of their error, and that code."""
_FIELDS: Final = (
    "tenant", "state", "spec", "created_ms", "expires_ms", "cancelled_ms", "ended_ms", "cost_nano_usd", "unpriced", "invalid",
    *_COUNTS, *_USAGE, *_FAILURES,
)  # fmt: skip
_STRETCHES: Final = 25
"""A list skips so many pages of batches whose records are gone; then its page is short and its ``next`` goes on."""
_FOLLOWED_MS: Final = 30_000
_UNSEEN: Final = frozenset({BatchState.RECEIVING, BatchState.DROPPED})
"""States in which callers do not see a batch."""


class Order(StrEnum):
    """In which order the outcomes of a batch are read."""

    SUBMITTED = "submitted"
    FINISHED = "finished"


class Started(NamedTuple):
    """A batch is accepted."""

    id: str
    """That of an earlier batch if the Idempotency-Key was used for it."""
    limits: tuple[LimitState, ...] = ()
    """State of each configured limit after this start."""


class Known(NamedTuple):
    """An Idempotency-Key that was used."""

    id: str
    """Of a job or a batch."""
    fingerprint: str


class BatchPage(NamedTuple):
    """Batches, newest first, and where the next page begins."""

    batches: list[Batch]
    next_after: str | None


class Batches:
    """The batches of a shard."""

    def __init__(self, commands: Commands, settings: Settings, reads: Reads, memory: Memory) -> None:
        self._commands = commands
        self._reads = reads
        self._memory = memory
        self._settings = settings
        self._routes = routes_of(settings)
        self._estimates = Estimates(settings)

    # Receiving

    async def known(self, tenant: str, idempotency_key: str) -> Known | None:
        """What the Idempotency-Key was used for, so that a repeated body is recognised before it is stored."""
        found = await self._commands.call(
            "HMGET", redis_keys.idempotency(tenant, key_hash(idempotency_key)), "job", "fingerprint"
        )
        return Known(found[0].decode(), found[1].decode()) if found[0] else None

    async def open(self, batch_id: str, tenant: str, *, key_id: str = "", key_limits: CallerLimits = NO_LIMITS) -> None:
        """A body begins to arrive: ``add`` its slices, then ``start`` or ``drop`` it. After 20 s of silence it is dropped.

        Nothing is counted yet. Raises what ``start`` would raise now: RateLimited, TooManyQueued, BudgetExceeded.
        """
        reply = await self._commands.run(
            "open_batch",
            id=batch_id,
            tenant=tenant,
            receiving=BatchState.RECEIVING,
            silent_ms=_RECEIVING_MS,
            key=key_id,
            key_limits=argument_of(key_limits),
        )
        if reply[0] != b"opened":
            raise limits.problem_of(reply)

    async def add(
        self,
        batch_id: str,
        tenant: str,
        items: Sequence[NewItem | InvalidItem],
        *,
        key_id: str = "",
        key_limits: CallerLimits = NO_LIMITS,
    ) -> None:
        """Adds the next lines, at most SLICE_ITEMS of at most SLICE_BYTES together (one line may be longer).

        Raises QueueFull, StorageFull, StorageUnavailable; TooManyQueued, BudgetExceeded, and InvalidRequest if the limits
        never allow so many; NotFound if the batch was given up meanwhile.
        """
        held_back = key_id if key_limits.hold_back_claims else ""
        arguments: list[str | bytes | int] = []
        for item in items:
            match item:
                case NewItem():
                    if len(item.request) > _LARGE_BYTES:
                        await asyncio.sleep(0)  # hashing and measuring 600 KB takes 1.5 ms (measured)
                    flow = redis_keys.flow_of(
                        ITEM_PRIORITY,
                        tenant,
                        self._routes.chain_name_of(item.model),
                        key_id=held_back,
                        end_user=item.end_user,
                    )
                    own = {
                        "model": item.model,
                        "custom_id": item.custom_id,
                        "prompt_hash": prompt_hash_of(item.request),
                    } | ({"end_user": item.end_user} if item.end_user else {})
                    estimate = self._estimates.of(item.model, reservation_of(item.request))
                    request = await stored(item.request, self._settings.compress_above_bytes)
                    arguments += (item.line, item.job_id, flow, request, msgspec.json.encode(own), estimate)
                case InvalidItem():
                    arguments += (item.line, "", "", "", msgspec.json.encode(item), 0)
        reply = await self._commands.run(
            "add_items",
            id=batch_id,
            receiving=BatchState.RECEIVING,
            silent_ms=_RECEIVING_MS,
            most_waiting=self._settings.max_queued,
            queued=JobState.QUEUED,
            failed=JobState.FAILED,
            key_limits=argument_of(key_limits),
            tenant_bytes=self._memory.tenant_bytes,
            items=arguments,
        )
        match reply:
            case [b"added"]:
                pass
            case [b"full"]:
                raise QueueFull
            case [b"gone"]:
                raise NotFound
            case _:
                raise limits.problem_of(reply)

    async def start(
        self,
        batch_id: str,
        tenant: str,
        spec: BatchSpec,
        *,
        expires_in_s: int,
        total: int | None = None,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        key_limits: CallerLimits = NO_LIMITS,
    ) -> Started:
        """Starts the batch: its body has arrived, and from here on it runs, whatever process dies.

        If the Idempotency-Key was used with the same body, that earlier batch is returned and this one is dropped. Each
        ``advance`` puts some more items into the queue. ``total``: how many lines were added, since a Redis that was rolled
        back meanwhile has fewer.

        Raises IdempotencyKeyReused, StorageFull, StorageUnavailable; RateLimited, TooManyQueued, BudgetExceeded, and
        InvalidRequest if the limits never allow so many; NotFound if the batch, or a part of it, is gone.
        """
        allowed, running = BATCH_TRANSITIONS[BatchStep.START]
        common = msgspec.to_builtins(msgspec.structs.replace(spec.items, batch_id=batch_id))
        del common["model"]  # each item has its own
        reply = await self._commands.run(
            "start_batch",
            id=batch_id,
            tenant=tenant,
            sources=_joined(allowed),
            running=running,
            dropped=BatchState.DROPPED,
            spec=msgspec.json.encode(spec),
            common=msgspec.json.encode(common),
            timeout_ms=spec.items.timeout_s * 1000,
            expires_in_ms=expires_in_s * 1000,
            not_before_ms="" if spec.items.not_before_ms is None else spec.items.not_before_ms,
            idempotency_hash=key_hash(idempotency_key) if idempotency_key else "",
            fingerprint=fingerprint,
            retention=retention(self._settings),
            total="" if total is None else total,
            key=spec.items.key_id,
            key_limits=argument_of(key_limits),
            user=redis_keys.user_of(tenant, spec.items.end_user),
            webhook=stored_form(spec.webhook),
            has_webhook_of_items=int(spec.webhook is not None and not JOB_EVENTS.isdisjoint(spec.webhook.events)),
        )
        match reply:
            case [b"started", states]:
                return Started(batch_id, limits.states_of(states))
            case [b"replayed", other_id]:
                return Started(other_id.decode())
            case [b"reused"]:
                raise IdempotencyKeyReused
            case [b"gone"]:
                raise NotFound
            case _:
                raise limits.problem_of(reply)

    async def drop(self, batch_id: str, tenant: str) -> None:
        """Drops what was received; ``advance`` erases it in pieces. Changes nothing once the batch has started."""
        await self._drop(batch_id, tenant, BatchStep.DROP)

    # In pieces

    async def due(self) -> list[str]:
        """Batches that have something left to do, and on which no process is at work."""
        ids = await self._commands.run(
            "due_batches", most=10, receiving=BatchState.RECEIVING, dropped=BatchState.DROPPED
        )
        return [batch_id.decode() for batch_id in ids]

    async def advance(self, batch_id: str) -> bool:
        """Does the next piece: starts, cancels or erases some items. False once there is nothing left to do now."""
        reply = await self._commands.run(
            "advance_batch",
            id=batch_id,
            most=SLICE_ITEMS,
            receiving=BatchState.RECEIVING,
            cancelling=BatchState.CANCELLING,
            dropped=BatchState.DROPPED,
            queued=JobState.QUEUED,
            **cancel_arguments(self._settings),
        )
        return bool(reply)

    async def advance_all(self, batch_id: str, *, most_s: float | None = None) -> None:
        """Advances until nothing is left to do, or ``most_s`` seconds are over: then the background loops do the rest."""
        loop = asyncio.get_running_loop()
        ends_s = None if most_s is None else loop.time() + most_s
        while await self.advance(batch_id):
            if ends_s is not None and loop.time() > ends_s:
                return

    async def advance_due(self) -> None:
        """Advances what another process left undone, or is slow at. For the loops of API processes and workers."""
        for batch_id in await self.due():
            await self.advance_all(batch_id)

    # What callers ask

    async def get(self, batch_id: str, tenant: str) -> Batch:
        """The batch as it is now. Raises NotFound, also for another tenant's batch."""
        found = _batch_of(batch_id, await self._reads.one(tenant, redis_keys.batch(batch_id), _FIELDS), tenant)
        if found is None:
            raise NotFound
        return found

    async def page(self, tenant: str, *, after: str | None, before: str | None = None, limit: int) -> BatchPage:
        """The tenant's batches, newest first: those older than ``after``, or the ones right before ``before``."""
        stretches = stretches_of(
            self._commands, redis_keys.batch_index(tenant), count=limit + 1, is_newest_first=before is None
        )

        async def read(ids: Sequence[str]) -> Sequence[Sized | None]:
            records = await self._reads.some(tenant, [redis_keys.batch(batch_id) for batch_id in ids], _FIELDS)
            return sized(ids, records, lambda batch_id, record: _batch_of(batch_id, record, tenant))

        batches, next_after = await read_page(
            stretches, read, after=before or after, limit=limit, most_stretches=_STRETCHES
        )
        return BatchPage(batches[::-1] if before is not None else batches, next_after)

    async def cancel(self, batch_id: str, tenant: str) -> bool:
        """From now on ``advance`` cancels the items that have not ended. False if the batch has ended or is being cancelled.

        Raises NotFound.
        """
        allowed, cancelling = BATCH_TRANSITIONS[BatchStep.CANCEL]
        reply = await self._commands.run(
            "cancel_batch",
            id=batch_id,
            tenant=tenant,
            sources=_joined(allowed),
            cancelling=cancelling,
            unseen=_joined(_UNSEEN),
        )
        if reply < 0:
            raise NotFound
        return bool(reply)

    async def erase(self, batch_id: str, tenant: str) -> None:
        """Erases the batch and its items. Raises NotFound, NotEnded."""
        reply = await self._drop(batch_id, tenant, BatchStep.ERASE)
        if reply < 0:
            raise NotFound
        if not reply:
            raise NotEnded("Only a batch that has ended can be erased.")

    def _drop(self, batch_id: str, tenant: str, step: BatchStep) -> "asyncio.Future[int]":
        allowed, dropped = BATCH_TRANSITIONS[step]
        return self._commands.run(
            "drop_batch", id=batch_id, tenant=tenant, sources=_joined(allowed), dropped=dropped, unseen=_joined(_UNSEEN)
        )

    async def erase_some(self, tenant: str) -> tuple[int, bool]:
        """Does the next piece of erasing all batches of the tenant with their items, even those that run or still arrive.

        Returns how many batches no longer exist for callers, and whether there is more to do. Safe to repeat.
        """
        if unseen := await self._coming_in_of(tenant):
            dropped = await self._drop(unseen[0], tenant, BatchStep.DROP)
            await self.advance(unseen[0])
            return max(0, dropped), True
        index = redis_keys.batch_index(tenant)
        ids = await self._commands.call("ZRANGE", index, 0, 0)
        if not ids:
            return 0, False
        batch_id = ids[0].decode()
        try:
            await self.cancel(batch_id, tenant)
            if await self.advance(batch_id):
                return 0, True
            await self.erase(batch_id, tenant)
        except NotFound:  # its record is gone
            await self._commands.call("ZREM", index, batch_id)
            return 0, True
        return 1, True

    async def _coming_in_of(self, tenant: str) -> list[str]:
        """The tenant's batches that arrive or are being dropped: they are in no index."""
        ids = [raw_id.decode() for raw_id in await self._commands.call("ZRANGE", redis_keys.plain("due"), 0, -1)]
        replies = [self._commands.call("HMGET", redis_keys.batch(batch_id), "tenant", "state") for batch_id in ids]
        records = [await reply for reply in replies]
        unseen = [state.encode() for state in _UNSEEN]
        return [
            batch_id
            for batch_id, (owner, state) in zip(ids, records, strict=True)
            if owner == tenant.encode() and state in unseen
        ]

    async def ended_items(
        self, batch_id: str, order: Order, *, after: int | None = None, count: int = 250
    ) -> list[EndedItem]:
        """The outcomes so far, after the line ``after``. Raises InvalidCursor if that line has not ended.

        Returns at least ``count``, unless there are no more. In the order SUBMITTED, a reader that continues after a line
        misses the lines before it that end later.
        """
        found: list[EndedItem] = []
        at: int | None = after
        while len(found) < count:
            reply = await self._commands.run(
                "ended_items",
                id=batch_id,
                is_in_order_of_end=int(order is Order.FINISHED),
                after="" if at is None else at,
                most=count,
            )
            if reply is None:
                raise InvalidCursor
            at, *flat = reply
            for line, job_id, invalid in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
                why = msgspec.json.decode(invalid, type=InvalidItem) if invalid else None
                found.append(EndedItem(line, job_id.decode() or None, why))
            if at == -1:
                break
        return found

    async def last_ended_line(self, batch_id: str) -> int | None:
        """The line that ended last, so far."""
        lines = await self._commands.call("ZREVRANGE", redis_keys.batch_ended(batch_id), 0, 0)
        return int(lines[0]) if lines else None

    async def running_items(self, batch_id: str) -> list[str]:
        """The job ids of the items that run now."""
        ids = [member.decode() for member in await self._commands.call("ZRANGE", redis_keys.plain("running"), 0, -1)]
        replies = [self._commands.call("HGET", redis_keys.job(job_id), "batch") for job_id in ids]
        wanted = batch_id.encode()
        return [job_id for job_id, reply in zip(ids, replies, strict=True) if await reply == wanted]

    async def item_ids(self, batch_id: str, start: int, count: int) -> list[str | None]:
        """The job ids of the lines from ``start`` (0 is line 1) on; None for a line that never became a job."""
        ids = await self._commands.call("LRANGE", redis_keys.batch_items(batch_id), start, start + count - 1)
        return [job_id.decode() or None for job_id in ids]

    def follow(self, batch_id: str) -> "asyncio.Future[Any]":
        """For half a minute, what is appended to an item's log is also published on the batch's channel."""
        return self._commands.call("SET", redis_keys.batch_followed(batch_id), 1, "PX", _FOLLOWED_MS)


def _failures_of(fields: Mapping[str, Any]) -> dict[str, int]:
    counts = {code: int(fields[name] or 0) for name, code in _FAILURES.items()} | {
        INVALID_LINE: int(fields["invalid"] or 0)
    }
    return {code: count for code, count in counts.items() if count}


def _joined(states: Iterable[BatchState]) -> str:
    return ",".join(sorted(states))


def _batch_of(batch_id: str, record: Record, tenant: str) -> Batch | None:
    fields = dict(zip(_FIELDS, record, strict=True))
    if fields["tenant"] != tenant.encode() or BatchState(fields["state"].decode()) in _UNSEEN:
        return None
    return Batch(
        id=batch_id,
        tenant=tenant,
        state=BatchState(fields["state"].decode()),
        spec=msgspec.json.decode(fields["spec"], type=BatchSpec),
        counts=BatchCounts(**{name: int(fields[name] or 0) for name in _COUNTS}),
        invalid_lines=int(fields["invalid"] or 0),
        failures=_failures_of(fields),
        usage=Usage(**{name: int(fields[name] or 0) for name in _USAGE}),
        created_ms=int(fields["created_ms"]),
        expires_ms=int(fields["expires_ms"]),
        cancelled_ms=int(fields["cancelled_ms"]) if fields["cancelled_ms"] else None,
        ended_ms=int(fields["ended_ms"]) if fields["ended_ms"] else None,
        cost_usd=cost_usd_of(fields),
    )
