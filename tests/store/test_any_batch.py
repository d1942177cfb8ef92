"""Any history of batches and other jobs: every line has exactly one outcome, and the sums agree.

A state machine as in test_any_history: batches arrive, start, are cancelled, dropped and erased in portions, between
claims, ends, deaths and expiries of their items. A small model says what each batch and line must be.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import pytest
from hypothesis import event
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.batch import Batch, BatchState, InvalidItem, NewItem
from shared.errors import IdempotencyKeyReused, NotEnded, NotFound
from shared.job import TERMINAL_STATES, JobState, Priority, Step, Usage
from shared.job_filter import JobFilter
from shared.limits import CallerLimits
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.batches import Known, Order
from shared.store.idempotency import fingerprint_of
from shared.store.jobs import Created, Replayed
from shared.store.log import REFUSED
from shared.store.queue import (
    ALONE_TAKEOVERS,
    FATAL_TAKEOVERS,
    SUSPECT_TAKEOVERS,
    UNPRICED,
    Claim,
    Cost,
    Ending,
    Finished,
)
from shared.store.runtime import Runtime, open_runtime
from tests.support.builders import a_bad_line, a_batch_id, a_line, a_submission, a_text_delta
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    A_RESULT,
    Begun,
    all_keys,
    assert_consistent,
    begin,
    claim,
    expire_leases,
    keys_that_leak,
    kind_of,
    make_batch_due,
    make_due,
    make_overdue,
    members,
    now_ms,
    record_of,
)

TENANTS: Final = ("tenant-a", "tenant-b")
IDEMPOTENCY_KEYS: Final = ("key-1", "key-2")
PIECE: Final = 3
A_LONG_LEASE_S: Final = 600
MOST_BATCHES: Final = 8

OF_A_JOB = st.sampled_from(["model-1", "model-2"])
LINES = st.lists(st.tuples(st.sampled_from(["model-1", "model-1", "model-2", ""]), st.sampled_from([0, 0, 0, 2])), min_size=1, max_size=4)  # fmt: skip
"""For each line its model (empty: it is invalid), and the number of blank lines before it."""
COSTS = st.sampled_from([None, 0, 7, 1_000, UNPRICED])
SUCCESS_USAGES = st.sampled_from([None, Usage(1, 2, 3, 4), Usage(input_tokens=10, output_tokens=5)])


def _with_key(tenant: str) -> dict[str, Any]:
    """One tenant has an API key with limits too high to be reached, so that all is counted and it has its own flows."""
    wide = CallerLimits(10_000, 1_000_000, 10_000, 10_000, 10**15, 10**15)
    return {"key_id": "key-b", "key_limits": wide} if tenant == "tenant-b" else {}


@dataclass(eq=False)
class Job:
    """What must be true of one job, which may be an item of a batch."""

    id: str
    tenant: str
    priority: Priority
    batch: "Sent | None" = None
    state: JobState = JobState.QUEUED
    is_placed: bool = True
    """For items: whether ADVANCE has queued them."""
    is_there: bool = True
    """Whether it has a record."""
    is_deferred: bool = False
    is_aged: bool = False
    """Whether the test moved its deadline into the past."""
    has_started: bool = False
    held: Claim | None = None
    """The claim that may write, if there is one."""
    over: list[Claim] = field(default_factory=list)
    """Claims that may no longer write."""
    next_seq: int = 0
    is_confirmed: bool = False
    takeovers: int = 0
    ended_by: Claim | None = None
    released_by: Claim | None = None
    usage: Usage | None = None
    cost: int | None = None
    is_unpriced: bool = False
    record_at_end: dict[bytes, bytes] | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def is_live(self) -> bool:
        """Whether it can be cancelled."""
        return self.is_placed and not self.has_ended

    def stop(self, state: JobState) -> None:
        """The claim is over; the job is in ``state``."""
        if self.held:
            self.over.append(self.held)
        self.held, self.is_confirmed, self.state = None, False, state
        self.is_deferred = False
        if self.batch:
            self.batch.settle()

    def charge(self, cost: Cost) -> None:
        """A deleted job is not charged, and neither is its batch."""
        if not self.is_there or cost is None:
            return
        charged_to: list[Job | Sent] = [self, self.batch] if self.batch else [self]
        for charged in charged_to:
            if cost == UNPRICED:
                charged.is_unpriced = True
            else:
                charged.cost = (charged.cost or 0) + int(cost)


@dataclass(eq=False)
class Sent:
    """What must be true of one batch."""

    id: str
    tenant: str
    state: BatchState | None = BatchState.RECEIVING
    """None: it is deleted."""
    lines: list[Job | InvalidItem | None] = field(default_factory=list)
    """By number, from 1; None is a blank line."""
    is_deferred: bool = False
    was_started: bool = False
    started_to: int = 0
    cancelled_to: int = 0
    kept_to: int = 0
    erased_to: int = 0
    cost: int | None = None
    is_unpriced: bool = False
    ended_lines: list[int] = field(default_factory=list)
    """In the order of their ends."""
    at_end: Batch | None = None

    @property
    def jobs(self) -> list[Job]:
        return [line for line in self.lines if isinstance(line, Job)]

    @property
    def is_seen(self) -> bool:
        """Whether its tenant can see it."""
        return self.state in (BatchState.RUNNING, BatchState.CANCELLING, BatchState.ENDED)

    @property
    def outcomes(self) -> dict[int, JobState]:
        """The outcomes of the ended lines, by line number."""
        states = {
            number: line.state if isinstance(line, Job) else JobState.FAILED
            for number, line in enumerate(self.lines, 1)
            if line is not None
        }
        return {number: state for number, state in states.items() if state in TERMINAL_STATES}

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(job.state for job in self.jobs)
        counts[JobState.FAILED] += sum(isinstance(line, InvalidItem) for line in self.lines)
        return {"total": sum(counts.values()), **{state: counts[state] for state in JobState}}

    def settle(self) -> None:
        """Ends the batch if its last item has ended."""
        if self.is_seen and all(job.has_ended for job in self.jobs):
            self.state = BatchState.ENDED

    def begin(self) -> None:
        """START has started it."""
        self.state, self.was_started = BatchState.RUNNING, True
        self.settle()

    def advance(self) -> bool:
        """Does what the next portion must do. Returns whether more is left."""
        if self.state is BatchState.DROPPED:
            return self._erase_some()
        if self.state in (None, BatchState.RECEIVING):
            return False
        is_cancelling = self.state is BatchState.CANCELLING
        if self.state is BatchState.ENDED and self.kept_to < len(self.lines):
            self.kept_to = min(self.kept_to + PIECE, len(self.lines))
        elif is_cancelling and self.cancelled_to < self.started_to:
            self._cancel_some(min(self.cancelled_to + PIECE, self.started_to))
        elif self.started_to < len(self.lines):
            self._start_some(min(self.started_to + PIECE, len(self.lines)))
            if is_cancelling:
                self._cancel_some(self.started_to)
        else:
            return False
        return True

    def _start_some(self, to: int) -> None:
        for job in _jobs_in(self.lines[self.started_to : to]):
            job.is_placed, job.is_deferred = True, self.is_deferred
        self.started_to = to

    def _cancel_some(self, to: int) -> None:
        for job in _jobs_in(self.lines[self.cancelled_to : to]):
            if not job.has_ended:
                job.stop(JobState.CANCELLED)
        self.cancelled_to = to

    def _erase_some(self) -> bool:
        to = min(self.erased_to + PIECE, len(self.lines))
        for job in _jobs_in(self.lines[self.erased_to : to]):
            job.is_there = False
        self.erased_to = to
        if to == len(self.lines):
            self.state = None
        return self.state is not None


def _jobs_in(lines: Iterable[Job | InvalidItem | None]) -> list[Job]:
    return [line for line in lines if isinstance(line, Job)]


class AnyBatch(RuleBasedStateMachine):
    """One history. ``runner`` and ``runtime`` are set by the test."""

    runner: ClassVar[asyncio.Runner]
    runtime: ClassVar[Runtime]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        """All jobs by id, including items."""
        self.batches: list[Sent] = []
        self.keys: dict[tuple[str, str], Known] = {}
        self.suspects: dict[str, int] = {}
        """Takeovers of the suspects that the worker runs, or ran when it was taken for dead."""
        self.fallen: set[str] = set()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def some_job(self, draw: st.DataObject, *states: JobState) -> Job:
        return draw.draw(st.sampled_from(self.jobs_in(*states)))

    def jobs_in(self, *states: JobState) -> list[Job]:
        return [job for job in self.jobs.values() if job.state in states and job.is_placed and job.is_there]

    def some_batch(self, draw: st.DataObject, *states: BatchState | None) -> Sent:
        return draw.draw(st.sampled_from(self.batches_in(*states)))

    def batches_in(self, *states: BatchState | None) -> list[Sent]:
        return [batch for batch in self.batches if batch.state in states]

    @initialize()
    def empty(self) -> None:
        async def flush() -> None:
            await self.runtime._commands.call("FLUSHDB")

        self.run(flush())

    # How batches arrive

    @precondition(lambda self: sum(batch.state is not None for batch in self.batches) < MOST_BATCHES)
    @rule(tenant=st.sampled_from(TENANTS))
    def open(self, tenant: str) -> None:
        batch = Sent(a_batch_id(), tenant)
        self.run(self.runtime.batches.open(batch.id, tenant, **_with_key(tenant)))
        self.batches.append(batch)

    @precondition(lambda self: self.batches_in(BatchState.RECEIVING))
    @rule(draw=st.data(), given=LINES)
    def add(self, draw: st.DataObject, given: list[tuple[str, int]]) -> None:
        self._add(self.some_batch(draw, BatchState.RECEIVING), given)

    def _add(self, batch: Sent, given: list[tuple[str, int]]) -> None:
        added: list[NewItem | InvalidItem] = []
        for model, blank in given:
            batch.lines += [None] * blank
            number = len(batch.lines) + 1
            if model:
                item = a_line(number, model=model)
                job = Job(item.job_id, batch.tenant, Priority.LOW, batch, is_placed=False)
                self.jobs[job.id] = job
                batch.lines.append(job)
                added.append(item)
            else:
                bad = a_bad_line(number)
                batch.lines.append(bad)
                added.append(bad)
        self.run(self.runtime.batches.add(batch.id, batch.tenant, added, **_with_key(batch.tenant)))

    @precondition(lambda self: self.batches_in(BatchState.RECEIVING))
    @rule(
        draw=st.data(),
        key=st.none() | st.sampled_from(IDEMPOTENCY_KEYS),
        body=st.sampled_from(["body-1", "body-1", "body-2"]),
        is_deferred=st.sampled_from([False, False, False, True]),
    )
    def start(self, draw: st.DataObject, key: str | None, body: str, is_deferred: bool) -> None:
        self._start(self.some_batch(draw, BatchState.RECEIVING), key, body, is_deferred=is_deferred)

    def _start(self, batch: Sent, key: str | None, body: str, *, is_deferred: bool) -> None:
        async def start() -> str:
            not_before_ms = await now_ms(self.runtime) + 3_600_000 if is_deferred else None
            return await begin(
                self.runtime,
                Begun(batch.id, batch.tenant, ()),
                idempotency_key=key,
                body=body,
                not_before_ms=not_before_ms,
                **_with_key(batch.tenant),
            )

        known = self.keys.get((batch.tenant, key)) if key else None
        if known is None:
            assert self.run(start()) == batch.id
            batch.is_deferred = is_deferred
            batch.begin()
            if key:
                self.keys[batch.tenant, key] = Known(batch.id, fingerprint_of(body))
            return
        batch.state = BatchState.DROPPED
        if known.fingerprint == fingerprint_of(body):
            event("a start was replayed")
            assert self.run(start()) == known.id
        else:
            event("a start was refused for its key")
            with pytest.raises(IdempotencyKeyReused):
                self.run(start())

    @precondition(lambda self: sum(batch.state is not None for batch in self.batches) < MOST_BATCHES)
    @rule(
        tenant=st.sampled_from(TENANTS),
        slices=st.lists(LINES, min_size=1, max_size=3),
        key=st.none() | st.sampled_from(IDEMPOTENCY_KEYS),
        pieces=st.integers(0, 3),
    )
    def a_batch_comes(self, tenant: str, slices: list[list[tuple[str, int]]], key: str | None, pieces: int) -> None:
        """A complete batch, so that most histories have some with several portions."""
        self.open(tenant)
        batch = self.batches[-1]
        for given in slices:
            self._add(batch, given)
        self._start(batch, key, "body-1", is_deferred=False)
        for _ in range(pieces):
            self._advance(batch)

    @precondition(lambda self: self.batches)
    @rule(draw=st.data())
    def drop(self, draw: st.DataObject) -> None:
        """A drop after the start changes nothing."""
        batch = draw.draw(st.sampled_from(self.batches_in(BatchState.RECEIVING) or self.batches))
        self.run(self.runtime.batches.drop(batch.id, batch.tenant))
        if batch.state is BatchState.RECEIVING:
            batch.state = BatchState.DROPPED

    @precondition(lambda self: any(batch.state is not BatchState.RECEIVING for batch in self.batches))
    @rule(draw=st.data())
    def a_receiver_is_late(self, draw: st.DataObject) -> None:
        """Its batch was dropped, or was started by a call whose reply was lost."""
        others = [batch for batch in self.batches if batch.state is not BatchState.RECEIVING]
        batch = draw.draw(st.sampled_from(others))
        with pytest.raises(NotFound):
            self.run(self.runtime.batches.add(batch.id, batch.tenant, [a_line(len(batch.lines) + 1)]))
        with pytest.raises(NotFound):
            self.run(begin(self.runtime, Begun(batch.id, batch.tenant, ()), idempotency_key="key-3"))

    # What is done in portions

    @precondition(lambda self: self.batches)
    @rule(draw=st.data())
    def advance(self, draw: st.DataObject) -> None:
        at_work = [batch for batch in self.batches if batch.state not in (None, BatchState.RECEIVING)]
        self._advance(draw.draw(st.sampled_from(at_work or self.batches)))

    def _advance(self, batch: Sent) -> bool:
        has_more = self.run(self.runtime.batches.advance(batch.id))
        assert has_more is batch.advance()
        return has_more

    @precondition(lambda self: self.batches)
    @rule(draw=st.data(), does_all=st.booleans(), are_silent=st.sampled_from([False, False, True]))
    def another_process_looks(self, draw: st.DataObject, does_all: bool, are_silent: bool) -> None:
        """The process that worked on some batches has died: received ones are dropped, started ones go on."""
        due = self.run(members(self.runtime, redis_keys.plain("due")))
        if not are_silent:
            receiving = [batch.id for batch in self.batches_in(BatchState.RECEIVING)]
            due = [batch_id for batch_id in due if batch_id not in receiving]
        chosen = draw.draw(st.lists(st.sampled_from(due), unique=True, max_size=3)) if due else []
        self._looks(chosen, does_all=does_all)

    def _looks(self, chosen: list[str], *, does_all: bool) -> None:
        async def look() -> list[str]:
            later_ms = await now_ms(self.runtime) + 60_000
            for batch_id in await members(self.runtime, redis_keys.plain("due")):
                await self.runtime._commands.call("ZADD", redis_keys.plain("due"), "XX", later_ms, batch_id)
            await make_batch_due(self.runtime, *chosen)
            if does_all:
                await self.runtime.batches.advance_due()
                return chosen
            return await self.runtime.batches.due()

        assert set(self.run(look())) == set(chosen)
        for batch in self.batches:
            if batch.id in chosen:
                if batch.state is BatchState.RECEIVING:
                    event("a batch fell silent")
                    batch.state = BatchState.DROPPED
                while does_all and batch.advance():
                    pass

    # What callers do with batches

    @precondition(lambda self: self.batches)
    @rule(draw=st.data())
    def cancel_batch(self, draw: st.DataObject) -> None:
        running = self.batches_in(BatchState.RUNNING)
        batch = draw.draw(st.sampled_from(running or self.batches))
        if not batch.is_seen:
            with pytest.raises(NotFound):
                self.run(self.runtime.batches.cancel(batch.id, batch.tenant))
            return
        was_cancelled = self.run(self.runtime.batches.cancel(batch.id, batch.tenant))
        assert was_cancelled is (batch.state is BatchState.RUNNING)
        if was_cancelled:
            event("cancelled while it started" if batch.started_to < len(batch.lines) else "cancelled")
            batch.state = BatchState.CANCELLING

    @precondition(lambda self: self.batches)
    @rule(draw=st.data())
    def erase_batch(self, draw: st.DataObject) -> None:
        self._erase(draw.draw(st.sampled_from(self.batches_in(BatchState.ENDED) or self.batches)))

    def _erase(self, batch: Sent) -> None:
        erased = self.runtime.batches.erase(batch.id, batch.tenant)
        if not batch.is_seen:
            with pytest.raises(NotFound):
                self.run(erased)
        elif batch.state is not BatchState.ENDED:
            with pytest.raises(NotEnded):
                self.run(erased)
        else:
            self.run(erased)
            batch.state = BatchState.DROPPED

    @precondition(lambda self: self.batches)
    @rule(draw=st.data(), word=st.sampled_from(["start", "add and drop", "cancel", "erase"]))
    def a_stranger_tries(self, draw: st.DataObject, word: str) -> None:
        """With ids of another tenant's batch."""
        batch = draw.draw(st.sampled_from(self.batches))
        stranger = next(tenant for tenant in TENANTS if tenant != batch.tenant)
        if word == "add and drop":
            self.run(self.runtime.batches.drop(batch.id, stranger))
            return
        asked = {
            "start": begin(self.runtime, Begun(batch.id, stranger, ()), idempotency_key="key-3"),
            "cancel": self.runtime.batches.cancel(batch.id, stranger),
            "erase": self.runtime.batches.erase(batch.id, stranger),
        }
        for other, coroutine in asked.items():
            if other != word:
                coroutine.close()
        with pytest.raises(NotFound):
            self.run(asked[word])

    @precondition(lambda self: any(batch.is_seen for batch in self.batches))
    @rule(draw=st.data())
    def follow(self, draw: st.DataObject) -> None:
        batch = draw.draw(st.sampled_from([batch for batch in self.batches if batch.is_seen]))
        self.run(_awaited(self.runtime.batches.follow(batch.id)))

    # What callers do with single jobs

    @rule(
        tenant=st.sampled_from(TENANTS),
        model=OF_A_JOB,
        priority=st.sampled_from(Priority),
        key=st.none() | st.sampled_from(IDEMPOTENCY_KEYS),
    )
    def submit(self, tenant: str, model: str, priority: Priority, key: str | None) -> None:
        submission = a_submission(tenant=tenant, model=model, priority=priority, idempotency_key=key, body="a job")
        known = self.keys.get((tenant, key)) if key else None
        if known and known.fingerprint != submission.fingerprint:
            with pytest.raises(IdempotencyKeyReused):
                self.run(self.runtime.jobs.submit(submission, expires_in_s=3600))
            return
        reply = self.run(self.runtime.jobs.submit(submission, expires_in_s=3600))
        if known:
            assert reply == Replayed(known.id)
            return
        assert isinstance(reply, Created)
        self.jobs[submission.id] = Job(submission.id, tenant, priority)
        if key:
            self.keys[tenant, key] = Known(submission.id, submission.fingerprint)

    @precondition(lambda self: self.jobs)
    @rule(draw=st.data())
    def cancel_job(self, draw: st.DataObject) -> None:
        job = draw.draw(st.sampled_from([job for job in self.jobs.values() if job.is_live] or list(self.jobs.values())))
        if not (job.is_placed and job.is_there):
            with pytest.raises(NotFound):
                self.run(self.runtime.jobs.cancel(job.id, job.tenant))
            return
        assert self.run(self.runtime.jobs.cancel(job.id, job.tenant)) is job.is_live
        if job.is_live:
            job.stop(JobState.CANCELLED)

    @precondition(lambda self: self.jobs_in(*TERMINAL_STATES))
    @rule(draw=st.data())
    def erase_job(self, draw: st.DataObject) -> None:
        """Its line is still counted."""
        job = self.some_job(draw, *TERMINAL_STATES)
        self.run(self.runtime.jobs.erase(job.id, job.tenant))
        job.is_there = False

    # What workers do

    @precondition(lambda self: self.jobs_in(JobState.QUEUED))
    @rule(count=st.sampled_from([1, 2, 4, 6]), low_count=st.integers(0, 3), takes_suspect=st.sampled_from([True, True, False]))  # fmt: skip
    def claim(self, count: int, low_count: int, takes_suspect: bool) -> None:
        self._claim(count, low_count, takes_suspect=takes_suspect)

    def _claim(self, count: int, low_count: int, *, takes_suspect: bool = True) -> list[Claim]:
        claims: list[Claim] = self.run(claim(self.runtime, count, low_count=low_count, takes_suspect=takes_suspect))
        suspects_left = int(takes_suspect)
        for found in claims:
            job = self.jobs[found.id]
            assert job.is_placed
            assert (job.state, job.is_deferred) == (JobState.QUEUED, False)
            assert found.takeovers == job.takeovers
            assert (found.spec.batch_id, found.tenant) == (job.batch and job.batch.id, job.tenant)
            suspects_left -= job.takeovers >= ALONE_TAKEOVERS
            if job.takeovers >= SUSPECT_TAKEOVERS:
                self.suspects[job.id] = job.takeovers
                self.fallen.discard(job.id)
            job.state, job.held, job.next_seq, job.has_started = JobState.RUNNING, found, found.next_seq, True
        lows = sum(self.jobs[found.id].priority is Priority.LOW for found in claims)
        assert len(claims) <= count
        assert lows <= low_count
        assert suspects_left >= 0
        if len(claims) < count:  # no job is passed over without a reason
            for job in self.jobs_in(JobState.QUEUED):
                is_kept_back = job.priority is Priority.LOW and lows == low_count
                is_suspect = job.takeovers >= ALONE_TAKEOVERS and suspects_left == 0
                assert job.is_deferred or is_kept_back or is_suspect
        return claims

    @precondition(lambda self: self.jobs_in(JobState.RUNNING))
    @rule(draw=st.data(), count=st.integers(1, 2), published=st.booleans())
    def append(self, draw: st.DataObject, count: int, published: bool) -> None:
        job = self.some_job(draw, JobState.RUNNING)
        assert job.held is not None
        events = [a_text_delta(str(seq)) for seq in range(count)]
        appended = self.runtime.log.append(job.id, job.held.epoch, job.next_seq, events, published=published)
        job.next_seq += count
        assert self.run(_awaited(appended)) == job.next_seq

    @precondition(lambda self: self.jobs_in(JobState.RUNNING))
    @rule(
        draw=st.data(),
        step=st.sampled_from([Step.SUCCEED, Step.SUCCEED, Step.FAIL]),
        usage=SUCCESS_USAGES,
        cost=COSTS,
        is_repeated=st.booleans(),
    )
    def finish(self, draw: st.DataObject, step: Step, usage: Usage | None, cost: Cost, is_repeated: bool) -> None:
        self._finish(self.some_job(draw, JobState.RUNNING), step, usage, cost)
        if is_repeated:
            self._finish_again(draw, cost)

    def _finish(self, job: Job, step: Step, usage: Usage | None = None, cost: Cost = None) -> None:
        assert job.held is not None
        ending = Ending(step, A_RESULT, usage) if step is Step.SUCCEED else Ending(step)
        reply = self.run(self.runtime.queue.finish(job.held, ending, seq=job.next_seq, cost=cost))
        assert reply.outcome is Finished.ENDED
        job.charge(cost)
        job.ended_by, job.usage = job.held, ending.usage
        job.stop(JobState.SUCCEEDED if step is Step.SUCCEED else JobState.FAILED)

    def _finish_again(self, draw: st.DataObject, cost: Cost) -> None:
        """A repeated call whose first reply was lost, maybe long ago."""
        job = draw.draw(st.sampled_from([job for job in self.jobs.values() if job.ended_by]))
        assert job.ended_by is not None
        ending = Ending(Step.SUCCEED, A_RESULT, Usage(9, 9, 9, 9))
        reply = self.run(self.runtime.queue.finish(job.ended_by, ending, seq=0, cost=cost))
        assert reply.outcome is (Finished.ALREADY if job.is_there else Finished.REFUSED)

    @precondition(lambda self: self.jobs_in(JobState.QUEUED))
    @rule(count=st.integers(1, 4), usage=SUCCESS_USAGES)
    def a_worker_works(self, count: int, usage: Usage | None) -> None:
        """Finishes what it claims, so that batches end."""
        for found in self._claim(count, count):
            self._finish(self.jobs[found.id], Step.SUCCEED, usage, 100)

    @precondition(lambda self: self.jobs_in(JobState.RUNNING))
    @rule(draw=st.data(), delay_s=st.sampled_from([0, 60]), is_drained=st.booleans(), cost=COSTS)
    def release(self, draw: st.DataObject, delay_s: int, is_drained: bool, cost: Cost) -> None:
        job = self.some_job(draw, JobState.RUNNING)
        assert job.held is not None
        attempts = job.held.attempt - 1 if is_drained else None
        assert self.run(
            self.runtime.queue.release(
                job.held,
                reason="drained" if is_drained else "upstream_failed",
                delay_s=delay_s,
                failures=0 if is_drained else 1,
                retry_event=b"" if is_drained else b'{"attempt":2}',
                cost=cost,
                attempts=attempts,
            )
        )
        job.charge(cost)
        job.released_by, job.has_started = job.held, attempts != 0
        job.stop(JobState.QUEUED)
        job.is_deferred = delay_s > 0

    @precondition(lambda self: any(job.held or job.over for job in self.jobs.values()))
    @rule(draw=st.data(), cost=st.sampled_from([5, UNPRICED]), is_told=st.booleans())
    def charge_behind_the_end(self, draw: st.DataObject, cost: int | str, is_told: bool) -> None:
        """A call's end arrives late; the cost in the claim's FINISH or RELEASE is not charged again."""
        job = draw.draw(st.sampled_from([job for job in self.jobs.values() if job.held or job.over]))
        claims = [*job.over, *filter(None, [job.held])]
        epoch = draw.draw(st.sampled_from(claims)).epoch if is_told else 0
        self.run(_awaited(self.runtime.jobs.charge(job.id, cost, tenant=job.tenant, epoch=epoch)))
        if epoch not in [told.epoch for told in (job.ended_by, job.released_by) if told]:
            job.charge(UNPRICED if cost == UNPRICED else int(cost))

    @precondition(lambda self: any(job.over for job in self.jobs.values()))
    @rule(draw=st.data(), word=st.sampled_from(["append", "finish", "release", "renew"]))
    def a_claim_that_is_over_speaks(self, draw: st.DataObject, word: str) -> None:
        """A zombie, or a repeated call; also for erased items."""
        job = draw.draw(st.sampled_from([job for job in self.jobs.values() if job.over]))
        stale = draw.draw(st.sampled_from(job.over))
        queue = self.runtime.queue
        if word == "append":
            appended = self.runtime.log.append(job.id, stale.epoch, 0, [a_text_delta("z")], published=True)
            assert self.run(_awaited(appended)) == REFUSED
        elif word == "finish":
            finished = self.run(queue.finish(stale, Ending(Step.FAIL), seq=0, cost=7)).outcome
            is_repeated = stale is job.ended_by and job.is_there
            assert finished is (Finished.ALREADY if is_repeated else Finished.REFUSED)
        elif word == "release":
            told = self.run(queue.release(stale, reason="drained", failures=9, cost=7))
            assert told is (stale is job.released_by and job.is_there)
        else:
            assert self.run(queue.renew([(stale.id, stale.epoch)])) == [stale.id]

    # What time does

    @precondition(lambda self: self.jobs_in(JobState.RUNNING))
    @rule(draw=st.data(), have_renewed=st.booleans())
    def workers_die(self, draw: st.DataObject, have_renewed: bool) -> None:
        running = self.jobs_in(JobState.RUNNING)
        dead = draw.draw(st.lists(st.sampled_from(running), unique=True, min_size=1, max_size=3))
        self._die(dead, have_renewed=have_renewed)

    def _die(self, dead: list[Job], *, have_renewed: bool) -> None:
        async def die() -> Any:
            if have_renewed:
                held = [(job.held.id, job.held.epoch) for job in dead if job.held]
                assert await self.runtime.queue.renew(held) == []
            await expire_leases(self.runtime, *(job.id for job in dead))
            return await self.runtime.queue.reap()

        reaped = self.run(die())
        company = {name: n for name, n in self.suspects.items() if name in self.fallen or self.jobs[name].held}
        failed = set()
        for job in dead:
            had_begun = have_renewed or job.is_confirmed
            job.takeovers += had_begun
            others = [n for name, n in company.items() if name != job.id]
            if had_begun and job.takeovers >= FATAL_TAKEOVERS and all(n < job.takeovers - 1 for n in others):
                failed.add(job.id)
                event("an item cost its workers" if job.batch else "a job cost its workers")
            job.stop(JobState.FAILED if job.id in failed else JobState.QUEUED)
        self.fallen |= {job.id for job in dead if job.id in company}
        assert set(reaped.failed) == failed
        assert set(reaped.back) == {job.id for job in dead} - failed

    @precondition(lambda self: self.jobs_in(JobState.RUNNING))
    @rule(draw=st.data())
    def a_job_kills_its_workers(self, draw: st.DataObject) -> None:
        """Until it fails, if a worker can claim it."""
        job = self.some_job(draw, JobState.RUNNING)
        while job.held:
            self._die([job], have_renewed=True)
            self._claim(6, 3)

    @precondition(lambda self: any(job.is_deferred for job in self.jobs.values()))
    @rule(draw=st.data())
    def deferred_jobs_come_due(self, draw: st.DataObject) -> None:
        deferred = [job for job in self.jobs.values() if job.is_deferred]
        self._come_due(draw.draw(st.lists(st.sampled_from(deferred), unique=True, min_size=1)))

    def _come_due(self, jobs: list[Job]) -> None:
        self.run(make_due(self.runtime, *(job.id for job in jobs)))
        for job in jobs:
            job.is_deferred = False
        self._claim(0, 0)  # any worker's next claim promotes them

    @precondition(lambda self: self.jobs_in(JobState.QUEUED))
    @rule(draw=st.data())
    def a_job_waits_too_long(self, draw: st.DataObject) -> None:
        self._wait_too_long([self.some_job(draw, JobState.QUEUED)])

    def _wait_too_long(self, jobs: list[Job]) -> None:
        self.run(make_overdue(self.runtime, *(job.id for job in jobs)))
        ended, _ = self.run(self.runtime.jobs.expire())
        assert ended == len(jobs)
        for job in jobs:
            job.is_aged = True
            job.stop(JobState.FAILED if job.has_started else JobState.EXPIRED)

    @precondition(lambda self: self.batches_in(BatchState.RUNNING))
    @rule(draw=st.data())
    def a_batch_waits_too_long(self, draw: st.DataObject) -> None:
        """Including items that were not queued yet."""
        batch = self.some_batch(draw, BatchState.RUNNING)

        async def age() -> None:
            await self.runtime._commands.call("HSET", redis_keys.batch(batch.id), "expires_ms", 1)

        self.run(age())
        while self._advance(batch):
            pass
        self._wait_too_long([job for job in batch.jobs if job.state is JobState.QUEUED])

    # What is true after every step

    @invariant()
    def the_books_agree(self) -> None:
        """Records, queue and counts of every batch."""
        self.run(assert_consistent(self.runtime, self.jobs))

    @invariant()
    def all_is_what_its_history_says(self) -> None:
        """Each job and batch; ended ones do not change, deleted ones stay deleted."""
        self.run(self._look())

    async def _look(self) -> None:
        await asyncio.gather(
            self._look_for_remains(),
            *(self._look_at_job(job) for job in self.jobs.values() if job.is_there and job.is_placed),
            *(self._look_at_batch(batch) for batch in self.batches),
            *(self._look_at_list(tenant) for tenant in TENANTS),
        )

    async def _look_for_remains(self) -> None:
        gone = [job.id for job in self.jobs.values() if not job.is_there]
        names = [name(job_id) for job_id in gone for name in (redis_keys.job, redis_keys.result, redis_keys.log)]
        names += [name for batch in self.batches_in(None) for name in _names_of(batch)]
        if names:
            assert await self.runtime._commands.call("EXISTS", *names) == 0

    async def _look_at_job(self, job: Job) -> None:
        call = self.runtime._commands.call
        record, left_ms, has_result = await asyncio.gather(
            record_of(self.runtime, job.id),
            call("PTTL", redis_keys.job(job.id)),
            call("EXISTS", redis_keys.result(job.id)),
        )
        assert record[b"state"].decode() == job.state
        cost, unpriced = record.pop(b"cost_nano_usd", None), record.pop(b"unpriced", None)
        assert (None if cost is None else int(cost), bool(unpriced)) == (job.cost, job.is_unpriced)
        assert bool(has_result) is (job.state is JobState.SUCCEEDED)
        if not job.has_ended:
            assert left_ms == -1
            return
        record.pop(b"kept_until", None)  # its TTL is set with its batch's, which may end later
        if job.record_at_end is None:
            job.record_at_end = record
        assert record == job.record_at_end
        assert left_ms > 0
        if job.batch and job.batch.state is BatchState.ENDED and not job.is_aged:
            assert left_ms >= await call("PTTL", redis_keys.batch(job.batch.id))

    async def _look_at_batch(self, sent: Sent) -> None:
        stranger = next(tenant for tenant in TENANTS if tenant != sent.tenant)
        found, foreign = await asyncio.gather(self._found(sent.id, sent.tenant), self._found(sent.id, stranger))
        assert foreign is None
        assert (found is not None) is sent.is_seen
        if found is None:
            return
        assert found.state is sent.state
        assert {name: getattr(found.counts, name) for name in found.counts.__struct_fields__} == sent.counts
        assert sent.counts["total"] == sum(number for name, number in sent.counts.items() if name != "total")
        assert found.usage == _sum_of(job.usage for job in sent.jobs)
        cost_usd = None if sent.cost is None or sent.is_unpriced else sent.cost / 1_000_000_000
        assert found.cost_usd == cost_usd
        assert (found.ended_ms is not None) is found.has_ended
        if found.has_ended:
            assert sent.at_end is None or _without_cost(found) == _without_cost(sent.at_end)
            sent.at_end = found
        await asyncio.gather(self._look_at_outcomes(sent), self._look_at_items(sent))

    async def _found(self, batch_id: str, tenant: str) -> Batch | None:
        try:
            return await self.runtime.batches.get(batch_id, tenant)
        except NotFound:
            return None

    async def _look_at_outcomes(self, sent: Sent) -> None:
        """Each ended line once, in both orders, read from the start or from any line."""
        batches = self.runtime.batches
        finished, submitted = await asyncio.gather(
            *(batches.ended_items(sent.id, order) for order in (Order.FINISHED, Order.SUBMITTED))
        )
        order = [item.line for item in finished]
        assert order[: len(sent.ended_lines)] == sent.ended_lines
        assert sorted(order) == [item.line for item in submitted] == sorted(sent.outcomes)
        sent.ended_lines = order
        for item in (*finished, *submitted):
            line = sent.lines[item.line - 1]
            assert (item.job_id, item.invalid) == ((line.id, None) if isinstance(line, Job) else (None, line))
        if order:
            for how, all_ in ((Order.FINISHED, finished), (Order.SUBMITTED, submitted)):
                middle = len(order) // 2
                behind = await batches.ended_items(sent.id, how, after=all_[middle].line, count=2)
                assert behind == all_[middle + 1 :][: len(behind)]
                assert len(behind) >= min(2, len(all_) - middle - 1)

    async def _look_at_items(self, sent: Sent) -> None:
        """Its tenant finds its jobs by the batch's id, last line first; other tenants do not."""
        there = [job for job in sent.jobs if job.is_placed and job.is_there][::-1]
        stranger = next(tenant for tenant in TENANTS if tenant != sent.tenant)
        listed, foreign, running, item_ids = await asyncio.gather(
            self._listed(sent, sent.tenant),
            self._listed(sent, stranger),
            self.runtime.batches.running_items(sent.id),
            self.runtime.batches.item_ids(sent.id, 0, 1000),
        )
        assert listed == [(job.id, job.state) for job in there]
        assert foreign == []
        assert set(running) == {job.id for job in sent.jobs if job.held}
        assert item_ids == [line.id if isinstance(line, Job) else None for line in sent.lines]

    async def _listed(self, sent: Sent, tenant: str) -> list[tuple[str, JobState]]:
        page = await self.runtime.jobs.list(tenant, JobFilter(batch_id=sent.id), after=None, limit=100)
        return [(job.id, job.state) for job in page.jobs]

    async def _look_at_list(self, tenant: str) -> None:
        page = await self.runtime.batches.page(tenant, after=None, limit=100)
        seen = [batch.id for batch in self.batches if batch.tenant == tenant and batch.is_seen]
        assert [batch.id for batch in page.batches] == seen[::-1]

    # The end of a history

    def teardown(self) -> None:
        """Ends everything: one outcome per line; erased jobs and batches leave no key."""
        if sys.exception() is not None:  # the history failed: that error matters
            return
        self._drive_to_the_end()
        self.run(assert_consistent(self.runtime, self.jobs))
        self.run(self._look())
        assert all(job.has_ended for job in self.jobs.values() if job.is_placed)
        for batch in self.batches:
            if batch.was_started:
                assert len(batch.outcomes) == sum(line is not None for line in batch.lines)
            event(self._story_of(batch))
            if batch.is_seen:
                self._erase(batch)
        self._all_are_looked_after()
        assert [batch.id for batch in self.batches if batch.state is not None] == []
        self.run(self._assert_clean())

    def _drive_to_the_end(self) -> None:
        self._all_are_looked_after()
        for job in self.jobs_in(JobState.RUNNING):
            self._finish(job, Step.SUCCEED)
        if deferred := [job for job in self.jobs.values() if job.is_deferred]:
            self._come_due(deferred)
        while self.jobs_in(JobState.QUEUED):
            claims = self._claim(100, 100)
            assert claims
            for found in claims:
                self._finish(self.jobs[found.id], Step.SUCCEED)

    def _all_are_looked_after(self) -> None:
        for _ in range(2):
            self._looks(self.run(members(self.runtime, redis_keys.plain("due"))), does_all=True)
        assert self.run(members(self.runtime, redis_keys.plain("due"))) == []

    def _story_of(self, batch: Sent) -> str:
        if not batch.was_started:
            return "a batch ended dropped"
        state = "erased before the end of its history" if batch.state is None else "ended"
        return f"a batch ended {state}, {'cancelled' if batch.cancelled_to or self._was_cancelled(batch) else 'run'}"

    @staticmethod
    def _was_cancelled(batch: Sent) -> bool:
        return batch.at_end is not None and batch.at_end.cancelled_ms is not None

    async def _assert_clean(self) -> None:
        """Of batches only Idempotency-Keys are left; other keys belong to the queue or to single jobs."""
        names = await all_keys(self.runtime._commands)
        assert {kind_of(name) for name in names} <= {
            "job", "result", "log", "index", "labels", "idempotency", "turns", "clock", "held_bytes", "kept_bytes", "kept_due", "places", "picks", "alive", "grace", "hungry",
            "spend", "key_limits", "pace", "ended", "suspects",
        }  # fmt: skip
        ids = {batch.id for batch in self.batches} | {job.id for batch in self.batches for job in batch.jobs}
        assert [name for name in names if name.rpartition(":")[2] in ids] == []
        assert await keys_that_leak(self.runtime._commands) == []


