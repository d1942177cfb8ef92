"""Operations on many jobs: each job is acted on and counted once, whichever process does it, and dies."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.api_key import Caller
from shared.errors import IdempotencyKeyReused, NotFound, TooManyQueued
from shared.job import JobState
from shared.job_filter import EVERY_JOB, JobFilter
from shared.operation import FOR_ITS_TURN, Operation, OperationAction, OperationCounts, OperationState
from shared.store import redis_keys
from shared.store.operations import ClaimedOperation, Piece
from shared.store.runtime import Runtime
from tests.support.builders import a_batch_id
from tests.support.store import SUCCESS, all_keys, finish, job_of, kind_of, start, submit, submit_many

TENANT = "tenant-a"
OTHER = "tenant-b"
CANCEL, RETRY, ERASE = OperationAction.CANCEL, OperationAction.RETRY, OperationAction.ERASE


async def _begun(
    runtime: Runtime, action: OperationAction, wanted: JobFilter = EVERY_JOB, *, tenant: str = TENANT
) -> str:
    await asyncio.sleep(0.002)  # ids of one millisecond have no order
    operation_id, _ = await runtime.operations.create(Caller(tenant), action, wanted)
    return operation_id


async def _claimed(runtime: Runtime) -> ClaimedOperation:
    claimed = await runtime.operations.claim()
    assert claimed is not None
    return claimed


def _acting_on(ids: Sequence[str], *, is_last: bool = False) -> Piece:
    return Piece(ids[-1] if ids else None, is_last, OperationCounts(matched=len(ids)), ids)


async def _lease_over(runtime: Runtime, tenant: str = TENANT) -> None:
    await runtime._commands.call("ZADD", redis_keys.plain("due_operations"), "XX", 0, tenant)


async def _of(runtime: Runtime, operation_id: str, tenant: str = TENANT) -> Operation:
    return await runtime.operations.get(operation_id, tenant)


async def test_a_piece_cancels_counts_and_goes_on_in_one_step(runtime: Runtime) -> None:
    """Jobs that had ended are skipped."""
    ids = await submit_many(runtime, 3)
    await runtime.jobs.cancel(ids[2], TENANT)
    operation_id = await _begun(runtime, CANCEL)
    assert await runtime.operations.advance(await _claimed(runtime), _acting_on(ids[:0:-1]))
    operation = await _of(runtime, operation_id)
    assert operation.counts == OperationCounts(matched=2, done=1, skipped=1)
    assert (operation.state, operation.cursor) == (OperationState.RUNNING, ids[1])
    assert await runtime.operations.advance(await _claimed(runtime), _acting_on(ids[:1], is_last=True))
    operation = await _of(runtime, operation_id)
    assert operation.counts == OperationCounts(matched=3, done=2, skipped=1)
    assert operation.state is OperationState.ENDED
    assert operation.ended_ms is not None
    assert {await runtime.jobs.state(job_id) for job_id in ids} == {JobState.CANCELLED}
    assert await runtime.operations.claim() is None


async def test_erasing_skips_what_has_not_ended_or_is_another_tenants(runtime: Runtime) -> None:
    """A script checks the tenant of each job again."""
    done, waiting = await start(runtime), await submit(runtime)
    await finish(runtime, done, SUCCESS)
    foreign = await submit(runtime, tenant=OTHER)
    await runtime.jobs.cancel(foreign.id, OTHER)
    operation_id = await _begun(runtime, ERASE)
    await runtime.operations.advance(
        await _claimed(runtime), _acting_on([done.id, waiting.id, foreign.id, "job_gone"], is_last=True)
    )
    assert (await _of(runtime, operation_id)).counts == OperationCounts(matched=4, done=1, skipped=3)
    assert await runtime.jobs.state(done.id) is None
    assert await runtime.jobs.state(waiting.id) is JobState.QUEUED
    assert await runtime.jobs.state(foreign.id) is JobState.CANCELLED


async def test_a_process_that_took_too_long_changes_and_counts_nothing(runtime: Runtime) -> None:
    """Another one has claimed the operation since."""
    ids = await submit_many(runtime, 2)
    operation_id = await _begun(runtime, CANCEL)
    slow = await _claimed(runtime)
    assert await runtime.operations.claim() is None, "a lease holds"
    await _lease_over(runtime)
    quick = await _claimed(runtime)
    assert not await runtime.operations.advance(slow, _acting_on(ids))
    assert (await job_of(runtime, ids[0])).state is JobState.QUEUED
    assert await runtime.operations.advance(quick, _acting_on(ids[:1]))
    assert (await _of(runtime, operation_id)).counts == OperationCounts(matched=1, done=1)
    assert not await runtime.operations.advance(slow, _acting_on(ids, is_last=True))
    assert (await _of(runtime, operation_id)).state is OperationState.RUNNING


async def test_one_of_a_tenant_runs_and_the_next_waits_for_its_turn(runtime: Runtime) -> None:
    """In the order in which they began."""
    first, second = await _begun(runtime, CANCEL), await _begun(runtime, ERASE)
    shown = [await _of(runtime, operation_id) for operation_id in (first, second)]
    assert [operation.waiting_for for operation in shown] == [None, FOR_ITS_TURN]
    page = await runtime.operations.page(TENANT, after=None, limit=10)
    assert [(operation.id, operation.waiting_for) for operation in page.operations] == [
        (second, FOR_ITS_TURN),
        (first, None),
    ]
    claimed = await _claimed(runtime)
    assert claimed.operation.id == first
    await runtime.operations.advance(claimed, Piece(None, is_last=True))
    claimed = await _claimed(runtime)
    assert claimed.operation.id == second
    await runtime.operations.advance(claimed, Piece(None, is_last=True))
    assert await runtime.operations.claim() is None
    assert not [name for name in await all_keys(runtime._commands) if "operations" in kind_of(name)]


async def test_tenants_take_turns(runtime: Runtime) -> None:
    """Each time the one whose last piece is longest ago."""
    for tenant in (TENANT, OTHER, "tenant-c"):
        await _begun(runtime, CANCEL, tenant=tenant)
    turns = []
    for _ in range(9):
        claimed = await _claimed(runtime)
        turns.append(claimed.operation.tenant)
        await asyncio.sleep(0.002)  # Redis's clock counts milliseconds
        await runtime.operations.advance(claimed, Piece(None))
    assert turns == [TENANT, OTHER, "tenant-c"] * 3


async def test_one_that_is_held_up_says_why_and_is_put_off(runtime: Runtime) -> None:
    """The reason is gone with the next piece."""
    operation_id = await _begun(runtime, RETRY)
    held_up = Piece(None, waiting_for="too_many_queued", wait_s=5)
    assert await runtime.operations.advance(await _claimed(runtime), held_up)
    assert (await _of(runtime, operation_id)).waiting_for == "too_many_queued"
    assert await runtime.operations.claim() is None
    await _lease_over(runtime)
    await runtime.operations.advance(await _claimed(runtime), Piece("job_1", counts=OperationCounts(1, 1)))
    assert (await _of(runtime, operation_id)).waiting_for is None


async def test_a_cancelled_one_does_no_more_but_counts_what_was_done(runtime: Runtime) -> None:
    """Its last piece may still be under way. The next operation begins at once."""
    ids = await submit_many(runtime, 2)
    operation_id, second = await _begun(runtime, CANCEL), await _begun(runtime, CANCEL)
    claimed = await _claimed(runtime)
    assert await runtime.operations.cancel(operation_id, TENANT)
    assert not await runtime.operations.cancel(operation_id, TENANT)
    await runtime.operations.advance(claimed, _acting_on(ids, is_last=True))
    operation = await _of(runtime, operation_id)
    assert (operation.state, operation.counts) == (OperationState.CANCELLED, OperationCounts())
    assert (await job_of(runtime, ids[0])).state is JobState.QUEUED
    claimed = await _claimed(runtime)
    assert claimed.operation.id == second
    await runtime.operations.cancel(second, TENANT)
    await runtime.operations.advance(claimed, Piece(ids[0], counts=OperationCounts(2, 1, 1)))
    assert (await _of(runtime, second)).counts == OperationCounts(2, 1, 1)


async def test_an_idempotency_key_begins_one_operation(runtime: Runtime) -> None:
    """With the same body; it is kept as long as a job's."""
    create = runtime.operations.create
    wanted = JobFilter(tag="red")
    first, is_replayed = await create(Caller(TENANT), CANCEL, wanted, idempotency_key="k", fingerprint="a")
    assert not is_replayed
    again = await create(Caller(TENANT), CANCEL, wanted, idempotency_key="k", fingerprint="a")
    assert again == (first, True)
    with pytest.raises(IdempotencyKeyReused):
        await create(Caller(TENANT), CANCEL, wanted, idempotency_key="k", fingerprint="b")
    other, is_replayed = await create(Caller(OTHER), CANCEL, wanted, idempotency_key="k", fingerprint="a")
    assert (other != first, is_replayed) == (True, False)
    await runtime.operations.cancel(first, TENANT)
    (name,) = [name for name in await all_keys(runtime._commands) if f":idempotency:{TENANT}:" in name]
    assert await runtime._commands.call("PTTL", name) > 0
    assert await runtime._commands.call("PTTL", redis_keys.operation(first)) > 0


