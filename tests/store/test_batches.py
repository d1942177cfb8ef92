"""Batches: received in slices, started once, counted with every end, cancelled and erased in portions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.batch import BatchCounts, BatchState, EndedItem, InvalidItem, NewItem
from shared.errors import IdempotencyKeyReused, InvalidCursor, JobError, NotEnded, NotFound, QueueFull
from shared.job import JobSpec, JobState, Priority, Step, Usage, prompt_hash_of
from shared.store import redis_keys
from shared.store.batches import Known, Order
from shared.store.idempotency import fingerprint_of
from shared.store.queue import FATAL_TAKEOVERS, UNPRICED, Claim, Ending, Finished
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import (
    A_REQUEST,
    a_bad_line,
    a_batch_id,
    a_batch_spec,
    a_line,
    a_text_delta,
    lines,
)
from tests.support.store import (
    SUCCESS,
    Begun,
    all_keys,
    append,
    assert_consistent,
    batch_of,
    begin,
    claim,
    claim_one,
    counts_of,
    finish,
    job_of,
    listening,
    lose,
    make_batch_due,
    make_due,
    make_overdue,
    members,
    now_ms,
    receive,
    record_of,
    start_batch,
    state_of,
    submit,
    ttl_ms,
)

A_FAILURE = Ending(Step.FAIL, error=JobError("upstream_error", "It did not work.", retryable=True))
A_USAGE = Usage(input_tokens=10, output_tokens=20, cache_creation_input_tokens=3, cache_read_input_tokens=4)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two items per portion, so that other things happen between them."""
    monkeypatch.setattr("shared.store.batches.SLICE_ITEMS", 2)


async def ended_lines(runtime: Runtime, begun: Begun, order: Order = Order.FINISHED) -> list[int]:
    """All ended lines of the batch."""
    return [item.line for item in await runtime.batches.ended_items(begun.id, order)]


async def finish_all(runtime: Runtime, ending: Ending = SUCCESS) -> list[Claim]:
    """Runs every queued job, one after the other."""
    claims = await claim(runtime, 100)
    for claimed in claims:
        assert (await finish(runtime, claimed, ending)).outcome is Finished.ENDED
    return claims


# Receiving


async def test_nothing_of_a_batch_is_seen_before_its_start(runtime: Runtime) -> None:
    """And none of its items runs."""
    begun = await receive(runtime, [a_line(1), a_bad_line(2), a_line(3)])
    with pytest.raises(NotFound):
        await batch_of(runtime, begun)
    with pytest.raises(NotFound):
        await runtime.batches.cancel(begun.id, begun.tenant)
    with pytest.raises((NotFound, NotEnded)):
        await runtime.batches.erase(begun.id, begun.tenant)
    assert (await runtime.batches.page(begun.tenant, after=None, limit=10)).batches == []
    assert await claim(runtime, 5) == []
    assert await runtime.batches.due() == []
    assert not await runtime.batches.advance(begun.id)
    assert await runtime.jobs.sweep(0) == (0, 0)
    assert await members(runtime, redis_keys.plain("waiting")) == []
    await assert_consistent(runtime)


async def test_a_batch_that_came_in_slices_runs_in_order(runtime: Runtime, small_slices: None) -> None:
    """However it and its start were cut into portions."""
    begun = await receive(runtime, 7, slice_items=3)
    assert await begin(runtime, begun) == begun.id
    assert await counts_of(runtime, begun) == {"queued": 7}
    await assert_consistent(runtime)
    assert await runtime.batches.advance(begun.id)
    assert await members(runtime, redis_keys.plain("waiting")) == begun.job_ids[:2]
    assert await counts_of(runtime, begun) == {"queued": 7}
    await assert_consistent(runtime)
    await runtime.batches.advance_all(begun.id)
    assert [found.id for found in await claim(runtime, 10)] == begun.job_ids
    assert await counts_of(runtime, begun) == {"running": 7}
    assert not await runtime.batches.advance(begun.id)
    await assert_consistent(runtime)


