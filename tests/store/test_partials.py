"""The log of a job that ended without success is kept until what it shows is stored; then it goes like any other log."""

import msgspec
import pytest

from shared.errors import JobError
from shared.job import Step
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.builders import an_answer
from tests.support.store import append, claim_one, finish, job_of, lose, now_ms, start, start_batch, submit, ttl_ms

_FAILURE = Ending(Step.FAIL, error=JobError("upstream_error", "The LLM failed.", retryable=True))
_BEGINNING = an_answer("Hel", "lo")[:4]
_UNFOLDED = redis_keys.plain("unfolded")


async def text_of(runtime: Runtime, job_id: str) -> str | None:
    """What its tenant reads: the text of the only block, or None."""
    found = (await runtime.partials.added_to(await job_of(runtime, job_id))).partial
    assert found is not msgspec.UNSET
    if found is None:
        return None
    ((kind, text),) = [tuple(block.values()) for block in msgspec.json.decode(found)]
    assert kind == "text"
    return str(text)


async def _fail(runtime: Runtime, *events: tuple[str, bytes]) -> str:
    claimed = await start(runtime)
    await append(runtime, claimed, *events)
    await finish(runtime, claimed, _FAILURE, seq=claimed.next_seq + len(events))
    return claimed.id


async def test_the_log_is_kept_until_it_is_folded(runtime: Runtime) -> None:
    """However long no worker is up, nothing is lost."""
    job_id = await _fail(runtime, *_BEGINNING)
    record_ms = await ttl_ms(runtime, redis_keys.job(job_id)) or 0
    assert await ttl_ms(runtime, redis_keys.log(job_id)) == pytest.approx(record_ms, abs=2_000)
    assert await text_of(runtime, job_id) == "Hello"
    assert await runtime.partials.keep_due() is False
    assert await ttl_ms(runtime, redis_keys.result(job_id)) == pytest.approx(record_ms, abs=5_000)
    log_ms = runtime.settings.log_retention_s * 1000
    assert await ttl_ms(runtime, redis_keys.log(job_id)) == pytest.approx(log_ms, abs=5_000)
    await runtime._commands.call("DEL", redis_keys.log(job_id))
    assert await text_of(runtime, job_id) == "Hello"
    assert (await job_of(runtime, job_id, with_result=True)).result is None
    assert await runtime._commands.call("EXISTS", _UNFOLDED) == 0


async def test_without_content_nothing_is_stored(runtime: Runtime) -> None:
    """The answer had only begun, or not even that."""
    begun, untouched = await _fail(runtime, *_BEGINNING[:1]), await _fail(runtime)
    await runtime.partials.keep_due()
    for job_id in (begun, untouched):
        assert await runtime._commands.call("EXISTS", redis_keys.result(job_id)) == 0
        assert (await ttl_ms(runtime, redis_keys.log(job_id)) or 0) <= runtime.settings.log_retention_s * 1000


async def test_a_log_of_many_pages_is_folded_whole(runtime: Runtime) -> None:
    pieces = [f"{number} " for number in range(1_000)]
    job_id = await _fail(runtime, *an_answer(*pieces)[:-3])
    await runtime.partials.keep_due()
    assert await text_of(runtime, job_id) == "".join(pieces)


async def test_more_than_one_pass_may_be_due(runtime: Runtime) -> None:
    job_ids = [await _fail(runtime, *_BEGINNING) for _ in range(25)]
    assert await runtime.partials.keep_due() is True
    assert await runtime.partials.keep_due() is False
    for job_id in job_ids:
        assert await runtime._commands.call("EXISTS", redis_keys.result(job_id)) == 1


async def test_a_worker_that_dies_while_it_folds_is_replaced(runtime: Runtime) -> None:
    """Another worker takes it after half a minute. A second fold changes nothing."""
    job_id = await _fail(runtime, *_BEGINNING)
    run = runtime._commands.run
    assert len(await run("due_partials", most=10)) == 1
    assert await run("due_partials", most=10) == []
    due_ms = int(await runtime._commands.call("ZSCORE", _UNFOLDED, job_id))
    assert 25_000 < due_ms - await now_ms(runtime) <= 30_000
    await runtime._commands.call("ZADD", _UNFOLDED, 1, job_id)
    await runtime.partials.keep_due()
    await run("keep_partial", id=job_id, partial=b"another")
    assert await text_of(runtime, job_id) == "Hello"