def _names_of(batch: Sent) -> list[str]:
    names = (
        redis_keys.batch,
        redis_keys.batch_items,
        redis_keys.batch_invalid,
        redis_keys.batch_ended,
        redis_keys.batch_followed,
    )
    return [name(batch.id) for name in names]


def _sum_of(usages: Iterable[Usage | None]) -> Usage:
    given = [usage for usage in usages if usage]
    return Usage(**{name: sum(getattr(usage, name) for usage in given) for name in Usage.__struct_fields__})


def _without_cost(batch: Batch) -> list[Any]:
    return [getattr(batch, name) for name in batch.__struct_fields__ if name != "cost_usd"]


async def _awaited(future: "asyncio.Future[Any]") -> Any:
    return await future


@pytest.mark.timeout(420)  # takes some seconds, but hypothesis shrinks a failure for up to five minutes
def test_every_line_has_one_outcome_whatever_happens(
    redis_under_test: RedisUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, usage and cost are sums over the lines; outcomes are final; dropped and erased batches leave nothing."""
    monkeypatch.setattr("shared.store.batches.SLICE_ITEMS", PIECE)
    configured = load_settings(redis_url=redis_under_test.url, lease_s=A_LONG_LEASE_S)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        runtime = runner.run(
            stack.enter_async_context(
                open_runtime(
                    configured,
                    process_name="tests",
                    timeout_s=10,
                    make_connection=redis_under_test.make_connection,
                )
            )
        )
        try:
            machine = type("AnyBatch", (AnyBatch,), {"runner": runner, "runtime": runtime})
            run_state_machine_as_test(
                machine,
                settings=hypothesis_settings(
                    max_examples=12 if redis_under_test.is_real else 3, stateful_step_count=50, deadline=None
                ),
            )
        finally:
            runner.run(stack.aclose())
