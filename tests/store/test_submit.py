"""SUBMIT: a job is created once, with its place in the queue."""

import asyncio

import pytest

from shared.errors import IdempotencyKeyReused, QueueFull
from shared.job import JobState, Priority
from shared.store import redis_keys
from shared.store.jobs import Created, Replayed
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import a_submission
from tests.support.store import (
    all_keys,
    assert_consistent,
    claim,
    claim_one,
    finish,
    job_of,
    kind_of,
    listening,
    now_ms,
    places,
    submit,
)


async def test_a_submitted_job_waits_with_everything_that_it_was_given(runtime: Runtime) -> None:
    """A read returns what was submitted, with times by Redis's clock."""
    submission = a_submission(
        tenant="tenant-a", model="a/model:v1", priority=Priority.HIGH, timeout_s=30, max_attempts=2, metadata={"k": "ü"}
    )
    before_ms = await now_ms(runtime)
    created = await runtime.jobs.submit(submission, expires_in_s=60)
    after_ms = await now_ms(runtime)

    assert isinstance(created, Created)
    assert before_ms <= created.created_ms <= after_ms
    assert created.expires_ms == created.created_ms + 60_000
    assert created.position == 1
    job = await job_of(runtime, submission.id)
    assert (job.state, job.spec, job.attempts) == (JobState.QUEUED, submission.spec, 0)
    assert (job.created_ms, job.expires_ms, job.started_ms) == (created.created_ms, created.expires_ms, None)
    assert await runtime.jobs.request_of(submission.id, "tenant-a") == (job, submission.request)
    await assert_consistent(runtime, [submission.id])


async def test_the_prompt_is_stored_only_in_the_record(runtime: Runtime) -> None:
    """No other key contains any of it."""
    prompt = b'{"prompt":"an unmistakable prompt"}'
    await submit(runtime, request=prompt, idempotency_key="a key")
    holding = []
    for name in await all_keys(runtime._commands):
        dump: bytes = b" ".join(await _everything_in(runtime, name))
        if b"unmistakable" in dump:
            holding.append(kind_of(name))
        assert b"a key" not in dump
        assert "a key" not in name
    assert holding == ["job"]


async def _everything_in(runtime: Runtime, name: str) -> list[bytes]:
    kind = await runtime._commands.call("TYPE", name)
    if kind == b"hash":
        return list(await runtime._commands.call("HGETALL", name))
    if kind == b"zset":
        return list(await runtime._commands.call("ZRANGE", name, 0, -1))
    return [await runtime._commands.call("GET", name)]


async def test_the_same_submit_with_the_same_key_finds_the_first_job(runtime: Runtime) -> None:
    """A repetition makes no second job and changes nothing, whatever the job's state is now."""
    first = await submit(runtime, idempotency_key="order 7", body={"a": 1, "b": 2})
    again = a_submission(idempotency_key="order 7", body={"b": 2, "a": 1})
    assert await runtime.jobs.submit(again, expires_in_s=60) == Replayed(first.id)

    claimed = await claim_one(runtime)
    assert await runtime.jobs.submit(again, expires_in_s=60) == Replayed(first.id)
    await finish(runtime, claimed)
    assert await runtime.jobs.submit(again, expires_in_s=60) == Replayed(first.id)

    assert await claim(runtime) == []
    assert await runtime.jobs.get_many([again.id], "tenant-a") == [None]


async def test_the_same_key_with_another_body_is_refused(runtime: Runtime) -> None:
    """It stores nothing."""
    first = await submit(runtime, idempotency_key="order 7", body="one")
    names = await all_keys(runtime._commands)
    with pytest.raises(IdempotencyKeyReused):
        await runtime.jobs.submit(a_submission(idempotency_key="order 7", body="two"), expires_in_s=60)
    assert await all_keys(runtime._commands) == names
    await assert_consistent(runtime, [first.id])


async def test_equal_keys_of_different_tenants_are_different(runtime: Runtime) -> None:
    """A key belongs to its tenant."""
    ours = await submit(runtime, tenant="tenant-a", idempotency_key="order 7", body="one")
    theirs = await submit(runtime, tenant="tenant-b", idempotency_key="order 7", body="two")
    assert {found.id for found in await claim(runtime, 5)} == {ours.id, theirs.id}


