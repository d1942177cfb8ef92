"""A batch: many requests under one id, its states, the table of its life cycle, its counts.

Its items are ordinary jobs in the lowest band. Only three things are special to a batch: how its items arrive, how they
are counted, and how their results are read. BATCH_TRANSITIONS is the only place that says which state may follow which.
"""

from enum import StrEnum
from typing import Final

import msgspec

from shared.job import JobSpec, Priority, Usage
from shared.webhooks import Webhook


class BatchState(StrEnum):
    """Where a batch is."""

    RECEIVING = "receiving"
    """Its body is arriving, and none of its items runs. START starts it, DROP erases it."""
    RUNNING = "running"
    """Its body has arrived; its items wait, run and end. It ends when its last item ends."""
    CANCELLING = "cancelling"
    """A caller cancelled it; the items that have not ended are being cancelled."""
    ENDED = "ended"
    """Every item has ended. Final."""
    DROPPED = "dropped"
    """It is being erased in pieces; for callers it no longer exists."""


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
    """What never changes after the submit. One field of the record, as JSON."""

    items: JobSpec
    """The options that all items share. ``model``, ``custom_id`` and ``prompt_hash`` in it are unused: each item has its own."""
    metadata: dict[str, str] = {}
    retry_of: str | None = None
    webhook: Webhook | None = None
    """For the batch, and for its items if it asks for events of jobs."""


class BatchCounts(msgspec.Struct, frozen=True):
    """How many items are in each state of a job. ``total`` is always the sum of the others."""

    total: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    """Includes the lines that could not run."""
    cancelled: int = 0
    expired: int = 0


class Batch(msgspec.Struct, frozen=True):
    """A batch, read from its record. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    tenant: str
    state: BatchState
    spec: BatchSpec
    counts: BatchCounts
    invalid_lines: int
    """How many lines could not run: these failed items never became jobs."""
    failures: dict[str, int]
    """How many items failed, by the code of their error. The lines that could not run are ``invalid_line``."""
    usage: Usage
    """The sum over the answers of the items that succeeded."""
    created_ms: int
    """When its body had arrived completely."""
    expires_ms: int
    """When the items that have not started end as ``expired``."""
    cancelled_ms: int | None = None
    """When a caller cancelled it."""
    ended_ms: int | None = None
    cost_usd: float | None = None
    """The cost of all calls for all items. None if the price of one is unknown, and until the first call has ended."""

    @property
    def has_ended(self) -> bool:
        """Whether every item has ended."""
        return self.state is BatchState.ENDED


class NewItem(msgspec.Struct, frozen=True):
    """A line that can run: it becomes a job."""

    line: int
    """Its line number in the body, from 1; in a JSON body, the request's position in the list."""
    job_id: str
    custom_id: str
    model: str
    request: bytes
    """The upstream request as JSON, without ``stream``."""
    end_user: str | None = None
    """By default the batch's."""


class InvalidItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line that cannot run: a failed item without a job."""

    line: int
    message: str
    """Why it cannot run. Never quotes the request."""
    custom_id: str | None = None
    """None if the line has none, or has the same one as another line."""


class EndedItem(msgspec.Struct, frozen=True):
    """Where to find a line's outcome: in its job, or in ``invalid`` if it never became a job."""

    line: int
    job_id: str | None
    invalid: InvalidItem | None = None
