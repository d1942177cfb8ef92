"""Server-sent events: one response class for every stream, and the frames that streams send.

Each client costs one task in addition to the request's own, and no timer. sse-starlette takes 47 KB for an idle client,
more than our bound (docs/decisions/0002). ``frame`` gets one line of JSON made by us, names from our lists and ids from
our log, so that nothing that a model generates can break out of its frame.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.disconnects import abort, until_gone
from api.http.responses import NO_TRANSFORM
from api.state.key_ring import credential_of
from api.state.watch import BufferedWatch
from shared.events import EventId, OurEvent

PING: Final = b": ping\n\n"
_KEY_ENDED: Final = b": the api key is not valid any more\n\n"
_GRACE_S: Final = 0.5
_MOST_AT_ONCE: Final = 64 << 10
"""Bytes given to the server in one piece: it keeps any piece whole in its memory until it is sent."""

_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": NO_TRANSFORM,
    "x-accel-buffering": "no",
}


class StreamFormat(StrEnum):
    """How a job's events are sent."""

    TEXT = "text"
    """Our own events, with the text as ``delta``."""
    MESSAGES = "messages"
    """The upstream's events as they are, with ours between them."""


class SseResponse(Response):
    """Sends frames as they come. Ends when they end, when the client disconnects, at shutdown, or with the API key.

    ``frames`` yields encoded frames. ``key_ended`` makes the last frame for a client whose key is no longer valid; by
    default that is a comment. ``on_close(finished)`` is awaited at the end, whatever happened. ``finished`` is False if
    the client left or was cut before the frames ended.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        watch: BufferedWatch[Any],
        on_close: Callable[[bool], Awaitable[None]] | None = None,
        key_ended: Callable[[], bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._watch = watch
        self._on_close = on_close
        self._key_ended = key_ended
        self.init_headers({**_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = _Owner()
        watch = self._watch
        watch.on_cut = owner.end
        left = asyncio.create_task(_end_when_left(receive, owner), name="sse client")
        credential = credential_of(scope)
        if credential is not None:
            credential.hold(owner.end)
        finished = False
        is_writing = True
        drain = scope["state"]["api"].drain
        drain.open_requests -= watch.is_resumable
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            is_writing = False
            async for frame in self._frames:
                is_writing = True
                for start in range(0, len(frame), _MOST_AT_ONCE):
                    watch.is_writing(True)
                    await send(
                        {"type": "http.response.body", "body": frame[start : start + _MOST_AT_ONCE], "more_body": True}
                    )
                    watch.is_writing(False)
                is_writing = False
            finished = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not owner.ended_it():
                raise
            owner.release()
            if credential is not None and credential.is_over and not left.done():
                await self._part(scope, receive, send, in_a_frame=is_writing)
        finally:
            drain.open_requests += watch.is_resumable
            owner.release()
            left.cancel()
            if credential is not None:
                credential.release(owner.end)
            watch.close()
            if watch.is_cut:
                await abort(scope, receive)
            if self._on_close is not None:
                await self._on_close(finished)

    async def _part(self, scope: Scope, receive: Receive, send: Send, *, in_a_frame: bool) -> None:
        """Ends the stream of a client whose key has ended.

        A client that does not read, or has half a frame, gets no last frame.
        """
        if in_a_frame:
            await abort(scope, receive)
            return
        last = _KEY_ENDED if self._key_ended is None else self._key_ended()
        try:
            async with asyncio.timeout(_GRACE_S):
                await send({"type": "http.response.body", "body": last, "more_body": False})
        except TimeoutError:
            await abort(scope, receive)


class _Owner:
    """The task of a response. A disconnect, a cut or a key's end cancels it, maybe several at once, and ends only the
    response. The server may cancel the task as well, and that must end the task itself: so our cancels are counted.
    """

    __slots__ = ("_cancels", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[object] | None = task
        self._cancels = 0

    def end(self) -> None:
        if self._task is not None:
            self._cancels += 1
            self._task.cancel()

    def ended_it(self) -> bool:
        """Whether only we have cancelled the task. Takes our own cancels back."""
        assert self._task is not None
        for _ in range(self._cancels):
            self._task.uncancel()
        return self._cancels > 0 and self._task.cancelling() == 0

    def release(self) -> None:
        self._task = None


async def _end_when_left(receive: Receive, owner: _Owner) -> None:
    await until_gone(receive)
    owner.end()


def frame(name: str, data: bytes, event_id: EventId | None = None) -> bytes:
    """One SSE frame. ``data`` must be one line."""
    if event_id is None:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (event_id.epoch, event_id.seq, name.encode(), data)


OURS_IN_TEXT: Final = frozenset({OurEvent.WAITING, OurEvent.STARTED, OurEvent.RETRY, OurEvent.RESET, OurEvent.SNAPSHOT})
