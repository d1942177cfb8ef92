"""Server-sent events: one response class for every stream, and the two forms in which a job's events are told.

A plain ASGI response with one task per client beside the request's own, and no timer: sse-starlette costs 47 KB an idle
client, over our bound (docs/decisions). Data is always one line of JSON made by us, names come from our lists, ids from
our log: nothing that a model says can break out of its frame.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.native.job_view import render
from api.relay import Closing, Gone, SlowFollower, Watch
from shared.errors import NotFound, StorageUnavailable
from shared.events import Event, EventId, OurEvent, text_of
from shared.job import Job
from shared.store.runtime import Runtime

if TYPE_CHECKING:
    from api.dependencies import ApiState

PING: Final = b": ping\n\n"
_PARTING: Final = b": the server is restarting, come back with your last event id\n\n"
_GRACE_S: Final = 0.5

_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}


class StreamFormat(StrEnum):
    """How a job's events are told."""

    TEXT = "text"
    """Ours, and the text as ``delta``."""
    MESSAGES = "messages"
    """The upstream's events as they are, ours between them."""


class SseResponse(Response):
    """Sends frames as they come; ends when they end, when the client is gone, or at shutdown.

    ``frames`` yields ready frames. ``on_close(finished)`` is awaited in the end, whatever happened: ``finished`` is
    False if the client left, or was cut, before the frames ended.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        watch: Watch,
        on_close: Callable[[bool], Awaitable[None]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._watch = watch
        self._on_close = on_close
        self.init_headers({**_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI side."""
        owner = asyncio.current_task()
        assert owner is not None
        self._watch.owner = owner
        left = asyncio.create_task(_cancel_when_left(receive, owner), name="sse client")
        finished = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            finished = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except SlowFollower:
            pass
        except asyncio.CancelledError:
            # Our own doing (the client left, or was cut) is the end of the response, not of the task.
            if owner.uncancel() > 0:
                raise
        finally:
            left.cancel()
            self._watch.close()
            if self._on_close is not None:
                await self._on_close(finished)


async def _cancel_when_left(receive: Receive, owner: "asyncio.Task[object]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    owner.cancel()


def job_stream(
    api: "ApiState",
    job: Job,
    *,
    queue_position: int | None,
    form: StreamFormat,
    cursor: EventId | None = None,
    from_now: bool = False,
    watch: Watch | None = None,
    is_new: bool = False,
    headers: Mapping[str, str] | None = None,
) -> SseResponse:
    """A job's events as SSE. ``watch`` and ``is_new``: the job was submitted in this request."""
    own = watch or api.relay.watch(job.id)
    frames = _job_frames(api.runtime, job, own, queue_position, form, cursor, from_now, is_new)
    return SseResponse(frames, watch=own, headers=headers)


async def _job_frames(
    runtime: Runtime,
    job: Job,
    watch: Watch,
    queue_position: int | None,
    form: StreamFormat,
    cursor: EventId | None,
    from_now: bool,
    is_new: bool,
) -> AsyncIterator[bytes]:
    preamble = b"retry: %d\n\n" % random.randint(1000, 3000)  # spread over time: all come back after a restart
    if cursor is None and not from_now:
        data = msgspec.json.encode({"job_id": job.id, "queue_position": queue_position})
        preamble += frame(OurEvent.QUEUED, data)
    yield preamble
    encode = _as_text if form is StreamFormat.TEXT else _as_messages
    try:
        async for events in watch.follow(job, cursor=cursor, from_now=from_now, is_new=is_new):
            frames = b"".join([encode(event) for event in events if not event.is_terminal])
            if not events:
                frames = PING
            elif events[-1].is_terminal:
                frames += await _terminal_frame(runtime, job, events[-1])
            if frames:
                yield frames
    except Closing:
        yield _PARTING
    except (Gone, NotFound, StorageUnavailable):
        return  # the client comes back, and is told


async def _terminal_frame(runtime: Runtime, job: Job, event: Event) -> bytes:
    """The terminal event carries the job as it ended. Redis away: the client is cut, and gets it when it comes back."""
    while True:
        try:
            ended = await runtime.jobs.get(job.id, job.tenant, with_result=True)
            return frame(event.name, render(ended, None), event.id)
        except StorageUnavailable:
            await asyncio.sleep(_GRACE_S)


def frame(name: str, data: bytes, event_id: EventId | None = None) -> bytes:
    """One SSE frame. ``data`` is one line."""
    if event_id is None:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (event_id.epoch, event_id.seq, name.encode(), data)


def _as_messages(event: Event) -> bytes:
    return frame(event.name, event.data, event.id)


_OURS_IN_TEXT: Final = frozenset({OurEvent.STARTED, OurEvent.RETRY, OurEvent.RESET, OurEvent.SNAPSHOT})
_TEXT_MARK: Final = b'"delta":{"type":"text_delta","text":'


def _as_text(event: Event) -> bytes:
    if event.name == "content_block_delta":
        text = _text_as_json(event)
        return b"" if text is None else frame(OurEvent.DELTA, b'{"text":%b}' % text, event.id)
    return frame(event.name, event.data, event.id) if event.name in _OURS_IN_TEXT else b""


def _text_as_json(event: Event) -> bytes | None:
    """The text of a delta, still as JSON. Text deltas were encoded by our own writer, whose form is known."""
    _, mark, rest = event.data.partition(_TEXT_MARK)
    if mark and rest.endswith(b"}}"):
        return rest[:-2]
    text = text_of(event)
    return None if text is None else msgspec.json.encode(text)
