"""The loops of a worker: events wake them, they do not poll, and neither Redis nor a bug ends one."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from shared.errors import StorageFull, StorageUnavailable
from shared.job import JobState, Priority
from shared.store import redis_keys
from shared.version import version
from tests.running.crew import STEADY, TENANT, Crew, Hand, replace
from tests.support.store import make_overdue, now_ms, submit_many
from tests.support.wait import wait_until
from worker import arq_worker

NEVER_S = 1000.0


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns polling off: whatever happens now was caused by a message."""
    monkeypatch.setattr(arq_worker, "_TICK_S", NEVER_S)


async def test_a_submitted_job_wakes_a_worker(crew: Crew, no_ticks: None) -> None:
    await crew.worker()
    for _ in range(3):
        assert (await crew.ended(await crew.submit(), timeout_s=5)).state is JobState.SUCCEEDED


async def test_a_worker_takes_what_was_there_before_it(crew: Crew, no_ticks: None) -> None:
    job_ids = [await crew.submit() for _ in range(3)]
    await crew.worker()
    await crew.all_ended(job_ids)


async def test_a_slot_that_becomes_free_is_filled_at_once(crew: Crew, no_ticks: None) -> None:
    await crew.worker(concurrency=2)
    job_ids = [await crew.submit() for _ in range(12)]
    await crew.all_ended(job_ids)
    assert crew.simulator.record.peak_open_streams == 2


async def test_large_prompts_are_claimed_a_few_at_a_time(crew: Crew, no_ticks: None) -> None:
    """A claim's reply arrives whole or is lost: 100 prompts of 20 MB would never arrive in time, claim after claim."""
    hand = await crew.worker()
    stopped = hand.worker.max_jobs
    hand.worker.max_jobs = 0
    job_ids = [await crew.submit("x" * (3 << 20)) for _ in range(7)]
    claimed: list[int] = []
    real_claim = hand.runtime.queue.claim

    async def claim_noted(*arguments: Any, **named: Any) -> Any:
        claims, due_s = await real_claim(*arguments, **named)
        claimed.append(len(claims))
        return claims, due_s

    replace(hand.runtime.queue, "claim", claim_noted)
    hand.worker.max_jobs = stopped
    await crew.runtime._commands.call("PUBLISH", redis_keys.plain("wake"), b"")
    jobs = await crew.all_ended(job_ids)
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert [count for count in claimed if count] == [3, 3, 1]


async def test_a_deferred_job_starts_when_it_is_due(crew: Crew, no_ticks: None) -> None:
    """Not before, and without polling the queue in between."""
    hand = await crew.worker()
    seconds, microseconds = await crew.runtime._commands.call("TIME")
    due_ms = int(seconds) * 1000 + int(microseconds) // 1000 + 300
    looks = counting(hand, "claim")
    job = await crew.ended(await crew.submit(not_before_ms=due_ms))
    assert job.started_ms is not None
    assert 0 <= job.started_ms - due_ms < 1000
    assert next(looks) <= 8


async def test_a_worker_claims_again_after_its_subscription_was_cut(crew: Crew, no_ticks: None) -> None:
    """Messages published meanwhile are lost; the confirmation of the new subscription triggers the claim."""
    hand = await crew.worker()
    looks = counting(hand, "claim")
    before = next(looks)
    await crew.runtime._commands.call("CLIENT", "KILL", "TYPE", "pubsub")
    await wait_until(lambda: next(looks) > before, "another look at the queue")
    assert (await crew.ended(await crew.submit())).state is JobState.SUCCEEDED


async def test_a_job_that_waited_too_long_expires_with_a_busy_worker(crew: Crew) -> None:
    await crew.worker(concurrency=1)
    running = await crew.submit(model=STEADY)
    waiting = await crew.submit()
    await crew.begun(running)
    await make_overdue(crew.runtime, waiting)
    assert (await crew.ended(waiting)).state is JobState.EXPIRED


