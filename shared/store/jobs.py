"""Jobs as records: born, read, listed, cancelled, expired, erased. Every call names the tenant, and sees nobody else's."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from shared.errors import IdempotencyKeyReused, JobError, NotEnded, NotFound, QueueFull
from shared.estimates import Estimates
from shared.job import TERMINAL_STATES, Job, JobKind, JobSpec, JobState, Step, Submission, Usage
from shared.limits import LimitState, Reservation, arguments_of
from shared.settings import Settings, routes_of
from shared.store import keys, limits
from shared.store.commands import Commands
from shared.store.idempotency import key_hash
from shared.store.script import script, sources, target
from shared.webhooks import stored_form, webhook_of

_FIELDS: Final = (
    "tenant", "state", "spec", "created_ms", "expires_ms", "attempts", "epoch", "started_ms", "first_token_ms", "ended_ms", "end_id",
    "error", "usage", "cost_nano_usd", "unpriced", "webhook",
)  # fmt: skip

_FLOWS_COUNTED: Final = 100
"""Flows that a queue position looks at before it scales up: 1 µs of Redis each."""

_OF_BATCH: Final = b"batch"
"""For the webhook of an item: its batch has it."""

_PAGE_SCANNED: Final = 200
_PAGES_SCANNED: Final = 25
"""A filtered list looks at 5,000 jobs at most; then the page is short and ``next`` goes on."""

_CLOCK_SLACK_MS: Final = 5_000

_BELIEVED_MS: Final = 10_000
"""An API process that did not say for so long that it lives is gone, and its clients with it."""
_ABANDONED_AT_ONCE: Final = 100

TIMEOUT_ERROR: Final = JobError("timeout", "The job was not done within its timeout_s.", retryable=True)


class Created(NamedTuple):
    """A new job stands."""

    created_ms: int
    expires_ms: int
    queue_position: int | None
    limits: tuple[LimitState, ...] = ()
    """Of those that are set, how they stand behind it."""


class Replayed(NamedTuple):
    """The Idempotency-Key has its job already."""

    job_id: str


class Page(NamedTuple):
    """Jobs, newest first, and where the next page begins."""

    jobs: list[Job]
    next_after: str | None


def retention(settings: Settings) -> str:
    """In milliseconds: log, result, idempotency record, log of a batch's item; as every script that ends a job takes them."""
    spans_s = (
        settings.log_retention_s,
        settings.result_retention_s,
        settings.idempotency_retention_s,
        settings.batch_log_retention_s,
    )
    return ",".join(str(int(span_s * 1000)) for span_s in spans_s)


def overdue_arguments(settings: Settings) -> tuple[str | int | bytes, ...]:
    """How CLAIM and EXPIRE end what waited too long."""
    return (
        sources(Step.EXPIRE),
        target(Step.EXPIRE),
        sources(Step.TIME_OUT),
        target(Step.TIME_OUT),
        msgspec.json.encode(TIMEOUT_ERROR),
        retention(settings),
    )


