"""Reading, listing, erasing and counting: a tenant sees only its own jobs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from shared.errors import NotEnded, NotFound
from shared.job import JobState
from shared.job_filter import JobFilter
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.jobs import Jobs
from shared.store.runtime import Runtime
from shared.store.script import Argument
from tests.conftest import StartRuntime
from tests.support.builders import a_bad_line, a_batch_id, a_line, an_id, lines
from tests.support.redis_servers import on_real_redis
from tests.support.store import (
    A_RESULT,
    all_keys,
    begin,
    claim,
    claim_one,
    expire_leases,
    finish,
    job_of,
    lose,
    members,
    now_ms,
    receive,
    start,
    start_batch,
    submit,
    submit_many,
    succeed,
)


async def _listed(
    runtime: Runtime,
    *,
    tenant: str = "tenant-a",
    after: str | None = None,
    limit: int = 20,
    state: JobState | None = None,
    batch_id: str | None = None,
) -> tuple[list[str], str | None]:
    page = await runtime.jobs.list(tenant, JobFilter(status=state, batch_id=batch_id), after=after, limit=limit)
    return [job.id for job in page.jobs], page.next_after


async def _all_pages(runtime: Runtime, *, limit: int, **filters: JobState | str | None) -> list[str]:
    found: list[str] = []
    after: str | None = None
    for _ in range(100):
        ids, after = await _listed(runtime, after=after, limit=limit, **filters)  # type: ignore[arg-type]
        assert len(ids) <= limit
        found += ids
        if after is None:
            return found
    raise AssertionError("the list has no end")


# One job


async def test_foreign_and_absent_jobs_are_the_same(runtime: Runtime) -> None:
    """For every call with a job's id."""
    claimed = await succeed(runtime, tenant="tenant-a")
    for job_id, tenant in ((claimed.id, "tenant-b"), (claimed.id, ""), (an_id(), "tenant-a")):
        with pytest.raises(NotFound):
            await runtime.jobs.get(job_id, tenant, with_result=True)
        with pytest.raises(NotFound):
            await runtime.jobs.request_of(job_id, tenant)
        with pytest.raises(NotFound):
            await runtime.jobs.erase(job_id, tenant)
        assert await runtime.jobs.get_many([job_id], tenant) == [None]
    assert (await job_of(runtime, claimed.id)).state is JobState.SUCCEEDED


async def test_many_jobs_are_read_in_the_requested_order(runtime: Runtime) -> None:
    """With None for absent ones."""
    ids = await submit_many(runtime, 3)
    asked = [ids[2], an_id(), ids[0], ids[0]]
    found = await runtime.jobs.get_many(asked, "tenant-a")
    assert [job and job.id for job in found] == [ids[2], None, ids[0], ids[0]]
    assert await runtime.jobs.get_many([], "tenant-a") == []


async def test_a_result_is_read_only_when_asked_for(runtime: Runtime) -> None:
    """Lists and polls do not carry payloads."""
    claimed = await succeed(runtime)
    assert (await job_of(runtime, claimed.id)).result is None
    assert bytes((await job_of(runtime, claimed.id, with_result=True)).result or b"") == A_RESULT


# Lists


async def test_a_list_is_newest_first_and_ends(runtime: Runtime) -> None:
    """A last page that is exactly full has no `next`."""
    ids = await submit_many(runtime, 6)
    newest_first = ids[::-1]
    assert await _listed(runtime, limit=10) == (newest_first, None)
    assert await _listed(runtime, limit=6) == (newest_first, None)
    assert await _listed(runtime, limit=4) == (newest_first[:4], newest_first[3])
    assert await _listed(runtime, limit=4, after=newest_first[3]) == (newest_first[4:], None)
    assert await _all_pages(runtime, limit=1) == newest_first