async def test_a_tenant_may_have_twenty_open_ones(runtime: Runtime) -> None:
    """More are a 429; another tenant's do not count."""
    for _ in range(20):
        await _begun(runtime, CANCEL)
    with pytest.raises(TooManyQueued):
        await _begun(runtime, CANCEL)
    await _begun(runtime, CANCEL, tenant=OTHER)


async def test_a_foreign_operation_does_not_exist(runtime: Runtime) -> None:
    """Like one that never was."""
    operation_id = await _begun(runtime, CANCEL)
    for call in (runtime.operations.get, runtime.operations.cancel):
        for own_id, tenant in ((operation_id, OTHER), (operation_id, ""), (a_batch_id(), TENANT)):
            with pytest.raises(NotFound):
                await call(own_id, tenant)
    assert (await runtime.operations.page(OTHER, after=None, limit=5)).operations == []


async def test_it_concerns_the_jobs_that_existed_when_it_began(runtime: Runtime) -> None:
    """Its own retries are later, so it does not retry them again."""
    before = await submit(runtime)
    await asyncio.sleep(0.002)
    operation = await _of(runtime, await _begun(runtime, RETRY))
    await asyncio.sleep(0.002)
    await submit(runtime)
    page = await runtime.jobs.list(TENANT, operation.jobs, after=None, limit=10)
    assert [job.id for job in page.jobs] == [before.id]
    earlier_ms = operation.created_ms - 1000
    bounded = await _of(runtime, await _begun(runtime, RETRY, JobFilter(created_before_ms=earlier_ms)))
    assert bounded.jobs.created_before_ms == earlier_ms


async def test_a_tenants_operations_are_erased_with_it(runtime: Runtime) -> None:
    """Whatever they are doing: nothing of them is left, and nobody does a piece more."""
    for _ in range(3):
        await _begun(runtime, CANCEL)
    claimed = await _claimed(runtime)
    assert await runtime.operations.erase_some(TENANT) == (3, False)
    assert not await runtime.operations.advance(claimed, Piece(None, counts=OperationCounts(1, 1)))
    await _lease_over(runtime)
    assert await runtime.operations.claim() is None
    assert [name for name in await all_keys(runtime._commands) if "operation" in kind_of(name)] == []
