"""What waits, could start and has ended, and the buckets of the last hour, over all tenants."""

import asyncio

from shared.errors import JobError
from shared.figures import BUCKET_MS
from shared.job import Priority, Step
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.store import SUCCESS, claim_one, make_due, make_overdue, start_batch, submit, submit_many


async def test_every_end_is_counted_once_by_outcome_and_code(runtime: Runtime) -> None:
    """Whoever ends the job, and however often it says so."""
    await submit(runtime)
    claim = await claim_one(runtime)
    for _ in range(2):
        await runtime.queue.finish(claim, SUCCESS, seq=claim.next_seq)
    await submit(runtime)
    claim = await claim_one(runtime)
    failed = Ending(Step.FAIL, error=JobError("upstream_error", "The LLM failed.", retryable=True))
    await runtime.queue.finish(claim, failed, seq=claim.next_seq)
    cancelled, overdue = await submit(runtime), await submit(runtime)
    for _ in range(2):
        await runtime.jobs.cancel(cancelled.id, "tenant-a")
    await make_overdue(runtime, overdue.id)
    await runtime.jobs.expire()
    depths = await runtime.figures.depths()
    assert depths.ended == {"succeeded": 1, "failed upstream_error": 1, "cancelled": 1, "expired": 1}
    assert depths.outcomes == {"succeeded": 1, "failed": 1, "cancelled": 1, "expired": 1}
    assert (depths.waiting, depths.running) == (0, 0)


async def test_the_items_of_a_batch_that_fail_are_counted_with_their_codes(runtime: Runtime) -> None:
    """As other jobs are."""
    await start_batch(runtime, 1)
    claim = await claim_one(runtime)
    error = JobError("timeout", "It took too long.", retryable=True)
    await runtime.queue.finish(claim, Ending(Step.FAIL, error=error), seq=claim.next_seq)
    assert (await runtime.figures.depths()).ended == {"failed timeout": 1}


async def test_what_can_start_is_known_by_band_and_chain(runtime: Runtime) -> None:
    """A job whose time has not come waits too, but could not start."""
    await submit_many(runtime, 3, model="a-model")
    await submit_many(runtime, 2, model="b-model", tenant="tenant-b", priority=Priority.HIGH)
    await submit(runtime, not_before_ms=4_000_000_000_000)
    depths = await runtime.figures.depths()
    assert (depths.waiting, depths.running) == (6, 0)
    assert {band: dict(depth.jobs) for band, depth in depths.bands.items()} == {
        "high": {"anthropic/b-model": 2},
        "normal": {"anthropic/a-model": 3},
        "low": {},
    }
    assert depths.bands["low"].oldest_ms is None
    oldest_ms = depths.bands["normal"].oldest_ms
    assert oldest_ms is not None
    assert 0 <= depths.now_ms - oldest_ms < 5_000


async def test_many_flows_are_estimated_from_the_first_hundred(runtime: Runtime) -> None:
    """The work of one look is bounded."""
    for number in range(150):
        await submit(runtime, tenant=f"tenant-{number}")
    (jobs,) = (await runtime.figures.depths()).bands["normal"].jobs.values()
    assert jobs == 150


async def test_a_job_waits_for_a_worker_from_when_it_could_start(runtime: Runtime) -> None:
    """Not from its submit: it may have been planned for days later."""
    job = await submit(runtime, not_before_ms=4_000_000_000_000)
    await runtime._commands.call("HSET", redis_keys.job(job.id), "created_ms", 1)
    await make_due(runtime, job.id)
    blocker = await submit(runtime, priority=Priority.HIGH)
    claim = await claim_one(runtime)
    assert claim.id == blocker.id
    depths = await runtime.figures.depths()
    oldest_ms = depths.bands["normal"].oldest_ms
    assert oldest_ms is not None
    assert depths.now_ms - oldest_ms < 5_000


async def test_one_process_samples_each_bucket(runtime: Runtime) -> None:
    """And every process reads the same."""
    await submit_many(runtime, 2)
    left_s = await asyncio.gather(*[runtime.figures.sample() for _ in range(3)])
    assert all(0 < left <= BUCKET_MS / 1000 for left in left_s)
    await runtime.figures.add({"tokens": 5, "t10": 1})
    await runtime.figures.add({"tokens": 2, "t10": 1})
    now_ms = (await runtime.figures.depths()).now_ms
    newest = await runtime.figures.read(now_ms)
    found = [bucket for number, bucket in runtime.figures.buckets.items() if number > newest]
    assert sum(bucket.tokens for bucket in found) == 7
    assert sum(bucket.first_tokens.get(10, 0) for bucket in found) == 2
    assert [bucket.waiting for bucket in found if bucket.waiting is not None][:1] == [2]


async def test_a_bucket_is_read_again_until_it_is_whole(runtime: Runtime) -> None:
    """What was added after the first read is seen, and a whole bucket is not read again."""
    await runtime.figures.add({"tokens": 1})
    now_ms = (await runtime.figures.depths()).now_ms
    await runtime.figures.read(now_ms)
    await runtime.figures.add({"tokens": 1})
    await runtime.figures.read(now_ms)
    assert sum(bucket.tokens for bucket in runtime.figures.buckets.values()) == 2
    await runtime.figures.read(now_ms + 3 * BUCKET_MS)
    await runtime.figures.add({"tokens": 1})
    await runtime.figures.read(now_ms + 3 * BUCKET_MS)
    assert sum(bucket.tokens for bucket in runtime.figures.buckets.values()) == 2


async def test_followers_are_counted_over_all_living_processes(runtime: Runtime) -> None:
    """One that is silent counts no more."""
    await runtime.jobs.attend("api-1", 3)
    await runtime.jobs.attend("api-2", 4)
    assert (await runtime.figures.depths()).followers == 7
    await runtime.jobs.attend("api-2", 0)
    assert (await runtime.figures.depths()).followers == 3
    await runtime._commands.call("ZADD", redis_keys.plain("attendants"), 1, "api-1")
    assert (await runtime.figures.depths()).followers == 0
    await runtime._commands.call("ZREM", redis_keys.plain("attendants"), "api-1")
    await runtime.jobs.attend("api-3", 1)
    assert await runtime._commands.call("HKEYS", redis_keys.plain("followers")) == [b"api-3"]
