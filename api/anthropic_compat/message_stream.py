"""A job's events as a stream of the Messages API: those of one attempt, up to ``message_stop`` or an error.

``message_stop`` is held back until the job has succeeded: a client that has seen it may disconnect, and has a whole
answer. This stream cannot take text back. So if an attempt fails, the stream goes on with the next one only if no more
than ``message_start`` was sent.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from api.anthropic_compat.refusals import Refused, refusal_of_end
from api.http.anthropic_errors import Refusal, refusal_of_problem, type_of
from api.state.api_state import ApiState
from api.state.relay import Watch
from api.state.watch import Closing, Gone
from api.streams.retraction import reason_of, sentence_of
from api.streams.sse import frame
from shared.errors import NotFound, ServerStopping, StorageUnavailable
from shared.events import OUR_NAMES, Event, EventId, OurEvent
from shared.job import Job, JobState
from shared.store.runtime import Runtime

HOLD_S: Final = 10.0
"""How long the response's head waits for the first event of the answer."""
PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'

_AGAIN_S: Final = 0.5
_LOG_PAGE: Final = 1000
_END_S: Final = 5.0
"""How long to wait for the end of a job that may not start over: it ends as soon as it is claimed again."""

_BEGINNINGS: Final = frozenset({OurEvent.STARTED, OurEvent.RETRY, OurEvent.RESET})
"""The events that announce another attempt."""

ERASED: Final = Refusal(500, "api_error", "The job was erased.", may_retry=False)
_ENDED_EARLY: Final = Refusal(500, "api_error", "The end of the answer is no longer known.", may_retry=False)


async def frames_of(api: ApiState, job: Job, watch: Watch, *, is_new: bool) -> AsyncIterator[bytes]:
    """The frames of the answer, and PING whenever one is due. Raises Refused.

    ``is_new``: the job was submitted after ``watch`` was opened; else the newest attempt is sent from its start.
    """
    editor = Editor()
    try:
        cursor = None if is_new else await _newest_attempt(api.runtime, job)
        following = watch.follow(job, cursor=cursor, is_new=is_new)
        async for events in following:
            frames = editor.frames_of(events) if events else PING
            ending = events[-1].name if events and events[-1].is_terminal else None
            if editor.taken_back is not None:
                if ending is None and not job.spec.may_start_over and _is_claimed_again(events):
                    ending = await _end_of(following)
                if ending in (None, JobState.SUCCEEDED):
                    raise Refused(_anew(sentence_of(editor.taken_back)), has_ended=ending is not None)
            if ending == JobState.SUCCEEDED and editor.stop:
                yield frames + editor.stop
                return
            if frames:
                yield frames
            if ending:
                yield await _end(api, job, editor)
                return
    except Closing:
        raise Refused(refusal_of_problem(ServerStopping())) from None
    except (Gone, NotFound):
        raise Refused(ERASED, has_ended=True) from None
    except StorageUnavailable as problem:
        raise Refused(refusal_of_problem(problem)) from None
    raise Refused(_ENDED_EARLY)


def _is_claimed_again(events: list[Event]) -> bool:
    return any(event.name == OurEvent.STARTED for event in events)


async def _end_of(following: AsyncIterator[list[Event]]) -> str | None:
    """The terminal event's name; None if it does not come soon. If it does, the job's own error is the true reason."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            async for events in following:
                if events and events[-1].is_terminal:
                    return events[-1].name
    return None


def _anew(message: str) -> Refusal:
    """The error after the first text: the only type on which clients send the request again."""
    return Refusal(529, type_of(529), message)


async def _newest_attempt(runtime: Runtime, job: Job) -> EventId | None:
    """The event that begins the newest attempt. The newest claim may be too early: it may have several attempts."""
    found: EventId | None = None
    last: EventId | None = None
    while True:
        events = await runtime.log.read(job.id, after=last, count=_LOG_PAGE, tenant=job.tenant)
        for event in events:
            if event.name in _BEGINNINGS:
                found = event.id
        if len(events) < _LOG_PAGE:
            return found
        last = events[-1].id


async def _end(api: ApiState, job: Job, editor: "Editor") -> bytes:
    """The stored answer as frames, for a job whose log is gone. Raises Refused, NotFound, StorageUnavailable."""
    ended = await ended_job(api, job)
    if ended.state is not JobState.SUCCEEDED:
        if editor.has_content and ended.error is not None and ended.error.retryable:
            raise Refused(_anew(f"{ended.error.message} ({ended.error.code})"), has_ended=True)
        raise Refused(refusal_of_end(ended), has_ended=True)
    if editor.has_content or ended.result is None:
        raise Refused(_ENDED_EARLY, has_ended=True)
    return frames_of_message(message_of(ended), has_begun=editor.has_begun)


async def ended_job(api: ApiState, job: Job) -> Job:
    """The ended job, with its result. Waits while Redis is away. Raises NotFound, and StorageUnavailable at a stop."""
    while True:
        try:
            return await api.runtime.jobs.get(job.id, job.tenant, with_result=True)
        except StorageUnavailable:
            if api.shutdown.is_set():
                raise
            await asyncio.sleep(_AGAIN_S)


class Editor:
    """Decides which of a job's events the client gets. Pure."""

    def __init__(self) -> None:
        self.has_begun = False
        """Whether the client has a ``message_start``."""
        self.has_content = False
        """Whether it has more than that."""
        self.stop = b""
        """The frame of ``message_stop``, which is sent when the job has succeeded."""
        self.taken_back: str | None = None
        """Why content that the client has is void; None if it is not. Nothing is sent after that."""

    def frames_of(self, events: list[Event]) -> bytes:
        """The frames of these events. Content that a later one of them makes void is left out."""
        frames: list[bytes] = []
        had_begun, had_content = self.has_begun, self.has_content
        for number, event in enumerate(events):
            if event.name in _BEGINNINGS:
                if had_content:
                    self.taken_back = reason_of(events[number:])
                    return b""
                frames.clear()
                self.has_begun, self.has_content, self.stop = had_begun, False, b""
            elif event.name in OUR_NAMES:
                continue
            elif event.name == "message_start":
                if not self.has_begun:
                    self.has_begun = True
                    frames.append(frame(event.name, event.data))
            elif event.name == "message_stop":
                self.stop = frame(event.name, event.data)
            elif self.has_begun:
                self.has_content = True
                frames.append(frame(event.name, event.data))
        return b"".join(frames)