async def test_an_item_is_the_job_that_its_line_and_its_batch_say(runtime: Runtime) -> None:
    """Its own members and the common ones; an empty and an odd custom_id are kept."""
    request = b'{"model":"m","messages":[{"role":"user","content":"}\\",{"}]}'
    given = [a_line(1, custom_id='a "},{" ü', model="b-model", request=request), a_line(2)]
    common: dict[str, Any] = {
        "timeout_s": 77,
        "max_attempts": 5,
        "first_token_timeout_s": 9,
        "anthropic_beta": "one,two",
        "anthropic_version": "2023-06-01",
    }
    begun = await start_batch(runtime, given, expires_in_s=60, **common, metadata={"a": "b"}, retry_of="batch_0")
    expected = JobSpec(
        model="b-model",
        priority=Priority.LOW,
        timeout_s=77,
        max_attempts=5,
        first_token_timeout_s=9,
        batch_id=begun.id,
        custom_id='a "},{" ü',
        prompt_hash=prompt_hash_of(request),
        anthropic_beta="one,two",
        anthropic_version="2023-06-01",
    )
    batch = await batch_of(runtime, begun)
    assert batch.spec == a_batch_spec(**common, metadata={"a": "b"}, retry_of="batch_0")
    job = await job_of(runtime, begun.job_ids[0])
    assert (job.spec, job.created_ms, job.expires_ms) == (expected, batch.created_ms, batch.expires_ms)
    assert batch.expires_ms == batch.created_ms + 60_000
    first, second = await claim(runtime, 2)
    assert (first.spec, first.request, first.timeout_ms) == (expected, request, 77_000)
    assert (second.spec.custom_id, second.request) == ("item-2", A_REQUEST)


async def test_blank_lines_leave_gaps_in_the_numbers(runtime: Runtime) -> None:
    """At the beginning, between slices, and between lines."""
    given: list[NewItem | InvalidItem] = [a_line(3), a_bad_line(5), a_line(9)]
    begun = await receive(runtime, given, slice_items=2)
    await begin(runtime, begun)
    await runtime.batches.advance_all(begun.id)
    assert (await batch_of(runtime, begun)).counts == BatchCounts(total=3, queued=2, failed=1)
    await finish_all(runtime)
    for order, expected in ((Order.SUBMITTED, [3, 5, 9]), (Order.FINISHED, [5, 3, 9])):
        assert await ended_lines(runtime, begun, order) == expected
    first, second = begun.job_ids
    assert await runtime.batches.item_ids(begun.id, 0, 20) == [None, None, first, *[None] * 5, second]
    assert await runtime.batches.item_ids(begun.id, 2, 2) == [first, None]
    await assert_consistent(runtime)


@pytest.mark.parametrize("tail", [0, 2])
async def test_a_batch_of_only_invalid_lines_ends_at_its_start(runtime: Runtime, tail: int) -> None:
    """It expires like any other batch."""
    begun = await receive(runtime, [a_bad_line(line + tail) for line in (1, 2)])
    await begin(runtime, begun, idempotency_key="order 7")
    batch = await batch_of(runtime, begun)
    assert (batch.state, batch.counts) == (BatchState.ENDED, BatchCounts(total=2, failed=2))
    assert batch.ended_ms == batch.created_ms
    await assert_consistent(runtime)
    await runtime.batches.advance_all(begun.id)
    assert await members(runtime, redis_keys.plain("due")) == []
    for_ever = [name for name in await all_keys(runtime._commands) if await ttl_ms(runtime, name) is None]
    assert set(for_ever) <= {redis_keys.batch_index("tenant-a"), redis_keys.plain("places")}
    assert await runtime.batches.ended_items(begun.id, Order.SUBMITTED) == [
        EndedItem(line + tail, None, InvalidItem(line + tail, "max_tokens must be a number.")) for line in (1, 2)
    ]


async def test_the_queues_limit_applies_to_received_lines(start_runtime: StartRuntime) -> None:
    """Earlier lines and waiting jobs count too; a refused slice stores nothing."""
    runtime = await start_runtime(max_queued=5)
    await submit(runtime)
    begun = await receive(runtime, 3)
    before = await all_keys(runtime._commands)
    with pytest.raises(QueueFull):
        await runtime.batches.add(begun.id, begun.tenant, lines(2, start=4))
    assert await all_keys(runtime._commands) == before
    await runtime.batches.add(begun.id, begun.tenant, [a_line(4)])
    with pytest.raises(QueueFull):
        await runtime.batches.add(begun.id, begun.tenant, [a_line(5)])
    await runtime.batches.drop(begun.id, "tenant-a")
    await runtime.batches.advance_all(begun.id)
    assert await claim(runtime, 5) != []


