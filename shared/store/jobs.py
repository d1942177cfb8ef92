"""Jobs as records: created, read, listed, cancelled, expired, erased. Every call names the tenant, and sees only its jobs."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from shared.errors import IdempotencyKeyReused, JobError, NotEnded, NotFound, QueueFull
from shared.estimates import Estimates
from shared.job import (
    TERMINAL_STATES,
    Job,
    JobKind,
    JobSpec,
    JobState,
    Step,
    Submission,
    Usage,
    first_id_of,
    id_at,
    spans_between,
)
from shared.job_filter import EVERY_JOB, JobFilter, labels_of
from shared.limits import LimitState, Reservation, argument_of
from shared.settings import Settings, routes_of
from shared.store import limits, redis_keys
from shared.store.commands import Commands
from shared.store.compression import restored, stored
from shared.store.idempotency import key_hash
from shared.store.memory import Memory
from shared.store.page import Bounds, Sized, Stretch, Stretches, WantedOf, read_page, sized, stretch_of, stretches_of
from shared.store.reads import RESULT_BYTES, ROW_BYTES, Reads, Record
from shared.store.script import Argument, sources, target
from shared.store.waits import FLOWS_COUNTED
from shared.webhooks import stored_form, webhook_of

JOB_FIELDS: Final = (
    "tenant", "state", "spec", "created_ms", "expires_ms", "attempts", "epoch", "claim_epoch", "started_ms", "first_token_ms",
    "last_token_ms", "published", "ended_ms", "end_id", "error", "usage", "cost_nano_usd", "unpriced", "webhook",
)  # fmt: skip

_FIELDS_OF_STATE: Final = ("state", "expires_ms", "started_ms", "timeout_ms", "key")

_OF_BATCH: Final = b"batch"
"""What an item's record holds in place of a webhook: the batch's record has it."""

_PAGE_SCANNED: Final = 200
_PAGES_SCANNED: Final = 25
"""A filtered list looks at 5,000 jobs at most; then the page is short and ``next`` goes on."""

_SPANS_AT_ONCE: Final = 64
"""Spans of ids in which a label is looked for in one command: three weeks."""

_CLOCK_SLACK_MS: Final = 5_000
_ID_SLACK_MS: Final = 60_000
"""How far the clock of an API process, which makes ids, may be from Redis's, which gives the time of the submit."""

_BELIEVED_MS: Final = 10_000
"""An API process that has been silent for this long counts as gone, and its clients with it."""
_ABANDONED_AT_ONCE: Final = 100
ERASED_AT_ONCE: Final = 20
"""Waiting jobs, which are cancelled first, take Redis a tenth of a millisecond each."""

Content = Literal["request", "result"]
"""The parts of a job that may be large."""

TIMEOUT_ERROR: Final = JobError("timeout", "The job was not done within its timeout_s.", retryable=True)


class Created(NamedTuple):
    """A new job is stored."""

    created_ms: int
    expires_ms: int
    position: int
    """1 starts next; 0 if its flow is parked, -1 if it is not due."""
    limits: tuple[LimitState, ...] = ()
    """State of each configured limit after this submit."""


class Replayed(NamedTuple):
    """The Idempotency-Key was used before, for this job."""

    job_id: str


class ErasedJobs(NamedTuple):
    """What one ``erase_some`` did."""

    erased: int
    cancelled: int
    """How many of the erased jobs had not ended."""
    is_more: bool


class Page(NamedTuple):
    """Jobs, newest first, and where the next page begins."""

    jobs: list[Job]
    next_after: str | None


def retention(settings: Settings) -> str:
    """The retentions in milliseconds, as the scripts that end jobs take them: log, result, idempotency record, log of an item."""
    spans_s = (
        settings.log_retention_s,
        settings.result_retention_s,
        settings.idempotency_retention_s,
        settings.batch_log_retention_s,
    )
    return ",".join(str(int(span_s * 1000)) for span_s in spans_s)


