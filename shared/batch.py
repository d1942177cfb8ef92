"""A batch: many requests under one id, its states, the table of its life cycle, its counts.

Its items are jobs like any other, of the lowest band; what is the batch's own is how they come in, how they are counted,
and how their results are read. BATCH_TRANSITIONS is the only place that says which state may follow which.
"""

from enum import StrEnum
from typing import Final

import msgspec

from shared.job import JobSpec, Priority, Usage
from shared.webhooks import Webhook


class BatchState(StrEnum):
    """Where a batch is."""

    RECEIVING = "receiving"
    """Its requests come in; none of them runs. START begins it, DROP leaves nothing of it."""
    RUNNING = "running"
    """Its body was whole; its items wait, run and end. The last one's end ends it."""
    CANCELLING = "cancelling"
    """The caller cancelled it; what has not ended is being ended."""
    ENDED = "ended"
    """Every item has ended. Final."""
    DROPPED = "dropped"
    """Is being erased, piece by piece, and not found any more."""


class BatchStep(StrEnum):
    """What can happen to a batch."""

    START = "start"
    CANCEL = "cancel"
    END = "end"
    DROP = "drop"
    ERASE = "erase"


BATCH_TRANSITIONS: Final[dict[BatchStep, tuple[frozenset[BatchState], BatchState]]] = {
    BatchStep.START: (frozenset({BatchState.RECEIVING}), BatchState.RUNNING),
    BatchStep.CANCEL: (frozenset({BatchState.RUNNING}), BatchState.CANCELLING),
    BatchStep.END: (frozenset({BatchState.RUNNING, BatchState.CANCELLING}), BatchState.ENDED),
    BatchStep.DROP: (frozenset({BatchState.RECEIVING}), BatchState.DROPPED),
    BatchStep.ERASE: (frozenset({BatchState.ENDED}), BatchState.DROPPED),
}
"""Step → (the states it may start from, the state it leads to)."""

ITEM_PRIORITY: Final = Priority.LOW


class BatchSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What never changes after submit. One JSON field of the record."""

    items: JobSpec
    """What all items have in common: their limits. ``model``, ``custom_id`` and ``prompt_hash`` are each one's own."""
    metadata: dict[str, str] = {}
    retry_of: str | None = None
    webhook: Webhook | None = None
    """For the batch, and for its items if it asks for events of jobs."""


class BatchCounts(msgspec.Struct, frozen=True):
    """How many items are where, in the job's words. ``total`` is always the sum of the others."""

    total: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    """Lines that could not run are among them."""
    cancelled: int = 0
    expired: int = 0


class Batch(msgspec.Struct, frozen=True):
    """A batch as its record stands. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    tenant: str
    state: BatchState
    spec: BatchSpec
    counts: BatchCounts
    invalid_lines: int
    """Lines that could not run: the failed items that never were a job."""
    usage: Usage
    """Of the answers of the items that succeeded, added up."""
    created_ms: int
    """When its body was whole."""
    expires_ms: int
    """When what has not started ends as ``expired``."""
    cancelled_ms: int | None = None
    """When a caller cancelled it."""
    ended_ms: int | None = None
    cost_usd: float | None = None
    """Of all calls of all items. None if the price of one is not known, and until one has ended."""

    @property
    def has_ended(self) -> bool:
        """Whether every item has ended."""
        return self.state is BatchState.ENDED


class NewItem(msgspec.Struct, frozen=True):
    """A line that can run, about to be a job."""

    line: int
    """Its number in the body, from 1; of a JSON body, of the request in its list."""
    job_id: str
    custom_id: str
    model: str
    request: bytes
    """The upstream request as JSON, without ``stream``."""


class InvalidItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line that cannot run: a failed item without a job."""

    line: int
    message: str
    """Why, without a word of its content."""
    custom_id: str | None = None
    """If it had one, and it is not another line's."""


class EndedItem(msgspec.Struct, frozen=True):
    """Where a line's outcome is found: in its job, or here if it never was one."""

    line: int
    job_id: str | None
    invalid: InvalidItem | None = None
