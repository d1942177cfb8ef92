"""Deliveries of webhooks as records and as a queue: claimed under a lease, ended, sent again, listed.

It works like the queue of jobs: leases, an epoch as fence, Redis's clock. A delivery waits in its lane, which is for one
tenant and one origin, so that a receiver that hangs delays only its own deliveries. The scripts that end jobs and batches
create the deliveries.
"""

import base64
import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from shared.errors import NotFound
from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.compression import restored
from shared.store.page import Sized, read_page, sized, stretches_of
from shared.store.reads import Reads, Record
from shared.webhooks import Attempt, Delivery, DeliveryState, EventType, Next, Reason, Secrets, delivery_id_of

LANE_MOST: Final = 8
"""Attempts at once from a tenant to an origin."""
TENANT_MOST: Final = 16
"""Attempts at once from a tenant to all origins."""
_GONE_MS: Final = 30 * 86_400_000

_ERASED_AT_ONCE: Final = 100
_PAGE_SCANNED: Final = 200
_PAGES_SCANNED: Final = 25
"""A filtered list looks at 5,000 deliveries at most; then the page is short and ``next`` goes on."""

_FIELDS: Final = (
    "tenant", "event", "subject", "status", "url", "state", "created_ms", "with_result", "batch", "custom_id", "usage", "counts",
    "error", "due_ms", "ended_ms", "history",
)  # fmt: skip


_FILTERED_BY: Final = ("state", "batch", "subject")


class DeliveryClaim(NamedTuple):
    """A delivery to be attempted once, now."""

    delivery: Delivery
    epoch: int
    failed_before: int
    """Failed attempts of this schedule."""


class Claimed(NamedTuple):
    """What CLAIM_DELIVERIES brought."""

    claims: list[DeliveryClaim]
    next_due_s: float | None
    """Seconds until more may be due; None if no delivery waits."""


class DeliveryPage(NamedTuple):
    """Deliveries, newest job or batch first, and where the next page begins."""

    deliveries: list[Delivery]
    next_after: str | None