class Jobs:
    """The records of a shard."""

    def __init__(self, commands: Commands, settings: Settings) -> None:
        self._commands = commands
        self._settings = settings
        self._routes = routes_of(settings)
        self._estimates = Estimates(settings)

    async def submit(self, submission: Submission, *, expires_in_s: int) -> Created | Replayed:
        """A job is born, in one step with its idempotency record and its place in the queue.

        Called again with the same key and body it finds the first job, and changes nothing.
        Raises IdempotencyKeyReused, QueueFull, StorageFull, StorageUnavailable; RateLimited, TooManyQueued, BudgetExceeded,
        and InvalidRequest for what no limit will ever let in. What is refused was counted nowhere.
        """
        spec = submission.spec
        reserved = Reservation() if spec.kind is JobKind.COUNT_TOKENS else submission.reservation
        reply = await self._commands.run(
            script("submit"),
            submission.id,
            submission.tenant,
            keys.flow_of(
                spec.priority,
                submission.tenant,
                self._routes.chain_name_of(spec.model),
                key_id=spec.key_id if submission.limits.hold_back_claims else "",
            ),
            JobState.QUEUED,
            submission.request,
            msgspec.json.encode(spec),
            spec.timeout_s * 1000,
            expires_in_s * 1000,
            "" if spec.not_before_ms is None else spec.not_before_ms,
            key_hash(submission.idempotency_key) if submission.idempotency_key else "",
            submission.fingerprint,
            self._settings.max_queued,
            _FLOWS_COUNTED,
            submission.attended_by,
            int(spec.kind is JobKind.COUNT_TOKENS),
            _BELIEVED_MS,
            reserved.tokens,
            spec.key_id,
            *arguments_of(submission.limits),
            stored_form(submission.webhook),
            reserved.max_tokens,
            self._estimates.of(spec.model, submission.reservation),
        )
        match reply:
            case [b"created", created_ms, expires_ms, position, told]:
                return Created(
                    int(created_ms), int(expires_ms), position if position > 0 else None, limits.states_of(told)
                )
            case [b"replayed", job_id]:
                return Replayed(job_id.decode())
            case [b"reused"]:
                raise IdempotencyKeyReused
            case [b"full"]:
                raise QueueFull
            case _:
                raise limits.problem_of(reply)

    async def get(self, job_id: str, tenant: str, *, with_result: bool = False) -> Job:
        """The job as it stands; an overdue one ends first. Raises NotFound, for foreign ids too."""
        (found,) = await self.get_many([job_id], tenant, with_result=with_result)
        if found is None:
            raise NotFound
        return found

    async def get_many(self, job_ids: Sequence[str], tenant: str, *, with_result: bool = False) -> list[Job | None]:
        """As ``get``, in one round trip; None for each that is not there."""
        if not job_ids:
            return []
        # The owner and the rest of a record come in one command, and a record is small. What may be large is asked for by
        # a script that looks whose it is first: a foreign id takes as long as an absent one.
        replies = [self._commands.call("HMGET", keys.job(job_id), *_FIELDS) for job_id in job_ids]
        results = [self._content(job_id, tenant, "result") for job_id in job_ids] if with_result else []
        records = [await reply for reply in replies]
        raws = [await raw for raw in results] or [None] * len(job_ids)
        jobs = [
            _job_of(job_id, record, raw) if record[0] == tenant.encode() else None
            for job_id, record, raw in zip(job_ids, records, raws, strict=True)
        ]
        overdue = [job.id for job in jobs if job is not None and _may_be_overdue(job)]
        if overdue:
            ended, _ = await self._commands.run(script("expire"), 0, *overdue_arguments(self._settings), *overdue)
            if ended:
                return await self.get_many(job_ids, tenant, with_result=with_result)
        return jobs

    async def request_of(self, job_id: str, tenant: str) -> tuple[Job, bytes]:
        """The job and the upstream request that it was submitted with. Raises NotFound."""
        reply = self._content(job_id, tenant, "request")
        job = await self.get(job_id, tenant)
        return job, await reply or b"{}"

    def _content(self, job_id: str, tenant: str, kind: str) -> "asyncio.Future[bytes | None]":
        return self._commands.run(script("content"), job_id, tenant, kind)

    async def positions(self, job_ids: Sequence[str]) -> list[int | None]:
        """The queue position of each: 1 starts next; None if it waits in no flow."""
        if not job_ids:
            return []
        reply = await self._commands.run(script("locate"), _FLOWS_COUNTED, *job_ids)
        return [position if position > 0 else None for position in reply]

    async def list(
        self, tenant: str, *, after: str | None, limit: int, state: JobState | None, batch_id: str | None
    ) -> Page:
        """The tenant's jobs, newest first. With a filter a page may be short of ``limit`` and still have a next."""
        if batch_id is not None:
            return await self._list_items(tenant, batch_id, after, limit, state)
        found: list[Job] = []
        filtered = state is not None
        last = after
        for _ in range(_PAGES_SCANNED if filtered else 2):
            start = f"({last}" if last else "+"
            count = _PAGE_SCANNED if filtered else limit + 1
            members = await self._commands.call("ZREVRANGEBYLEX", keys.index(tenant), start, "-", "LIMIT", 0, count)
            ids = [member.decode() for member in members]
            for job_id, job in zip(ids, await self.get_many(ids, tenant), strict=True):
                if job is not None and state in (None, job.state):
                    if len(found) == limit:
                        return Page(found, found[-1].id)
                    found.append(job)
                last = job_id
            if len(ids) < count:
                return Page(found, None)
        return Page(found, last)

    async def _list_items(
        self, tenant: str, batch_id: str, after: str | None, limit: int, state: JobState | None
    ) -> Page:
        """The items of a batch, last line first: they stand in the batch's own list, and not in the tenant's."""
        found: list[Job] = []
        last, before = after, ""
        pages = 0
        while (
            pages < _PAGES_SCANNED or last == after
        ):  # a page needs a job to go on from; lines that never were have none
            pages += 1
            behind = "" if before else after or ""
            first, *raw_ids = await self._commands.run(
                script("list_items"), batch_id, tenant, _PAGE_SCANNED, behind, before
            )
            ids = [raw_id.decode() for raw_id in raw_ids]
            for job in await self.get_many(ids, tenant):
                if job is not None and state in (None, job.state):
                    if len(found) == limit:
                        return Page(found, found[-1].id)
                    found.append(job)
            if first == 1:
                return Page(found, None)
            last, before = (ids[-1] if ids else last), str(first)
        return Page(found, last)

    def charge(
        self, job_id: str, cost: int | str, *, tenant: str, key_id: str = "", epoch: int = 0
    ) -> "asyncio.Future[int]":
        """Adds what a call cost (nano-dollars, or UNPRICED) that ended behind its job's back. A job that is gone stays so; its
        tenant and its API key pay all the same.

        With the ``epoch`` of a claim it is not added if that claim's FINISH or RELEASE was heard, which told it.
        """
        return self._commands.run(script("charge"), job_id, cost, epoch, tenant, key_id)

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Ends the job at once. False if it had ended before. Raises NotFound."""
        reply = await self._commands.run(
            script("cancel"), job_id, tenant, sources(Step.CANCEL), target(Step.CANCEL), retention(self._settings)
        )
        if reply < 0:
            raise NotFound
        return bool(reply)

    async def attend(self, name: str) -> None:
        """The API process of that name lives: its clients still wait for the jobs that carry it."""
        await self._commands.run(script("attend"), name, _BELIEVED_MS)

    async def abandon(self) -> Sequence[str]:
        """Cancels jobs whose client waited at an API process that is gone. Returns their ids."""
        ids = await self._commands.run(
            script("abandon"),
            _ABANDONED_AT_ONCE,
            sources(Step.CANCEL),
            target(Step.CANCEL),
            retention(self._settings),
            _BELIEVED_MS,
        )
        return [job_id.decode() for job_id in ids]

    async def erase(self, job_id: str, tenant: str) -> None:
        """Prompt, log and result are gone. Raises NotFound, NotEnded."""
        reply = await self._commands.run(script("erase"), job_id, tenant, ",".join(sorted(TERMINAL_STATES)))
        if reply < 0:
            raise NotFound
        if not reply:
            raise NotEnded

    async def expire(self, most: int = 200) -> tuple[int, float | None]:
        """Ends queued jobs whose time is over. Returns how many, and the seconds until the next."""
        ended, next_ms = await self._commands.run(script("expire"), most, *overdue_arguments(self._settings))
        return ended, None if int(next_ms) < 0 else int(next_ms) / 1000

    async def sweep(self, cursor: int, *, steps: int = 20) -> tuple[int, int]:
        """Looks at some thousand records for strays: not ended, and neither waiting nor running. Expected: 0.

        Returns (how many, the cursor to go on from; 0 after the last record).
        """
        strays = 0
        for _ in range(steps):
            reply_cursor, names = await self._commands.call("SCAN", cursor, "MATCH", keys.job("*"), "COUNT", 500)
            cursor = int(reply_cursor)
            ids = [name.decode().removeprefix(keys.job("")) for name in names]
            looks = [
                (
                    self._commands.call("HMGET", keys.job(job_id), "state", "epoch"),
                    self._commands.call("ZSCORE", keys.plain("waiting"), job_id),
                    self._commands.call("ZSCORE", keys.plain("running"), job_id),
                    self._commands.call("HMGET", keys.job(job_id), "state", "epoch"),
                )
                for job_id in ids
            ]
            for first, waiting, running, last in looks:
                state, _ = record = await first
                is_nowhere = (await waiting, await running) == (None, None)
                has_moved = await last != record  # from one place to the other, between the looks
                strays += bool(state) and state.decode() not in TERMINAL_STATES and is_nowhere and not has_moved
            if cursor == 0:
                break
        return strays, cursor


def _may_be_overdue(job: Job) -> bool:
    """By our clock and some slack, to spare most reads the question; Redis's clock decides."""
    deadline_ms = job.expires_ms if job.started_ms is None else job.started_ms + job.spec.timeout_s * 1000
    return job.state is JobState.QUEUED and deadline_ms < time.time_ns() // 1_000_000 + _CLOCK_SLACK_MS