async def test_an_erased_job_is_not_brought_back(runtime: Runtime) -> None:
    """It is erased while a worker folds its log, or before."""
    during, before = await _fail(runtime, *_BEGINNING), await _fail(runtime, *_BEGINNING)
    await runtime._commands.run("due_partials", most=10)
    for job_id in (during, before):
        await runtime.jobs.erase(job_id, "tenant-a")
        assert await runtime._commands.call("ZSCORE", _UNFOLDED, job_id) is None
    await runtime._commands.run("keep_partial", id=during, partial=b"{}")
    await runtime.partials.keep_due()
    for job_id in (during, before):
        for key in (redis_keys.job, redis_keys.result, redis_keys.log):
            assert await runtime._commands.call("EXISTS", key(job_id)) == 0


async def test_an_item_keeps_it_as_long_as_its_batch(runtime: Runtime) -> None:
    """The log of an item without followers then has its short time."""
    batch = await start_batch(runtime, 1)
    claimed = await claim_one(runtime)
    await append(runtime, claimed, *_BEGINNING)
    await finish(runtime, claimed, _FAILURE, seq=claimed.next_seq + len(_BEGINNING))
    await runtime.batches.advance_all(batch.id)
    await runtime.partials.keep_due()
    assert (await ttl_ms(runtime, redis_keys.log(claimed.id)) or 0) <= runtime.settings.batch_log_retention_s * 1000
    kept_ms = await ttl_ms(runtime, redis_keys.job(claimed.id))
    assert kept_ms
    assert await ttl_ms(runtime, redis_keys.result(claimed.id)) == pytest.approx(kept_ms, abs=100)
    assert await text_of(runtime, claimed.id) == "Hello"


async def test_what_a_dead_worker_left_is_kept(runtime: Runtime) -> None:
    """The job is cancelled before its next claim. After a claim, whose reset discards it, nothing is kept."""
    for claims_again, text in ((False, "Hello"), (True, None)):
        claimed = await start(runtime)
        await append(runtime, claimed, *_BEGINNING)
        await lose(runtime, claimed)
        if claims_again:
            await claim_one(runtime)
        assert await runtime.jobs.cancel(claimed.id, "tenant-a")
        await runtime.partials.keep_due()
        assert await text_of(runtime, claimed.id) == text


async def test_the_newest_report_counts_and_only_of_the_newest_claim(runtime: Runtime) -> None:
    first = await start(runtime)
    await append(runtime, first, *_BEGINNING)
    assert (await job_of(runtime, first.id)).last_token_ms is None
    await runtime.queue.renew([(first.id, first.epoch)], {first.id: first.epoch})
    await runtime.queue.renew([(first.id, first.epoch)])
    assert (await job_of(runtime, first.id)).last_token_ms == first.epoch
    await runtime.queue.release(first, reason="drained", last_token_ms=first.epoch + 1)
    assert (await job_of(runtime, first.id)).last_token_ms == first.epoch + 1
    second = await claim_one(runtime)
    assert (await job_of(runtime, first.id)).last_token_ms is None
    await runtime.jobs.charge(first.id, 1, tenant="tenant-a", epoch=first.epoch, last_token_ms=second.epoch + 9)
    assert (await job_of(runtime, first.id)).last_token_ms is None, "of a claim that is over"
    await runtime.jobs.cancel(first.id, "tenant-a")
    await runtime.jobs.charge(first.id, 1, tenant="tenant-a", epoch=second.epoch, last_token_ms=second.epoch + 7)
    assert (await job_of(runtime, first.id)).last_token_ms == second.epoch + 7


async def test_a_record_notes_the_newest_hundred_claims_that_made_calls(runtime: Runtime) -> None:
    job = await submit(runtime)
    epochs = []
    for number in range(1, 104):
        claimed = await claim_one(runtime)
        epochs.append(claimed.epoch)
        await runtime.queue.release(claimed, reason="drained", attempts=number)
        unused = await claim_one(runtime)  # it got no permit
        await runtime.queue.release(unused, reason="drained", attempts=number)
    noted = (await runtime._commands.call("HGET", redis_keys.job(job.id), "claims")).decode().split()
    assert noted == [f"{epoch}:{number}:{number}" for number, epoch in enumerate(epochs, 1)][-100:]
