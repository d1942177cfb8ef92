"""Serves the followers of batches. Each followed batch is read four times a second, once for all its followers, and its
items' events come over the relay's one connection.

As with jobs, pub/sub is for latency and is never trusted for completeness: a watch knows when the logs must be read.
"""

import asyncio
import time
from collections import deque
from typing import Final, NamedTuple, Self

from api.state.relay import Listener, Relay
from api.state.watch import BufferedWatch, Gone, ping_all
from shared.batch import Batch
from shared.errors import NotFound, StorageFull, StorageUnavailable
from shared.events import Event, decode_published
from shared.store import redis_keys
from shared.store.runtime import Runtime
from shared.telemetry import get_logger

_log = get_logger("api")

_LOOK_S: Final = 0.25
_PACE_S: Final = 10.0
_SHORTEST_PACE_S: Final = 1.0
_BUSY_SYNC_S: Final = 10.0
_SLOWEST_SYNC_S: Final = 10.0


class ItemEvents(NamedTuple):
    """The events of one item in one message."""

    job_id: str
    events: list[Event]


class Pace:
    """How many items of a batch end per second, over the last ten seconds."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, ended: int) -> None:
        """Notes that ``ended`` items have ended by ``now_s``."""
        self._looks.append((now_s, ended))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - _PACE_S:
            self._looks.popleft()

    @property
    def rate_per_s(self) -> float | None:
        """Items per second; None until a second has been observed."""
        if not self._looks:
            return None
        (first_s, first), (last_s, last) = self._looks[0], self._looks[-1]
        return (last - first) / (last_s - first_s) if last_s - first_s >= _SHORTEST_PACE_S else None


def left_of(batch: Batch) -> int:
    """How many items have not ended."""
    return batch.counts.queued + batch.counts.running


class _Followed:
    """A batch with followers, as it was last read."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.version = 0
        """Grows with every change."""
        self.is_gone = False
        self.pace = Pace()
        self.watches: set[BatchWatch] = set()
        self.stands = False
        """Whether the subscription to the items' events is active."""

    def note(self, batch: Batch, now_s: float) -> None:
        self.pace.note(now_s, batch.counts.total - left_of(batch))
        if batch != self.batch:
            self.batch = batch
            self.version += 1


