"""The queue as a worker sees it: claims, leases, the jobs of dead workers, and the end of a job.

A claim's epoch is its fence: everything that a worker writes for a job carries it, and Redis refuses all but the newest.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

import msgspec

from shared.errors import JobError
from shared.events import RESET_REASONS
from shared.job import JobSpec, JobState, Step, Usage
from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.compression import restored, stored
from shared.store.jobs import overdue_arguments, retention
from shared.store.script import sources, target
from shared.telemetry import get_logger

SUSPECT_TAKEOVERS: Final = 2
"""A job whose workers died this often is a suspect. Suspects run together until a worker dies that ran several."""
ALONE_TAKEOVERS: Final = 3
"""Such a job died together with other suspects: a worker runs at most one of these at a time."""
FATAL_TAKEOVERS: Final = 3
"""A job whose workers died this often fails, if none of its last worker's other jobs is as suspect."""

WORKER_LOST: Final = JobError("worker_lost", "The workers that ran the job died repeatedly.", retryable=False)

UNPRICED: Final = "?"

Cost = int | Literal["?"] | None
"""What a claim's calls cost: nano-dollars, UNPRICED if the price of one is not known, None if there were none."""

NO_QUOTAS: Final[Mapping[str, int]] = {}
NOTHING_CAME: Final[Mapping[str, int]] = {}

_REAPED_AT_ONCE: Final = 100


class Claim(NamedTuple):
    """A job that is this worker's until its lease ends. Times are milliseconds by Redis's clock."""

    id: str
    tenant: str
    epoch: int
    claimed_ms: int
    attempt: int
    """Upstream calls begun, this one included."""
    next_seq: int
    """The seq after the events that CLAIM wrote."""
    started_ms: int
    timeout_ms: int
    created_ms: int
    failures: int
    """Upstream failures so far: what ``max_attempts`` bounds."""
    takeovers: int
    request: bytes
    spec: JobSpec


class Reaped(NamedTuple):
    """What REAP did."""

    next_expiry_s: float | None
    back: list[str]
    failed: list[str]


class Finished(StrEnum):
    """How FINISH ended."""

    ENDED = "ended"
    ALREADY = "already"
    """This very claim ended it before: the first reply was lost."""
    REFUSED = "refused"
    """The claim is over, or somebody ended the job: the result is dropped."""
    INCOMPLETE = "incomplete"
    """The log lost its last events: append them again first."""


class FinishReply(NamedTuple):
    """The reply to FINISH. If INCOMPLETE, ``expected_seq`` is what the log takes next."""

    outcome: Finished
    expected_seq: int = 0


class Ending(NamedTuple):
    """How a claim's job ends."""

    step: Step
    """SUCCEED or FAIL."""
    result: bytes = b""
    usage: Usage | None = None
    first_token_ms: int | None = None
    error: JobError | None = None
    last_token_ms: int | None = None
    """When the newest content arrived, for a job that fails."""