async def test_low_jobs_leave_a_share_of_the_slots_to_others(crew: Crew, no_ticks: None) -> None:
    await crew.worker(concurrency=4, low_priority_share=0.5)
    low = [await crew.submit(model=STEADY, priority=Priority.LOW) for _ in range(5)]
    await wait_until(lambda: len(crew.simulator.record.open_streams) == 2, "the two slots of low jobs")
    assert (await crew.ended(await crew.submit())).state is JobState.SUCCEEDED
    assert [await crew.state(job_id) for job_id in low] == [JobState.RUNNING] * 2 + [JobState.QUEUED] * 3
    for job_id in low:
        await crew.runtime.jobs.cancel(job_id, TENANT)


async def test_one_low_job_runs_even_where_the_share_rounds_to_nothing(crew: Crew) -> None:
    await crew.worker(concurrency=1, low_priority_share=0.5)
    assert (await crew.ended(await crew.submit(priority=Priority.LOW))).state is JobState.SUCCEEDED


async def test_a_worker_without_a_share_leaves_low_jobs_to_others(crew: Crew) -> None:
    await crew.worker(low_priority_share=0)
    low = await crew.submit(priority=Priority.LOW)
    for _ in range(9):  # every eighth claim would be from a lower band
        assert (await crew.ended(await crew.submit())).state is JobState.SUCCEEDED
    assert await crew.state(low) is JobState.QUEUED
    await crew.worker()
    assert (await crew.ended(low)).state is JobState.SUCCEEDED


async def test_a_tenant_runs_no_more_jobs_at_once_than_it_may(crew: Crew, no_ticks: None) -> None:
    """Over all workers; the rest waits, and starts as other jobs end."""
    for _ in range(2):
        await crew.worker(tenant_running_jobs=2)
    many = [await crew.submit("tokens=30") for _ in range(8)]
    other = await crew.submit(tenant="tenant-b")
    await crew.all_ended([*many, other])
    assert crew.simulator.record.peak_open_streams <= 3
    begun_s = {job_id: crew.calls(job_id)[0].started_s for job_id in (*many, other)}
    assert begun_s[other] < begun_s[many[-1]]


STEPS = ["claim", "renew", "reap", "announce"]
ERRORS = [StorageUnavailable(), StorageFull(), RuntimeError("a bug of ours")]


