"""What was tried for a job: the ledger's rows of its calls.

No index lists them. A row's id is made of its job, claim and attempt; the record has the newest claim, and those that
put the job back.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from shared.errors import JobError, NotFound
from shared.job import Usage
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.reads import Reads
from shared.usage import LOST

_MOST: Final = 200
_RECORD: Final = ("tenant", "claim_epoch", "attempts", "claims", "error")
_ROW: Final = (
    "tenant", "attempt", "route", "worker", "opened_ms", "first_token_ms", "closed_ms", "ended", "message", "upstream_status",
    "estimated", "unpriced", "cost_nano_usd", *Usage.__struct_fields__,
)  # fmt: skip

_WORKER_LOST: Final = "worker_lost"
_MESSAGES: Final = {
    _WORKER_LOST: "The worker died or hung during the call. How the call ended is unknown.",
    "interrupted": "The job was cancelled, or handed back by its worker.",
}


class Attempt(NamedTuple):
    """A call to the LLM. Times are milliseconds by Redis's clock."""

    attempt: int
    route: str
    worker: str
    begun_ms: int
    first_token_ms: int | None
    ended_ms: int | None
    outcome: str | None
    """``succeeded``, ``interrupted``, or one of JOB_ERROR_CODES. None: it has not ended, as far as is known."""
    message: str | None
    upstream_status: int | None
    usage: Usage | None
    is_estimated: bool
    cost_usd: float | None


def call_id_of(job_id: str, epoch: int, attempt: int) -> str:
    """The id of a row in the ledger. A claim makes one call for an attempt."""
    return f"{job_id}-{epoch}-{attempt}"


class Attempts:
    """The attempts of the jobs of a shard."""

    def __init__(self, commands: Commands, reads: Reads) -> None:
        self._commands = commands
        self._reads = reads

    async def of(self, job_id: str, tenant: str) -> list[Attempt]:
        """The job's calls that the ledger still has, oldest first, at most the newest 200. Raises NotFound, TooManyReads."""
        owner, claim_epoch, attempts, claims, error = await self._reads.one(tenant, redis_keys.job(job_id), _RECORD)
        if owner != tenant.encode():
            raise NotFound
        spans = [tuple(map(int, claim.split(b":"))) for claim in (claims or b"").split()]
        if claim_epoch:
            spans.append((int(claim_epoch), spans[-1][2] + 1 if spans else 1, int(attempts or 0)))
        names = [
            redis_keys.call(call_id_of(job_id, epoch, attempt))
            for epoch, first, last in spans
            for attempt in range(first, last + 1)
        ]
        rows = await self._reads.small(tenant, names[-_MOST:], _ROW)
        found = [_attempt_of(row) for row in rows if row[0] == tenant.encode()]
        if error and found:
            found[-1] = _explained(found[-1], msgspec.json.decode(error, type=JobError))
        return found


def _attempt_of(row: Sequence[bytes | None]) -> Attempt:
    fields = {name: value.decode() for name, value in zip(_ROW, row, strict=True) if value is not None}
    ended = fields.get("ended")
    outcome = _WORKER_LOST if ended == LOST else ended
    return Attempt(
        attempt=int(fields["attempt"]),
        route=fields["route"],
        worker=fields.get("worker", ""),
        begun_ms=int(fields["opened_ms"]),
        first_token_ms=_int(fields, "first_token_ms"),
        ended_ms=None if ended == LOST else _int(fields, "closed_ms"),  # closed a lease later, by another worker
        outcome=outcome,
        message=fields.get("message") or _MESSAGES.get(outcome or ""),
        upstream_status=_int(fields, "upstream_status"),
        usage=Usage(**{name: int(fields[name]) for name in Usage.__struct_fields__}) if ended else None,
        is_estimated=fields.get("estimated") == "1",
        cost_usd=int(fields["cost_nano_usd"]) / 1_000_000_000 if fields.get("unpriced") == "0" else None,
    )


def _explained(attempt: Attempt, error: JobError) -> Attempt:
    """The record has what the upstream said in the last attempt."""
    return attempt._replace(message=error.message) if attempt.outcome == error.code else attempt


def _int(fields: Mapping[str, Any], name: str) -> int | None:
    return int(fields[name]) if name in fields else None
