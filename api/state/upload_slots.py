"""Bounds the uploads of batches, since each holds some of the process's memory."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shared.errors import QueueFull

MOST_UPLOADS: Final = 8
MOST_WAITING: Final = 64
"""Uploads that wait for a place; each holds no more than the server reads ahead, 64 KiB."""
_PATIENCE_S: Final = 10.0
_UPLOAD_AGAIN_S: Final = 5


class Uploads:
    """The uploads in progress, at most MOST_UPLOADS: each holds two slices, a line and all custom ids in memory.

    A tenant may hold as many places as it leaves to others, and as many of its uploads may wait: it cannot keep the
    others out. A free place goes to the tenant that holds the fewest; among equals, to the one that has waited longest.
    """

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By tenant; none of these tenants may hold another place now."""

    @asynccontextmanager
    async def place_of(self, tenant: str) -> AsyncIterator[None]:
        """Holds a place during the block. Waits for one for up to 10 s. Raises QueueFull."""
        if self._may_hold(tenant):
            self._held[tenant] += 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._give_back(tenant)

    def _may_hold(self, tenant: str) -> bool:
        return self._held[tenant] < MOST_UPLOADS - self._held.total()

    async def _wait(self, tenant: str) -> None:
        own = self._waiting.get(tenant, ())
        if len(own) >= MOST_WAITING - sum(map(len, self._waiting.values())):
            raise _too_many()
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(place)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await place
        except BaseException as error:
            if place.cancelled():
                self._forget(tenant, place)
            else:  # granted just as the wait ended
                self._give_back(tenant)
            if isinstance(error, TimeoutError):
                raise _too_many() from None
            raise

    def _give_back(self, tenant: str) -> None:
        self._held[tenant] -= 1
        self._held += Counter()  # drops those that hold none
        while can_hold := [other for other in self._waiting if self._may_hold(other)]:
            self._grant(min(can_hold, key=lambda other: self._held[other]))

    def _grant(self, tenant: str) -> None:
        waiting = self._waiting.pop(tenant)
        place = waiting.popleft()
        if waiting:
            self._waiting[tenant] = waiting  # moved to the end: the others are next
        if not place.done():
            self._held[tenant] += 1
            place.set_result(None)

    def _forget(self, tenant: str, place: "asyncio.Future[None]") -> None:
        waiting = self._waiting.get(tenant, ())
        if place in waiting:
            self._waiting[tenant].remove(place)
            if not waiting:
                del self._waiting[tenant]


def _too_many() -> QueueFull:
    return QueueFull(
        f"Too many batch uploads are in progress; retry in {_UPLOAD_AGAIN_S} s.", retry_after_s=_UPLOAD_AGAIN_S
    )