async def test_a_list_shows_one_tenants_jobs(runtime: Runtime) -> None:
    """However many jobs of others are between them."""
    ours = []
    for _ in range(3):
        ours.append((await submit(runtime, tenant="tenant-a")).id)
        await submit(runtime, tenant="tenant-b")
    assert await _listed(runtime) == (ours[::-1], None)
    assert await _listed(runtime, tenant="tenant-c") == ([], None)


async def test_jobs_submitted_meanwhile_do_not_move_the_pages(runtime: Runtime) -> None:
    """A cursor is a job, not a number."""
    ids = await submit_many(runtime, 4)
    first, after = await _listed(runtime, limit=2)
    await submit_many(runtime, 3)
    second, _ = await _listed(runtime, limit=2, after=after)
    assert first + second == ids[::-1]


async def test_a_list_by_state(runtime: Runtime) -> None:
    """Paging reaches all matching jobs."""
    ids = await submit_many(runtime, 8)
    for claimed in await claim(runtime, 4):
        await finish(runtime, claimed)
    assert await _all_pages(runtime, limit=3, state=JobState.SUCCEEDED) == ids[:4][::-1]
    assert await _listed(runtime, state=JobState.FAILED) == ([], None)


async def test_a_list_by_batch(runtime: Runtime) -> None:
    """Its items, last line first, whatever is between them; they are in no other list."""
    job = await submit(runtime)
    first = await start_batch(runtime, [a_line(1), a_bad_line(2), *lines(3, start=3), a_line(9)])
    second = await start_batch(runtime, 2)
    assert await _listed(runtime) == ([job.id], None)
    assert await _listed(runtime, state=JobState.QUEUED) == ([job.id], None)
    for limit in range(1, 7):
        assert await _all_pages(runtime, limit=limit, batch_id=first.id) == first.job_ids[::-1]
    assert await _listed(runtime, batch_id=second.id) == (second.job_ids[::-1], None)
    assert await _listed(runtime, batch_id=second.id, tenant="tenant-b") == ([], None)
    assert await _listed(runtime, batch_id=a_batch_id()) == ([], None)


async def test_a_list_by_state_and_batch(runtime: Runtime) -> None:
    """Both filters at once."""
    first, _ = await start_batch(runtime, 5), await start_batch(runtime, 5)
    for claimed in await claim(runtime, 6):
        await finish(runtime, claimed)
    done = [job_id for job_id in first.job_ids if (await job_of(runtime, job_id)).has_ended]
    assert 0 < len(done) < 6
    for limit in (1, 2, 10):
        found = await _all_pages(runtime, limit=limit, state=JobState.SUCCEEDED, batch_id=first.id)
        assert found == done[::-1]


async def test_items_that_are_received_are_in_no_list(runtime: Runtime) -> None:
    """Nor can they be read, cancelled or erased before the start."""
    begun = await receive(runtime, 3)
    assert await _listed(runtime, batch_id=begun.id) == ([], None)
    assert await runtime.jobs.get_many(begun.job_ids, "tenant-a") == [None] * 3
    with pytest.raises(NotFound):
        await runtime.jobs.cancel(begun.job_ids[0], "tenant-a")
    with pytest.raises(NotFound):
        await runtime.jobs.erase(begun.job_ids[0], "tenant-a")


@on_real_redis
async def test_a_rare_match_far_down_is_found(runtime: Runtime) -> None:
    """However many others are before it: pages may be short, but paging reaches the end."""
    rare = await submit(runtime)
    await runtime.jobs.cancel(rare.id, rare.tenant)
    await submit_many(runtime, 450)
    assert await _all_pages(runtime, limit=5, state=JobState.CANCELLED) == [rare.id]


@on_real_redis
async def test_an_item_before_thousands_of_lines_that_could_not_run_is_found(runtime: Runtime) -> None:
    """Invalid lines have no job for a cursor: without care, paging would repeat the same cursor without end."""
    begun = await receive(runtime, [a_line(1), *map(a_bad_line, range(2, 5_500)), a_line(5_500)])
    await begin(runtime, begun)
    await runtime.batches.advance_all(begun.id)
    assert await _all_pages(runtime, limit=1, batch_id=begun.id) == begun.job_ids[::-1]


