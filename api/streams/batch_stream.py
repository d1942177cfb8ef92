"""A batch as server-sent events: its progress and, if the client asks for them, its items' events on one connection.

An item's events have its ``custom_id`` and ``job_id``, but no event id: a client that reconnects gets a ``snapshot`` of
each running item. Otherwise each item's events are those of its job's own stream: in order, without gaps, with the end.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from api.state.batch_relay import BatchWatch, ItemEvents
from api.state.watch import Closing, Gone
from api.streams.sse import OURS_IN_TEXT, PING, SseResponse, StreamFormat, frame
from api.views.batch import render
from api.views.job import view_of as job_view_of
from shared.batch import Batch, BatchCounts, EndedItem
from shared.clock import to_rfc3339
from shared.errors import InvalidCursor, NotFound, StorageFull, StorageUnavailable
from shared.events import Event, EventId, OurEvent, following_on, text_as_json, text_of
from shared.job import Job
from shared.store.batches import Order
from shared.store.runtime import Runtime

if TYPE_CHECKING:
    from api.state.api_state import ApiState

PROGRESS: Final = "progress"
ENDED: Final = "ended"

_PARTING: Final = b": the server is restarting, come back\n\n"
_PAGE: Final = 250
_REMEMBERED_S: Final = 15.0
"""How late a message about an item's end may come without the end being sent twice."""
_AWAY: Final = (StorageUnavailable, StorageFull)
_AGAIN_S: Final = 0.2

_encode: Final = msgspec.json.Encoder().encode


class Progress(msgspec.Struct, frozen=True):
    """The data of a ``progress`` event."""

    counts: BatchCounts
    rate_per_s: float | None
    estimated_end_at: str | None


def batch_stream(api: "ApiState", batch: Batch, *, items_as: StreamFormat | None) -> SseResponse:
    """A batch as SSE. ``items_as``: the format of its items' events; None leaves them out."""
    watch = api.batch_relay.watch(batch, with_items=items_as is not None)
    if items_as is None:
        frames = _progress_frames(watch)
    else:
        frames = _all_frames(watch, ItemStreams(api.runtime, batch, items_as))
    return SseResponse(_parting(frames), watch=watch)


