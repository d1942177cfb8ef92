"""RELEASE: the holder of a claim returns its job to the queue, due now or later."""

import msgspec
import pytest

from shared.events import decode_published
from shared.job import JobState
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.support.builders import a_text_delta
from tests.support.store import (
    append,
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
    start_earlier,
    state_of,
    submit_many,
)

A_RETRY = b'{"attempt":2,"reason":"upstream_overloaded","delay_ms":30000}'


async def test_a_released_job_is_back_at_its_old_place(runtime: Runtime) -> None:
    """A drain costs nobody his turn."""
    ids = await submit_many(runtime, 3)
    claimed = await claim_one(runtime)
    assert await runtime.queue.release(claimed, reason="drained")
    assert await state_of(runtime, claimed.id) is JobState.QUEUED
    await assert_consistent(runtime, ids)
    assert [found.id for found in await claim(runtime, 3)] == ids


async def test_a_deferred_job_waits_until_it_is_due(runtime: Runtime) -> None:
    """It blocks no flow meanwhile, and takes its old place again when it is due."""
    first, second = await submit_many(runtime, 2)
    claimed = await claim_one(runtime)
    before_ms = await now_ms(runtime)
    assert await runtime.queue.release(claimed, reason="upstream_failed", delay_s=30, failures=1, retry_event=A_RETRY)
    due_ms = float(await runtime._commands.call("ZSCORE", redis_keys.plain("deferred"), first))
    assert before_ms + 30_000 <= due_ms <= await now_ms(runtime) + 30_000
    await assert_consistent(runtime, [first, second])

    claims, due_s = await runtime.queue.claim("worker-1", count=1, low_count=1, takes_suspect=True)
    assert [found.id for found in claims] == [second]
    assert due_s == pytest.approx(30, abs=5)
    assert await runtime.queue.release(claims[0], reason="drained")

    await make_due(runtime, first)
    again = await claim(runtime, 2)
    assert [found.id for found in again] == [first, second]
    assert (again[0].attempt, again[0].failures) == (2, 1)


async def test_a_retry_is_told_in_an_epoch_of_its_own(runtime: Runtime) -> None:
    """Stored and published once, above everything that the claim wrote, so that nothing of it can follow."""
    claimed = await start(runtime)
    await append(runtime, claimed, a_text_delta("Hel"))
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await runtime.queue.release(
            claimed, reason="upstream_failed", delay_s=30, failures=1, retry_event=A_RETRY
        )
        assert await append(runtime, claimed, a_text_delta("lo"), seq=2) == -1
        published = await heard.events()
    stored = (await runtime.log.read(claimed.id))[-1]
    assert published == [stored]
    assert (stored.name, stored.data) == ("retry", A_RETRY)
    assert stored.id is not None
    assert (stored.id.seq, stored.id.epoch > claimed.epoch) == (0, True)
    assert (await job_of(runtime, claimed.id)).epoch == stored.id.epoch


async def test_a_release_without_a_retry_event_says_nothing(runtime: Runtime) -> None:
    """Followers see the next ``started``."""
    claimed = await start(runtime)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        assert await runtime.queue.release(claimed, reason="drained")
        assert await heard.all() == []
    assert await names_in_log(runtime, claimed.id) == ["started"]


async def test_the_next_attempt_resets_with_the_reason_of_the_release(runtime: Runtime) -> None:
    """A follower learns why its text is void."""
    claimed = await start(runtime)
    await append(runtime, claimed, a_text_delta("Hel"))
    assert await runtime.queue.release(claimed, reason="upstream_failed", delay_s=30, retry_event=A_RETRY)
    await make_due(runtime, claimed.id)
    async with listening(runtime, redis_keys.events(claimed.id)) as heard:
        again = await claim_one(runtime)
        (message,) = await heard.all()
    assert [(event.name, msgspec.json.decode(event.data)) for event in decode_published(message)] == [
        ("started", {"attempt": 2}),
        ("reset", {"attempt": 2, "reason": "upstream_failed"}),
    ]
    assert again.next_seq == 2


async def test_failures_add_up_over_claims(runtime: Runtime) -> None:
    """``max_attempts`` bounds them, wherever they happened."""
    claimed = await start(runtime)
    for failures in (1, 2):
        assert await runtime.queue.release(claimed, reason="upstream_failed", failures=failures)
        claimed = await claim_one(runtime)
    assert claimed.failures == 3


async def test_only_the_holder_can_release(runtime: Runtime) -> None:
    """Not after the end, and not for a later claim. Twice is once: the first answer may have been lost."""
    claimed = await start(runtime)
    assert await runtime.queue.release(claimed, reason="drained", failures=1, cost=7)
    assert await runtime.queue.release(claimed, reason="drained", failures=1, cost=7)
    record = await runtime._commands.call("HMGET", redis_keys.job(claimed.id), "failures", "cost_nano_usd")
    assert record == [b"1", b"7"]
    second = await claim_one(runtime)
    assert await runtime.queue.release(claimed, reason="drained", failures=5, retry_event=A_RETRY), "told, but not done"
    assert await state_of(runtime, second.id) is JobState.RUNNING
    await finish(runtime, second)
    assert not await runtime.queue.release(second, reason="drained")
    assert await names_in_log(runtime, second.id) == ["started", "started", "succeeded"]
    assert (await job_of(runtime, second.id)).state is JobState.SUCCEEDED


async def test_a_job_deferred_beyond_its_timeout_ends_at_its_timeout(runtime: Runtime) -> None:
    """No wait outlasts ``timeout_s``."""
    claimed = await start(runtime, timeout_s=50)
    started_ms = await start_earlier(runtime, claimed, by_ms=20_000)
    assert await runtime.queue.release(claimed, reason="upstream_failed", delay_s=3600, retry_event=A_RETRY)
    deadline_ms = float(await runtime._commands.call("ZSCORE", redis_keys.plain("waiting"), claimed.id))
    assert deadline_ms == started_ms + 50_000
    await make_overdue(runtime, claimed.id)
    await runtime.jobs.expire()
    job = await job_of(runtime, claimed.id)
    assert (job.state, job.error and job.error.code) == (JobState.FAILED, "timeout")
    await assert_consistent(runtime, [claimed.id])


async def test_a_release_wakes_a_hungry_worker(runtime: Runtime) -> None:
    """Another one may run it at once; or must learn of the new due time."""
    claimed = await start(runtime)
    assert await claim(runtime) == []
    async with listening(runtime, redis_keys.plain("wake")) as heard:
        assert await runtime.queue.release(claimed, reason="drained")
        assert await heard.all() == [b""]