class Queue:
    """The queue of a shard."""

    def __init__(self, commands: Commands, settings: Settings, urgent: Commands) -> None:
        self._commands = commands
        self._urgent = urgent
        self._settings = settings
        self._lease_ms = int(settings.lease_s * 1000)

    async def claim(
        self, worker: str, *, count: int, low_count: int, takes_suspect: bool, quotas: Mapping[str, int] = NO_QUOTAS
    ) -> tuple[list[Claim], float | None]:
        """Claims up to ``count`` jobs, at most ``low_count`` of them from the lowest band.

        Also returns the seconds until a deferred or parked job may be due, or None. ``quotas``: by route, how many of its
        jobs may start; -1 means that it is shut, and that its jobs may start on a fallback.
        """
        due_ms, *claims = await self._commands.run(
            "claim",
            worker=worker,
            lease_ms=self._lease_ms,
            most=count,
            low_left=low_count,
            tenant_limit=self._settings.tenant_running_jobs,
            suspect_at=SUSPECT_TAKEOVERS,
            alone_left=int(takes_suspect),
            alone_at=ALONE_TAKEOVERS,
            sources=sources(Step.CLAIM),
            target=target(Step.CLAIM),
            **overdue_arguments(self._settings),
            bounds=[part for quota in quotas.items() for part in quota],
        )
        return [claim for fields in claims if (claim := await _readable(fields))], _seconds(due_ms)

    async def renew(
        self, claims: Iterable[tuple[str, int]], last_tokens_ms: Mapping[str, int] = NOTHING_CAME
    ) -> list[str]:
        """Renews the leases of (id, epoch) pairs. Returns the ids that are no longer theirs.

        ``last_tokens_ms``: by id, when the newest content arrived.
        """
        flat = [part for job_id, epoch in claims for part in (job_id, epoch, last_tokens_ms.get(job_id, ""))]
        lost = await self._commands.run("renew", lease_ms=self._lease_ms, sources=sources(Step.SUCCEED), claims=flat)
        return [job_id.decode() for job_id in lost]

    async def reap(self) -> Reaped:
        """Takes jobs from dead workers: puts them back at their places, or fails them at the last takeover."""
        next_ms, *became = await self._commands.run(
            "reap",
            lease_ms=self._lease_ms,
            most=_REAPED_AT_ONCE,
            sources=sources(Step.REAP),
            queued=target(Step.REAP),
            fatal_takeovers=FATAL_TAKEOVERS,
            failed=target(Step.LOSE),
            error=msgspec.json.encode(WORKER_LOST),
            retention=retention(self._settings),
        )
        pairs = list(zip(became[::2], became[1::2], strict=True))
        return Reaped(
            _seconds(next_ms),
            [job_id.decode() for job_id, what in pairs if what == b"back"],
            [job_id.decode() for job_id, what in pairs if what == b"failed"],
        )

    async def release(
        self,
        claim: Claim,
        *,
        reason: str,
        delay_s: float = 0,
        failures: int = 0,
        retry_event: bytes = b"",
        cost: Cost = None,
        attempts: int | None = None,
        last_token_ms: int | None = None,
    ) -> bool:
        """Puts the job back into the queue, due now or in ``delay_s``. ``reason`` is for the ``reset`` of a later claim.
        False if the claim is over. Safe to repeat.

        ``attempts``: calls begun so far, if CLAIM counted otherwise. With 0, the job counts as never started.
        ``last_token_ms``: when the newest content arrived.
        """
        assert reason in RESET_REASONS
        reply = await self._commands.run(
            "release",
            id=claim.id,
            epoch=claim.epoch,
            sources=sources(Step.RELEASE),
            queued=target(Step.RELEASE),
            delay_ms=int(delay_s * 1000),
            failures=failures,
            reason=reason,
            retry_event=retry_event,
            cost="" if cost is None else cost,
            attempts="" if attempts is None else attempts,
            last_token_ms="" if last_token_ms is None else last_token_ms,
        )
        return bool(reply)

    async def finish(self, claim: Claim, ending: Ending, *, seq: int, cost: Cost = None) -> FinishReply:
        """The job ends: state, result and terminal event (at ``seq``) in one step. Safe to repeat."""
        fields: list[str | bytes | int] = []
        if ending.first_token_ms is not None:
            fields += ("first_token_ms", ending.first_token_ms)
        if ending.last_token_ms is not None:
            fields += ("last_token_ms", ending.last_token_ms)
        if ending.error is not None:
            fields += ("error", msgspec.json.encode(ending.error))
        outcome, *rest = await self._commands.run(
            "finish",
            id=claim.id,
            epoch=claim.epoch,
            sources=sources(ending.step),
            state=target(ending.step),
            seq=seq,
            result=await stored(ending.result, self._settings.compress_above_bytes),
            retention=retention(self._settings),
            cost="" if cost is None else cost,
            usage=msgspec.json.encode(ending.usage) if ending.usage is not None else "",
            fields=fields,
        )
        finished = Finished(outcome.decode())
        return FinishReply(finished, int(rest[0]) if finished is Finished.INCOMPLETE else 0)

    async def depth(self) -> dict[JobState, int]:
        """How many jobs wait, and how many run."""
        queued = self._urgent.call("ZCARD", redis_keys.plain("waiting"))
        running = self._urgent.call("ZCARD", redis_keys.plain("running"))
        return {JobState.QUEUED: await queued, JobState.RUNNING: await running}


async def _readable(fields: list[Any]) -> Claim | None:
    """None if we cannot read the record, for example a newer release's: when its lease expires, another worker may take it."""
    try:
        job_id, tenant, *numbers, request, spec = fields  # in the order of Claim
        parsed_spec = msgspec.json.decode(spec, type=JobSpec)
        return Claim._make((job_id.decode(), tenant.decode(), *map(int, numbers), await restored(request), parsed_spec))
    except (ValueError, TypeError):
        get_logger("queue").error("job_unreadable", job_id=fields[0].decode())
        return None


def _seconds(milliseconds: Any) -> float | None:
    return None if int(milliseconds) < 0 else int(milliseconds) / 1000
