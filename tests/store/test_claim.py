"""CLAIM: what a worker gets, and what Redis holds from then on."""

import asyncio
from itertools import pairwise

import msgspec
import pytest

from shared.job import JobState
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import a_submission
from tests.support.redis_servers import on_real_redis
from tests.support.store import (
    assert_consistent,
    claim,
    claim_one,
    finish,
    job_of,
    listening,
    make_due,
    make_overdue,
    names_in_log,
    now_ms,
    start,
    state_of,
    submit,
    submit_many,
    ttl_ms,
)


async def test_a_claim_carries_all_that_a_worker_needs(runtime: Runtime) -> None:
    """One round trip from the queue to the call of the LLM."""
    submission = await submit(runtime, tenant="tenant-a", timeout_s=30, metadata={"k": "v"}, request=b'{"messages":[]}')
    before_ms = await now_ms(runtime)
    found = await claim_one(runtime)
    after_ms = await now_ms(runtime)
    job = await job_of(runtime, submission.id)

    assert (found.id, found.tenant, found.request, found.spec) == (
        submission.id,
        "tenant-a",
        b'{"messages":[]}',
        submission.spec,
    )
    assert (found.attempt, found.failures, found.takeovers, found.timeout_ms) == (1, 0, 0, 30_000)
    assert before_ms <= found.claimed_ms <= after_ms
    assert found.epoch >= found.claimed_ms
    assert (found.started_ms, found.created_ms) == (found.claimed_ms, job.created_ms)
    assert (job.state, job.attempts, job.epoch, job.started_ms) == (
        JobState.RUNNING,
        1,
        found.epoch,
        found.started_ms,
    )
    await assert_consistent(runtime, [submission.id])


async def test_the_first_event_of_a_claim_is_started(runtime: Runtime) -> None:
    """It is stored at ``<epoch>-0`` and published to followers."""
    submission = await submit(runtime)
    async with listening(runtime, redis_keys.events(submission.id)) as heard:
        found = await claim_one(runtime)
        published = await heard.events()
    stored = await runtime.log.read(submission.id)
    assert stored == published
    assert [(str(event.id), event.name, msgspec.json.decode(event.data)) for event in stored] == [
        (f"{found.epoch}-0", "started", {"attempt": 1})
    ]
    assert found.next_seq == 1
    (reach,) = await runtime.log.probe([submission.id])
    assert reach is not None
    assert reach.newest_claim == stored[0].id


async def test_a_waiting_job_has_no_log(runtime: Runtime) -> None:
    """An empty stream costs 4 KB: the first claim creates it, without a TTL until the end."""
    submission = await submit(runtime)
    assert not await runtime._commands.call("EXISTS", redis_keys.log(submission.id))
    await claim_one(runtime)
    assert await ttl_ms(runtime, redis_keys.log(submission.id)) is None


async def test_workers_that_race_never_get_the_same_job(start_runtime: StartRuntime) -> None:
    """Each job goes to exactly one of them, and none is left."""
    processes = [await start_runtime() for _ in range(4)]
    ids = await submit_many(processes[0], 60)
    claims = await asyncio.gather(
        *(claim(processes[number % 4], 5, worker=f"worker-{number % 4}") for number in range(16))
    )
    got = [found.id for batch in claims for found in batch]
    assert sorted(got) == sorted(ids)


async def test_a_claim_for_nothing_changes_nothing(runtime: Runtime) -> None:
    """A worker without free slots may call it only to show that it is alive."""
    ids = await submit_many(runtime, 2)
    assert await claim(runtime, 0) == []
    await assert_consistent(runtime, ids)


async def test_due_jobs_are_promoted_before_any_job_is_claimed(runtime: Runtime) -> None:
    """They get the place of their submit; jobs that are not due stay deferred."""
    later_ms = await now_ms(runtime) + 3_600_000
    due = await submit(runtime, not_before_ms=later_ms)
    not_due = await submit(runtime, not_before_ms=later_ms)
    other = await submit(runtime)
    await make_due(runtime, due.id)
    assert [found.id for found in await claim(runtime, 5)] == [due.id, other.id]
    await assert_consistent(runtime, [due.id, not_due.id, other.id])


async def test_a_worker_learns_when_the_next_deferred_job_is_due(runtime: Runtime) -> None:
    """So that it can sleep until then; None when nothing is deferred, 0 when more is due than one claim promotes."""
    _, due_s = await runtime.queue.claim("worker-1", count=1, low_count=1, takes_suspect=True)
    assert due_s is None
    deferred = await submit(runtime, not_before_ms=await now_ms(runtime) + 30_000)
    _, due_s = await runtime.queue.claim("worker-1", count=1, low_count=1, takes_suspect=True)
    assert due_s == pytest.approx(30, abs=5)
    await runtime.jobs.cancel(deferred.id, "tenant-a")
    _, due_s = await runtime.queue.claim("worker-1", count=1, low_count=1, takes_suspect=True)
    assert due_s is None


@on_real_redis
async def test_one_claim_touches_at_most_500_jobs(runtime: Runtime) -> None:
    """Promoted and claimed ones together, so that others wait little for Redis; the worker claims again at once."""
    later_ms = await now_ms(runtime) + 3_600_000
    await make_due(runtime, *await submit_many(runtime, 150, not_before_ms=later_ms))
    await submit_many(runtime, 400)
    claims, due_s = await runtime.queue.claim("worker-1", count=500, low_count=500, takes_suspect=True)
    assert (len(claims), due_s) == (350, 0)
    claims, due_s = await runtime.queue.claim("worker-1", count=500, low_count=500, takes_suspect=True)
    assert (len(claims), due_s) == (200, None)