# Given up


async def test_a_receiver_that_falls_silent_leaves_nothing(runtime: Runtime, small_slices: None) -> None:
    """The next process to check drops its batch and erases it in portions."""
    before = await all_keys(runtime._commands)
    begun = await receive(runtime, [*lines(5), a_bad_line(6), a_line(9)])
    assert await runtime.batches.due() == []
    await make_batch_due(runtime, begun.id)
    assert await runtime.batches.due() == [begun.id]
    assert await runtime.batches.due() == []  # its receiver is alive
    for late in (
        runtime.batches.add(begun.id, begun.tenant, [a_line(10)]),
        begin(runtime, begun, idempotency_key="order 7"),
    ):
        with pytest.raises(NotFound):
            await late
    await assert_consistent(runtime)
    assert await runtime.batches.advance(begun.id)
    await assert_consistent(runtime)
    await runtime.batches.advance_all(begun.id)
    assert await all_keys(runtime._commands) == before


async def test_a_receiver_that_sends_slices_is_not_dropped(runtime: Runtime) -> None:
    """Each slice shows that it is alive."""
    begun = await receive(runtime, 1)
    await make_batch_due(runtime, begun.id)
    await runtime.batches.add(begun.id, begun.tenant, [a_line(2)])
    assert await runtime.batches.due() == []
    await begin(runtime, begun)
    assert await counts_of(runtime, begun) == {"queued": 2}


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_received_batch_can_be_dropped(runtime: Runtime, small_slices: None, count: int) -> None:
    """It leaves nothing. A second drop, or one after the start, changes nothing."""
    before = await all_keys(runtime._commands)
    begun = await receive(runtime, count)
    for _ in range(2):
        await runtime.batches.drop(begun.id, "tenant-a")
    await runtime.batches.advance_all(begun.id)
    assert await all_keys(runtime._commands) == before
    await runtime.batches.drop(begun.id, "tenant-a")
    assert await all_keys(runtime._commands) == before

    started = await start_batch(runtime, 1)
    await runtime.batches.drop(started.id, "tenant-a")
    assert await counts_of(runtime, started) == {"queued": 1}


async def test_another_process_goes_on_with_a_start(runtime: Runtime, small_slices: None) -> None:
    """The process that began it may be dead, but START has promised it."""
    begun = await receive(runtime, 7)
    await begin(runtime, begun)
    await runtime.batches.advance(begun.id)
    assert await runtime.batches.due() == []
    await make_batch_due(runtime, begun.id)
    await runtime.batches.advance_due()
    assert [found.id for found in await claim(runtime, 10)] == begun.job_ids
    assert await members(runtime, redis_keys.plain("due")) == []


async def test_many_processes_may_advance_many_batches(runtime: Runtime, small_slices: None) -> None:
    """All at once; each line still starts once."""
    many = [await receive(runtime, 5) for _ in range(3)]
    for begun in many:
        await begin(runtime, begun)
    await asyncio.gather(*(runtime.batches.advance_all(begun.id) for begun in many for _ in range(3)))
    found = [claimed.id for claimed in await claim(runtime, 100)]
    assert sorted(found) == sorted(job_id for begun in many for job_id in begun.job_ids)
    await assert_consistent(runtime)


# Idempotency


async def test_one_key_makes_one_batch(runtime: Runtime, small_slices: None) -> None:
    """A second one with the same body returns the first, and leaves nothing of itself."""
    first = await start_batch(runtime, 3, idempotency_key="order 7")
    assert await runtime.batches.known("tenant-a", "order 7") == Known(first.id, fingerprint_of("the body"))
    before = await all_keys(runtime._commands)
    second = await receive(runtime, 3)
    assert await begin(runtime, second, idempotency_key="order 7") == first.id
    await runtime.batches.advance_all(second.id)
    assert await all_keys(runtime._commands) == before
    assert await counts_of(runtime, first) == {"queued": 3}