async def test_a_list_skips_deleted_jobs(runtime: Runtime) -> None:
    """Records expire before their index entries; pages are still full."""
    ids = await submit_many(runtime, 30)
    for job_id in ids[:25]:
        await runtime.jobs.cancel(job_id, "tenant-a")
        await runtime._commands.call("DEL", redis_keys.job(job_id))
    assert await _all_pages(runtime, limit=3) == ids[25:][::-1]


# Erase


async def test_an_erased_job_leaves_nothing_but_its_key(runtime: Runtime) -> None:
    """Prompt, log, result and record are deleted; the Idempotency-Key still makes no second job."""
    claimed = await succeed(runtime, idempotency_key="order 7", request=b'{"prompt":"an unmistakable prompt"}')
    await runtime.jobs.erase(claimed.id, claimed.tenant)
    with pytest.raises(NotFound):
        await job_of(runtime, claimed.id)
    assert await _listed(runtime) == ([], None)
    assert [name for name in await all_keys(runtime._commands) if claimed.id in name] == []
    assert await members(runtime, redis_keys.index("tenant-a")) == []
    with pytest.raises(NotFound):
        await runtime.jobs.erase(claimed.id, claimed.tenant)
    again = await submit(runtime, idempotency_key="order 7")
    assert await claim(runtime) == []
    assert await runtime.jobs.get_many([again.id], "tenant-a") == [None]


@pytest.mark.parametrize("how", ["waiting", "deferred", "running", "put back"])
async def test_a_job_that_has_not_ended_cannot_be_erased(runtime: Runtime, how: str) -> None:
    """It must be cancelled first."""
    if how == "deferred":
        job_id = (await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)).id
    else:
        job_id = (await submit(runtime)).id
        if how != "waiting":
            claimed = await claim_one(runtime)
            if how == "put back":
                await lose(runtime, claimed)
    with pytest.raises(NotEnded):
        await runtime.jobs.erase(job_id, "tenant-a")
    await runtime.jobs.cancel(job_id, "tenant-a")
    await runtime.jobs.erase(job_id, "tenant-a")


# Counting


async def test_the_depth_counts_waiting_and_running_jobs(runtime: Runtime) -> None:
    """Deferred jobs count as waiting."""
    assert await runtime.queue.depth() == {JobState.QUEUED: 0, JobState.RUNNING: 0}
    await submit_many(runtime, 4)
    await claim_one(runtime)
    await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)
    assert await runtime.queue.depth() == {JobState.QUEUED: 4, JobState.RUNNING: 1}


async def test_a_sweep_finds_no_stray_in_a_healthy_store(runtime: Runtime) -> None:
    """With jobs in every state, over as many steps as needed."""
    await succeed(runtime)
    await lose(runtime, await start(runtime))
    await submit_many(runtime, 10)
    await claim(runtime, 5)
    await submit(runtime, not_before_ms=await now_ms(runtime) + 60_000)
    assert await _swept(runtime) == 0


async def test_a_sweep_counts_stray_jobs(runtime: Runtime) -> None:
    """They have not ended, but are neither queued nor running, so nothing would ever process them."""
    ids = await submit_many(runtime, 4)
    for job_id in ids[:2]:
        await runtime._commands.call("ZREM", redis_keys.plain("waiting"), job_id)
    claimed = await claim(runtime, 4)
    assert [found.id for found in claimed] == ids[2:]
    await runtime._commands.call("ZREM", redis_keys.plain("running"), ids[2])
    assert await _swept(runtime) == 1


