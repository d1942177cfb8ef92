"""Attended jobs end with the API process whose client waits for them; quiet jobs leave next to nothing."""

from typing import Any

import pytest

from shared.job import JobKind, JobState
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.support.builders import a_submission
from tests.support.store import (
    all_keys,
    assert_consistent,
    claim,
    claim_one,
    finish,
    listening,
    names_in_log,
    now_ms,
    state_of,
    ttl_ms,
)


async def attended(runtime: Runtime, name: str = "api-1", **members: Any) -> str:
    """A job that a client of that process waits for."""
    submission = a_submission(attended_by=name, **members)
    await runtime.jobs.submit(submission, expires_in_s=3600)
    return submission.id


async def silence(runtime: Runtime, name: str = "api-1") -> None:
    """Makes the process look silent for long, while others were alive."""
    await runtime._commands.call("ZADD", redis_keys.plain("attendants"), 1, name)
    await runtime._commands.call("SET", redis_keys.plain("spared"), 1, "PX", 5_000)


async def test_jobs_of_a_process_that_is_gone_are_cancelled(runtime: Runtime) -> None:
    """Whether they wait, are deferred or run; a running job's worker gets a message. Jobs of living processes go on."""
    await runtime.jobs.attend("api-1")
    await runtime.jobs.attend("api-2")
    ids = [await attended(runtime), await attended(runtime)]
    ids.append(await attended(runtime, not_before_ms=await now_ms(runtime) + 60_000))
    other = await attended(runtime, "api-2")
    running = await claim_one(runtime)
    assert list(await runtime.jobs.abandon()) == []
    await silence(runtime)
    await assert_consistent(runtime, [*ids, other])
    async with listening(runtime, redis_keys.plain("control")) as control:
        assert sorted(await runtime.jobs.abandon()) == sorted(ids)
        assert await control.all() == [f"cancel {running.id}".encode()]
    assert {await state_of(runtime, job_id) for job_id in ids} == {JobState.CANCELLED}
    assert await state_of(runtime, other) is JobState.QUEUED
    assert list(await runtime.jobs.abandon()) == []
    await assert_consistent(runtime, [*ids, other])
    assert await runtime._commands.call("ZRANGE", redis_keys.plain("attendants"), 0, -1) == [b"api-2"]


async def test_after_a_silence_all_processes_get_another_chance(runtime: Runtime) -> None:
    """Redis was away, so no process could report."""
    job_id = await attended(runtime)
    await silence(runtime)
    await runtime._commands.call("DEL", redis_keys.plain("spared"))
    for _ in range(3):
        assert list(await runtime.jobs.abandon()) == []
    await runtime.jobs.attend("api-1")
    await runtime._commands.call("SET", redis_keys.plain("spared"), 1, "PX", 5_000)
    assert list(await runtime.jobs.abandon()) == []
    await silence(runtime)
    assert list(await runtime.jobs.abandon()) == [job_id]


@pytest.mark.parametrize("how", ["finish", "cancel"])
async def test_an_attended_job_that_ended_is_attended_no_more(runtime: Runtime, how: str) -> None:
    """The set holds only jobs that may have to be cancelled."""
    job_id = await attended(runtime)
    if how == "finish":
        await finish(runtime, await claim_one(runtime))
    else:
        await runtime.jobs.cancel(job_id, "tenant-a")
    assert [name for name in await all_keys(runtime._commands) if ":attended:" in name] == []


async def test_a_quiet_job_has_no_log_and_is_in_no_list(runtime: Runtime) -> None:
    """It is deleted a minute after its end."""
    submission = a_submission(kind=JobKind.COUNT_TOKENS)
    await runtime.jobs.submit(submission, expires_in_s=60)
    (claimed,) = await claim(runtime)
    assert claimed.next_seq == 0
    page = await runtime.jobs.list("tenant-a", after=None, limit=5)
    assert page.jobs == []
    await finish(runtime, claimed)
    assert await names_in_log(runtime, claimed.id) == []
    for key in (redis_keys.job(claimed.id), redis_keys.result(claimed.id)):
        assert await ttl_ms(runtime, key) == pytest.approx(60_000, abs=5_000)
