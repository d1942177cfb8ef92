"""What is kept of a job after its end, for how long, and that DELETE leaves nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import pytest

from shared.batch import BatchState, InvalidItem, NewItem
from shared.errors import JobError
from shared.job import JobState, Step
from shared.store import redis_keys
from shared.store.queue import FATAL_TAKEOVERS, Claim, Ending
from shared.store.runtime import Runtime
from tests.support.builders import a_bad_line, a_line, a_text_delta
from tests.support.store import (
    Begun,
    all_keys,
    append,
    batch_of,
    claim,
    claim_one,
    finish,
    kind_of,
    lose,
    make_overdue,
    receive,
    start_batch,
    state_of,
    submit,
    ttl_ms,
)

CANARY: Final = "canary-4c1f"
A_REQUEST: Final = msgspec.json.encode(
    {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": CANARY}]}
)
A_RESULT: Final = msgspec.json.encode({"text": CANARY, "stop_reason": "end_turn", "message": {}})
KEPT_MS: Final = 60_000
LOG_KEPT_MS: Final = 5_000

_READS: Final[dict[str, tuple[str, ...]]] = {
    "string": ("GET", "{}"),
    "hash": ("HGETALL", "{}"),
    "list": ("LRANGE", "{}", "0", "-1"),
    "set": ("SMEMBERS", "{}"),
    "zset": ("ZRANGE", "{}", "0", "-1"),
    "stream": ("XRANGE", "{}", "-", "+"),
}


async def keys_that_hold(runtime: Runtime, words: str) -> list[str]:
    """Every key of the database whose name or value contains the words, whatever its type."""
    call, found = runtime._commands.call, []
    for name in await all_keys(runtime._commands):
        read = _READS[(await call("TYPE", name)).decode()]
        if words.encode() in name.encode() + repr(await call(*(part.format(name) for part in read))).encode():
            found.append(name)
    return found


@pytest.fixture
async def tenant(runtime: Runtime) -> Runtime:
    """A tenant with shorter retention than the settings have."""
    await runtime.tenants.set("tenant-a", {"result_retention_ms": KEPT_MS, "log_retention_ms": LOG_KEPT_MS})
    return runtime


async def claimed_and_streaming(runtime: Runtime) -> Claim:
    """Claims the next job, and writes a part of its answer."""
    claimed = await claim_one(runtime)
    await append(runtime, claimed, a_text_delta(CANARY))
    return claimed


async def _succeed(runtime: Runtime, _: str) -> None:
    claimed = await claimed_and_streaming(runtime)
    await finish(runtime, claimed, Ending(Step.SUCCEED, A_RESULT), seq=claimed.next_seq + 1)


async def _fail(runtime: Runtime, _: str) -> None:
    claimed = await claimed_and_streaming(runtime)
    error = JobError("upstream_rejected", CANARY, retryable=False)
    await finish(runtime, claimed, Ending(Step.FAIL, error=error), seq=claimed.next_seq + 1)


async def _cancel_waiting(runtime: Runtime, job_id: str) -> None:
    await runtime.jobs.cancel(job_id, "tenant-a")


async def _cancel_running(runtime: Runtime, job_id: str) -> None:
    await claimed_and_streaming(runtime)
    await runtime.jobs.cancel(job_id, "tenant-a")


async def _expire(runtime: Runtime, job_id: str) -> None:
    await make_overdue(runtime, job_id)
    await runtime.jobs.expire()


async def _time_out(runtime: Runtime, job_id: str) -> None:
    await runtime.queue.release(await claimed_and_streaming(runtime), reason="upstream_failed", delay_s=60)
    await make_overdue(runtime, job_id)
    await runtime.jobs.expire()


async def _lose_for_the_last_time(runtime: Runtime, job_id: str) -> None:
    await runtime._commands.call("HSET", redis_keys.job(job_id), "takeovers", FATAL_TAKEOVERS - 1)
    assert (await lose(runtime, await claimed_and_streaming(runtime))).failed == [job_id]


End = Callable[[Runtime, str], Awaitable[None]]
ENDS: Final[dict[str, tuple[End, JobState]]] = {
    "succeeds": (_succeed, JobState.SUCCEEDED),
    "fails": (_fail, JobState.FAILED),
    "is cancelled while it waits": (_cancel_waiting, JobState.CANCELLED),
    "is cancelled while it runs": (_cancel_running, JobState.CANCELLED),
    "expires": (_expire, JobState.EXPIRED),
    "times out": (_time_out, JobState.FAILED),
    "is lost for the last time": (_lose_for_the_last_time, JobState.FAILED),
}


@pytest.mark.parametrize("how", ENDS)
async def test_everything_of_a_job_is_deleted_after_its_tenants_retention(tenant: Runtime, how: str) -> None:
    """However it ends. DELETE deletes it at once."""
    end, state = ENDS[how]
    job = await submit(tenant, request=A_REQUEST, metadata={"note": CANARY}, idempotency_key=CANARY)
    await end(tenant, job.id)
    assert await state_of(tenant, job.id) is state
    await tenant.partials.keep_due()  # until then the log of a job that did not succeed is kept as long as its record
    held = await keys_that_hold(tenant, CANARY)
    assert redis_keys.job(job.id) in held
    for name in held:
        most_ms = LOG_KEPT_MS if kind_of(name) == "log" else KEPT_MS
        assert 0 < (await ttl_ms(tenant, name) or 0) <= most_ms, name
    assert (await ttl_ms(tenant, redis_keys.job(job.id)) or 0) > KEPT_MS - 30_000
    await tenant.jobs.erase(job.id, "tenant-a")
    assert await keys_that_hold(tenant, CANARY) == []


async def test_a_log_is_kept_no_longer_than_the_result_of_its_job(runtime: Runtime) -> None:
    """It holds the same content, so a tenant needs to set only one of the two."""
    await runtime.tenants.set("tenant-a", {"result_retention_ms": LOG_KEPT_MS})
    job = await submit(runtime)
    await _succeed(runtime, job.id)
    assert 0 < (await ttl_ms(runtime, redis_keys.log(job.id)) or 0) <= LOG_KEPT_MS
    other = await submit(runtime, tenant="tenant-b")
    await _succeed(runtime, other.id)
    expected_ms = runtime.settings.result_retention_s * 1000
    assert await ttl_ms(runtime, redis_keys.result(other.id)) == pytest.approx(expected_ms, abs=60_000)


async def a_batch_with_a_canary(runtime: Runtime, items: int) -> Begun:
    """A batch of ``items``; its last line is invalid."""
    lines: list[NewItem | InvalidItem] = [a_bad_line(items + 1, custom_id=CANARY)]
    lines[:0] = [a_line(line, custom_id=f"{CANARY}-{line}", request=A_REQUEST) for line in range(1, items + 1)]
    return await start_batch(runtime, lines, metadata={"note": CANARY}, expires_in_s=86_400)


async def test_items_are_kept_as_long_as_their_batch_and_no_longer(tenant: Runtime) -> None:
    """They end before the batch, when its end is not known; once it is known, they expire with the batch."""
    begun = await a_batch_with_a_canary(tenant, 300)  # more than one portion
    first = await claimed_and_streaming(tenant)
    await finish(tenant, first, Ending(Step.SUCCEED, A_RESULT), seq=first.next_seq + 1)
    assert (await ttl_ms(tenant, redis_keys.result(first.id)) or 0) > 86_400_000
    await asyncio.gather(*(finish(tenant, item, Ending(Step.SUCCEED, A_RESULT)) for item in await claim(tenant, 5)))
    await tenant.batches.cancel(begun.id, "tenant-a")
    await tenant.batches.advance_all(begun.id)
    assert (await batch_of(tenant, begun)).state is BatchState.ENDED
    held = await keys_that_hold(tenant, CANARY)
    assert {kind_of(name) for name in held} >= {"job", "result", "log", "batch", "batch_invalid"}
    lifetimes = {name: await ttl_ms(tenant, name) for name in held}
    assert [name for name, lifetime in lifetimes.items() if not 0 < (lifetime or 0) <= KEPT_MS] == []
    assert await tenant.batches.due() == []
    await tenant.batches.erase(begun.id, "tenant-a")
    await tenant.batches.advance_all(begun.id)
    assert await keys_that_hold(tenant, CANARY) == []


async def test_the_batch_loop_shortens_the_retention_after_the_last_item(tenant: Runtime) -> None:
    """The worker that ended the item does not know batches; the processes' loops do."""
    begun = await a_batch_with_a_canary(tenant, 2)
    for item in await claim(tenant, 2):
        await finish(tenant, item, Ending(Step.SUCCEED, A_RESULT))
    assert (await ttl_ms(tenant, redis_keys.result(begun.job_ids[0])) or 0) > KEPT_MS
    await tenant.batches.advance_due()
    for name in await keys_that_hold(tenant, CANARY):
        assert 0 < (await ttl_ms(tenant, name) or 0) <= KEPT_MS, name


async def test_the_received_part_of_a_batch_that_never_started_is_erased(tenant: Runtime) -> None:
    """Its client disconnected in the middle of the body."""
    begun = await receive(tenant, [a_line(1, request=A_REQUEST), a_bad_line(2, custom_id=CANARY)])
    await tenant.batches.drop(begun.id, "tenant-a")
    await tenant.batches.advance_all(begun.id)
    assert await keys_that_hold(tenant, CANARY) == []
