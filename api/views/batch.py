"""A batch as its caller sees it: one JSON object, the same in every response and in the last event of its stream."""

from typing import Final

import msgspec

from shared.batch import Batch, BatchCounts, BatchState
from shared.clock import to_rfc3339
from shared.job import Usage
from shared.webhooks import Webhook

_encode: Final = msgspec.json.Encoder().encode


class BatchUrls(msgspec.Struct, frozen=True):
    """Where the batch is found and what can be done with it."""

    self: str
    results: str
    events: str
    cancel: str


class BatchView(msgspec.Struct, frozen=True, kw_only=True):
    """A batch."""

    id: str
    type: str
    tenant: str | msgspec.UnsetType = msgspec.UNSET
    """Only in a list that an operator reads."""
    status: BatchState
    counts: BatchCounts
    invalid_lines: int
    failures: dict[str, int]
    """How many items failed, by ``error.code``."""
    created_at: str
    expires_at: str
    ended_at: str | None
    retry_of: str | None
    metadata: dict[str, str]
    webhook: Webhook | None
    usage: Usage
    cost_usd: float | None
    urls: BatchUrls


class BatchPage(msgspec.Struct, frozen=True):
    """A list of batches; ``next`` is the ``after`` of the next page."""

    data: list[BatchView]
    has_more: bool
    next: str | None


def url_of(batch_id: str) -> str:
    """The batch's path, which is its ``Location``."""
    return f"/v1/batches/{batch_id}"


def render(batch: Batch) -> bytes:
    """The batch as one line of JSON."""
    return _encode(view_of(batch))


def render_page(batches: list[Batch], next_after: str | None, *, for_operator: bool = False) -> bytes:
    """A page of batches, as one line of JSON. ``for_operator``: with their tenant, and without what their submitter wrote."""
    views = [view_of(batch) for batch in batches]
    if for_operator:
        pairs = zip(views, batches, strict=True)
        views = [msgspec.structs.replace(view, tenant=batch.tenant, metadata={}, webhook=None) for view, batch in pairs]
    return _encode(BatchPage(data=views, has_more=next_after is not None, next=next_after))


def view_of(batch: Batch) -> BatchView:
    url = url_of(batch.id)
    return BatchView(
        id=batch.id,
        type="batch",
        status=batch.state,
        counts=batch.counts,
        invalid_lines=batch.invalid_lines,
        failures=batch.failures,
        created_at=to_rfc3339(batch.created_ms),
        expires_at=to_rfc3339(batch.expires_ms),
        ended_at=None if batch.ended_ms is None else to_rfc3339(batch.ended_ms),
        retry_of=batch.spec.retry_of,
        metadata=batch.spec.metadata,
        webhook=batch.spec.webhook,
        usage=batch.usage,
        cost_usd=batch.cost_usd,
        urls=BatchUrls(self=url, results=f"{url}/results", events=f"{url}/events", cancel=f"{url}/cancel"),
    )
