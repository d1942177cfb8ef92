"""Any history of jobs: the promises hold after every step.

Hypothesis drives a state machine that submits, claims, renews, appends, finishes, releases, loses workers, cancels and
lets time pass. A small model says what must be true; a failure is shrunk to the shortest history that shows it.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import msgspec
import pytest
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

from shared.errors import TooManyQueued
from shared.events import TERMINAL_EVENTS, Event
from shared.job import TERMINAL_STATES, JobState, Priority, Step
from shared.limits import NO_LIMITS, CallerLimits
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.jobs import Created, Replayed
from shared.store.log import REFUSED
from shared.store.queue import ALONE_TAKEOVERS, FATAL_TAKEOVERS, SUSPECT_TAKEOVERS, Claim, Ending, Finished
from shared.store.runtime import Runtime, open_runtime
from tests.support.builders import a_submission, a_text_delta
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    A_RESULT,
    assert_consistent,
    claim,
    expire_leases,
    make_due,
    make_overdue,
    now_ms,
    record_of,
)

TENANTS = ("tenant-a", "tenant-b")
A_LONG_LEASE_S = 600
WIDE = CallerLimits(10_000, 1_000_000, 10_000, 10_000, 10**15, 10**15)
"""Limits too high to be reached: all is counted, and the key has its own flows."""
ONE_AT_ONCE = CallerLimits(running_jobs=1)
END_USERS = (None, None, "ann", "bob: \n/")
LIMITS_OF_KEYS = {"": NO_LIMITS, "key-a": NO_LIMITS, "key-b": WIDE, "key-c": ONE_AT_ONCE}


@dataclass
class Model:
    """What must be true of one job."""

    id: str
    tenant: str
    priority: Priority
    key_id: str = ""
    end_user: str | None = None
    state: JobState = JobState.QUEUED
    is_deferred: bool = False
    held: Claim | None = None
    """The claim that may write, if there is one."""
    over: list[Claim] = field(default_factory=list)
    """Claims that may no longer write."""
    next_seq: int = 0
    is_confirmed: bool = False
    takeovers: int = 0
    attempts: int = 0
    failures: int = 0
    is_published: bool = False
    """Whether followers have seen content since the newest claim began."""
    ended_by: Claim | None = None
    released_by: Claim | None = None
    record_at_end: dict[bytes, bytes] | None = None

    def stop(self, state: JobState) -> None:
        """The claim is over; the job is in ``state``."""
        if self.held:
            self.over.append(self.held)
        self.held, self.is_confirmed, self.state = None, False, state
        self.is_deferred = False


class AnyHistory(RuleBasedStateMachine):
    """One history. ``runner`` and ``runtime`` are set by the test."""

    runner: ClassVar[asyncio.Runner]
    runtime: ClassVar[Runtime]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Model] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.running_jobs = dict.fromkeys(TENANTS, 0)
        """The tenants' limits; 0 means no limit."""
        self.end_user_running_jobs = dict.fromkeys(TENANTS, 0)
        self.waiting_bytes = dict.fromkeys(TENANTS, 0)
        self.suspects: dict[str, int] = {}
        """Takeovers of the suspects that the worker runs, or ran when it was taken for dead."""
        self.fallen: set[str] = set()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def some(self, draw: st.DataObject, *states: JobState) -> Model:
        return draw.draw(st.sampled_from([job for job in self.jobs.values() if job.state in states]))

    def has(self, *states: JobState) -> bool:
        return any(job.state in states for job in self.jobs.values())

    @initialize()
    def empty(self) -> None:
        async def flush() -> None:
            await self.runtime._commands.call("FLUSHDB")

        self.run(flush())

    # What callers do

    @rule(
        tenant=st.sampled_from(TENANTS),
        model=st.sampled_from(["model-1", "model-2"]),
        priority=st.sampled_from(Priority),
        key=st.none() | st.sampled_from(["key-1", "key-2"]),
        is_deferred=st.sampled_from([False, False, False, True]),
        key_id=st.sampled_from(sorted(LIMITS_OF_KEYS)),
        end_user=st.sampled_from(END_USERS),
        size=st.sampled_from([0, 100, 2_000]),
    )
    def submit(
        self,
        tenant: str,
        model: str,
        priority: Priority,
        key: str | None,
        is_deferred: bool,
        key_id: str,
        end_user: str | None,
        size: int,
    ) -> None:
        async def submit() -> Created | Replayed | None:
            not_before_ms = await now_ms(self.runtime) + 3_600_000 if is_deferred else None
            submission = a_submission(
                tenant=tenant,
                model=model,
                priority=priority,
                idempotency_key=key,
                not_before_ms=not_before_ms,
                body=key,
                key_id=key_id,
                end_user=end_user,
                limits=LIMITS_OF_KEYS[key_id],
                tokens=20,
                request=b"x" * size,
            )
            most = self.waiting_bytes[tenant]
            held = int(await self.runtime._commands.call("HGET", redis_keys.plain("held_bytes"), tenant) or 0)
            has_room = not most or held + size + len(msgspec.json.encode(submission.spec)) <= most
            try:
                reply = await self.runtime.jobs.submit(submission, expires_in_s=3600)
            except TooManyQueued:
                assert not has_room
                return None
            assert has_room or isinstance(reply, Replayed)
            if isinstance(reply, Created):
                self.jobs[submission.id] = Model(
                    submission.id, tenant, priority, key_id, end_user, is_deferred=is_deferred
                )
                if key:
                    self.keys[tenant, key] = submission.id
            return reply

        known = self.keys.get((tenant, key)) if key else None
        reply = self.run(submit())
        assert reply == Replayed(known) if known else isinstance(reply, Created | None)

    @precondition(lambda self: self.jobs)
    @rule(draw=st.data())
    def cancel(self, draw: st.DataObject) -> None:
        job = self.some(draw, *JobState)
        was_cancelled = self.run(self.runtime.jobs.cancel(job.id, job.tenant))
        assert was_cancelled is (job.state not in TERMINAL_STATES)
        if was_cancelled:
            job.stop(JobState.CANCELLED)

    @rule(tenant=st.sampled_from(TENANTS), running_jobs=st.sampled_from([0, 1, 2]))
    def limit(self, tenant: str, running_jobs: int) -> None:
        """An operator sets it."""
        self.run(self.runtime.tenants.set(tenant, {"running_jobs": running_jobs}))
        self.running_jobs[tenant] = running_jobs

    @rule(tenant=st.sampled_from(TENANTS), running_jobs=st.sampled_from([0, 1, 2]))
    def limit_end_users(self, tenant: str, running_jobs: int) -> None:
        """An operator sets it, for each end user of the tenant."""
        self.run(self.runtime.tenants.set(tenant, {"end_user_running_jobs": running_jobs}))
        self.end_user_running_jobs[tenant] = running_jobs

    @rule(tenant=st.sampled_from(TENANTS), waiting_bytes=st.sampled_from([0, 0, 5_000]))
    def limit_bytes(self, tenant: str, waiting_bytes: int) -> None:
        """An operator sets it. Existing jobs stay."""
        self.run(self.runtime.tenants.set(tenant, {"waiting_bytes": waiting_bytes}))
        self.waiting_bytes[tenant] = waiting_bytes

    @precondition(lambda self: self.has(*TERMINAL_STATES))
    @rule(draw=st.data())
    def erase(self, draw: st.DataObject) -> None:
        """Its Idempotency-Key is kept."""
        job = self.some(draw, *TERMINAL_STATES)
        self.run(self.runtime.jobs.erase(job.id, job.tenant))
        del self.jobs[job.id]

    def is_full(self, job: Model) -> bool:
        """Whether its tenant, its key or its end user runs as many jobs as allowed."""
        running = [other for other in self.jobs.values() if other.state is JobState.RUNNING]
        most = self.running_jobs[job.tenant]
        is_tenant_full = 0 < most <= sum(other.tenant == job.tenant for other in running)
        of_end_user = [other for other in running if (other.tenant, other.end_user) == (job.tenant, job.end_user)]
        if job.end_user and 0 < self.end_user_running_jobs[job.tenant] <= len(of_end_user):
            return True
        return is_tenant_full or (job.key_id == "key-c" and any(other.key_id == "key-c" for other in running))

    # What workers do

    @precondition(lambda self: self.has(JobState.QUEUED))
    @rule(
        count=st.sampled_from([1, 2, 4, 0]),
        low_count=st.sampled_from([2, 1, 0]),
        takes_suspect=st.sampled_from([True, True, False]),
    )
    def claim(self, count: int, low_count: int, takes_suspect: bool) -> None:
        claims = self.run(claim(self.runtime, count, low_count=low_count, takes_suspect=takes_suspect))
        suspects_left = int(takes_suspect)
        for found in claims:
            job = self.jobs[found.id]
            assert (job.state, job.is_deferred) == (JobState.QUEUED, False)
            assert not self.is_full(job)
            assert (found.takeovers, found.attempt, found.failures) == (job.takeovers, job.attempts + 1, job.failures)
            assert found.next_seq == (2 if job.is_published else 1)  # started, and reset
            job.is_published = False
            assert all(found.epoch > old.epoch for old in job.over)
            suspects_left -= job.takeovers >= ALONE_TAKEOVERS
            if job.takeovers >= SUSPECT_TAKEOVERS:
                self.suspects[job.id] = job.takeovers
                self.fallen.discard(job.id)
            job.state, job.held, job.next_seq = JobState.RUNNING, found, found.next_seq
            job.attempts += 1
        lows = sum(self.jobs[found.id].priority is Priority.LOW for found in claims)
        assert len(claims) <= count
        assert lows <= low_count
        assert suspects_left >= 0
        if len(claims) < count:  # no job is passed over without a reason
            for job in self.jobs.values():
                if job.state is JobState.QUEUED and not job.is_deferred:
                    is_kept_back = job.priority is Priority.LOW and lows == low_count
                    is_suspect = job.takeovers >= ALONE_TAKEOVERS and suspects_left == 0
                    assert is_kept_back or is_suspect or self.is_full(job)

    @precondition(lambda self: any(job.held or job.over for job in self.jobs.values()))
    @rule(draw=st.data())
    def renew(self, draw: st.DataObject) -> None:
        """Renews a worker's jobs in one call; some are no longer its own."""
        held = [job.held for job in self.jobs.values() if job.held]
        over = [each for job in self.jobs.values() for each in job.over]
        chosen = held[draw.draw(st.integers(0, 1)) :]
        if over:
            chosen += draw.draw(
                st.lists(st.sampled_from(over), unique_by=lambda each: (each.id, each.epoch), max_size=3)
            )
        lost = self.run(self.runtime.queue.renew([(each.id, each.epoch) for each in chosen]))
        assert lost == [each.id for each in chosen if each is not self.jobs[each.id].held]
        for each in chosen:
            if each is self.jobs[each.id].held:
                self.jobs[each.id].is_confirmed = True

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(
        draw=st.data(),
        count=st.integers(0, 3),
        back=st.integers(0, 3),
        published=st.booleans(),
        is_reset=st.booleans(),
    )
    def append(self, draw: st.DataObject, count: int, back: int, published: bool, is_reset: bool) -> None:
        """New events, or some of the last ones again with new ones after them; the last may be a reset."""
        job = self.some(draw, JobState.RUNNING)
        assert job.held is not None
        first = max(job.held.next_seq, job.next_seq - back)
        events = [a_text_delta(str(seq)) for seq in range(first, first + count)]
        appended = self.runtime.log.append(
            job.id, job.held.epoch, first, events, published=published, is_reset=is_reset and not published
        )
        reply = self.run(_awaited(appended))
        job.next_seq = max(job.next_seq, first + count)
        job.is_published = published or (job.is_published and not is_reset)
        assert reply == job.next_seq

    @precondition(lambda self: any(job.held and job.is_published for job in self.jobs.values()))
    @rule(draw=st.data(), count=st.integers(1, 3))
    def extend(self, draw: st.DataObject, count: int) -> None:
        """New events by plain commands."""
        job = draw.draw(st.sampled_from([job for job in self.jobs.values() if job.held and job.is_published]))
        assert job.held is not None
        events = [a_text_delta(str(seq)) for seq in range(job.next_seq, job.next_seq + count)]
        assert self.extends(job, job.held, job.next_seq, events)
        job.next_seq += count

    def extends(self, job: Model, held: Claim, first: int, events: list[tuple[str, bytes]]) -> bool:
        log = self.runtime.log
        replies = self.run(_awaited(log.extend(job.id, held.epoch, first, events, on=log.connection_number)))
        return log.has_taken(replies)

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(draw=st.data(), ahead=st.integers(1, 3))
    def append_behind_a_hole(self, draw: st.DataObject, ahead: int) -> None:
        job = self.some(draw, JobState.RUNNING)
        assert job.held is not None
        reply = self.run(
            _awaited(
                self.runtime.log.append(
                    job.id, job.held.epoch, job.next_seq + ahead, [a_text_delta("x")], published=True
                )
            )
        )
        assert reply == job.next_seq

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(draw=st.data(), step=st.sampled_from([Step.SUCCEED, Step.FAIL]), ahead=st.integers(-1, 1))
    def finish(self, draw: st.DataObject, step: Step, ahead: int) -> None:
        job = self.some(draw, JobState.RUNNING)
        assert job.held is not None
        ending = Ending(step, A_RESULT if step is Step.SUCCEED else b"")
        reply = self.run(self.runtime.queue.finish(job.held, ending, seq=job.next_seq + ahead))
        if ahead > 0:
            assert reply == (Finished.INCOMPLETE, job.next_seq)
            return
        assert reply.outcome is Finished.ENDED
        job.ended_by = job.held
        job.stop(JobState.SUCCEEDED if step is Step.SUCCEED else JobState.FAILED)

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(draw=st.data(), delay_s=st.sampled_from([0, 60]), retry=st.booleans())
    def release(self, draw: st.DataObject, delay_s: int, retry: bool) -> None:
        job = self.some(draw, JobState.RUNNING)
        assert job.held is not None
        assert self.run(
            self.runtime.queue.release(
                job.held,
                reason="upstream_failed",
                delay_s=delay_s,
                failures=1,
                retry_event=b'{"attempt":2}' if retry else b"",
            )
        )
        job.released_by = job.held
        job.stop(JobState.QUEUED)
        job.is_deferred = delay_s > 0
        job.failures += 1

    @precondition(lambda self: any(job.over for job in self.jobs.values()))
    @rule(draw=st.data(), seq=st.integers(0, 4), word=st.sampled_from(["append", "extend", "finish", "release"]))
    def a_claim_that_is_over_speaks(self, draw: st.DataObject, seq: int, word: str) -> None:
        """A zombie, or a repeated call whose first reply was lost."""
        with_past = [job for job in self.jobs.values() if job.over]
        running = [job for job in with_past if job.held]
        job = draw.draw(st.sampled_from(running or with_past))
        stale = draw.draw(st.sampled_from(job.over))
        if word == "append":
            reply = self.run(
                _awaited(self.runtime.log.append(job.id, stale.epoch, seq, [a_text_delta("z")], published=True))
            )
            assert reply == REFUSED
        elif word == "extend":
            top = max((event.id for event in self.run(self.runtime.log.read(job.id)) if event.id), default=None)
            if top is None or top.epoch != stale.epoch:
                assert not self.extends(job, stale, seq, [a_text_delta("z")])
            elif stale is job.ended_by:
                assert not self.extends(job, stale, min(seq, top.seq), [a_text_delta("z")])
            else:
                assert job.state is JobState.QUEUED, "the next claim resets what it says now"
        elif word == "finish":
            finished = self.run(self.runtime.queue.finish(stale, Ending(Step.SUCCEED, b'"stale"'), seq=seq))
            assert finished.outcome is (Finished.ALREADY if stale is job.ended_by else Finished.REFUSED)
        else:
            told = self.run(self.runtime.queue.release(stale, reason="drained", failures=9, retry_event=b"{}"))
            assert told == (stale is job.released_by)

    # What time does

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(draw=st.data(), have_renewed=st.booleans())
    def workers_die(self, draw: st.DataObject, have_renewed: bool) -> None:
        """Some leases run out, and a living worker reaps."""
        if have_renewed:
            self.renew(draw)
        running = [job for job in self.jobs.values() if job.state is JobState.RUNNING]
        dead = draw.draw(st.lists(st.sampled_from(running), unique_by=lambda job: job.id, min_size=1))

        async def reap() -> Any:
            await expire_leases(self.runtime, *(job.id for job in dead))
            return await self.runtime.queue.reap()

        reaped = self.run(reap())
        company = {name: n for name, n in self.suspects.items() if name in self.fallen or self.jobs[name].held}
        failed = set()
        for job in dead:
            if job.is_confirmed:
                job.takeovers += 1
            else:
                job.attempts -= 1
            others = [n for name, n in company.items() if name != job.id]
            if job.takeovers >= FATAL_TAKEOVERS and all(n < job.takeovers - 1 for n in others):
                failed.add(job.id)
            job.stop(JobState.FAILED if job.id in failed else JobState.QUEUED)
        self.fallen |= {job.id for job in dead if job.id in company}
        assert set(reaped.failed) == failed
        assert set(reaped.back) == {job.id for job in dead} - failed

    @rule()
    def a_reaper_comes_by(self) -> None:
        reaped = self.run(self.runtime.queue.reap())
        assert (reaped.back, reaped.failed) == ([], [])

    @precondition(lambda self: any(job.is_deferred for job in self.jobs.values()))
    @rule(draw=st.data())
    def a_deferred_job_comes_due(self, draw: st.DataObject) -> None:
        job = draw.draw(st.sampled_from([job for job in self.jobs.values() if job.is_deferred]))
        self.run(make_due(self.runtime, job.id))
        job.is_deferred = False
        self.claim(0, 0, True)  # any worker's next claim promotes it

    @precondition(lambda self: self.has(JobState.QUEUED))
    @rule(draw=st.data(), noticed_by=st.sampled_from(["expire", "get"]))
    def a_job_waits_too_long(self, draw: st.DataObject, noticed_by: str) -> None:
        job = self.some(draw, JobState.QUEUED)
        has_started = bool(self.run(record_of(self.runtime, job.id)).get(b"started_ms"))
        self.run(make_overdue(self.runtime, job.id))
        if noticed_by == "expire":
            ended, _ = self.run(self.runtime.jobs.expire())
            assert ended == 1
        else:
            self.run(self.runtime.jobs.get(job.id, job.tenant))
        job.stop(JobState.FAILED if has_started else JobState.EXPIRED)

    # What is true after every step

    @invariant()
    def the_books_agree(self) -> None:
        """Each job that has not ended is in exactly one place, and the ready flows are the non-empty ones."""
        self.run(assert_consistent(self.runtime, self.jobs))

    @invariant()
    def every_job_is_what_its_history_says(self) -> None:
        """State, log and end of each job; an ended job never changes."""
        self.run(self._look())

    async def _look(self) -> None:
        await asyncio.gather(*(self._look_at(job) for job in self.jobs.values()))

    async def _look_at(self, job: Model) -> None:
        call = self.runtime._commands.call
        record, events, has_result, record_left_ms, log_left_ms = await asyncio.gather(
            record_of(self.runtime, job.id),
            self.runtime.log.read(job.id),
            call("EXISTS", redis_keys.result(job.id)),
            call("PTTL", redis_keys.job(job.id)),
            call("PTTL", redis_keys.log(job.id)),
        )
        assert record[b"state"].decode() == job.state
        assert int(record.get(b"attempts", 0)) == job.attempts
        assert int(record.get(b"takeovers", 0)) == job.takeovers
        _assert_contiguous(events)
        terminal = [event for event in events if event.name in TERMINAL_EVENTS]
        assert bool(has_result) is (job.state is JobState.SUCCEEDED)
        if job.state in TERMINAL_STATES:
            if job.record_at_end is None:
                job.record_at_end = record
            assert record == job.record_at_end
            assert [event.name for event in terminal] == ([job.state] if events else [])
            assert terminal == events[-1:]
            assert not events or record[b"end_id"].decode() == str(events[-1].id)
            assert record_left_ms > 0
            assert log_left_ms != -1
        else:
            assert terminal == []
            assert b"end_id" not in record
            assert record_left_ms == -1


def _assert_contiguous(events: list[Event]) -> None:
    """Each epoch begins at seq 0 and has no gap; epochs only grow."""
    ids = [event.id for event in events if event.id is not None]
    assert len(ids) == len(events)
    assert not ids or ids[0].seq == 0
    for earlier, later in pairwise(ids):
        if later.epoch == earlier.epoch:
            assert later.seq == earlier.seq + 1
        else:
            assert later.epoch > earlier.epoch
            assert later.seq == 0


async def _awaited(future: "asyncio.Future[Any]") -> Any:
    return await future


@pytest.mark.timeout(120)  # takes some seconds; a busy machine needs more
def test_the_promises_hold_whatever_happens(redis_under_test: RedisUnderTest) -> None:
    """Terminal states are final, with one terminal event; logs have no gaps; old claims are refused; no job is lost."""
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
            machine = type("AnyHistory", (AnyHistory,), {"runner": runner, "runtime": runtime})
            run_state_machine_as_test(
                machine,
                settings=hypothesis_settings(
                    max_examples=20 if redis_under_test.is_real else 8, stateful_step_count=50, deadline=None
                ),
            )
        finally:
            runner.run(stack.aclose())
