"""Erased data stays erased, whatever request is still working on it."""

import pytest

from shared.errors import NotEnded
from shared.job import Step
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.batches import a_result
from tests.support.builders import a_text_delta
from tests.support.contents import kinds_that_hold
from tests.support.store import append, claim_one, expire_leases, finish, start_batch, submit
from tests.tenants.victim import CANARY, VICTIM

_REQUEST = b'{"messages":[{"role":"user","content":"%b"}]}' % CANARY.encode()
_SUCCESS = Ending(Step.SUCCEED, a_result(CANARY))


async def test_a_worker_that_slept_brings_nothing_back(runtime: Runtime) -> None:
    """It wakes up after its job was cancelled and erased, and does everything that a worker can do with a claim."""
    job = await submit(runtime, tenant=VICTIM, request=_REQUEST, metadata={"note": CANARY}, idempotency_key=CANARY)
    claimed = await claim_one(runtime)
    await append(runtime, claimed, a_text_delta(CANARY))
    with pytest.raises(NotEnded):
        await runtime.jobs.erase(job.id, VICTIM)
    assert await kinds_that_hold(runtime._commands, CANARY) == {"job", "log"}
    await runtime.jobs.cancel(job.id, VICTIM)
    await runtime.jobs.erase(job.id, VICTIM)
    assert await kinds_that_hold(runtime._commands, CANARY) == set()
    await append(runtime, claimed, a_text_delta(CANARY), seq=claimed.next_seq + 1)
    await runtime.queue.renew([(claimed.id, claimed.epoch)])
    await runtime.queue.release(claimed, reason="upstream_failed", delay_s=0)
    await finish(runtime, claimed, _SUCCESS, seq=claimed.next_seq + 1)
    await expire_leases(runtime, job.id)
    await runtime.queue.reap()
    assert await kinds_that_hold(runtime._commands, CANARY) == set()
    assert await kinds_that_hold(runtime._commands, job.id) <= {"idempotency"}


async def test_a_worker_brings_nothing_of_a_batch_back(runtime: Runtime) -> None:
    """It ran an item when the batch was cancelled and erased."""
    batch = await start_batch(runtime, 2, tenant=VICTIM, metadata={"note": CANARY}, idempotency_key=CANARY)
    done, running = await claim_one(runtime), await claim_one(runtime)
    await finish(runtime, done, _SUCCESS)
    await append(runtime, running, a_text_delta(CANARY))
    await runtime.batches.cancel(batch.id, VICTIM)
    await runtime.batches.advance_all(batch.id)
    await runtime.batches.erase(batch.id, VICTIM)
    await runtime.batches.advance_all(batch.id)
    assert await kinds_that_hold(runtime._commands, CANARY) == set()
    await append(runtime, running, a_text_delta(CANARY), seq=running.next_seq + 1)
    await finish(runtime, running, _SUCCESS, seq=running.next_seq + 1)
    assert await kinds_that_hold(runtime._commands, CANARY) == set()
    for own_id in (batch.id, *batch.job_ids):
        assert await kinds_that_hold(runtime._commands, own_id) <= {"idempotency"}
