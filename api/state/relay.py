"""Relays the events of jobs to their followers, over one pub/sub connection for the whole process.

To follow is to subscribe and wait for the confirmation, replay the log after the client's cursor, and then pass on live
events; a gap is filled from the log. Pub/sub is for latency and is never trusted for completeness: after a
re-subscription every follower reads the log. After some silence one command checks the logs of all silent followers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple, Self

import msgspec

from api.state.wait_notices import Notices
from api.state.watch import BufferedWatch, Closing, Gone, ping_all
from shared.errors import StorageFull, StorageUnavailable
from shared.events import Event, EventId, OurEvent, decode_published, following_on
from shared.job import Job, JobState
from shared.store import redis_keys
from shared.store.log import Reach
from shared.store.runtime import Runtime

_LATE_S: Final = 0.05
_PAGE: Final = 250
_PROBED_AT_ONCE: Final = 500
_SLOWEST_PROBE_S: Final = 12.0
_NOTICED_EVERY_S: Final = 1.0
_LOOKED_AT_ONCE: Final = 100
"""Jobs in one command, which takes Redis half a millisecond; four if each waits in a flow of its own, with all limits set."""
_AWAY: Final = (StorageUnavailable, StorageFull)
_AGAIN_S: Final = 0.2


class Listener(NamedTuple):
    """What is called for a channel that is not a job's."""

    on_message: Callable[[bytes], None]
    on_confirmed: Callable[[], None]
    """Called when the subscription is active. If it was before, something may have been missed."""