def _job_of(job_id: str, record: list[Any], raw_result: bytes | None) -> Job:
    (
        tenant,
        state,
        spec,
        created_ms,
        expires_ms,
        attempts,
        epoch,
        started_ms,
        first_token_ms,
        ended_ms,
        end_id,
        error,
        usage,
        cost,
        unpriced,
        webhook,
    ) = record
    return Job(
        id=job_id,
        tenant=tenant.decode(),
        state=JobState(state.decode()),
        spec=msgspec.json.decode(spec, type=JobSpec),
        created_ms=int(created_ms),
        expires_ms=int(expires_ms),
        attempts=int(attempts or 0),
        epoch=int(epoch or 0),
        started_ms=_int(started_ms),
        first_token_ms=_int(first_token_ms),
        ended_ms=_int(ended_ms),
        end_id=end_id.decode() if end_id else None,
        error=msgspec.json.decode(error, type=JobError) if error else None,
        usage=msgspec.json.decode(usage, type=Usage) if usage else None,
        cost_usd=int(cost) / 1_000_000_000 if cost and not unpriced else None,
        webhook=webhook_of(webhook) if webhook and webhook != _OF_BATCH else None,
        # Read behind the record: FINISH may have come between, and then the state read is still an earlier one.
        result=msgspec.Raw(raw_result) if raw_result and state == JobState.SUCCEEDED.encode() else None,
    )


def _int(value: bytes | None) -> int | None:
    return int(value) if value else None