@on_real_redis
async def test_jobs_that_come_due_together_are_promoted_in_portions(runtime: Runtime) -> None:
    """200 per claim; the worker must claim again at once, even without free slots."""
    await make_due(runtime, *await submit_many(runtime, 250, not_before_ms=await now_ms(runtime) + 3_600_000))
    for left, expected_s in ((50, 0), (0, None)):
        claims, due_s = await runtime.queue.claim("worker-1", count=0, low_count=0, takes_suspect=True)
        assert (claims, due_s) == ([], expected_s)
        assert await runtime._commands.call("ZCARD", redis_keys.plain("deferred")) == left


@on_real_redis
async def test_a_claim_that_found_only_overdue_jobs_must_be_repeated_at_once(runtime: Runtime) -> None:
    """Later jobs do not wait for the next tick."""
    late = await submit_many(runtime, 550)
    await make_overdue(runtime, *late)
    next_one = await submit(runtime)
    claims, due_s = await runtime.queue.claim("worker-1", count=5, low_count=5, takes_suspect=True)
    assert (claims, due_s) == ([], 0)
    assert (await claim_one(runtime)).id == next_one.id


async def test_an_overdue_job_ends_instead_of_starting(runtime: Runtime) -> None:
    """Even if EXPIRE has not run before; the claim goes on to the next job."""
    late, next_one = await submit(runtime), await submit(runtime)
    await make_overdue(runtime, late.id)
    assert [found.id for found in await claim(runtime, 5)] == [next_one.id]
    assert await state_of(runtime, late.id) is JobState.EXPIRED
    assert await names_in_log(runtime, late.id) == []
    await assert_consistent(runtime, [late.id, next_one.id])


async def test_a_started_job_that_is_overdue_at_its_next_claim_has_timed_out(runtime: Runtime) -> None:
    """``timeout_s`` includes all attempts and waits."""
    claimed = await start(runtime)
    assert await runtime.queue.release(claimed, reason="drained")
    await make_overdue(runtime, claimed.id)
    assert await claim(runtime, 5) == []
    job = await job_of(runtime, claimed.id)
    assert (job.state, job.error and job.error.code) == (JobState.FAILED, "timeout")
    assert (await names_in_log(runtime, claimed.id))[-1] == "failed"


async def test_epochs_of_a_job_only_grow(runtime: Runtime) -> None:
    """Even if Redis's clock stops or is set back."""
    submission = await submit(runtime)
    ahead = await now_ms(runtime) + 60_000
    await runtime._commands.call("HSET", redis_keys.job(submission.id), "epoch", ahead)
    epochs = []
    for _ in range(4):
        claimed = await claim_one(runtime)
        epochs.append(claimed.epoch)
        assert await runtime.queue.release(claimed, reason="drained")
    assert epochs[0] == ahead + 1
    assert all(later > earlier for earlier, later in pairwise(epochs))


async def test_the_next_claim_resets_published_content(runtime: Runtime) -> None:
    """One ``reset`` directly after ``started``, with the reason why the job was released."""
    claimed = await start(runtime)
    await runtime.log.append(claimed.id, claimed.epoch, 1, [("content_block_delta", b"{}")], published=True)
    assert await runtime.queue.release(claimed, reason="drained")
    second = await claim_one(runtime)
    assert second.next_seq == 2
    events = [event for event in await runtime.log.read(claimed.id) if event.id and event.id.epoch == second.epoch]
    assert [(event.name, msgspec.json.decode(event.data)) for event in events] == [
        ("started", {"attempt": 2}),
        ("reset", {"attempt": 2, "reason": "drained"}),
    ]
    assert await runtime.queue.release(second, reason="drained")
    assert (await claim_one(runtime)).next_seq == 1


async def test_a_claim_after_nothing_was_published_needs_no_reset(runtime: Runtime) -> None:
    """Followers have no text to clear."""
    claimed = await start(runtime)
    assert await runtime.queue.release(claimed, reason="drained")
    assert (await claim_one(runtime)).next_seq == 1
    assert "reset" not in await names_in_log(runtime, claimed.id)


async def test_what_a_job_keeps_over_its_claims(runtime: Runtime) -> None:
    """Its first start, and the number of failures."""
    claimed = await start(runtime)
    assert await runtime.queue.release(claimed, reason="upstream_failed", failures=2)
    again = await claim_one(runtime)
    assert (again.attempt, again.failures, again.started_ms) == (2, 2, claimed.started_ms)


async def test_an_ended_job_is_never_claimed(runtime: Runtime) -> None:
    """Terminal states are final, even if an entry of the job were left in a queue."""
    claimed = await start(runtime)
    await finish(runtime, claimed)
    flow = redis_keys.flow_of("normal", "tenant-a", "a-model")
    await runtime._commands.call("ZADD", redis_keys.flow(flow), 1, claimed.id)
    await runtime._commands.call("ZADD", f"{redis_keys.SHARD}ready:normal", 0, flow)
    assert await claim(runtime, 5) == []
    assert await state_of(runtime, claimed.id) is JobState.SUCCEEDED
    await assert_consistent(runtime, [claimed.id])


async def test_the_first_script_call_of_a_process_is_known_to_redis(runtime: Runtime) -> None:
    """Scripts are loaded when the connection opens, not by the first request."""
    await runtime.ping()
    submission = a_submission()
    reply = await runtime._commands.call("SCRIPT", "EXISTS", *_shas())
    assert reply == [1] * len(_shas())
    await runtime.jobs.submit(submission, expires_in_s=60)


def _shas() -> list[str]:
    from shared.store.script import NAMES, script

    return [script(name).sha for name in NAMES]