class Relay:
    """One for each API process; use it with ``async with``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        settings = runtime.settings
        self._probe_s = settings.sse_idle_probe_s
        self._ping_s = settings.sse_ping_s
        self._most_bytes = settings.sse_buffer_bytes
        self._subscriber = runtime.subscriber(on_message=self._on_message, on_confirmed=self._on_confirmed)
        self._watches: dict[str, set[Watch]] = {}
        self._listeners: dict[str, Listener] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.is_draining = False
        """Whether clients that can resume are asked to reconnect."""
        self.is_closing = False
        """Whether all clients are asked to reconnect."""

    async def __aenter__(self) -> Self:
        await self._subscriber.__aenter__()
        # Nothing here reads this channel: a Redis that forbids channels is thus named in /health before anybody follows.
        self._subscriber.subscribe(redis_keys.plain("control"))
        self._tasks = [
            asyncio.create_task(self._probe_loop(), name="relay probe"),
            asyncio.create_task(ping_all(self._all_watches, self._ping_s), name="relay ping"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._subscriber.__aexit__()

    @property
    def follower_count(self) -> int:
        """How many watches are open."""
        return sum(len(watches) for watches in self._watches.values())

    def watch(self, job_id: str, *, is_resumable: bool = False) -> "Watch":
        """Listens to a job from now on. Call it before a submit to miss nothing. The caller must ``close`` it.

        ``is_resumable``: the client can resume by its last event id, and is asked to as soon as the process drains.
        """
        watch = Watch(self, self._runtime, job_id, self._most_bytes, is_resumable=is_resumable)
        watches = self._watches.get(job_id)
        if watches is None:
            watches = self._watches[job_id] = set()
            self._subscriber.subscribe(redis_keys.events(job_id))
        elif self._subscriber.stands(redis_keys.events(job_id)):
            watch.confirm()
        watches.add(watch)
        return watch

    def listen(self, channel: str, listener: Listener) -> None:
        """Subscribes to one more channel over the same connection, until ``unlisten``. A channel has one listener."""
        self._listeners[channel] = listener
        self._subscriber.subscribe(channel)

    def unlisten(self, channel: str) -> None:
        """Ends ``listen``. Calls after the first change nothing."""
        if self._listeners.pop(channel, None) is not None:
            self._subscriber.unsubscribe(channel)

    async def wait_for_end(
        self, job_id: str, timeout_s: float, watch: "Watch | None" = None, *, is_new: bool = False
    ) -> bool:
        """True once the job has ended or is gone; False after ``timeout_s`` or when the process stops.

        ``is_new``: the job was submitted after ``watch`` was opened.
        """
        own = watch or self.watch(job_id)
        try:
            async with asyncio.timeout(timeout_s):
                await own.ended(is_new=is_new)
            return True
        except (TimeoutError, Closing):
            return False
        finally:
            if watch is None:
                own.close()

    def dismiss(self) -> None:
        """Ends every follow that can be resumed with Closing. Calls after the first change nothing."""
        if not self.is_draining:
            self.is_draining = True
            self._wake_all()

    def close(self) -> None:
        """Ends every follow with Closing. Calls after the first change nothing."""
        self.is_draining = self.is_closing = True
        self._wake_all()

    def _wake_all(self) -> None:
        for watch in self._all_watches():
            watch.wake()

    def _all_watches(self) -> "list[Watch]":
        return [watch for watches in self._watches.values() for watch in watches]

    def forget(self, watch: "Watch") -> None:
        """Called by ``Watch.close``."""
        watches = self._watches.get(watch.job_id)
        if watches and watch in watches:
            watches.remove(watch)
            if not watches:
                del self._watches[watch.job_id]
                self._subscriber.unsubscribe(redis_keys.events(watch.job_id))

    def _on_message(self, channel: str, message: bytes) -> None:
        if listener := self._listeners.get(channel):
            listener.on_message(message)
            return
        watches = self._watches.get(channel[_CHANNEL_PREFIX:])
        if not watches:
            return
        try:
            events = decode_published(message)
        except (ValueError, IndexError):  # not a message of ours: the log has the events
            for watch in watches:
                watch.look()
            return
        for watch in watches:
            watch.deliver(events, len(message))

    def _on_confirmed(self, channel: str) -> None:
        if listener := self._listeners.get(channel):
            listener.on_confirmed()
            return
        for watch in self._watches.get(channel[_CHANNEL_PREFIX:], ()):
            watch.confirm()

    async def notice_waits(self) -> None:
        """Once a second, looks why the followed jobs wait, and sends their followers what has changed.

        Never returns; raises Problem if Redis fails.
        """
        clock = asyncio.get_running_loop().time
        while True:
            await self._runtime.waits.look()
            await asyncio.sleep(_NOTICED_EVERY_S)
            waiting = {
                job_id: [(watch, watch.notices) for watch in watches if watch.notices and watch.notices.may_wait]
                for job_id, watches in self._watches.items()
            }
            followed = [(job_id, pairs) for job_id, pairs in waiting.items() if pairs]
            for start in range(0, len(followed), _LOOKED_AT_ONCE):
                part = followed[start : start + _LOOKED_AT_ONCE]
                jobs = [(job_id, pairs[0][1].model) for job_id, pairs in part]
                for (_, pairs), waiting_for in zip(part, await self._runtime.waits.of(jobs), strict=True):
                    for watch, notices in pairs:
                        if notices.note(waiting_for, clock()):
                            watch.wake()

    async def _probe_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._probe_s / 3)
            now_s = loop.time()
            due = [watch for watch in self._all_watches() if watch.probe_due_s <= now_s]
            for start in range(0, len(due), _PROBED_AT_ONCE):
                part = due[start : start + _PROBED_AT_ONCE]
                try:
                    reaches = await self._runtime.log.probe([watch.job_id for watch in part])
                except _AWAY:
                    break
                for watch, reach in zip(part, reaches, strict=True):
                    watch.on_probe(reach, now_s)


_CHANNEL_PREFIX: Final = len(redis_keys.events(""))


class Watch(BufferedWatch[Event]):
    """One listener to one job."""

    __slots__ = (
        "_is_confirmed",
        "_opened_s",
        "_position",
        "_probe_s",
        "_relay",
        "_runtime",
        "_tenant",
        "job_id",
        "notices",
        "probe_due_s",
    )

    def __init__(self, relay: Relay, runtime: Runtime, job_id: str, most_bytes: int, *, is_resumable: bool) -> None:
        super().__init__(most_bytes, is_resumable=is_resumable)
        self.job_id = job_id
        self.notices: Notices | None = None
        """Set by a follower that is to be sent why the job waits; then ``follow`` yields ``waiting`` too."""
        self._relay = relay
        self._runtime = runtime
        self._tenant: str | None = None
        self._position: EventId | None = None
        self._is_confirmed = False
        self._probe_s = runtime.settings.sse_idle_probe_s
        self._opened_s = asyncio.get_running_loop().time()
        self.probe_due_s = self._opened_s + self._probe_s

    # Called by the relay

    def confirm(self) -> None:
        """Called when the subscription is active. If it was before, or comes late, something may have been missed."""
        if self._is_confirmed or asyncio.get_running_loop().time() - self._opened_s > _LATE_S:
            self._is_behind = True
        self._is_confirmed = True
        self.wake()

    def on_probe(self, reach: Reach | None, now_s: float) -> None:
        """Takes the finding of a probe, after some silence. Each probe doubles the time to the next."""
        last = reach and max(filter(None, (reach.end_id, reach.top)), default=None)
        if reach is None or (last is not None and (self._position is None or last > self._position)):
            self.look()
        elif reach.is_queued and self.notices is not None:
            self.notices.may_wait = True  # a drain or a takeover has put it back, which no event says
        self._probe_s = min(self._probe_s * 2, _SLOWEST_PROBE_S)
        self.probe_due_s = now_s + self._probe_s

    # Called by a follower

    def close(self) -> None:
        """Stops listening. Calls after the first change nothing."""
        self._relay.forget(self)

    async def ended(self, *, is_new: bool = False) -> None:
        """Returns once the job has ended or is gone. ``is_new``: it was submitted after ``watch``. Raises Closing."""
        if not is_new:
            await self.until_confirmed()
            self._is_behind = True
        while True:
            if self._is_behind:
                self._is_behind = False
                try:
                    (reach,) = await self._runtime.log.probe([self.job_id])
                    if reach is None or reach.end_id is not None:
                        return
                    self._position = reach.top
                except _AWAY:
                    self.check_open()
                    self._is_behind = True
                    await asyncio.sleep(_AGAIN_S)
                    continue
            if any(event.is_terminal for event in self.take()):
                return
            if not self._is_behind:
                await self._wait()

    async def follow(
        self, job: Job, *, cursor: EventId | None = None, from_now: bool = False, is_new: bool = False
    ) -> AsyncIterator[list[Event]]:
        """The job's events in order, without gaps or duplicates, in batches; the last event is terminal.

        An empty batch means that a ping is due. Events without an id are made here: ``reset``, ``snapshot``, ``waiting``.
        ``cursor``: the last event that the client has. ``from_now``: leaves out all events so far. ``is_new``: the job
        was submitted after ``watch``. Raises Closing and Gone.
        """
        self._position = cursor
        self._tenant = job.tenant
        if not is_new:
            await self.until_confirmed()
            async for batch in self._begin(job, cursor, from_now):
                yield batch
                if batch and batch[-1].is_terminal:
                    return
            if from_now:
                yield []  # a ping: from now on the client misses nothing
        while True:
            if self._is_behind:
                async for batch in self._catch_up():
                    yield batch
                    if batch[-1].is_terminal:
                        return
            if batch := self._contiguous():
                yield batch
                if batch[-1].is_terminal:
                    return
            if self.notices is not None and (
                notice := self.notices.take(self.job_id, asyncio.get_running_loop().time())
            ):
                yield notice
            if self.take_ping():
                yield []
            if not self._is_behind and not self._buffer and not (self.notices and self.notices.has_unsent):
                await self._wait()

    async def _begin(self, job: Job, cursor: EventId | None, from_now: bool) -> AsyncIterator[list[Event]]:
        """Finds the position to start from. If the log no longer has the cursor, the client gets a ``reset``."""
        (reach,) = await self._runtime.log.probe([self.job_id])
        if reach is None:
            raise Gone
        if reach.top is None and reach.end_id is not None:
            yield await self._without_log(job, reach.end_id, had_cursor=cursor is not None)
            return
        if from_now and reach.end_id is None:
            self._position = reach.top
            return
        self._is_behind = True
        if cursor is not None and await self._holds(cursor):
            return
        if cursor is not None:
            is_ahead = reach.top is None or cursor > reach.top
            yield [_made_reset(job.attempts, "log_rolled_back" if is_ahead else "cursor_trimmed")]
        self._position = _before(reach.newest_claim)

    async def _holds(self, cursor: EventId) -> bool:
        entries = await self._runtime.log.read(self.job_id, start=cursor, count=1)
        return bool(entries) and entries[0].id == cursor

    async def _without_log(self, job: Job, end_id: EventId, *, had_cursor: bool) -> list[Event]:
        """For a job that has ended without a log, or whose log is gone: what its record still has."""
        ended = await self._runtime.jobs.get(job.id, job.tenant, with_result=True)
        batch = [_made_reset(ended.attempts, "cursor_trimmed")] if had_cursor else []
        if ended.result is not None:
            text = msgspec.json.decode(ended.result, type=_Text).text
            batch.append(Event(None, OurEvent.SNAPSHOT, msgspec.json.encode(_Text(text))))
        return [*batch, _terminal(end_id, ended.state)]

    async def _catch_up(self) -> AsyncIterator[list[Event]]:
        """The log's events after the position, until there are no more."""
        while self._is_behind:
            try:
                events = await self._runtime.log.read(
                    self.job_id, after=self._position, count=_PAGE, tenant=self._tenant
                )
                if len(events) < _PAGE:
                    self._is_behind = False
                if events and await self._is_rolled_back(events[0]):
                    reset, self._position = await self._start_over()
                    self._is_behind = True
                    yield [reset]
                    continue
                if not events:
                    (reach,) = await self._runtime.log.probe([self.job_id])
                    if reach is None:
                        raise Gone
                    # Ended without a log. (A log without its end has lost its tail, which is written again.)
                    if reach.end_id is not None and reach.top is None:
                        state = await self._runtime.jobs.state(self.job_id)
                        events = [_terminal(reach.end_id, state or JobState.EXPIRED)]
            except _AWAY:
                await asyncio.sleep(_AGAIN_S)
                self.check_open()
                self._is_behind = True
                continue
            if events:
                self._advance(events[-1])
                yield events

    async def _is_rolled_back(self, found: Event) -> bool:
        """Whether Redis has lost the last event that the client has. The client then needs a ``reset``, which a later
        attempt may not send, since Redis has also lost that there was text.

        Checked only where the epoch changes: within one, the worker writes the lost tail again.
        """
        position = self._position
        if position is None or position.seq == _BEFORE_ALL or found.id is None or found.id.epoch == position.epoch:
            return False
        return not await self._holds(position)

    async def _start_over(self) -> tuple[Event, EventId | None]:
        (reach,) = await self._runtime.log.probe([self.job_id])
        attempts = await self._runtime.jobs.attempts(self.job_id)
        return _made_reset(attempts, "log_rolled_back"), _before(reach.newest_claim if reach else None)

    def _contiguous(self) -> list[Event]:
        """The live events that follow on the position. All others, also of a new attempt, are read from the log."""
        events, is_whole = following_on(self.take(), self._position)
        if not is_whole:
            self._is_behind = True
        if events:
            self._advance(events[-1])
        return events

    def _advance(self, event: Event) -> None:
        self._position = event.id
        if self.notices is not None:
            self.notices.heard(event)
        self._probe_s = self._runtime.settings.sse_idle_probe_s
        self.probe_due_s = asyncio.get_running_loop().time() + self._probe_s

    @property
    def _is_subscribed(self) -> bool:
        return self._is_confirmed

    @property
    def _is_dismissed(self) -> bool:
        return self._relay.is_closing or (self.is_resumable and self._relay.is_draining)


class _Text(msgspec.Struct):
    text: str


def _made_reset(attempt: int, reason: str) -> Event:
    return Event(None, OurEvent.RESET, msgspec.json.encode({"attempt": attempt, "reason": reason}))


def _terminal(end_id: EventId, state: JobState) -> Event:
    return Event(end_id, state.value, msgspec.json.encode({"status": state}))


def _before(start: EventId | None) -> EventId | None:
    """The position after which ``start`` is the next event."""
    return EventId(start.epoch - 1, _BEFORE_ALL) if start else None


_BEFORE_ALL: Final = 2**53
