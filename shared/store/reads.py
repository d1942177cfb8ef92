"""Reads for callers: so many bytes at a time, and of these a share for each tenant.

The replies to all commands of a process come in order over one connection. Without a share, a tenant that asks for many large
pages at once makes everybody's commands wait for them.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from shared.errors import TooManyReads
from shared.store.commands import Commands

Record = Sequence[Any]
"""The fields of a hash, in the order in which they were asked for; None for each that is not there."""

ROW_BYTES: Final = 4 << 10
"""What a read of one record counts as. Most are smaller; one with all the metadata that a caller may send has 40 KB."""
RESULT_BYTES: Final = 8 << 10
"""The same for the result of a job, and for a page of a log. Larger ones are rare, because the LLM takes long to make them."""
PIECE_BYTES: Final = 128 << 10
"""What one command reads, unless its first record is larger: half a millisecond for Redis, and as long for us."""

_PROCESS_BYTES: Final = 1 << 20
_TENANT_BYTES: Final = 128 << 10
_WAIT_S: Final = 10.0
_MOST_WAITING: Final = 4_000
"""Reads of one tenant. A read goes on waiting even if its client has disconnected."""


class Turns:
    """Who may read now. A tenant that uses its whole share waits for its own reads only; the other tenants take turns."""

    def __init__(
        self,
        *,
        process_bytes: int = _PROCESS_BYTES,
        tenant_bytes: int = _TENANT_BYTES,
        wait_s: float = _WAIT_S,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._process_bytes = process_bytes
        self._tenant_bytes = tenant_bytes
        self._wait_s = wait_s
        self._most_waiting = most_waiting
        self._held_bytes = 0
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, size: int) -> AsyncIterator[None]:
        """For ``async with``: about ``size`` bytes may be read inside. Never take a turn inside another.

        Raises TooManyReads after 10 s without a turn, and at once where thousands wait.
        """
        size = min(size, self._tenant_bytes)
        await self.take(tenant, size)
        try:
            yield
        finally:
            self.give(tenant, size)

    async def take(self, tenant: str, size: int) -> None:
        """As ``turn``; afterwards ``give`` the same size back."""
        if tenant not in self._waiting and self._has_room(tenant, size):
            self._hold(tenant, size)
            return
        queue = self._waiting.setdefault(tenant, deque())
        if len(queue) >= self._most_waiting:
            raise TooManyReads
        granted = asyncio.get_running_loop().create_future()
        waiting = _Waiting(size, granted)
        queue.append(waiting)
        try:
            async with asyncio.timeout(self._wait_s):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():  # granted in the moment in which the time was over
                self.give(tenant, size)
            else:
                self._forget(tenant, waiting)
            if isinstance(error, TimeoutError):
                raise TooManyReads from None
            raise

    def give(self, tenant: str, size: int) -> None:
        """Gives back what ``take`` took: the read has ended."""
        self._held_bytes -= size
        self._held[tenant] -= size
        if not self._held[tenant]:
            del self._held[tenant]
        if self._waiting:
            self._grant()

    def _has_room(self, tenant: str, size: int) -> bool:
        return (self._held_bytes + size <= self._process_bytes or not self._held_bytes) and self._held[
            tenant
        ] + size <= self._tenant_bytes

    def _hold(self, tenant: str, size: int) -> None:
        self._held_bytes += size
        self._held[tenant] += size

    def _grant(self) -> None:
        """Lets the waiting tenants read, one read each in turn, until no more has room."""
        passed = 0
        while passed < len(self._waiting):
            tenant, queue = next(iter(self._waiting.items()))
            self._waiting.move_to_end(tenant)
            if not self._has_room(tenant, queue[0].size):
                passed += 1
                continue
            passed = 0
            waiting = queue.popleft()
            if not queue:
                del self._waiting[tenant]
            self._hold(tenant, waiting.size)
            waiting.granted.set_result(None)

    def _forget(self, tenant: str, waiting: "_Waiting") -> None:
        queue = self._waiting[tenant]
        queue.remove(waiting)
        if not queue:
            del self._waiting[tenant]
        self._grant()  # it may have been a large one that held others up


class _Waiting(NamedTuple):
    size: int
    granted: "asyncio.Future[None]"


class Reads:
    """Reads records by their names in Redis. The caller must check the tenant, so it must ask for that field too."""

    def __init__(self, commands: Commands, turns: Turns) -> None:
        self._commands = commands
        self._turns = turns

    def turn(self, tenant: str, size: int) -> contextlib.AbstractAsyncContextManager[None]:
        """A turn for a read that is not of a record. Raises TooManyReads."""
        return self._turns.turn(tenant, size)

    async def one(self, tenant: str, name: str, fields: Sequence[str]) -> Record:
        """The fields of one record. Raises TooManyReads."""
        async with self._turns.turn(tenant, ROW_BYTES):
            record: Record = await self._commands.call("HMGET", name, *fields)
            return record

    async def some(self, tenant: str, names: Sequence[str], fields: Sequence[str]) -> list[Record]:
        """The first of these records, as many as fit in PIECE_BYTES, at least one. All must be of the shard.

        Raises TooManyReads.
        """
        if len(names) == 1:
            return [await self.one(tenant, names[0], fields)]
        async with self._turns.turn(tenant, PIECE_BYTES):
            found: list[Record] = await self._commands.run(
                "rows", most_bytes=PIECE_BYTES, field_count=len(fields), fields_and_names=(*fields, *names)
            )
            return found

    async def all(self, tenant: str, names: Sequence[str], fields: Sequence[str]) -> list[Record]:
        """All of these records, piece by piece. Raises TooManyReads."""
        found: list[Record] = []
        while len(found) < len(names):
            found += await self.some(tenant, names[len(found) :], fields)
        return found

    async def small(self, tenant: str, names: Sequence[str], fields: Sequence[str]) -> list[Record]:
        """A few short fields of many records. Raises TooManyReads."""
        async with self._turns.turn(tenant, PIECE_BYTES):
            replies = [self._commands.call("HMGET", name, *fields) for name in names]
            return [await reply for reply in replies]