async def test_a_key_that_was_used_for_another_body_is_refused(runtime: Runtime) -> None:
    """Its received lines are dropped; another tenant's key is another key."""
    first = await start_batch(runtime, 1, idempotency_key="order 7")
    before = await all_keys(runtime._commands)
    second = await receive(runtime, 3)
    with pytest.raises(IdempotencyKeyReused):
        await begin(runtime, second, idempotency_key="order 7", body="another body")
    await runtime.batches.advance_all(second.id)
    assert await all_keys(runtime._commands) == before
    assert await runtime.batches.known("tenant-b", "order 7") is None
    other = await start_batch(runtime, 1, tenant="tenant-b", idempotency_key="order 7", body="another body")
    assert other.id != first.id


async def test_of_two_receivers_with_one_key_one_batch_remains(runtime: Runtime) -> None:
    """They arrive at once; the body of the slower one is dropped."""
    both = [await receive(runtime, 4) for _ in range(2)]
    answers = await asyncio.gather(*(begin(runtime, begun, idempotency_key="order 7") for begun in both))
    assert len(set(answers)) == 1
    for begun in both:
        await runtime.batches.advance_all(begun.id)
    loser = next(begun for begun in both if begun.id != answers[0])
    assert [
        name for name in await all_keys(runtime._commands) if any(id_ in name for id_ in (loser.id, *loser.job_ids))
    ] == []
    assert len(await claim(runtime, 100)) == 4
    await assert_consistent(runtime)


async def test_a_key_lives_as_long_as_its_batch(runtime: Runtime) -> None:
    """And at least for a day after its end."""
    begun = await start_batch(runtime, 1, idempotency_key="order 7")
    (name,) = [name for name in await all_keys(runtime._commands) if ":idempotency:" in name]
    assert await ttl_ms(runtime, name) is None
    await finish_all(runtime)
    left_ms = await ttl_ms(runtime, name)
    assert left_ms is not None
    assert left_ms >= (await ttl_ms(runtime, redis_keys.batch(begun.id)) or 0)


# Running


async def test_each_end_is_counted_once(runtime: Runtime) -> None:
    """A success, a failure, a repeated FINISH, a released job, a lost one and a cancelled one."""
    begun = await start_batch(runtime, 6)
    good, bad, back, lost, one, _ = claims = await claim(runtime, 6)
    assert await counts_of(runtime, begun) == {"running": 6}
    await finish(runtime, good)
    assert (await finish(runtime, good)).outcome is Finished.ALREADY
    await finish(runtime, bad, A_FAILURE)
    assert await counts_of(runtime, begun) == {"running": 4, "succeeded": 1, "failed": 1}
    for _ in range(2):
        await runtime.queue.release(back, reason="upstream_failed", delay_s=60)
    assert await counts_of(runtime, begun) == {"queued": 1, "running": 3, "succeeded": 1, "failed": 1}
    for takeover in range(FATAL_TAKEOVERS):
        await lose(runtime, lost if takeover == 0 else await claim_one(runtime))
        await assert_consistent(runtime)
    assert await counts_of(runtime, begun) == {"queued": 1, "running": 2, "succeeded": 1, "failed": 2}
    for _ in range(2):
        await runtime.jobs.cancel(one.id, one.tenant)
    assert (await finish(runtime, one)).outcome is Finished.REFUSED
    await make_overdue(runtime, back.id)
    await runtime.jobs.expire()
    assert await counts_of(runtime, begun) == {"running": 1, "succeeded": 1, "failed": 3, "cancelled": 1}
    assert (await batch_of(runtime, begun)).state is BatchState.RUNNING
    await assert_consistent(runtime)
    await finish(runtime, claims[-1])
    batch = await batch_of(runtime, begun)
    assert batch.state is BatchState.ENDED
    assert batch.ended_ms is not None
    assert await ended_lines(runtime, begun) == [1, 2, 4, 5, 3, 6]
    assert sorted(await ended_lines(runtime, begun)) == await ended_lines(runtime, begun, Order.SUBMITTED)
    await assert_consistent(runtime)


async def test_a_batch_that_may_not_begin_yet_is_deferred(runtime: Runtime) -> None:
    """All of it; its expiry counts from then."""
    due_ms = await now_ms(runtime) + 60_000
    begun = await start_batch(runtime, 2, not_before_ms=due_ms, expires_in_s=10)
    assert await claim(runtime, 5) == []
    assert await members(runtime, redis_keys.plain("deferred")) == begun.job_ids
    assert (await batch_of(runtime, begun)).expires_ms == due_ms + 10_000
    await assert_consistent(runtime)
    await make_due(runtime, *begun.job_ids)
    assert [found.id for found in await claim(runtime, 5)] == begun.job_ids