class BatchRelay:
    """One for each API process; use it with ``async with``, inside that of the relay."""

    def __init__(self, runtime: Runtime, relay: Relay) -> None:
        self._runtime = runtime
        self._relay = relay
        self._followed: dict[str, _Followed] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._look_loop(), name="batch relay looks"),
            asyncio.create_task(ping_all(self._watches, self._runtime.settings.sse_ping_s), name="batch relay pings"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.dismiss()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    @property
    def follower_count(self) -> int:
        """How many watches are open."""
        return sum(len(followed.watches) for followed in self._followed.values())

    @property
    def is_closing(self) -> bool:
        """Whether followers are asked to reconnect, since the process is about to end."""
        return self._relay.is_draining

    def watch(self, batch: Batch, *, with_items: bool = False) -> "BatchWatch":
        """Listens to a batch from now on, ``with_items`` to its items' events too. The caller must ``close`` it."""
        followed = self._followed.get(batch.id)
        if followed is None:
            followed = self._followed[batch.id] = _Followed(batch)
        followed.note(batch, asyncio.get_running_loop().time())
        watch = BatchWatch(self, self._runtime, followed, with_items=with_items)
        if with_items and not any(other.with_items for other in followed.watches):
            followed.stands = False
            self._relay.listen(
                redis_keys.batch_events(batch.id),
                Listener(lambda message: _on_message(followed, message), lambda: _on_confirmed(followed)),
            )
        followed.watches.add(watch)
        return watch

    def dismiss(self) -> None:
        """Ends every follow with Closing. Call ``Relay.dismiss`` first. Calls after the first change nothing."""
        for watch in self._watches():
            watch.wake()

    def forget(self, watch: "BatchWatch") -> None:
        """Called by ``BatchWatch.close``."""
        followed = self._followed.get(watch.batch_id)
        if followed is None or watch not in followed.watches:
            return
        followed.watches.remove(watch)
        if watch.with_items and not any(other.with_items for other in followed.watches):
            self._relay.unlisten(redis_keys.batch_events(watch.batch_id))
        if not followed.watches:
            del self._followed[watch.batch_id]

    def _watches(self) -> "list[BatchWatch]":
        return [watch for followed in self._followed.values() for watch in followed.watches]

    async def _look_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.gather(*[self._look(followed) for followed in list(self._followed.values())])
                for watch in self._watches():
                    watch.tick(loop.time())
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop goes on: no batch would show progress
                _log.error("loop_failed", loop="batch looks", exc_info=error)

    async def _look(self, followed: _Followed) -> None:
        try:
            batch = await self._runtime.batches.get(followed.batch.id, followed.batch.tenant)
        except (StorageUnavailable, StorageFull):
            return
        except NotFound:
            followed.is_gone = True
        else:
            followed.note(batch, asyncio.get_running_loop().time())


def _on_message(followed: _Followed, message: bytes) -> None:
    head, _, rest = message.partition(b"\n")
    try:
        found = ItemEvents(head.decode(), decode_published(rest))
    except (ValueError, IndexError):  # not a message of ours: the logs have the events
        found = None
    for watch in followed.watches:
        if watch.with_items:
            if found is None:
                watch.look()
            else:
                watch.hear(found, len(message))


def _on_confirmed(followed: _Followed) -> None:
    followed.stands = True
    for watch in followed.watches:
        if watch.with_items:
            watch.look()


class BatchWatch(BufferedWatch[ItemEvents]):
    """One listener to one batch, and to its items' events if it wants them."""

    def __init__(self, relay: BatchRelay, runtime: Runtime, followed: _Followed, *, with_items: bool) -> None:
        super().__init__(runtime.settings.sse_buffer_bytes, is_resumable=True, is_behind=with_items)
        self.batch_id = followed.batch.id
        self.with_items = with_items
        self._relay = relay
        self._followed = followed
        self._shortest_silence_s = runtime.settings.sse_idle_probe_s
        self._silence_s = self._shortest_silence_s
        self._taken_version: int | None = None
        self._heard_s = self._synced_s = asyncio.get_running_loop().time()

    # Called by the relay

    def hear(self, message: ItemEvents, size: int) -> None:
        """Takes live events of one item, ``size`` bytes; see ``deliver``."""
        self._heard_s = asyncio.get_running_loop().time()
        self._silence_s = self._shortest_silence_s
        self.deliver((message,), size)

    def tick(self, now_s: float) -> None:
        """Called after each read of the batch. The items' logs are due too, after some silence or _BUSY_SYNC_S."""
        if self.with_items:
            is_silent = now_s - max(self._heard_s, self._synced_s) > self._silence_s
            if is_silent:
                self._silence_s = min(self._silence_s * 2, _SLOWEST_SYNC_S)
            if is_silent or now_s - self._synced_s > _BUSY_SYNC_S:
                self.look()
        if self._followed.is_gone or self._followed.version != self._taken_version:
            self.wake()

    # Called by a follower

    def close(self) -> None:
        """Stops listening. Calls after the first change nothing."""
        self._relay.forget(self)

    @property
    def is_behind(self) -> bool:
        """Whether the items' logs must be read."""
        return self._is_behind

    @property
    def rate_per_s(self) -> float | None:
        """Items that end per second, over the last ten seconds; None if the batch was observed for less than one."""
        return self._followed.pace.rate_per_s

    @property
    def estimated_end_ms(self) -> int | None:
        """When the batch ends at this rate, by this machine's clock; None if that is unknown, or past."""
        rate_per_s = self.rate_per_s
        if not rate_per_s or self._followed.batch.has_ended:
            return None
        return time.time_ns() // 1_000_000 + int(left_of(self._followed.batch) / rate_per_s * 1000)

    def take_change(self) -> Batch | None:
        """The batch, if it has changed since it was last taken."""
        if self._taken_version == self._followed.version:
            return None
        self._taken_version = self._followed.version
        return self._followed.batch

    def put_back_change(self) -> None:
        """Makes ``take_change`` return the batch again: it could not be sent."""
        self._taken_version = None

    def begin_sync(self) -> None:
        """Call it before reading the logs. What arrives after this waits."""
        self._is_behind = False
        self._synced_s = asyncio.get_running_loop().time()

    async def wait(self) -> None:
        """Returns when there is something to do. Raises Closing, and Gone once the batch is erased."""
        if self._followed.is_gone:
            raise Gone
        has_work = self._buffer or self._is_behind or self._is_pinged or self._taken_version != self._followed.version
        if not has_work:
            await self._wait()

    @property
    def _is_subscribed(self) -> bool:
        return self._followed.stands

    @property
    def _is_dismissed(self) -> bool:
        return self._relay.is_closing