async def test_fifty_at_once_with_one_key_make_one_job(start_runtime: StartRuntime) -> None:
    """However they race, from several processes."""
    processes = [await start_runtime() for _ in range(5)]
    submissions = [a_submission(idempotency_key="order 7") for _ in range(50)]
    replies = await asyncio.gather(
        *(
            processes[number % 5].jobs.submit(submission, expires_in_s=60)
            for number, submission in enumerate(submissions)
        )
    )
    (winner,) = [
        submission.id for submission, reply in zip(submissions, replies, strict=True) if isinstance(reply, Created)
    ]
    assert {reply.job_id for reply in replies if isinstance(reply, Replayed)} == {winner}
    assert [found.id for found in await claim(processes[0], 50)] == [winner]


async def test_a_full_queue_refuses_and_stores_nothing(start_runtime: StartRuntime) -> None:
    """Running jobs do not count; a job that leaves the queue makes room."""
    runtime = await start_runtime(max_queued=2)
    ids = [(await submit(runtime)).id, (await submit(runtime)).id]
    names = await all_keys(runtime._commands)
    with pytest.raises(QueueFull):
        await submit(runtime, idempotency_key="order 7")
    assert await all_keys(runtime._commands) == names
    await assert_consistent(runtime, ids)

    await claim_one(runtime)
    await submit(runtime, idempotency_key="order 7")
    with pytest.raises(QueueFull):
        await submit(runtime)


async def test_a_replay_succeeds_even_if_the_queue_is_full(start_runtime: StartRuntime) -> None:
    """The job exists: a refusal would make the caller think that it does not."""
    runtime = await start_runtime(max_queued=1)
    first = await submit(runtime, idempotency_key="order 7")
    assert await runtime.jobs.submit(a_submission(idempotency_key="order 7"), expires_in_s=60) == Replayed(first.id)


async def test_deferred_jobs_count_towards_a_full_queue(start_runtime: StartRuntime) -> None:
    """They wait like any other job."""
    runtime = await start_runtime(max_queued=1)
    await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)
    with pytest.raises(QueueFull):
        await submit(runtime)


async def test_a_job_for_later_waits_outside_the_queue_and_expires_from_then(runtime: Runtime) -> None:
    """Its ``expires_in_s`` counts from ``not_before``; it has no position until it is due."""
    due_ms = await now_ms(runtime) + 3_600_000
    submission = a_submission(not_before_ms=due_ms)
    created = await runtime.jobs.submit(submission, expires_in_s=60)
    assert isinstance(created, Created)
    assert (created.position, created.expires_ms) == (-1, due_ms + 60_000)
    assert await places(runtime, [submission.id]) == [None]
    claims, due_s = await runtime.queue.claim("worker-1", count=1, low_count=1, takes_suspect=True)
    assert claims == []
    assert due_s == pytest.approx(3600, abs=5)
    await assert_consistent(runtime, [submission.id])


async def test_a_not_before_in_the_past_means_now(runtime: Runtime) -> None:
    """The job waits like any other, and its expiry counts from now."""
    submission = a_submission(not_before_ms=1)
    created = await runtime.jobs.submit(submission, expires_in_s=60)
    assert isinstance(created, Created)
    assert (created.position, created.expires_ms) == (1, created.created_ms + 60_000)
    assert (await claim_one(runtime)).id == submission.id


async def test_a_submit_wakes_workers_only_when_one_is_hungry(runtime: Runtime) -> None:
    """One message while workers are idle, none while all are busy."""
    async with listening(runtime, redis_keys.plain("wake")) as heard:
        await submit(runtime)
        assert await heard.all() == []
        assert len(await claim(runtime, 1)) == 1  # full
        await submit(runtime)
        assert await heard.all() == []
        assert len(await claim(runtime, 2)) == 1  # had one more free slot
        await submit(runtime)
        await submit(runtime)
        assert await heard.all() == [b""]


async def test_a_job_for_later_wakes_a_hungry_worker_too(runtime: Runtime) -> None:
    """The worker sleeps until the next due time that it knows, and must learn of an earlier one."""
    await claim(runtime)
    async with listening(runtime, redis_keys.plain("wake")) as heard:
        await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)
        assert await heard.all() == [b""]


async def test_the_index_forgets_jobs_whose_record_is_gone(runtime: Runtime) -> None:
    """The index has no TTL, so each submit drops more entries of the oldest jobs than it adds."""
    gone = [(await submit(runtime)).id for _ in range(4)]
    for job_id in gone:
        await runtime.jobs.cancel(job_id, "tenant-a")
        await runtime._commands.call("DEL", redis_keys.job(job_id))
    kept = [(await submit(runtime)).id for _ in range(2)]
    index = [name.decode() for name in await runtime._commands.call("ZRANGE", redis_keys.index("tenant-a"), 0, -1)]
    assert index == kept