async def test_items_that_did_not_start_in_time_expire(runtime: Runtime) -> None:
    """Running items go on; the batch ends with its last item."""
    begun = await start_batch(runtime, 5)
    running = await claim_one(runtime)
    await make_overdue(runtime, *begun.job_ids)
    assert (await runtime.jobs.expire())[0] == 4
    assert await counts_of(runtime, begun) == {"running": 1, "expired": 4}
    await finish(runtime, running)
    assert (await batch_of(runtime, begun)).state is BatchState.ENDED
    await assert_consistent(runtime)


async def test_usage_and_cost_are_added_up(runtime: Runtime) -> None:
    """The usage of successes, and the cost of every call, even if it was released, failed or ended after its job."""
    begun = await start_batch(runtime, 3)
    assert (await batch_of(runtime, begun)).cost_usd is None
    first, second, third = await claim(runtime, 3)
    for _ in range(2):
        await runtime.queue.finish(first, Ending(Step.SUCCEED, b"{}", usage=A_USAGE), seq=1, cost=1_000)
    await runtime.queue.release(second, reason="upstream_failed", failures=1, cost=20)
    again = await claim_one(runtime)
    await runtime.queue.finish(again, Ending(Step.SUCCEED, b"{}", usage=A_USAGE), seq=1, cost=300)
    await runtime.queue.finish(third, A_FAILURE, seq=1, cost=4_000)
    assert (await batch_of(runtime, begun)).has_ended
    await runtime.jobs.charge(third.id, 50_000, tenant="tenant-a")
    batch = await batch_of(runtime, begun)
    assert batch.usage == Usage(20, 40, 6, 8)
    assert batch.cost_usd == pytest.approx(55_320e-9)
    await runtime.jobs.charge(third.id, UNPRICED, tenant="tenant-a")
    assert (await batch_of(runtime, begun)).cost_usd is None
    assert await ttl_ms(runtime, redis_keys.batch(begun.id)) is not None


async def test_a_charge_does_not_recreate_a_batch(runtime: Runtime) -> None:
    """Its call ended after everything else was deleted."""
    begun = await start_batch(runtime, 1)
    (claimed,) = await finish_all(runtime)
    await runtime._commands.call("DEL", redis_keys.batch(begun.id))
    await runtime.jobs.charge(claimed.id, 5, tenant="tenant-a")
    await runtime._commands.call("DEL", redis_keys.job(claimed.id))
    await runtime.jobs.charge(claimed.id, 5, tenant="tenant-a")
    assert await runtime._commands.call("EXISTS", redis_keys.batch(begun.id), redis_keys.job(claimed.id)) == 0


async def test_the_running_items_of_a_batch(runtime: Runtime) -> None:
    """Only those of this batch."""
    begun, _ = await start_batch(runtime, 2), await start_batch(runtime, 2)
    claims = await claim(runtime, 4)
    assert sorted(await runtime.batches.running_items(begun.id)) == begun.job_ids
    for claimed in claims:
        await finish(runtime, claimed)
    assert await runtime.batches.running_items(begun.id) == []


# Cancel


@pytest.mark.parametrize("pieces", [0, 1, 2, 9])
async def test_a_cancel_ends_all_items_that_have_not_ended(runtime: Runtime, small_slices: None, pieces: int) -> None:
    """While it still starts, too; in pieces, whoever does them; none of it runs any more."""
    begun = await receive(runtime, 5)
    await begin(runtime, begun)
    for _ in range(pieces):
        await runtime.batches.advance(begun.id)
    assert await runtime.batches.cancel(begun.id, begun.tenant)
    batch = await batch_of(runtime, begun)
    assert (batch.state, batch.cancelled_ms is None) == (BatchState.CANCELLING, False)
    assert not await runtime.batches.cancel(begun.id, begun.tenant)
    assert await runtime.batches.due() == [begun.id]
    while await runtime.batches.advance(begun.id):
        await assert_consistent(runtime)
    assert await counts_of(runtime, begun) == {"cancelled": 5}
    assert (await batch_of(runtime, begun)).state is BatchState.ENDED
    assert not await runtime.batches.cancel(begun.id, begun.tenant)
    assert await members(runtime, redis_keys.plain("due")) == []
    await assert_consistent(runtime)