def overdue_arguments(settings: Settings) -> dict[str, Argument]:
    """The arguments by which CLAIM and EXPIRE end jobs that waited too long."""
    return {
        "expire_sources": sources(Step.EXPIRE),
        "expired": target(Step.EXPIRE),
        "time_out_sources": sources(Step.TIME_OUT),
        "failed": target(Step.TIME_OUT),
        "timeout_error": msgspec.json.encode(TIMEOUT_ERROR),
        "retention": retention(settings),
    }


def cancel_arguments(settings: Settings) -> dict[str, Argument]:
    """The arguments by which scripts cancel a job."""
    return {
        "sources": sources(Step.CANCEL),
        "cancelled": target(Step.CANCEL),
        "retention": retention(settings),
    }


class Jobs:
    """The jobs of a shard."""

    def __init__(self, commands: Commands, settings: Settings, reads: Reads, urgent: Commands, memory: Memory) -> None:
        self._commands = commands
        self._reads = reads
        self._urgent = urgent
        self._memory = memory
        self._settings = settings
        self._routes = routes_of(settings)
        self._estimates = Estimates(settings)

    async def submit(self, submission: Submission, *, expires_in_s: int) -> Created | Replayed:
        """Creates a job, in one step with its idempotency record and its place in the queue.

        Called again with the same Idempotency-Key and body, it finds the first job and changes nothing.
        Raises IdempotencyKeyReused, QueueFull, StorageFull, StorageUnavailable; RateLimited, TooManyQueued, BudgetExceeded,
        and InvalidRequest for what the limits never allow. A refused submit counts towards no limit.
        """
        spec = submission.spec
        reserved = Reservation() if spec.kind is JobKind.COUNT_TOKENS else submission.reservation
        reply = await self._commands.run(
            "submit",
            id=submission.id,
            tenant=submission.tenant,
            flow=redis_keys.flow_of(
                spec.priority,
                submission.tenant,
                self._routes.chain_name_of(spec.model),
                key_id=spec.key_id if submission.limits.hold_back_claims else "",
                end_user=spec.end_user,
            ),
            state=JobState.QUEUED,
            request=await stored(submission.request, self._settings.compress_above_bytes),
            spec=msgspec.json.encode(spec),
            timeout_ms=spec.timeout_s * 1000,
            expires_in_ms=expires_in_s * 1000,
            not_before_ms="" if spec.not_before_ms is None else spec.not_before_ms,
            idempotency_hash=key_hash(submission.idempotency_key) if submission.idempotency_key else "",
            fingerprint=submission.fingerprint,
            most_waiting=self._settings.max_queued,
            most_flows=FLOWS_COUNTED,
            attended_by=submission.attended_by,
            is_quiet=int(spec.kind is JobKind.COUNT_TOKENS),
            believed_ms=_BELIEVED_MS,
            tokens=reserved.tokens,
            max_tokens=reserved.max_tokens,
            key=spec.key_id,
            key_limits=argument_of(submission.limits),
            user=redis_keys.user_of(submission.tenant, spec.end_user),
            webhook=stored_form(submission.webhook),
            estimate=self._estimates.of(spec.model, submission.reservation),
            tenant_bytes=self._memory.tenant_bytes,
            labels=labels_of(spec),
        )
        match reply:
            case [b"created", created_ms, expires_ms, position, states]:
                return Created(int(created_ms), int(expires_ms), int(position), limits.states_of(states))
            case [b"replayed", job_id]:
                return Replayed(job_id.decode())
            case [b"reused"]:
                raise IdempotencyKeyReused
            case [b"full"]:
                raise QueueFull
            case _:
                raise limits.problem_of(reply)

    async def get(self, job_id: str, tenant: str, *, with_result: bool = False) -> Job:
        """The job as it is now; an overdue one ends first. Raises NotFound, also for another tenant's job, and TooManyReads."""
        # One command reads the record with its tenant, and a record is small. The result may be large: a script reads it,
        # which checks the tenant first, so that another tenant's id takes as long as an absent one.
        async with self._reads.turn(tenant, ROW_BYTES + RESULT_BYTES if with_result else ROW_BYTES):
            reply = self._commands.call("HMGET", redis_keys.job(job_id), *JOB_FIELDS)
            result = self._content(job_id, tenant, "result") if with_result else None
            record = await reply
            raw = await result if result is not None else None
            raw = raw and await restored(raw)
        if record[0] != tenant.encode():
            raise NotFound
        job = job_of(job_id, record, raw)
        if _may_be_overdue(job) and await self._end_overdue([job_id]):
            return await self.get(job_id, tenant, with_result=with_result)
        return job

    async def get_many(self, job_ids: Sequence[str], tenant: str) -> list[Job | None]:
        """As ``get``, without results and in few round trips; None for each that is not there. Raises TooManyReads."""
        found: list[Job | None] = []
        while len(found) < len(job_ids):
            found += [one and one.item for one in await self._some(job_ids[len(found) :], tenant)]
        return found

    async def _some(self, job_ids: Sequence[str], tenant: str) -> Sequence[Sized | None]:
        """The first of these jobs, as many as one read takes, with their sizes."""
        records = await self._reads.some(tenant, [redis_keys.job(job_id) for job_id in job_ids], JOB_FIELDS)
        found = sized(job_ids, records, lambda job_id, record: _own_job_of(job_id, record, tenant))
        overdue = [one.item.id for one in found if one is not None and _may_be_overdue(one.item)]
        if overdue and await self._end_overdue(overdue):
            return await self._some(job_ids, tenant)
        return found

    async def _end_overdue(self, job_ids: Sequence[str]) -> bool:
        """Ends those that are overdue. Returns whether any was."""
        ended, _ = await self._expire(0, job_ids)
        return bool(ended)

    async def request_of(self, job_id: str, tenant: str) -> tuple[Job, bytes]:
        """The job and the upstream request that it was submitted with. Raises NotFound, TooManyReads."""
        job = await self.get(job_id, tenant)
        async with self._reads.turn(tenant, self._settings.max_body_bytes):
            return job, await restored(await self._content(job_id, tenant, "request") or b"{}")

    # For jobs whose tenant was checked before: none of these checks it.

    async def state(self, job_id: str) -> JobState | None:
        """None if there is no such job any more."""
        found = await self._commands.call("HGET", redis_keys.job(job_id), "state")
        return JobState(found.decode()) if found else None

    async def attempts(self, job_id: str) -> int:
        """Upstream calls begun; also 0 if there is no such job any more."""
        return int(await self._commands.call("HGET", redis_keys.job(job_id), "attempts") or 0)

    async def contents(self, kind: Content, job_ids: Sequence[str]) -> list[bytes | None]:
        """Their requests or results; None for each that is not there. First take a turn for their ``sizes``."""
        read = ("HGET", redis_keys.job, "request") if kind == "request" else ("GET", redis_keys.result)
        found: list[bytes | None] = await self._each(job_ids, *read)
        return [kept and await restored(kept) for kept in found]

    async def sizes(self, kind: Content, job_ids: Sequence[str]) -> list[int]:
        """The bytes that their requests or results take in Redis; 0 for each that is not there."""
        read = ("HSTRLEN", redis_keys.job, "request") if kind == "request" else ("STRLEN", redis_keys.result)
        return await self._each(job_ids, *read)

    async def _each(self, job_ids: Sequence[str], command: str, key_of: Callable[[str], str], *field: str) -> list[Any]:
        replies = [self._commands.call(command, key_of(job_id), *field) for job_id in job_ids]
        return [await reply for reply in replies]

    def _content(self, job_id: str, tenant: str, kind: Content) -> "asyncio.Future[bytes | None]":
        return self._commands.run("content", id=job_id, tenant=tenant, kind=kind)

    async def list(self, tenant: str, wanted: JobFilter = EVERY_JOB, *, after: str | None, limit: int) -> Page:
        """The tenant's jobs that the filter means, newest first. A page may have fewer than ``limit`` jobs and still have a
        next: if its jobs are large, or with a filter. Raises TooManyReads.
        """
        label, left = (wanted.by_label() if wanted.batch_id is None else None) or ("", wanted)
        count = _PAGE_SCANNED if left.concerns_state or left.concerns_spec else limit + 1

        async def wanted_of(ids: Sequence[str]) -> Sequence[str]:
            return await self._with_spec(await self._in_state(ids, tenant, left), tenant, left)

        stretches: Stretches
        if wanted.batch_id is not None:
            stretches = self._stretches_of_batch(tenant, wanted.batch_id, after, count, wanted_of)
        elif label:
            await self.expire()  # as a read ends an overdue job first
            stretches = self._stretches_of_label(tenant, label, _bounds_of(wanted), count, wanted_of)
        elif wanted.status is JobState.RUNNING:
            stretches = self._stretches_of_running(tenant, count, wanted_of)
        else:
            stretches = stretches_of(
                self._commands, redis_keys.index(tenant), count=count, bounds=_bounds_of(wanted), wanted_of=wanted_of
            )

        async def read(ids: Sequence[str]) -> Sequence[Sized | None]:
            found = await self._some(ids, tenant)
            return [one if one is not None and wanted.matches(one.item) else None for one in found]

        jobs, next_after = await read_page(
            stretches, read, after=after, limit=limit, most_stretches=2 if wanted == EVERY_JOB else _PAGES_SCANNED
        )
        return Page(jobs, next_after)

    def _stretches_of_label(
        self, tenant: str, label: str, bounds: Bounds, count: int, wanted_of: WantedOf
    ) -> Stretches:
        """The jobs that have a label, in the spans of ids from the tenant's newest to its oldest."""

        async def stretch_after(last: str | None) -> Stretch:
            index = redis_keys.index(tenant)
            ends = [self._commands.call("ZRANGE", index, at, at) for at in (0, -1)]
            (oldest, newest) = [[member.decode() for member in await end] for end in ends]
            if not oldest:
                return Stretch((), None, True)
            newest_before = newest[0] + "~"
            before = min(bounds.earlier(last) or newest_before, newest_before)
            spans = spans_between(before, max(oldest[0], bounds.oldest or ""))
            some, is_end = spans[:_SPANS_AT_ONCE], len(spans) <= _SPANS_AT_ONCE
            found = await self._commands.run(
                "labelled", tenant=tenant, label=label, before=before, most=count, spans=some
            )
            ids = [raw_id.decode() for raw_id in found]
            stretch = await stretch_of(ids, count=count, wanted_of=wanted_of)
            if len(ids) < count and not is_end:
                return Stretch(stretch.ids, first_id_of(some[-1]), False)
            return stretch

        return stretch_after

    def _stretches_of_running(self, tenant: str, count: int, wanted_of: WantedOf) -> Stretches:
        """The jobs that run now: as many as there are slots."""

        async def stretch_after(last: str | None) -> Stretch:
            members = await self._commands.call("SMEMBERS", redis_keys.tenant_running(tenant))
            ids = sorted((member.decode() for member in members), reverse=True)
            return await stretch_of(
                [each for each in ids if last is None or each < last][:count], count=count, wanted_of=wanted_of
            )

        return stretch_after

    def _stretches_of_batch(
        self, tenant: str, batch_id: str, after: str | None, count: int, wanted_of: WantedOf
    ) -> Stretches:
        """The items of a batch, last line first: they are in the batch's own list, and not in the tenant's."""
        before = ""

        async def stretch_after(_last: str | None) -> Stretch:
            nonlocal before
            ids: list[str] = []
            first = 0
            while not ids and first != 1:  # the next page goes on from a job, and lines that never became one have none
                first, *raw_ids = await self._commands.run(
                    "list_items",
                    id=batch_id,
                    tenant=tenant,
                    most=count,
                    before_item="" if before else after or "",
                    before_line=before,
                )
                before = str(first)
                ids = [raw_id.decode() for raw_id in raw_ids]
            return Stretch(await wanted_of(ids), ids[-1] if ids else None, first == 1)

        return stretch_after

    async def _in_state(self, job_ids: Sequence[str], tenant: str, wanted: JobFilter) -> Sequence[str]:
        """The jobs that may be in that state, and have that key: only their records are read as a whole."""
        if not job_ids or not wanted.concerns_state:
            return job_ids
        records = await self._reads.small(tenant, [redis_keys.job(job_id) for job_id in job_ids], _FIELDS_OF_STATE)
        return [job_id for job_id, record in zip(job_ids, records, strict=True) if _may_be_in(wanted, record)]

    async def _with_spec(self, job_ids: Sequence[str], tenant: str, wanted: JobFilter) -> Sequence[str]:
        """Those that have that spec: of no other the whole record is read."""
        if not job_ids or not wanted.concerns_spec:
            return job_ids
        records = await self._reads.all(tenant, [redis_keys.job(job_id) for job_id in job_ids], ("spec",))
        return [
            job_id
            for job_id, (spec,) in zip(job_ids, records, strict=True)
            if spec and wanted.matches_spec(msgspec.json.decode(spec, type=JobSpec))
        ]

    def charge(
        self,
        job_id: str,
        cost: int | str,
        *,
        tenant: str,
        key_id: str = "",
        end_user: str | None = None,
        epoch: int = 0,
        last_token_ms: int | None = None,
    ) -> "asyncio.Future[int]":
        """Adds the cost (nano-dollars, or UNPRICED) of a call that ended after its claim. If the job is gone, its tenant, its
        API key and its end user still pay.

        With the ``epoch`` of a claim, nothing is added if that claim's FINISH or RELEASE has already added it.
        ``last_token_ms``: when the claim's newest content arrived.
        """
        return self._commands.run(
            "charge",
            id=job_id,
            cost=cost,
            epoch=epoch,
            tenant=tenant,
            key=key_id,
            user=redis_keys.user_of(tenant, end_user),
            last_token_ms="" if last_token_ms is None else last_token_ms,
        )

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Ends the job at once. False if it had ended before. Raises NotFound."""
        reply = await self._commands.run("cancel", id=job_id, tenant=tenant, **cancel_arguments(self._settings))
        if reply < 0:
            raise NotFound
        return bool(reply)

    async def attend(self, name: str, followers: int = 0) -> None:
        """The API process of that name is alive: its clients still wait for the jobs that name it. It has so many followers."""
        await self._urgent.run("attend", name=name, believed_ms=_BELIEVED_MS, followers=followers)

    async def abandon(self) -> Sequence[str]:
        """Cancels jobs whose client waited at an API process that is gone. Returns their ids."""
        ids = await self._commands.run(
            "abandon", most=_ABANDONED_AT_ONCE, **cancel_arguments(self._settings), believed_ms=_BELIEVED_MS
        )
        return [job_id.decode() for job_id in ids]

    async def erase(self, job_id: str, tenant: str) -> None:
        """Erases the job: its prompt, log and result. Raises NotFound, NotEnded."""
        terminal = ",".join(sorted(TERMINAL_STATES))
        reply = await self._commands.run("erase", id=job_id, tenant=tenant, terminal=terminal)
        if reply < 0:
            raise NotFound
        if not reply:
            raise NotEnded

    async def erase_some(self, tenant: str, job_ids: Sequence[str] = ()) -> ErasedJobs:
        """Erases these jobs of the tenant, at most ERASED_AT_ONCE, whatever they are doing. Without ids: the next ones that it can list,
        which are not the items of its batches. Safe to repeat.
        """
        erased, cancelled, is_more = await self._commands.run(
            "erase_jobs", tenant=tenant, most=ERASED_AT_ONCE, **cancel_arguments(self._settings), ids=job_ids
        )
        return ErasedJobs(erased, cancelled, bool(is_more))

    async def expire(self, most: int = 200) -> tuple[int, float | None]:
        """Ends queued jobs whose time is over. Returns how many, and the seconds until the next; None if no job waits."""
        ended, next_ms = await self._expire(most)
        return ended, None if int(next_ms) < 0 else int(next_ms) / 1000

    def _expire(self, most: int, job_ids: Sequence[str] = ()) -> "asyncio.Future[Any]":
        return self._commands.run("expire", most=most, **overdue_arguments(self._settings), ids=job_ids)

    async def sweep(self, cursor: int, *, steps: int = 20) -> tuple[int, int]:
        """Looks for strays among a few thousand records: jobs that have not ended, and neither wait nor run. Expected: 0.

        Returns (how many strays, the cursor to go on from; 0 after the last record).
        """
        strays = 0
        for _ in range(steps):
            reply_cursor, names = await self._commands.call("SCAN", cursor, "MATCH", redis_keys.job("*"), "COUNT", 500)
            cursor = int(reply_cursor)
            ids = [name.decode().removeprefix(redis_keys.job("")) for name in names]
            looks = [
                (
                    self._commands.call("HMGET", redis_keys.job(job_id), "state", "epoch"),
                    self._commands.call("ZSCORE", redis_keys.plain("waiting"), job_id),
                    self._commands.call("ZSCORE", redis_keys.plain("running"), job_id),
                    self._commands.call("HMGET", redis_keys.job(job_id), "state", "epoch"),
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
    """By our clock with some slack, so that most reads need not ask Redis, whose clock decides."""
    deadline_ms = job.expires_ms if job.started_ms is None else job.started_ms + job.spec.timeout_s * 1000
    return job.state is JobState.QUEUED and _is_about_over(deadline_ms)


def _is_about_over(deadline_ms: int) -> bool:
    return deadline_ms < time.time_ns() // 1_000_000 + _CLOCK_SLACK_MS


def _bounds_of(wanted: JobFilter) -> Bounds:
    """The ids of jobs that were created in that time."""
    after_ms, before_ms = wanted.created_after_ms, wanted.created_before_ms
    return Bounds(
        None if after_ms is None else id_at("job", max(0, after_ms - _ID_SLACK_MS)),
        None if before_ms is None else id_at("job", before_ms + _ID_SLACK_MS),
    )


def _may_be_in(wanted: JobFilter, record: Record) -> bool:
    """By the fields in _FIELDS_OF_STATE. An overdue job may be in another state, because a read ends it first."""
    state, expires_ms, started_ms, timeout_ms, key = record
    if state is None or (wanted.key_id is not None and key != wanted.key_id.encode()):
        return False
    status = wanted.status or (JobState.FAILED if wanted.error_code else None)
    if status in (None, state.decode()):
        return True
    if state.decode() != JobState.QUEUED or status not in TERMINAL_STATES:
        return False
    return _is_about_over(int(expires_ms) if started_ms is None else int(started_ms) + int(timeout_ms))


def _own_job_of(job_id: str, record: Record, tenant: str) -> Job | None:
    return job_of(job_id, record) if record[0] == tenant.encode() else None


def job_of(job_id: str, record: Record, raw_result: bytes | None = None) -> Job:
    """The job whose record has these JOB_FIELDS."""
    fields = dict(zip(JOB_FIELDS, record, strict=True))
    state, webhook = JobState(fields["state"].decode()), fields["webhook"]
    claim_epoch, last_token_ms = int(fields["claim_epoch"] or 0), _int(fields["last_token_ms"])
    return Job(
        id=job_id,
        tenant=fields["tenant"].decode(),
        state=state,
        spec=msgspec.json.decode(fields["spec"], type=JobSpec),
        created_ms=int(fields["created_ms"]),
        expires_ms=int(fields["expires_ms"]),
        attempts=int(fields["attempts"] or 0),
        epoch=int(fields["epoch"] or 0),
        claim_epoch=claim_epoch,
        started_ms=_int(fields["started_ms"]),
        first_token_ms=_int(fields["first_token_ms"]),
        has_published=fields["published"] is not None,
        last_token_ms=last_token_ms if last_token_ms and last_token_ms >= claim_epoch else None,
        ended_ms=_int(fields["ended_ms"]),
        end_id=fields["end_id"].decode() if fields["end_id"] else None,
        error=msgspec.json.decode(fields["error"], type=JobError) if fields["error"] else None,
        usage=msgspec.json.decode(fields["usage"], type=Usage) if fields["usage"] else None,
        cost_usd=cost_usd_of(fields),
        webhook=webhook_of(webhook) if webhook and webhook != _OF_BATCH else None,
        # The result is read after the record. If FINISH ran in between, the state in the record is still the one before.
        result=msgspec.Raw(raw_result) if raw_result and state is JobState.SUCCEEDED else None,
    )


def cost_usd_of(fields: Mapping[str, Any]) -> float | None:
    """The cost in a job's or a batch's record; None if a call's price is unknown, and until the first call has ended."""
    cost = fields["cost_nano_usd"]
    return int(cost) / 1_000_000_000 if cost and not fields["unpriced"] else None


def _int(value: bytes | None) -> int | None:
    return int(value) if value else None