class Webhooks:
    """The deliveries and secrets of a shard."""

    def __init__(self, commands: Commands, settings: Settings, reads: Reads) -> None:
        self._commands = commands
        self._reads = reads
        self._retention_ms = int(settings.result_retention_s * 1000)

    # For workers

    async def claim(self, *, count: int, lease_s: float) -> Claimed:
        """Claims at most ``count`` deliveries that are due. A worker that does not end one within the lease loses it."""
        next_ms, *flat = await self._commands.run(
            "claim_deliveries",
            most=count,
            lease_ms=int(lease_s * 1000),
            lane_most=LANE_MOST,
            tenant_most=TENANT_MOST,
            failed=DeliveryState.FAILED,
            disabled_note=f'"took_ms":0,"reason":"{Reason.DISABLED}"',
            retention_ms=self._retention_ms,
            fields=_FIELDS,
        )
        claims = [
            DeliveryClaim(_delivery_of(raw_id.decode(), record), epoch, failed)
            for raw_id, epoch, failed, record in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
        ]
        return Claimed(claims, None if int(next_ms) < 0 else int(next_ms) / 1000)

    async def end(self, claim: DeliveryClaim, then: Next, attempt: Attempt | None) -> bool:
        """Records how the claim ended. Without an ``attempt`` none was made, and none is counted. False: the claim was over."""
        reply = await self._commands.run(
            "end_delivery",
            id=claim.delivery.id,
            epoch=claim.epoch,
            state=then.state,
            delay_ms=int(then.delay_s * 1000),
            attempt="" if attempt is None else msgspec.json.encode(attempt),
            retention_ms=self._retention_ms,
            gone_ms=_GONE_MS if then.reason is Reason.GONE else "",
            is_delivered=int(then.state is DeliveryState.DELIVERED),
        )
        return bool(reply)

    async def result_of(self, delivery: Delivery) -> bytes | None:
        """The result of the delivery's job; None if it has none, or no longer has one."""
        if delivery.event is not EventType.JOB_SUCCEEDED:
            return None
        found: bytes | None = await self._commands.call("GET", redis_keys.result(delivery.subject))
        return found and await restored(found)

    async def secrets(self, tenant: str) -> Secrets:
        """The secrets that sign the tenant's deliveries. The first is created when it is first needed."""
        return await self._secrets(tenant, "")

    # For callers

    async def rotate(self, tenant: str, *, grace_s: float) -> Secrets:
        """Creates a new secret; the one before signs too for ``grace_s``. A tenant without one gets its first."""
        return await self._secrets(tenant, int(grace_s * 1000))

    async def get(self, delivery_id: str, tenant: str) -> Delivery:
        """The delivery as it is now. Raises NotFound, also for another tenant's delivery."""
        record = await self._reads.one(tenant, redis_keys.delivery(delivery_id), _FIELDS)
        found = _own_delivery_of(delivery_id, record, tenant)
        if found is None:
            raise NotFound
        return found

    async def redeliver(self, delivery_id: str, tenant: str) -> Delivery:
        """Sends it again, now, whatever became of it; one that is being sent stays as it is. Raises NotFound."""
        if await self._commands.run("redeliver", id=delivery_id, tenant=tenant) < 0:
            raise NotFound
        return await self.get(delivery_id, tenant)

    async def erase_some(self, tenant: str) -> tuple[int, bool]:
        """Erases the tenant's next deliveries, sent or not. Returns how many, and whether there may be more. Safe to repeat."""
        erased, is_more = await self._commands.run("erase_deliveries", tenant=tenant, most=_ERASED_AT_ONCE)
        return erased, bool(is_more)

    async def page(
        self,
        tenant: str,
        *,
        after: str | None,
        limit: int,
        state: DeliveryState | None = None,
        job_id: str | None = None,
        batch_id: str | None = None,
    ) -> DeliveryPage:
        """The tenant's deliveries, newest job or batch first. ``batch_id``: only those of that batch and of its items. With a
        filter, a page may have fewer than ``limit`` and still have a next.
        """
        if job_id is not None:
            return await self._page_of_job(tenant, job_id, state, batch_id)
        filtered = state is not None or batch_id is not None

        async def wanted_of(ids: Sequence[str]) -> Sequence[str]:
            names = [redis_keys.delivery(each) for each in ids]
            records = await self._reads.small(tenant, names, _FILTERED_BY)
            return [each for each, record in zip(ids, records, strict=True) if _is_wanted(record, state, batch_id)]

        async def read(ids: Sequence[str]) -> Sequence[Sized | None]:
            records = await self._reads.some(tenant, [redis_keys.delivery(each) for each in ids], _FIELDS)
            return sized(ids, records, lambda each, record: _own_delivery_of(each, record, tenant))

        stretches = stretches_of(
            self._commands,
            redis_keys.delivery_index(tenant),
            count=_PAGE_SCANNED if filtered else limit + 1,
            wanted_of=wanted_of if filtered else None,
        )
        deliveries, next_after = await read_page(
            stretches, read, after=after, limit=limit, most_stretches=_PAGES_SCANNED if filtered else 2
        )
        return DeliveryPage(deliveries, next_after)

    async def _page_of_job(
        self, tenant: str, job_id: str, state: DeliveryState | None, batch_id: str | None
    ) -> DeliveryPage:
        try:
            one = await self.get(delivery_id_of(job_id), tenant)
        except NotFound:
            return DeliveryPage([], None)
        is_it = one.subject == job_id and state in (None, one.state) and batch_id in (None, one.batch_id)
        return DeliveryPage([one] if is_it else [], None)

    async def _secrets(self, tenant: str, grace_ms: int | str) -> Secrets:
        fresh = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        current, created_ms, previous, until_ms = await self._commands.run(
            "webhook_secret", tenant=tenant, fresh=fresh, grace_ms=grace_ms
        )
        return Secrets(
            current.decode(), int(created_ms), previous.decode() or None, int(until_ms) if until_ms else None
        )


def _own_delivery_of(delivery_id: str, record: Record, tenant: str) -> Delivery | None:
    return _delivery_of(delivery_id, record) if record[0] == tenant.encode() else None


def _delivery_of(delivery_id: str, record: Sequence[Any]) -> Delivery:
    fields = dict(zip(_FIELDS, record, strict=True))
    history = b"[" + (fields["history"] or b"") + b"]"
    return Delivery(
        id=delivery_id,
        tenant=fields["tenant"].decode(),
        event=EventType(fields["event"].decode()),
        subject=fields["subject"].decode(),
        status=fields["status"].decode(),
        url=fields["url"].decode(),
        state=DeliveryState(fields["state"].decode()),
        created_ms=int(fields["created_ms"]),
        with_result=fields["with_result"] == b"1",
        batch_id=fields["batch"].decode() if fields["batch"] else None,
        custom_id=fields["custom_id"].decode() if fields["custom_id"] else None,
        usage=_raw(fields["usage"]),
        counts=_raw(fields["counts"]),
        error=_raw(fields["error"]),
        due_ms=int(fields["due_ms"]) if fields["due_ms"] else None,
        ended_ms=int(fields["ended_ms"]) if fields["ended_ms"] else None,
        attempts=msgspec.json.decode(history, type=tuple[Attempt, ...]),
    )


def _is_wanted(record: Record, state: DeliveryState | None, batch_id: str | None) -> bool:
    """Whether a record passes the filter. It has the fields in _FILTERED_BY."""
    own_state, *batches = record
    if own_state is None:
        return False
    return state in (None, own_state.decode()) and (batch_id is None or batch_id.encode() in batches)


def _raw(value: bytes | None) -> msgspec.Raw | None:
    return msgspec.Raw(value) if value else None