async def test_what_is_being_cancelled_does_not_start(runtime: Runtime, small_slices: None) -> None:
    """A worker that comes by between two pieces finds nothing of what had not begun to wait: each call costs money."""
    begun = await receive(runtime, 7)
    await begin(runtime, begun)
    await runtime.batches.cancel(begun.id, begun.tenant)
    while await runtime.batches.advance(begun.id):
        assert await claim(runtime, 10) == []
    assert await counts_of(runtime, begun) == {"cancelled": 7}


async def test_a_cancel_keeps_what_is_done_and_stops_what_runs(runtime: Runtime) -> None:
    """Workers are told, and refused from then on."""
    begun = await start_batch(runtime, 4)
    done, first, second = await claim(runtime, 3)
    await finish(runtime, done)
    async with listening(runtime, redis_keys.plain("control")) as control:
        await runtime.batches.cancel(begun.id, begun.tenant)
        await runtime.batches.advance_all(begun.id)
        assert sorted(await control.all()) == [f"cancel {found.id}".encode() for found in (first, second)]
    assert await counts_of(runtime, begun) == {"succeeded": 1, "cancelled": 3}
    assert await state_of(runtime, done.id) is JobState.SUCCEEDED
    assert (await finish(runtime, first)).outcome is Finished.REFUSED
    assert (await batch_of(runtime, begun)).state is BatchState.ENDED
    await assert_consistent(runtime)


async def test_an_end_and_a_cancel_may_cross(runtime: Runtime, small_slices: None) -> None:
    """An item that ends between two pieces keeps its end; the batch ends with the last."""
    begun = await start_batch(runtime, 5)
    claims = await claim(runtime, 5)
    await runtime.batches.cancel(begun.id, begun.tenant)
    await runtime.batches.advance(begun.id)
    await finish(runtime, claims[3])
    await runtime.batches.advance_all(begun.id)
    assert await counts_of(runtime, begun) == {"succeeded": 1, "cancelled": 4}
    assert await ended_lines(runtime, begun) == [1, 2, 4, 3, 5]
    await assert_consistent(runtime)


# Erase and tenants


async def test_an_erased_batch_leaves_nothing_but_its_key(runtime: Runtime, small_slices: None) -> None:
    """Records, prompts, results and logs of its items go with it."""
    begun = await start_batch(runtime, [*lines(5), a_bad_line(6)], idempotency_key="order 7")
    with pytest.raises(NotEnded):
        await runtime.batches.erase(begun.id, begun.tenant)
    await finish_all(runtime)
    await runtime.batches.erase(begun.id, begun.tenant)
    with pytest.raises(NotFound):
        await batch_of(runtime, begun)
    with pytest.raises(NotFound):
        await runtime.batches.erase(begun.id, begun.tenant)
    assert (await runtime.batches.page(begun.tenant, after=None, limit=9)).batches == []
    assert await runtime.batches.due() == [begun.id]
    await runtime.batches.advance(begun.id)
    assert await ended_lines(runtime, begun, Order.SUBMITTED) == []  # a reader is not told lines of other jobs
    await runtime.batches.advance_all(begun.id)
    names = [
        name
        for name in await all_keys(runtime._commands)
        if any(each in name for each in ("batch", "job", "log:", "result:"))
    ]
    assert names == []
    again = await receive(runtime, 1)
    assert await begin(runtime, again, idempotency_key="order 7") == begun.id
    await runtime.batches.advance_all(again.id)


async def test_a_single_item_can_be_erased(runtime: Runtime) -> None:
    """Its line stays counted."""
    begun = await start_batch(runtime, 2)
    first, second = await claim(runtime, 2)
    await finish(runtime, first)
    await runtime.jobs.erase(first.id, first.tenant)
    await assert_consistent(runtime)
    await finish(runtime, second)
    assert await counts_of(runtime, begun) == {"succeeded": 2}
    assert await ended_lines(runtime, begun) == [1, 2]
    await assert_consistent(runtime)


async def raw_of(runtime: Runtime, batch_id: str) -> dict[bytes, bytes]:
    """The record, in whatever order Redis keeps it."""
    flat = await runtime._commands.call("HGETALL", redis_keys.batch(batch_id))
    return dict(zip(flat[::2], flat[1::2], strict=True))