async def _parting(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"retry: %d\n\n" % random.randint(1000, 3000)  # random, or all would reconnect at once after a restart
    try:
        async for piece in frames:
            yield piece
    except Closing:
        yield _PARTING
    except (Gone, NotFound):
        return  # erased: the client reconnects, and gets a 404


async def _progress_frames(watch: BatchWatch) -> AsyncIterator[bytes]:
    while True:
        if (batch := watch.take_change()) is not None:
            yield _progress(watch, batch)
            if batch.has_ended:
                yield _ended(batch)
                return
        if watch.take_ping():
            yield PING
        await watch.wait()


async def _all_frames(watch: BatchWatch, items: "ItemStreams") -> AsyncIterator[bytes]:
    if (batch := watch.take_change()) is not None:
        yield _progress(watch, batch)
        if batch.has_ended:
            yield _ended(batch)
            return
    await watch.until_confirmed()
    while True:
        try:
            batch = watch.take_change()
            if watch.is_behind or (batch is not None and batch.has_ended):
                watch.begin_sync()
                async for piece in items.catch_up():
                    yield piece
            async for piece in items.go_on(watch.take()):
                yield piece
        except _AWAY:
            watch.check_open()
            watch.look()
            watch.put_back_change()
            await asyncio.sleep(_AGAIN_S)
            continue
        if batch is not None:
            yield _progress(watch, batch)
            if batch.has_ended:
                yield _ended(batch)
                return
        if watch.take_ping():
            yield PING
        await watch.wait()


def _progress(watch: BatchWatch, batch: Batch) -> bytes:
    rate_per_s, end_ms = watch.rate_per_s, watch.estimated_end_ms
    return frame(
        PROGRESS,
        _encode(
            Progress(
                batch.counts,
                None if rate_per_s is None else round(rate_per_s, 3),
                None if end_ms is None else to_rfc3339(end_ms),
            )
        ),
    )


def end_id_of(batch: Batch) -> EventId | None:
    """The id of ``ended``, the batch's only event with an id: a client that has it has all. None before the end."""
    return None if batch.ended_ms is None else EventId(batch.ended_ms, 0)


def _ended(batch: Batch) -> bytes:
    return frame(ENDED, render(batch), end_id_of(batch))


class _ItemStream:
    """One item, and how far its events have been sent."""

    __slots__ = ("job_id", "position", "prefix")

    def __init__(self, job: Job, position: EventId | None) -> None:
        self.job_id = job.id
        self.prefix = _encode({"custom_id": job.spec.custom_id, "job_id": job.id})[:-1]
        self.position = position
        """The id of the last event that was sent; None before the first."""

    def frame(self, name: str, data: bytes) -> bytes:
        members = data.strip()[1:]
        return frame(name, self.prefix + (b"" if members == b"}" else b",") + members)


class ItemStreams:
    """The items of a batch, and how far one follower has been sent the events of those that run."""

    def __init__(self, runtime: Runtime, batch: Batch, form: StreamFormat) -> None:
        self._runtime = runtime
        self._batch_id = batch.id
        self._tenant = batch.tenant
        self._form = form
        self._items: dict[str, _ItemStream] = {}
        self._has_begun = False
        self._ended_line: int | None = None
        """The line of the newest ended item whose end the client has, or that ended before the client connected."""
        self._ended: set[str] = set()
        self._ended_before: set[str] = set()
        """Items whose end was sent since ``_turned_s``, and in the _REMEMBERED_S before it."""
        self._turned_s = asyncio.get_running_loop().time()

    async def go_on(self, messages: Sequence[ItemEvents]) -> AsyncIterator[bytes]:
        """Frames of live events. Those that follow on what was sent are sent directly; gaps are filled from the log."""
        jobs = await self._jobs_of([job_id for job_id, _ in messages if not self._is_known(job_id)])
        for job_id, events in messages:
            if self._has_sent_end(job_id) or not (job_id in self._items or job_id in jobs):
                continue
            item = self._items.get(job_id)
            if item is None:
                if _seq_of(events[0]) != 0:
                    async for piece in self._frames_so_far(jobs[job_id]):
                        yield piece
                    continue
                item = self._items[job_id] = _ItemStream(jobs[job_id], None)
            async for piece in self._live_frames(item, events):
                yield piece

    async def catch_up(self) -> AsyncIterator[bytes]:
        """Frames of all that the logs hold and was not sent, for items that run or have ended since the last call."""
        batches = self._runtime.batches
        await batches.follow(self._batch_id)
        if not self._has_begun:
            self._ended_line = await self._runtime.batches.last_ended_line(self._batch_id)
            self._has_begun = True
        running = await batches.running_items(self._batch_id)
        known = list(self._items)
        for start in range(0, len(known), _PAGE):
            part = known[start : start + _PAGE]
            for job_id, reach in zip(part, await self._runtime.log.probe(part), strict=True):
                item = self._items.get(job_id)
                if item is not None and (reach is None or _is_ahead(reach.top, item.position)):
                    async for piece in self._frames_from_log(item):
                        yield piece
        for job in (await self._jobs_of([job_id for job_id in running if not self._is_known(job_id)])).values():
            async for piece in self._frames_so_far(job):
                yield piece
        async for piece in self._frames_of_ended():
            yield piece
        self._forget_some()

    async def _live_frames(self, item: _ItemStream, events: Sequence[Event]) -> AsyncIterator[bytes]:
        following, is_whole = following_on(events, item.position)
        async for piece in self._frames_of(item, following):
            yield piece
        if not is_whole and not self._has_sent_end(item.job_id):
            async for piece in self._frames_from_log(item):
                yield piece

    async def _frames_of(self, item: _ItemStream, events: Sequence[Event]) -> AsyncIterator[bytes]:
        """Frames of these events. The position is moved first: if Redis then fails, nothing is sent twice."""
        if not events:
            return
        *others, last = events
        if not last.is_terminal:
            others.append(last)
        if others:
            item.position = others[-1].id
            yield b"".join([self._frame_of(item, event) for event in others])
        if last.is_terminal:
            try:
                job = await self._runtime.jobs.get(item.job_id, self._tenant, with_result=True)
            except NotFound:  # erased a moment after its end
                self._close(item.job_id)
                yield item.frame(last.name, last.data)
            else:
                yield self._end_frame(item, job)

    async def _frames_from_log(self, item: _ItemStream) -> AsyncIterator[bytes]:
        """Frames of the log's events after the position."""
        while True:
            position = item.position
            events = await self._runtime.log.read(item.job_id, after=position, count=_PAGE, tenant=self._tenant)
            if not events:
                return
            if position is not None and _epoch_of(events[0]) != position.epoch and not await self._holds(item):
                # Redis has lost the last event that the client has: send a snapshot of what is left.
                for job in (await self._jobs_of([item.job_id])).values():
                    async for piece in self._frames_so_far(job):
                        yield piece
                return
            async for piece in self._frames_of(item, events):
                yield piece
            if len(events) < _PAGE or events[-1].is_terminal:
                return

    async def _holds(self, item: _ItemStream) -> bool:
        assert item.position is not None
        entries = await self._runtime.log.read(item.job_id, start=item.position, count=1)
        return bool(entries) and entries[0].id == item.position

    async def _frames_so_far(self, job: Job) -> AsyncIterator[bytes]:
        """For an item whose beginning was missed: its newest attempt's text so far, and its end if it has ended."""
        (reach,) = await self._runtime.log.probe([job.id])
        if reach is None:
            return
        item = _ItemStream(job, None)
        text: list[str] = []
        last: Event | None = None
        events: list[Event] = []
        if reach.newest_claim is not None:
            events = await self._runtime.log.read(job.id, start=reach.newest_claim, count=_PAGE, tenant=self._tenant)
        while events:
            for event in events:
                if event.name == OurEvent.RESET:
                    text.clear()
                elif (more := text_of(event)) is not None:
                    text.append(more)
            last = events[-1]
            if len(events) < _PAGE:
                break
            events = await self._runtime.log.read(job.id, after=last.id, count=_PAGE, tenant=self._tenant)
        if last is not None:
            item.position = last.id
            self._items[job.id] = item
            yield item.frame(OurEvent.SNAPSHOT, _encode({"text": "".join(text)}))
            if last.is_terminal:
                async for piece in self._frames_of(item, [last]):
                    yield piece
        elif reach.end_id is not None:
            async for piece in self._frames_without_log(item):
                yield piece

    async def _frames_without_log(self, item: _ItemStream) -> AsyncIterator[bytes]:
        """For an ended item without a log: what its record still has."""
        try:
            job = await self._runtime.jobs.get(item.job_id, self._tenant, with_result=True)
        except NotFound:
            self._close(item.job_id)
            return
        if job.result is not None:
            yield item.frame(OurEvent.SNAPSHOT, _encode(msgspec.json.decode(job.result, type=_Text)))
        yield self._end_frame(item, job)

    async def _frames_of_ended(self) -> AsyncIterator[bytes]:
        """Frames of items that have ended since the last call, and whose end was not sent."""
        while items := await self._ended_items():
            ids = [item.job_id for item in items if item.job_id is not None and not self._has_sent_end(item.job_id)]
            jobs = await self._jobs_of(ids)
            for job_id in ids:
                if (item := self._items.get(job_id)) is not None:
                    async for piece in self._frames_from_log(item):
                        yield piece
                    if not self._has_sent_end(job_id):
                        async for piece in self._frames_without_log(item):
                            yield piece
                elif job_id in jobs:
                    async for piece in self._frames_so_far(jobs[job_id]):
                        yield piece
            self._ended_line = items[-1].line

    async def _ended_items(self) -> list[EndedItem]:
        try:
            return await self._runtime.batches.ended_items(
                self._batch_id, Order.FINISHED, after=self._ended_line, count=_PAGE
            )
        except InvalidCursor:  # Redis has lost that end
            self._ended_line = await self._runtime.batches.last_ended_line(self._batch_id)
            return []

    def _frame_of(self, item: _ItemStream, event: Event) -> bytes:
        if self._form is StreamFormat.MESSAGES or event.name in OURS_IN_TEXT:
            return item.frame(event.name, event.data)
        text = text_as_json(event) if event.name == "content_block_delta" else None
        return b"" if text is None else item.frame(OurEvent.DELTA, b'{"text":%b}' % text)

    def _end_frame(self, item: _ItemStream, job: Job) -> bytes:
        """The terminal event, which carries the job without ``custom_id``: each frame of an item begins with that."""
        self._close(job.id)
        view = msgspec.structs.replace(job_view_of(job, None, with_result=True), custom_id=msgspec.UNSET)
        return item.frame(job.state, _encode(view))

    def _close(self, job_id: str) -> None:
        self._items.pop(job_id, None)
        self._ended.add(job_id)

    async def _jobs_of(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        ids = list(dict.fromkeys(job_ids))
        return {job.id: job for job in await self._runtime.jobs.get_many(ids, self._tenant) if job is not None}

    def _is_known(self, job_id: str) -> bool:
        return job_id in self._items or self._has_sent_end(job_id)

    def _has_sent_end(self, job_id: str) -> bool:
        return job_id in self._ended or job_id in self._ended_before

    def _forget_some(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._turned_s > _REMEMBERED_S:
            self._turned_s = now_s
            self._ended_before, self._ended = self._ended, set()


class _Text(msgspec.Struct):
    text: str


def _seq_of(event: Event) -> int:
    return -1 if event.id is None else event.id.seq


def _epoch_of(event: Event) -> int:
    return -1 if event.id is None else event.id.epoch


def _is_ahead(top: EventId | None, position: EventId | None) -> bool:
    return top is not None and (position is None or top > position)
