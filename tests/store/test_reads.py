"""Reads of callers: each tenant has a share, tenants take turns, and large pages are shortened."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from shared.errors import StorageUnavailable, TooManyReads
from shared.job import JobState, Step
from shared.job_filter import JobFilter
from shared.store.page import PAGE_BYTES
from shared.store.queue import Ending
from shared.store.reads import PIECE_BYTES, Turns
from shared.store.runtime import Runtime
from tests.support.batches import a_batch
from tests.support.builders import a_webhook
from tests.support.redis_servers import on_real_redis
from tests.support.store import claim, finish, submit

TENANT = "tenant-a"
LARGE = {f"name-{number:02}": "\U0001f600" * 512 for number in range(16)}
"""33 KB, the most metadata that a caller may send."""
FITTING = PAGE_BYTES // 33_000


class Reader:
    """Takes a turn, and reads until the test ends it."""

    def __init__(self, turns: Turns, tenant: str, size: int = 50) -> None:
        self.is_reading = False
        self._end = asyncio.Event()
        self._turn = turns.turn(tenant, size)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with self._turn:
            self.is_reading = True
            await self._end.wait()
            self.is_reading = False

    async def end(self) -> None:
        """Ends the read."""
        self._end.set()
        await self.task


async def turned() -> None:
    """Lets every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def reading(readers: Sequence[Reader]) -> int:
    return sum(reader.is_reading for reader in readers)


async def test_only_a_tenant_that_uses_its_whole_share_waits() -> None:
    """However many of its reads wait."""
    turns = Turns(process_bytes=1000, tenant_bytes=100)
    many = [Reader(turns, "a") for _ in range(20)]
    await turned()
    assert reading(many) == 2
    other = Reader(turns, "b")
    await turned()
    assert other.is_reading
    for reader in many:
        assert reading(many) <= 2
        await reader.end()
        await turned()
    await other.end()
    assert (turns._held_bytes, dict(turns._held), dict(turns._waiting)) == (0, {}, {})


async def test_when_the_bound_is_reached_tenants_take_turns() -> None:
    """A tenant with many waiting reads gets no more turns than one with a single read."""
    turns = Turns(process_bytes=100, tenant_bytes=100)
    first, second = Reader(turns, "z"), Reader(turns, "z")
    await turned()
    many = [Reader(turns, "a") for _ in range(10)]
    await turned()
    one = Reader(turns, "b")
    await turned()
    assert reading([*many, one]) == 0
    await first.end()
    await second.end()
    await turned()
    assert (reading(many), one.is_reading) == (1, True)
    for reader in [*many, one]:
        await reader.end()


async def test_a_read_larger_than_the_share_waits_until_it_is_alone() -> None:
    """Alone among its tenant's reads. Later reads wait for it, but no longer."""
    turns = Turns(process_bytes=1000, tenant_bytes=100)
    small, large, behind = Reader(turns, "a", 10), Reader(turns, "a", 10_000), Reader(turns, "a", 10)
    await turned()
    assert (small.is_reading, large.is_reading, behind.is_reading) == (True, False, False)
    await small.end()
    await turned()
    assert (large.is_reading, behind.is_reading) == (True, False)
    await large.end()
    await turned()
    assert behind.is_reading
    await behind.end()


async def test_a_wait_ends_in_time_and_leaves_nothing() -> None:
    """With the tenant's own problem, which callers that wait for Redis can distinguish."""
    turns = Turns(tenant_bytes=100, wait_s=0.05)
    held = Reader(turns, "a", 100)
    await turned()
    with pytest.raises(TooManyReads) as caught:
        async with turns.turn("a", 10):
            raise AssertionError
    assert isinstance(caught.value, StorageUnavailable)
    assert (caught.value.status, caught.value.code) == (429, "too_many_reads")
    assert caught.value.retry_after_s
    gone = Reader(turns, "a", 100)
    await turned()
    gone.task.cancel()
    await turned()
    assert not turns._waiting
    await held.end()
    assert (turns._held_bytes, dict(turns._held)) == (0, {})


async def test_a_read_cancelled_as_its_turn_comes_gives_the_turn_back() -> None:
    """Otherwise it would be gone until the process ends."""
    turns = Turns(tenant_bytes=100)
    held, cancelled = Reader(turns, "a", 100), Reader(turns, "a", 100)
    await turned()
    held._end.set()
    await asyncio.sleep(0)  # it gives its turn to the one that waits, which has not run yet
    cancelled.task.cancel()
    await turned()
    assert (turns._held_bytes, dict(turns._held), dict(turns._waiting)) == (0, {}, {})


async def test_so_many_wait_at_most() -> None:
    """One more is refused at once."""
    turns = Turns(tenant_bytes=100, most_waiting=3)
    readers = [Reader(turns, "a", 100) for _ in range(4)]
    await turned()
    with pytest.raises(TooManyReads):
        await turns.take("a", 100)
    await turns.take("b", 100)
    for reader in readers:
        await reader.end()


