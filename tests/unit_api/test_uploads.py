"""Upload slots: bounded, with a queue, and shared fairly by tenants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from api.state import upload_slots as module
from api.state.upload_slots import MOST_UPLOADS, MOST_WAITING, Uploads
from shared.errors import QueueFull


@asynccontextmanager
async def _held(uploads: Uploads, *tenants: str) -> AsyncIterator[AsyncExitStack]:
    """A slot for each."""
    async with AsyncExitStack() as stack:
        for tenant in tenants:
            await stack.enter_async_context(uploads.place_of(tenant))
        yield stack


class _Upload:
    """Takes a slot as soon as possible, and releases it when the test says so."""

    def __init__(self, uploads: Uploads, tenant: str, order: list[str] | None = None) -> None:
        self.tenant = tenant
        self.is_in = False
        self._uploads = uploads
        self._order = [] if order is None else order
        self._may_end = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._uploads.place_of(self.tenant):
            self.is_in = True
            self._order.append(self.tenant)
            await self._may_end.wait()

    async def end(self) -> None:
        self._may_end.set()
        await self.task


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_holds_half_of_what_is_left_and_waits_for_the_next() -> None:
    """Four of eight slots; its fifth upload gets one when another ends."""
    uploads = Uploads()
    all_of_it = [_Upload(uploads, "a") for _ in range(5)]
    await _turn()
    assert [one.is_in for one in all_of_it] == [True] * 4 + [False]
    others = [_Upload(uploads, tenant) for tenant in ("b", "c")]
    await _turn()
    assert all(other.is_in for other in others)
    await all_of_it[0].end()
    await _turn()
    are_in = [all_of_it[4].is_in]  # three slots are free, and it holds three
    await others[0].end()
    await _turn()
    are_in.append(all_of_it[4].is_in)
    assert are_in == [False, True]
    for one in [*all_of_it[1:], others[1]]:
        await one.end()


async def test_a_free_slot_goes_to_the_tenant_with_the_fewest_and_then_to_the_first() -> None:
    """However many uploads of a tenant wait before the others."""
    uploads = Uploads()
    order: list[str] = []
    async with _held(uploads, *[f"tenant-{number}" for number in range(MOST_UPLOADS - 1)]):
        last = _Upload(uploads, "last")
        await _turn()
        waiting = [_Upload(uploads, tenant, order) for tenant in ("a", "a", "a", "b", "c")]
        await _turn()
        assert not any(one.is_in for one in waiting)
        await last.end()
        for _ in waiting:
            await _turn()
            (inside,) = [one for one in waiting if one.is_in and not one.task.done()]
            await inside.end()
    assert order == ["a", "b", "c", "a", "a"]


async def test_the_wait_for_a_slot_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that ends does not cost the others a slot."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    uploads = Uploads()
    async with _held(uploads, *[f"tenant-{number}" for number in range(MOST_UPLOADS)]):
        with pytest.raises(QueueFull):
            async with uploads.place_of("late"):
                pass
    async with _held(uploads, "late"):
        pass
    assert (uploads._held.total(), uploads._waiting) == (0, {})


async def test_the_queue_is_bounded_and_a_tenant_leaves_room_for_others() -> None:
    """One tenant's flood is refused at once if it would take more of the queue than it leaves."""
    uploads = Uploads()
    async with _held(uploads, *[f"tenant-{number}" for number in range(MOST_UPLOADS)]):
        flood = [_Upload(uploads, "flood") for _ in range(2 * MOST_WAITING)]
        await _turn()
        assert sum(not one.task.done() for one in flood) == MOST_WAITING // 2
        other = _Upload(uploads, "other")
        await _turn()
        assert not other.task.done()
        for one in [*flood, other]:
            one.task.cancel()
        ends = await asyncio.gather(*[one.task for one in [*flood, other]], return_exceptions=True)
        assert sum(isinstance(end, QueueFull) for end in ends) == 2 * MOST_WAITING - MOST_WAITING // 2
    assert (uploads._held.total(), uploads._waiting) == (0, {})


async def test_a_slot_granted_to_an_upload_that_has_just_gone_is_passed_on() -> None:
    """No slot is lost."""
    uploads = Uploads()
    async with _held(uploads, *[f"tenant-{number}" for number in range(MOST_UPLOADS - 1)]):
        last = _Upload(uploads, "last")
        await _turn()
        gone, next_one = _Upload(uploads, "a"), _Upload(uploads, "b")
        await _turn()
        last._may_end.set()
        await asyncio.sleep(0)  # it releases its slot, which goes to a
        gone.task.cancel()
        await _turn()
        assert (gone.task.cancelled(), next_one.is_in) == (True, True)
        await next_one.end()
    assert (uploads._held.total(), uploads._waiting) == (0, {})
