"""Redis at its maxmemory: running jobs can go on and end; new ones are refused. Real servers only."""

from collections.abc import AsyncIterator

import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.errors import StorageFull
from shared.job import JobState, Usage
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.jobs import Replayed
from shared.store.queue import Claim, Finished
from shared.store.runtime import Runtime, open_runtime
from shared.store.upstreams import Verdict
from tests.support.builders import a_submission, a_text_delta, lines
from tests.support.store import (
    all_keys,
    append,
    assert_consistent,
    begin,
    claim,
    claim_one,
    confirm,
    counts_of,
    expire_leases,
    finish,
    job_of,
    keys_that_leak,
    make_due,
    make_overdue,
    now_ms,
    receive,
    record_of,
    start,
    start_batch,
    state_of,
    submit,
    submit_many,
)
from tests.support.upstreams import a_route, called, closed, let_pass, permitted, state_of_route


@pytest.fixture
async def runtime(own_server: EmbeddedRedis) -> AsyncIterator[Runtime]:
    """A store on its own server, which the test fills."""
    async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=10) as opened:
        yield opened
        await _empty(opened)
        assert await keys_that_leak(opened._commands) == []


async def _fill(runtime: Runtime) -> None:
    await runtime._commands.call("CONFIG", "SET", "maxmemory", 1)


async def _empty(runtime: Runtime) -> None:
    await runtime._commands.call("CONFIG", "SET", "maxmemory", 0)


async def _six_running(runtime: Runtime) -> list[Claim]:
    await submit_many(runtime, 6)
    return await claim(runtime, 6)


async def test_running_jobs_can_go_on_and_end(runtime: Runtime) -> None:
    """RENEW, APPEND, FINISH, RELEASE, CANCEL and REAP all succeed, including results and events."""
    ended, released, deferred, cancelled, dead, lost = claims = await _six_running(runtime)
    await runtime._commands.call("HSET", redis_keys.job(lost.id), "takeovers", 2)
    await _fill(runtime)

    await confirm(runtime, claims[0])
    assert await runtime.queue.renew([(found.id, found.epoch) for found in claims]) == []
    assert await append(runtime, ended, a_text_delta("x" * 10_000)) == 2
    assert (await finish(runtime, ended, seq=2)).outcome is Finished.ENDED
    assert await runtime.queue.release(released, reason="drained")
    assert await runtime.queue.release(deferred, reason="upstream_failed", delay_s=60, retry_event=b"{}")
    assert await runtime.jobs.cancel(cancelled.id, cancelled.tenant)
    await _empty(runtime)
    await expire_leases(runtime, dead.id, lost.id)
    await _fill(runtime)
    reaped = await runtime.queue.reap()
    assert (reaped.back, reaped.failed) == ([dead.id], [lost.id])

    job = await job_of(runtime, ended.id, with_result=True)
    assert (job.state, job.result is not None) == (JobState.SUCCEEDED, True)
    assert len(await runtime.log.read(ended.id)) == 3
    states = [await state_of(runtime, found.id) for found in claims[1:]]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.CANCELLED, JobState.QUEUED, JobState.FAILED]
    await assert_consistent(runtime, [found.id for found in claims])


async def test_overdue_and_ended_jobs_can_be_ended_and_erased(runtime: Runtime) -> None:
    """EXPIRE, a read of an overdue job, and ERASE all make room."""
    first, second, third = await submit_many(runtime, 3)
    await make_overdue(runtime, first, second)
    await _fill(runtime)
    assert (await job_of(runtime, first)).state is JobState.EXPIRED
    assert (await runtime.jobs.expire())[0] == 1
    await runtime.jobs.cancel(third, "tenant-a")
    for job_id in (first, second, third):
        await runtime.jobs.erase(job_id, "tenant-a")
    assert await runtime.queue.depth() == {JobState.QUEUED: 0, JobState.RUNNING: 0}


async def test_a_dead_worker_is_noticed_by_the_stamp_of_the_others(runtime: Runtime) -> None:
    """``alive`` and ``grace`` are written at maxmemory too: a full Redis does not count as silence."""
    claimed = await start(runtime)
    await runtime._commands.call("DEL", redis_keys.plain("alive"))
    await expire_leases(runtime, claimed.id)
    await _fill(runtime)
    assert (await runtime.queue.reap()).back == []
    assert await runtime._commands.call("EXISTS", redis_keys.plain("alive"), redis_keys.plain("grace")) == 2


async def test_new_jobs_are_refused_and_store_nothing(runtime: Runtime) -> None:
    """SUBMIT is refused as a whole: there is no half of a job, and no Idempotency-Key without a job."""
    await submit(runtime)
    await _fill(runtime)
    before = await all_keys(runtime._commands)
    for members in ({}, {"idempotency_key": "order 7"}, {"not_before_ms": await now_ms(runtime) + 60_000}):
        with pytest.raises(StorageFull):
            await runtime.jobs.submit(a_submission(**members), expires_in_s=60)
    assert await all_keys(runtime._commands) == before
    assert await runtime._commands.call("ZCARD", redis_keys.plain("waiting")) == 1
    assert await runtime._commands.call("ZCARD", redis_keys.index("tenant-a")) == 1

    await _empty(runtime)
    await submit(runtime, idempotency_key="order 7")
    assert len(await claim(runtime, 5)) == 2


