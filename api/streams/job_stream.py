"""A job's events as SSE, in the two formats of the native API."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Final

from api.state.api_state import ApiState
from api.state.relay import Watch
from api.state.wait_notices import Notices
from api.state.watch import Closing, Gone
from api.streams.sse import OURS_IN_TEXT, PING, SseResponse, StreamFormat, frame
from api.views.job import render
from shared.errors import NotFound, StorageUnavailable
from shared.events import Event, EventId, OurEvent, text_as_json
from shared.job import Job, JobState
from shared.store.runtime import Runtime
from shared.waiting import WaitingFor, notice_of

_PARTING: Final = b": the server is restarting, come back with your last event id\n\n"
_REDIS_RETRY_S: Final = 0.5


def job_stream(
    api: ApiState,
    job: Job,
    *,
    waiting_for: WaitingFor | None,
    form: StreamFormat,
    cursor: EventId | None = None,
    from_now: bool = False,
    watch: Watch | None = None,
    is_new: bool = False,
    headers: Mapping[str, str] | None = None,
) -> SseResponse:
    """A job's events as SSE: after ``cursor``, only new ones if ``from_now``, by default from the newest attempt on.

    ``watch``: one that the request has already opened, before it submitted or found the job. ``is_new``: the job was
    submitted after ``watch`` was opened.
    """
    own = watch or api.relay.watch(job.id, is_resumable=True)
    frames = _job_frames(api.runtime, job, own, waiting_for, form, cursor, from_now, is_new)
    return SseResponse(frames, watch=own, headers=headers)


async def _job_frames(
    runtime: Runtime,
    job: Job,
    watch: Watch,
    waiting_for: WaitingFor | None,
    form: StreamFormat,
    cursor: EventId | None,
    from_now: bool,
    is_new: bool,
) -> AsyncIterator[bytes]:
    notices = watch.notices = Notices(job.spec.model, job.epoch, may_wait=job.state is JobState.QUEUED)
    head = b"retry: %d\n\n" % random.randint(1000, 3000)  # random, or all would reconnect at once after a restart
    if not from_now:
        if cursor is None and waiting_for is not None:
            head += frame(OurEvent.QUEUED, notice_of(job.id, waiting_for))
            notices.sent(waiting_for, asyncio.get_running_loop().time())
        yield head
        head = b""
    encode = _as_text if form is StreamFormat.TEXT else _as_messages
    try:
        async for events in watch.follow(job, cursor=cursor, from_now=from_now, is_new=is_new):
            frames = b"".join([encode(event) for event in events if not event.is_terminal]) if events else PING
            if events and events[-1].is_terminal:
                frames += await _terminal_frame(runtime, job, events[-1])
            if frames:
                yield head + frames
                head = b""
    except Closing:
        yield _PARTING
    except (Gone, NotFound, StorageUnavailable):
        return  # the client reconnects, and gets a 404 or a 503


async def _terminal_frame(runtime: Runtime, job: Job, event: Event) -> bytes:
    """The terminal event, with the ended job as its data. Waits while Redis is away."""
    while True:
        try:
            ended = await runtime.jobs.get(job.id, job.tenant, with_result=True)
            return frame(event.name, render(ended, None), event.id)
        except StorageUnavailable:
            await asyncio.sleep(_REDIS_RETRY_S)


def _as_messages(event: Event) -> bytes:
    return frame(event.name, event.data, event.id)


def _as_text(event: Event) -> bytes:
    if event.name == "content_block_delta":
        text = text_as_json(event)
        return b"" if text is None else frame(OurEvent.DELTA, b'{"text":%b}' % text, event.id)
    return frame(event.name, event.data, event.id) if event.name in OURS_IN_TEXT else b""
