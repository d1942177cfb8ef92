"""Limits while Redis is full or away: each fails open or closed on purpose. Real servers only."""

from collections.abc import AsyncIterator
from typing import Final

import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.errors import RateLimited, StorageFull, StorageUnavailable
from shared.job import Step, Usage
from shared.limits import CallerLimits
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime, open_runtime
from tests.support.builders import a_submission
from tests.support.limits import KEY, TENANT, age, counted, spent
from tests.support.store import A_RESULT, all_keys, assert_consistent, begin, claim_one, receive, submit
from tests.support.wait import wait_until

LIMITS: Final = CallerLimits(100, 1_000, 10, 50, 10**12, 10**12)
A_KEY: Final = {"key_id": "key-1", "key_limits": LIMITS}


@pytest.fixture
async def runtime(own_server: EmbeddedRedis) -> AsyncIterator[Runtime]:
    """A store on its own server, and a tenant with every limit."""
    async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=2) as opened:
        await opened.tenants.set("tenant-a", {name: getattr(LIMITS, name) for name in LIMITS.__struct_fields__})
        yield opened


async def _fill(runtime: Runtime) -> None:
    await runtime._commands.call("CONFIG", "SET", "maxmemory", 1)


async def test_a_full_redis_counts_no_submit_and_settles_what_runs(runtime: Runtime) -> None:
    """A refused submit or batch leaves nothing, even if the window of the last minute must be cleaned first."""
    job = await submit(runtime, key_id="key-1", limits=LIMITS, tokens=60)
    claimed = await claim_one(runtime)
    batch = await receive(runtime, 2, **A_KEY)  # type: ignore[arg-type]
    for owner in (KEY, TENANT):
        await age(runtime, redis_keys.pace(owner), 30_000)
    later = await submit(runtime, key_id="key-1", limits=LIMITS, tokens=10)
    for owner in (KEY, TENANT):
        await age(runtime, redis_keys.pace(owner), 31_000)
    bucket = int((await runtime._commands.call("HGET", redis_keys.job(job.id), "reserved")).split()[0]) - 122
    await runtime._commands.call("HSET", redis_keys.job(job.id), "reserved", f"{bucket} 60 60")
    before = [await all_keys(runtime._commands), await counted(runtime, KEY), await counted(runtime, TENANT)]
    await _fill(runtime)
    with pytest.raises(StorageFull):
        await runtime.jobs.submit(a_submission(key_id="key-1", limits=LIMITS, tokens=10), expires_in_s=60)
    with pytest.raises(StorageFull):
        await begin(runtime, batch, **A_KEY)  # type: ignore[arg-type]
    assert before == [await all_keys(runtime._commands), await counted(runtime, KEY), await counted(runtime, TENANT)]
    ending = Ending(Step.SUCCEED, A_RESULT, Usage(3, 4))
    await runtime.queue.finish(claimed, ending, seq=claimed.next_seq, cost=5)
    assert await counted(runtime, KEY) == await counted(runtime, TENANT) == (2, 17)
    assert await spent(runtime, KEY) == [5, 5]
    await assert_consistent(runtime, [job.id, later.id])


async def test_a_full_redis_can_be_given_limits_and_counts_addresses(runtime: Runtime) -> None:
    """A flood that fills Redis is still limited."""
    await _fill(runtime)
    assert (await runtime.tenants.set("tenant-b", {"queued_jobs": 5})).queued_jobs == 5
    await runtime.addresses.admit("192.0.2.7", 1)
    with pytest.raises(RateLimited):
        await runtime.addresses.admit("192.0.2.7", 1)


async def test_limits_of_keys_and_tenants_are_closed_while_redis_is_away(
    runtime: Runtime, own_server: EmbeddedRedis
) -> None:
    """The whole submit is refused; earlier counts are still there when Redis is back."""
    one = CallerLimits(requests_per_minute=1)
    await submit(runtime, key_id="key-1", limits=one)
    own_server.kill()
    await wait_until(lambda: not runtime._commands.is_connected, "the end of the connection")
    with pytest.raises(StorageUnavailable):
        await runtime.jobs.submit(a_submission(key_id="key-1", limits=one), expires_in_s=60)
    own_server.restart()
    await wait_until(lambda: runtime._commands.is_connected, "the connection")
    with pytest.raises(RateLimited):
        await runtime.jobs.submit(a_submission(key_id="key-1", limits=one), expires_in_s=60)