async def test_a_replay_is_answered_from_a_full_redis(runtime: Runtime) -> None:
    """A replay writes nothing, so it needs no room."""
    first = await submit(runtime, idempotency_key="order 7")
    await _fill(runtime)
    again = a_submission(idempotency_key="order 7")
    assert await runtime.jobs.submit(again, expires_in_s=60) == Replayed(first.id)


async def test_no_job_starts_in_a_full_redis_and_none_is_half_started(runtime: Runtime) -> None:
    """A start promises room for the answer: CLAIM is refused before it changes anything."""
    waiting = await submit(runtime)
    deferred = await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)
    await make_due(runtime, deferred.id)
    await _fill(runtime)
    for _ in range(3):
        with pytest.raises(StorageFull):
            await claim(runtime, 5)
    assert await state_of(runtime, waiting.id) is JobState.QUEUED
    await assert_consistent(runtime, [waiting.id, deferred.id])
    assert await runtime._commands.call("ZCARD", redis_keys.plain("deferred")) == 1

    await _empty(runtime)
    assert {(await claim_one(runtime)).id, (await claim_one(runtime)).id} == {waiting.id, deferred.id}


async def test_calls_can_be_made_and_end(runtime: Runtime) -> None:
    """RESERVE, HOLD, LOOK, PROBED, CLOSE_CALL and CHARGE get through: what runs needs its calls, and they must be counted."""
    claimed = await start(runtime)
    route = a_route(requests=50, concurrency=50)
    for _ in range(10):
        await called(runtime, route, Verdict.TROUBLE)
    await let_pass(runtime, 5)
    await _fill(runtime)
    call_id, reserved = await permitted(runtime, route)
    assert reserved.is_probe
    assert await runtime.upstreams.hold([(route.name, call_id)]) == []
    assert (await state_of_route(runtime, route)).open_ms is not None
    assert await runtime.upstreams.probed(route.name, call_id) == 1
    assert await closed(runtime, route, call_id, usage=Usage(1, 1), shut_s=1, code="upstream_rate_limited") == 1
    await runtime.jobs.charge(claimed.id, 5, tenant="tenant-a")
    assert (await record_of(runtime, claimed.id))[b"cost_nano_usd"] == b"5"
    await _empty(runtime)
    await let_pass(runtime, 61)
    lost, _ = await permitted(runtime, route)
    await let_pass(runtime, runtime.settings.lease_s + 1)
    await _fill(runtime)
    assert [row.call_id for row in await runtime.upstreams.hold([])] == [lost]
    assert await closed(runtime, route, lost, ended="lost") == 1


async def test_submits_stop_before_running_jobs_lack_room(runtime: Runtime) -> None:
    """At 80 % of maxmemory, checked once a second; they are accepted again when there is room."""
    used = int(
        next(
            line.partition(b":")[2]
            for line in (await runtime._commands.call("INFO", "memory")).splitlines()
            if line.startswith(b"used_memory:")
        )
    )
    for share, is_full in ((2.0, False), (0.9, True), (2.0, False)):
        await runtime._commands.call("CONFIG", "SET", "maxmemory", int(used * share / 0.8))
        await runtime.memory.look()
        assert runtime.memory.is_full is is_full
        if is_full:
            with pytest.raises(StorageFull):
                runtime.memory.check()
        else:
            runtime.memory.check()
    await _empty(runtime)
    await runtime.memory.look()
    assert not runtime.memory.is_full


async def test_a_redis_that_is_away_is_not_full(runtime: Runtime, own_server: EmbeddedRedis) -> None:
    """The submit itself then reports the error."""
    await _fill(runtime)
    assert await _is_full(runtime)
    own_server.kill()
    assert not await _is_full(runtime)
    own_server.restart()


async def _is_full(runtime: Runtime) -> bool:
    await runtime.memory.look()
    return runtime.memory.is_full


async def test_commands_of_a_batch_work_on_a_full_redis(runtime: Runtime) -> None:
    """Starting its items, their ends, cancel, drop and erase; only new lines are refused."""
    first, second, third = await receive(runtime, 2), await start_batch(runtime, 2), await receive(runtime, 2)
    fourth = await receive(runtime, 2)
    claimed, _ = await claim(runtime, 2)
    await begin(runtime, third)
    await _fill(runtime)
    with pytest.raises(StorageFull):
        await runtime.batches.add(fourth.id, fourth.tenant, lines(1, start=3))
    with pytest.raises(StorageFull):
        await begin(runtime, fourth)
    await runtime.batches.drop(first.id, "tenant-a")
    await runtime.batches.advance_all(first.id)
    await finish(runtime, claimed)
    assert await runtime.batches.cancel(second.id, second.tenant)
    await runtime.batches.advance_all(second.id)
    assert await counts_of(runtime, second) == {"succeeded": 1, "cancelled": 1}
    await runtime.batches.advance_all(third.id)
    assert await counts_of(runtime, third) == {"queued": 2}
    await runtime.batches.erase(second.id, second.tenant)
    await runtime.batches.advance_all(second.id)
    await assert_consistent(runtime)