class _BetweenReads:
    """Commands with an event between the check whether a job waits and the check whether it runs."""

    def __init__(self, commands: Commands, happening: Callable[[], Awaitable[object]]) -> None:
        self._commands = commands
        self._happening = happening
        self._has_happened = False
        self._turn = asyncio.Lock()

    def call(self, *arguments: Argument) -> "asyncio.Future[Any]":
        return asyncio.ensure_future(self._call(arguments))

    async def _call(self, arguments: tuple[Argument, ...]) -> Any:
        async with self._turn:  # keeps the order of calls, as one connection does
            reply = await self._commands.call(*arguments)
            if arguments[:2] == ("ZSCORE", redis_keys.plain("waiting")) and not self._has_happened:
                self._has_happened = True
                await self._happening()
            return reply


@pytest.mark.parametrize("how", ["released", "taken from the dead", "ended"])
async def test_a_job_that_moves_while_it_is_looked_at_is_no_stray(runtime: Runtime, how: str) -> None:
    """A sweep reads several keys in turn; a busy queue must not make it count a stray."""
    claimed = await start(runtime)
    happenings: dict[str, Callable[[], Awaitable[object]]] = {
        "released": lambda: runtime.queue.release(claimed, reason="drained"),
        "taken from the dead": lambda: lose(runtime, claimed),
        "ended": lambda: finish(runtime, claimed),
    }
    between = cast("Commands", _BetweenReads(runtime._commands, happenings[how]))
    strays, _ = await Jobs(between, runtime.settings, runtime.reads, between, runtime.memory).sweep(0)
    assert strays == 0


async def _swept(runtime: Runtime) -> int:
    total, cursor = 0, 0
    for _ in range(100):
        strays, cursor = await runtime.jobs.sweep(cursor, steps=1)
        total += strays
        if cursor == 0:
            return total
    raise AssertionError("the sweep has no end")


# Workers


async def test_a_worker_is_seen_while_it_announces_itself(start_runtime: StartRuntime) -> None:
    """It disappears a few leases after its last announcement, or at once when it leaves."""
    runtime = await start_runtime(lease_s=10)
    await runtime.workers.announce("worker-1", {"name": "worker-1", "running": 3})
    await runtime.workers.announce("worker-2", {"name": "worker-2", "running": 0})
    found = sorted(await runtime.workers.living(), key=lambda facts: facts["name"])
    seen_ms = [int(facts.pop("seen_ms")) for facts in found]
    assert seen_ms == pytest.approx([await now_ms(runtime)] * 2, abs=5_000)
    assert found == [{"name": "worker-1", "running": "3"}, {"name": "worker-2", "running": "0"}]
    left_ms = await runtime._commands.call("PTTL", redis_keys.worker("worker-1"))
    assert left_ms == pytest.approx(30_000, abs=5_000)
    await runtime.workers.withdraw("worker-1")
    await runtime._commands.call("DEL", redis_keys.worker("worker-2"))
    assert await runtime.workers.living() == []


async def test_nothing_is_left_of_jobs_that_ended_but_what_ages_away(runtime: Runtime) -> None:
    """After the last job the queue has as few keys as before the first."""
    ids = await submit_many(runtime, 6)
    first, second, third, *_ = await claim(runtime, 4)
    await finish(runtime, first)
    await lose(runtime, second)
    await runtime.queue.release(third, reason="upstream_failed", delay_s=60)
    for job_id in ids:
        await runtime.jobs.cancel(job_id, "tenant-a")
    await expire_leases(runtime, *ids)
    await runtime.queue.reap()
    lifetimes = {name: await runtime._commands.call("PTTL", name) for name in await all_keys(runtime._commands)}
    for_ever = {name.removeprefix(redis_keys.SHARD) for name, left_ms in lifetimes.items() if left_ms == -1}
    kept = {
        "held_bytes",
        "kept_bytes:tenant-a",
        "kept_due",
    }  # EXPIRE ends them after the requests of these jobs have expired
    assert for_ever <= {"index:tenant-a", "clock:normal", "places", "picks", "turns:normal", "ended", *kept}