class HeldFrames:
    """Frames, the first of which is awaited before the response starts. ``close`` it if ``rest`` is never iterated."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        self._frames = frames
        self._first = b""
        self._next: asyncio.Task[bytes | None] | None = None

    async def begin(self, hold_s: float) -> None:
        """Returns when there is a first frame, or after ``hold_s`` seconds. Raises Refused."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + hold_s
        while True:
            if self._next is None:
                self._next = asyncio.create_task(_next_of(self._frames), name="an answer's first event")
            await asyncio.wait((self._next,), timeout=deadline_s - loop.time())
            if not self._next.done():
                self._first = PING
                return
            first, self._next = self._next.result() or b"", None
            if first != PING:
                self._first = first
                return

    async def rest(self) -> AsyncIterator[bytes]:
        """All frames. Raises Refused."""
        yield self._first
        if self._next is not None:
            waiting, self._next = self._next, None
            try:
                if (second := await waiting) is not None:
                    yield second
            finally:
                waiting.cancel()
        async for frames in self._frames:
            yield frames

    async def close(self) -> None:
        """Cancels the wait for a frame. Calls after the first change nothing."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait((self._next,))
            if not self._next.cancelled():
                self._next.exception()  # or asyncio would log it as never retrieved
            self._next = None


async def _next_of(frames: AsyncIterator[bytes]) -> bytes | None:
    return await anext(frames, None)


# --- an answer whose events are gone -----------------------------------------------------------------------------------


class _Result(msgspec.Struct):
    message: msgspec.Raw


def message_of(job: Job) -> bytes:
    """The message of a job that succeeded, as it is stored."""
    return bytes(msgspec.json.decode(job.result or b"", type=_Result).message)


def frames_of_message(message: bytes, *, has_begun: bool = False) -> bytes:
    """The frames that add up to this message. ``has_begun``: without ``message_start``, which was sent."""
    whole: dict[str, Any] = msgspec.json.decode(message)
    usage = {"input_tokens": 0, "output_tokens": 0, **(whole.get("usage") or {})}
    empty = {**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    frames = [] if has_begun else [_frame("message_start", message=empty)]
    for index, block in enumerate(whole.get("content") or []):
        start, deltas = _taken_apart(block)
        frames.append(_frame("content_block_start", index=index, content_block=start))
        frames += [_frame("content_block_delta", index=index, delta=delta) for delta in deltas]
        frames.append(_frame("content_block_stop", index=index))
    end = {"stop_reason": whole.get("stop_reason"), "stop_sequence": whole.get("stop_sequence")}
    end |= {name: whole[name] for name in ("stop_details", "container") if whole.get(name) is not None}
    frames += [_frame("message_delta", delta=end, usage=usage), _frame("message_stop")]
    return b"".join(frames)


def _frame(name: str, **members: Any) -> bytes:
    return frame(name, msgspec.json.encode({"type": name, **members}))


def _taken_apart(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block's start, and the deltas that complete it. A block of a kind without deltas starts whole."""
    deltas: list[dict[str, Any]]
    match block.get("type"):
        case "text":
            citations = block.get("citations") or []
            deltas = [{"type": "text_delta", "text": block.get("text") or ""}]
            deltas += [{"type": "citations_delta", "citation": citation} for citation in citations]
            return {**block, "text": "", **({"citations": []} if citations else {})}, deltas
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": block.get("thinking") or ""}]
            if signature := block.get("signature"):
                deltas.append({"type": "signature_delta", "signature": signature})
            return {**block, "thinking": "", "signature": ""}, deltas
        case "tool_use":
            spelled = msgspec.json.encode(block.get("input", {})).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": spelled}]
        case _:
            return block, []