# Pages

Walk = Callable[[str | None, int], Awaitable[tuple[list[str], str | None]]]


async def large_jobs(runtime: Runtime, count: int) -> list[str]:
    return [(await submit(runtime, metadata=LARGE)).id for _ in range(count)]


async def walked(walk: Walk, limit: int) -> list[list[str]]:
    """All pages."""
    pages: list[list[str]] = []
    after: str | None = None
    while True:
        page, after = await walk(after, limit)
        pages.append(page)
        if after is None:
            return pages
        assert page, "a page that is cut holds something"
        assert len(pages) < 100


def assert_cut(pages: list[list[str]], ids: list[str]) -> None:
    """Everything once, in order, in pages of no more bytes than they may have."""
    assert [item_id for page in pages for item_id in page] == ids
    assert len(pages) >= 2
    for page in pages[:-1]:
        assert len(page) == FITTING


@on_real_redis
async def test_a_page_of_large_jobs_ends_early_and_the_next_goes_on(runtime: Runtime) -> None:
    """With a filter too; and the items of a batch."""
    ids = await large_jobs(runtime, FITTING * 2 + 3)

    def walk(**by: Any) -> Walk:
        async def one(after: str | None, limit: int) -> tuple[list[str], str | None]:
            page = await runtime.jobs.list(TENANT, JobFilter(**by), after=after, limit=limit)
            return [job.id for job in page.jobs], page.next_after

        return one

    assert_cut(await walked(walk(), 100), ids[::-1])
    assert_cut(await walked(walk(status=JobState.QUEUED), 100), ids[::-1])
    assert await walked(walk(status=JobState.FAILED), 100) == [[]]
    assert [len(page) for page in await walked(walk(), 1)] == [1] * len(ids)

    batch = await a_batch(runtime, FITTING * 2 + 3, tenant=TENANT, metadata={})
    items = [item or "" for item in await runtime.batches.item_ids(batch.id, 0, 1000)]
    assert await walked(walk(batch_id=batch.id), 10) == [items[::-1][at : at + 10] for at in range(0, len(items), 10)]


@on_real_redis
async def test_a_page_of_large_batches_ends_early_in_both_directions(runtime: Runtime) -> None:
    """As the Messages API goes through them."""
    ids = sorted([(await a_batch(runtime, 1, tenant=TENANT, metadata=LARGE)).id for _ in range(FITTING * 2 + 3)])

    async def older(after: str | None, limit: int) -> tuple[list[str], str | None]:
        page = await runtime.batches.page(TENANT, after=after, limit=limit)
        return [batch.id for batch in page.batches], page.next_after

    async def newer(before: str | None, limit: int) -> tuple[list[str], str | None]:
        page = await runtime.batches.page(TENANT, after=None, before=before or ids[0], limit=limit)
        assert page.next_after in (None, page.batches[0].id if page.batches else None)
        return [batch.id for batch in page.batches[::-1]], page.next_after

    assert_cut(await walked(older, 100), ids[::-1])
    assert_cut(await walked(newer, 1000), ids[1:])


@on_real_redis
async def test_a_page_of_large_deliveries_ends_early(runtime: Runtime) -> None:
    """An error's message may be long."""
    from shared.errors import JobError

    ids = []
    for _ in range(FITTING * 2 + 3):
        submission = await submit(runtime, webhook=a_webhook())
        (claimed,) = await claim(runtime, 1)
        error = JobError("upstream_error", "x" * 32_700, retryable=False)
        await finish(runtime, claimed, Ending(Step.FAIL, error=error))
        ids.append("evt_" + submission.id.removeprefix("job_"))
    ids.sort()

    for by in ({}, {"state": "pending"}):

        async def walk(after: str | None, limit: int, by: Any = by) -> tuple[list[str], str | None]:
            page = await runtime.webhooks.page(TENANT, after=after, limit=limit, **by)
            return [delivery.id for delivery in page.deliveries], page.next_after

        assert_cut(await walked(walk, 100), ids[::-1])


async def test_many_large_records_come_whole_in_pieces(runtime: Runtime) -> None:
    """However many there are, in the order in which they are asked for, with those that are not there."""
    ids = await large_jobs(runtime, PIECE_BYTES // 33_000 * 2 + 1)
    asked = [ids[0], "job_" + "0" * 26, *ids[1:]]
    found = await runtime.jobs.get_many(asked, TENANT)
    assert [job and job.id for job in found] == [ids[0], None, *ids[1:]]
    assert await runtime.jobs.get_many(asked, "tenant-b") == [None] * len(asked)
    assert await runtime.jobs.get_many([], TENANT) == []
