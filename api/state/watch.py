"""What the followers of jobs and of batches share: a bounded buffer of what has arrived, and the wait for more.

Invariant: no follower makes the process hold more than its buffer. What a full buffer loses is read from the log; a
follower whose client has stopped reading is cut. ``Watch`` (api/state/relay.py) and ``BatchWatch``
(api/state/batch_relay.py) add what they listen to.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

_CONFIRM_S: Final = 2.0
_PINGED_AT_ONCE: Final = 200

Item = TypeVar("Item")


class Closing(Exception):
    """The process is about to end: the client is asked to reconnect."""


class Gone(Exception):
    """What was followed has been erased, or its retention has ended."""


def _nothing() -> None:
    """The default of ``on_cut``."""


class BufferedWatch(ABC, Generic[Item]):
    """One follower. Its relay delivers items, and wakes it; it takes them in its own time."""

    __slots__ = (
        "_buffer",
        "_is_behind",
        "_is_pinged",
        "_most_bytes",
        "_size",
        "_waiter",
        "_writing_since_s",
        "is_cut",
        "is_resumable",
        "on_cut",
    )

    def __init__(self, most_bytes: int, *, is_resumable: bool, is_behind: bool = False) -> None:
        self.is_resumable = is_resumable
        """Whether the client can reconnect and miss nothing. A drain asks it to, and does not wait for it."""
        self.on_cut: Callable[[], None] = _nothing
        """Called when the follower is stuck in a write to a client that does not read."""
        self.is_cut = False
        self._most_bytes = most_bytes
        self._buffer: deque[Item] = deque()
        self._size = 0
        self._is_behind = is_behind
        """Whether something may have been missed, so that the log must be read."""
        self._is_pinged = False
        self._waiter: asyncio.Future[None] | None = None
        self._writing_since_s: float | None = None

    # Called by the relay

    def deliver(self, items: Sequence[Item], size: int) -> None:
        """Takes live items, ``size`` bytes together. If the buffer is full, a follower that is stuck in a write is cut;
        one that has had no turn yet reads the log instead.
        """
        if self._size > self._most_bytes:
            self._drop()
            self._is_behind = True
            if self._writing_since_s is not None:
                self._cut()
        if not self.is_cut:
            self._size += size
            self._buffer.extend(items)
        self.wake()

    def look(self) -> None:
        """Notes that something may have been missed."""
        self._is_behind = True
        self.wake()

    def ping(self, every_s: float) -> None:
        """Notes that a ping is due. A client that has read nothing since the last one is cut."""
        since_s = self._writing_since_s
        if since_s is not None and asyncio.get_running_loop().time() - since_s > every_s:
            self._cut()
        self._is_pinged = True
        self.wake()

    def wake(self) -> None:
        """Makes the follower look whether there is something to do."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _cut(self) -> None:
        if not self.is_cut:
            self.is_cut = True
            self._drop()
            self.on_cut()

    # Called by the follower

    @abstractmethod
    def close(self) -> None:
        """Stops listening. Calls after the first change nothing."""

    def is_writing(self, now: bool) -> None:
        """Called by the follower before a write to its client (True), and after it (False)."""
        self._writing_since_s = asyncio.get_running_loop().time() if now else None

    async def until_confirmed(self) -> None:
        """Returns once the subscription is active, or after 2 s: the log has everything without it too.
        Raises Closing.
        """
        deadline_s = asyncio.get_running_loop().time() + _CONFIRM_S
        while not self._is_subscribed and (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._wait()
            except TimeoutError:
                return

    def check_open(self) -> None:
        """Raises Closing if the client is to reconnect to another process."""
        if self._is_dismissed:
            raise Closing

    @property
    @abstractmethod
    def _is_subscribed(self) -> bool:
        """Whether live items arrive right now."""

    @property
    @abstractmethod
    def _is_dismissed(self) -> bool:
        """Whether the follower must end with Closing."""

    def take(self) -> list[Item]:
        """All that has arrived since the last call."""
        items = list(self._buffer)
        self._drop()
        return items

    def take_ping(self) -> bool:
        """Whether a ping is due; from then on it is not, until the next ``ping``."""
        is_pinged, self._is_pinged = self._is_pinged, False
        return is_pinged

    def _drop(self) -> None:
        self._buffer.clear()
        self._size = 0

    async def _wait(self) -> None:
        self.check_open()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


async def ping_all(watches: Callable[[], Sequence[BufferedWatch[Item]]], every_s: float) -> None:
    """Pings every watch in turn, until cancelled. A timer for each client would wake the process ten thousand times."""
    while True:
        await asyncio.sleep(every_s)
        for number, watch in enumerate(watches()):
            watch.ping(every_s)
            if number % _PINGED_AT_ONCE == _PINGED_AT_ONCE - 1:
                await asyncio.sleep(0)