@pytest.mark.parametrize("state", list(BatchState))
async def test_a_batch_of_another_tenant_is_not_there(runtime: Runtime, state: BatchState) -> None:
    """Promise 7, in whatever state it is; nothing that is tried changes it."""
    begun = await receive(runtime, 1)
    if state is BatchState.DROPPED:
        await runtime.batches.drop(begun.id, "tenant-a")
    elif state is not BatchState.RECEIVING:
        await begin(runtime, begun)
        await runtime.batches.advance_all(begun.id)
        if state is BatchState.CANCELLING:
            await runtime.batches.cancel(begun.id, begun.tenant)
        elif state is BatchState.ENDED:
            await finish_all(runtime)
    before = await raw_of(runtime, begun.id)
    asked: list[Callable[[str, str], Awaitable[object]]] = [
        runtime.batches.get,
        runtime.batches.cancel,
        runtime.batches.erase,
        lambda batch_id, tenant: begin(runtime, Begun(batch_id, tenant, ())),
    ]
    for batch_id, tenant in ((begun.id, "tenant-b"), (a_batch_id(), "tenant-a")):
        for ask in asked:
            with pytest.raises(NotFound):
                await ask(batch_id, tenant)
    assert (await runtime.batches.page("tenant-b", after=None, limit=9)).batches == []
    assert await raw_of(runtime, begun.id) == before


# Reading


async def test_batches_are_listed_newest_first(runtime: Runtime) -> None:
    """Forwards and back; what is received or dropped is not among them, nor are those of others."""
    ids = []
    for _ in range(5):
        ids.append((await start_batch(runtime, 1)).id)
        await start_batch(runtime, 1, tenant="tenant-b")
        await receive(runtime, 1)
    newest = ids[::-1]

    async def page(**how: str | int | None) -> tuple[list[str], str | None]:
        found = await runtime.batches.page("tenant-a", **{"after": None, **how})  # type: ignore[arg-type]
        return [batch.id for batch in found.batches], found.next_after

    assert await page(limit=5) == (newest, None)
    assert await page(limit=2) == (newest[:2], newest[1])
    assert await page(limit=2, after=newest[1]) == (newest[2:4], newest[3])
    assert await page(limit=2, after=newest[3]) == (newest[4:], None)
    assert (await page(limit=2, before=newest[3]))[0] == newest[1:3]
    assert (await page(limit=9, before=newest[2]))[0] == newest[:2]
    await runtime.batches.cancel(newest[1], "tenant-a")
    await runtime.batches.advance_all(newest[1])
    await runtime._commands.call("DEL", redis_keys.batch(newest[1]))
    assert await page(limit=2) == ([newest[0], newest[2]], newest[2])


@pytest.mark.parametrize("count", [1, 2, 3, 250])
async def test_outcomes_are_read_behind_a_line(runtime: Runtime, count: int) -> None:
    """In either order, page by page; an order of ends never passes one over."""
    begun = await start_batch(runtime, [*lines(4), a_bad_line(5), *lines(2, start=7)])
    claims = await claim(runtime, 6)
    for number in (3, 0, 5):
        await finish(runtime, claims[number])
    for order, expected in ((Order.FINISHED, [5, 4, 1, 8]), (Order.SUBMITTED, [1, 4, 5, 8])):
        found: list[int] = []
        while page := await runtime.batches.ended_items(
            begun.id, order, after=found[-1] if found else None, count=count
        ):
            found += [item.line for item in page]
        assert found == expected
    await finish(runtime, claims[1])
    assert [item.line for item in await runtime.batches.ended_items(begun.id, Order.FINISHED, after=8)] == [2]
    for line in (3, 6, 99):
        with pytest.raises(InvalidCursor):
            await runtime.batches.ended_items(begun.id, Order.FINISHED, after=line)


async def test_an_outcome_says_where_it_is_found(runtime: Runtime) -> None:
    """In the job, or in the line itself."""
    bad = a_bad_line(2, custom_id="b")
    begun = await start_batch(runtime, [a_line(1), bad])
    await finish_all(runtime)
    assert await runtime.batches.ended_items(begun.id, Order.SUBMITTED) == [
        EndedItem(1, begun.job_ids[0]),
        EndedItem(2, None, bad),
    ]


