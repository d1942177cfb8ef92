"""An operation: one action on all of a tenant's jobs that a filter finds, done in pieces by the loops of API processes."""

from enum import StrEnum
from typing import Final

import msgspec

from shared.api_key import Caller
from shared.job_filter import JobFilter


class OperationAction(StrEnum):
    """What is done to the jobs."""

    CANCEL = "cancel"
    """End those that have not ended."""
    RETRY = "retry"
    """Submit those that ended without success again."""
    ERASE = "erase"
    """Erase those that have ended."""


class OperationState(StrEnum):
    """Where an operation is."""

    RUNNING = "running"
    """It has jobs left. It waits while an earlier one of its tenant runs."""
    ENDED = "ended"
    """It has gone through all jobs. Final."""
    CANCELLED = "cancelled"
    """A caller ended it, or the API key that began it has ended. What was done stays. Final."""


FOR_ITS_TURN: Final = "turn"
"""What an operation waits for while an earlier one of its tenant runs."""


class OperationCounts(msgspec.Struct, frozen=True):
    """How many jobs were found so far, and what became of them; ``matched`` is the sum of the others."""

    matched: int = 0
    done: int = 0
    skipped: int = 0
    """The action does not apply: the job had ended, or not ended, or succeeded, or is gone."""
    failed: int = 0
    """The action was refused for good."""


class Operation(msgspec.Struct, frozen=True):
    """An operation, read from its record. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    tenant: str
    action: OperationAction
    filter: JobFilter
    state: OperationState
    counts: OperationCounts
    caller: Caller
    """Who began it: it retries in this caller's name, and within its limits."""
    created_ms: int
    """Only jobs that existed then are concerned."""
    ended_ms: int | None = None
    cursor: str | None = None
    """The job that it has come to, from the newest to the oldest. None at the beginning."""
    waiting_for: str | None = None
    """FOR_ITS_TURN, or the code of the problem that holds it up."""

    @property
    def jobs(self) -> JobFilter:
        """The jobs that it concerns."""
        until_ms = self.created_ms + 1
        before_ms = self.filter.created_before_ms
        return msgspec.structs.replace(
            self.filter, created_before_ms=until_ms if before_ms is None else min(before_ms, until_ms)
        )