@pytest.mark.parametrize("error", ERRORS, ids=["away", "full", "bug"])
@pytest.mark.parametrize("step", STEPS)
async def test_no_loop_ends_by_an_error(
    crew: Crew, step: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug is logged each time; a Redis that is away or full is not. Work goes on."""
    monkeypatch.setattr(arq_worker, "_TICK_S", 0.02)
    hand = await crew.worker(lease_s=0.5)
    failing = Failing(hand, step, error, of="workers" if step == "announce" else "queue")
    running = await crew.submit("tokens=60 gap-ms=10")
    await wait_until(lambda: failing.calls >= 3, f"three calls of {step}")
    failing.heal()
    assert (await crew.ended(running)).state is JobState.SUCCEEDED
    assert (await crew.ended(await crew.submit())).state is JobState.SUCCEEDED
    assert {line["exc_info"] for _, line in hand.log.errors} == ({error} if isinstance(error, RuntimeError) else set())
    hand.expected_errors |= {"loop_failed", "confirm_failed"}


@pytest.mark.parametrize("method", ["expire", "sweep"])
async def test_no_loop_about_records_ends_by_an_error(crew: Crew, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arq_worker, "_TICK_S", 0.02)
    monkeypatch.setattr(arq_worker, "_SWEEP_S", 0.02)
    hand = await crew.worker()
    failing = Failing(hand, method, RuntimeError("a bug of ours"), of="jobs")
    await wait_until(lambda: failing.calls >= 2, f"two calls of {method}")
    failing.heal()
    calls = counting(hand, method, of="jobs")
    await wait_until(lambda: next(calls) >= 1, f"another call of {method}")
    hand.expected_errors.add("loop_failed")


async def test_a_bug_in_a_run_is_logged_and_the_job_is_tried_elsewhere(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = await crew.worker(lease_s=0.5)
    failing = Failing(hand, "finish", RuntimeError("a bug of ours"))
    job_id = await crew.submit()
    await wait_until(lambda: failing.calls == 1, "the end of the first run")
    failing.heal()
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
    assert [name for name, _ in await crew.ours(job_id)] == ["started", "started", "reset", "succeeded"]
    (line,) = hand.log.named("run_failed")
    assert line["job_id"] == job_id
    assert hand.worker.job_counter == 0
    hand.expected_errors.add("run_failed")


async def test_an_unreadable_record_is_logged_and_delays_no_other_job(crew: Crew) -> None:
    """A newer release may have written it: it is left for a worker that can read it, until it expires."""
    strange = await crew.submit(timeout_s=1)
    spec = await crew.runtime._commands.call("HGET", redis_keys.job(strange), "spec")
    await crew.runtime._commands.call("HSET", redis_keys.job(strange), "spec", b'{"model":"m","priority":"tomorrow"}')
    with structlog.testing.capture_logs() as lines:
        hand = await crew.worker(lease_s=0.5)
        assert (await crew.ended(await crew.submit())).state is JobState.SUCCEEDED
    assert {(line["event"], line["job_id"]) for line in lines} == {("job_unreadable", strange)}
    assert crew.calls(strange) == []
    assert hand.running == set()
    await crew.runtime._commands.call("HSET", redis_keys.job(strange), "spec", spec)
    await crew.ended(strange)


async def test_what_a_worker_reports_about_itself(crew: Crew) -> None:
    hand = await crew.worker(concurrency=7)
    (told,) = await crew.runtime.workers.living()
    assert int(told.pop("seen_ms")) == pytest.approx(await now_ms(crew.runtime), abs=5_000)
    assert told == {
        "name": hand.worker.name,
        "version": version(),
        "running": "0",
        "concurrency": "7",
        "draining": "0",
        "strays": "0",
        "tokens_per_s": "0.0",
        "redis_problems": "[]",
    }
    await hand.drained()
    assert await crew.runtime.workers.living() == []


async def test_strays_are_counted_and_logged(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arq_worker, "_SWEEP_S", 0.02)
    monkeypatch.setattr(arq_worker, "_TICK_S", 0.02)
    (job_id,) = await submit_many(crew.runtime, 1)
    await crew.runtime._commands.call("DEL", redis_keys.plain("waiting"), *flows_of(job_id))
    hand = await crew.worker()

    async def strays() -> bool:
        return any(worker["strays"] == "1" for worker in await crew.runtime.workers.living())

    await wait_until(strays, "a stray to be logged")
    assert hand.log.named("stray_jobs")[0] == {"count": 1}
    hand.expected_errors.add("stray_jobs")
    await crew.runtime._commands.call(
        "DEL",
        redis_keys.job(job_id),
        redis_keys.index(TENANT),
        redis_keys.plain("queued_jobs"),
        redis_keys.plain("held_bytes"),
    )


def flows_of(_job_id: str) -> list[str]:
    return [
        f"{redis_keys.SHARD}ready:normal",
        redis_keys.flow(redis_keys.flow_of("normal", TENANT, "anthropic/a-model")),
    ]


class Failing:
    """A method of a worker's store that raises until ``healed`` is called."""

    def __init__(self, hand: Hand, method: str, error: Exception, *, of: str = "queue") -> None:
        self.calls = 0
        self._store = getattr(hand.runtime, of)
        self._method = method
        self._error = error
        setattr(self._store, method, self._fail)

    async def _fail(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        raise self._error

    def heal(self) -> None:
        delattr(self._store, self._method)


def counting(hand: Hand, method: str, *, of: str = "queue") -> "itertools.count[int]":
    """Each ``next`` returns how often the method was called since the last one."""
    store = getattr(hand.runtime, of)
    real: Callable[..., Awaitable[Any]] = getattr(store, method)
    calls = 0

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return await real(*arguments, **named)

    setattr(store, method, counted)

    class Calls(itertools.count):  # type: ignore[type-arg]
        def __next__(self) -> int:
            return calls

    return Calls()