# Retention


@pytest.mark.parametrize("how", ["unheard", "its own channel", "the batch's channel", "followed, and nobody there"])
async def test_the_log_of_an_item_is_kept_if_somebody_hears_it(runtime: Runtime, how: str) -> None:
    """A minute, or an hour like that of any job."""
    begun = await start_batch(runtime, 2)
    claimed = await claim_one(runtime)
    if "follow" in how or "batch" in how:
        await runtime.batches.follow(begun.id)
    channel = {
        "its own channel": redis_keys.events(claimed.id),
        "the batch's channel": redis_keys.batch_events(begun.id),
    }.get(how)
    async with listening(runtime, channel or "nowhere"):
        await finish(runtime, claimed)
    left_ms = await ttl_ms(runtime, redis_keys.log(claimed.id))
    assert left_ms == pytest.approx(3_600_000 if channel else 60_000, abs=5_000)


async def test_items_live_at_least_as_long_as_their_batch(runtime: Runtime) -> None:
    """Also those that ended long before its last."""
    begun = await start_batch(runtime, 3, timeout_s=600, expires_in_s=86_400)
    claims = await claim(runtime, 3)
    await finish(runtime, claims[0])
    await runtime.jobs.cancel(claims[1].id, claims[1].tenant)
    longest_ms = (604_800 + 86_400 + 600) * 1000
    for claimed in claims[:2]:
        assert await ttl_ms(runtime, redis_keys.job(claimed.id)) == pytest.approx(longest_ms, abs=10_000)
    assert await ttl_ms(runtime, redis_keys.result(claims[0].id)) == pytest.approx(longest_ms, abs=10_000)
    await finish(runtime, claims[2])
    of_batch_ms = await ttl_ms(runtime, redis_keys.batch(begun.id)) or 0
    assert of_batch_ms == pytest.approx(604_800_000, abs=10_000)
    for claimed in claims:
        assert (await ttl_ms(runtime, redis_keys.job(claimed.id)) or 0) >= of_batch_ms


async def test_a_batch_is_told_on_its_channel_only_while_it_is_followed(runtime: Runtime) -> None:
    """Starts, appends and ends, each behind its job's id; of this batch alone."""
    begun, other = await start_batch(runtime, 3), await start_batch(runtime, 1, tenant="tenant-b")
    claims = {found.id: found for found in await claim(runtime, 10)}
    first, second, third = (claims[job_id] for job_id in begun.job_ids)
    async with listening(runtime, redis_keys.batch_events(begun.id)) as heard:
        await append(runtime, first, a_text_delta("unheard"))
        await finish(runtime, second)
        assert await heard.all() == []
        await runtime.batches.follow(begun.id)
        await append(runtime, first, a_text_delta("heard"), seq=2)
        await finish(runtime, first, seq=3)
        await runtime.queue.release(third, reason="upstream_failed", retry_event=b"{}")
        again = await claim_one(runtime)
        await runtime.jobs.cancel(again.id, again.tenant)
        await finish(runtime, claims[other.job_ids[0]])
        found = [message.decode().split("\n") for message in await heard.all()]
    told = [(parts[0], parts[2]) for parts in found]
    assert told == [
        (first.id, "content_block_delta"),
        (first.id, "succeeded"),
        (third.id, "retry"),
        (third.id, "started"),
        (third.id, "cancelled"),
    ]
    assert 0 < (await ttl_ms(runtime, redis_keys.batch_followed(begun.id)) or 0) <= 30_000


async def test_an_item_that_never_ran_is_told_too(runtime: Runtime) -> None:
    """It has no log, but it has an end."""
    begun = await start_batch(runtime, 2)
    await runtime.batches.follow(begun.id)
    async with listening(runtime, redis_keys.batch_events(begun.id)) as heard:
        await runtime.batches.cancel(begun.id, begun.tenant)
        await runtime.batches.advance_all(begun.id)
        found = [message.decode().split("\n") for message in await heard.all()]
    assert [(parts[0], parts[2]) for parts in found] == [(job_id, "cancelled") for job_id in begun.job_ids]
    assert (await record_of(runtime, begun.job_ids[0]))[b"end_id"].decode() == found[0][1]
