"""``/complete`` and ``/complete/stream``: a prompt in, its answer out, in one call. Each call is a job like any other.

The job lives as long as its client waits: it is cancelled when the client disconnects, or after 30 s.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, Submitter
from api.http.body import read_body
from api.http.disconnects import while_connected
from api.http.errors import document, request_id_of
from api.http.members import Body, Text, Whole, read
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_response
from api.http.strict_json import decode
from api.jobs.cancel import give_up
from api.jobs.request import Draft, JobOptions, drafted, user_message
from api.jobs.submit import submit
from api.openapi import body_of, json_of, operation, stream
from api.state.api_state import ApiState
from api.state.key_ring import not_valid
from api.state.relay import Watch
from api.state.watch import Closing, Gone
from api.streams.retraction import reason_of, sentence_of
from api.streams.sse import PING, SseResponse
from api.streams.sse import frame as sse_frame
from shared.api_key import Caller
from shared.errors import (
    JOB_ERROR_CODES,
    Problem,
    ServerStopping,
    UpstreamFailed,
    UpstreamRateLimited,
    UpstreamTimeout,
)
from shared.events import Event, OurEvent, text_of
from shared.job import Job, JobState, new_id

router = APIRouter()

TIMEOUT_S: Final = 30
MOST_PROMPT_CHARS: Final = 10_000
MOST_MAX_TOKENS: Final = 4096
DEFAULT_MAX_TOKENS: Final = 512

DONE: Final = "[DONE]"


class CompletionRequest(Body):
    """A prompt, and how long its answer may be."""

    prompt: Annotated[str, Text(1, MOST_PROMPT_CHARS)]
    max_tokens: Annotated[int, Whole(1, MOST_MAX_TOKENS)] = DEFAULT_MAX_TOKENS


class Answer(msgspec.Struct, frozen=True):
    """The response of ``/complete``."""

    result: str
    model: str
    """The model that answered."""
    tokens_used: int
    """Output tokens, as the LLM counted them."""


class _Message(msgspec.Struct):
    model: str


class _Result(msgspec.Struct):
    text: str
    message: _Message


@router.post("/complete")
@operation(
    {200: json_of(Answer, "The whole answer.")},
    (400, 401, 413, 415, 429, 502, 503, 504),
    body=body_of(CompletionRequest),
)
async def complete(request: Request, api: Api, caller: Submitter) -> Response:
    """Send a prompt, and get its whole answer."""
    draft = await _draft_of(request, api, caller)
    job_id = new_id("job")
    with contextlib.closing(api.relay.watch(job_id)) as watch:
        submitted = await submit(api, caller, draft, job_id=job_id, is_attended=True)
        has_ended = False
        try:
            has_ended = await while_connected(request, api.relay.wait_for_end(job_id, TIMEOUT_S, watch, is_new=True))
        finally:
            if not has_ended:
                await give_up(api, caller.tenant, job_id)
    job = await api.runtime.jobs.get(job_id, caller.tenant, with_result=True)
    problem = problem_of(job, is_given_up=not has_ended)
    if problem is not None:
        raise ServerStopping if not has_ended and api.shutdown.is_set() else problem
    return json_response(msgspec.json.encode(answer_of(job)), headers=headers_of(submitted.limits))


@router.post("/complete/stream")
@operation(
    {
        200: {
            "description": "The text, then [DONE]; or an error event with a problem document.",
            "content": stream("data: Blue\n\ndata:  light\n\ndata: [DONE]\n\n"),
        }
    },
    (400, 401, 413, 415, 429, 503),
    body=body_of(CompletionRequest),
)
async def complete_stream(request: Request, api: Api, caller: Submitter) -> Response:
    """Send a prompt, and get its answer as it is generated: ``data:`` frames of text, then ``data: [DONE]``."""
    draft = await _draft_of(request, api, caller)
    job_id = new_id("job")
    watch = api.relay.watch(job_id)
    try:
        submitted = await submit(api, caller, draft, job_id=job_id, is_attended=True)
    except BaseException:
        watch.close()
        raise

    async def on_close(finished: bool) -> None:
        if not finished:
            await give_up(api, caller.tenant, job_id)

    frames = _frames(api, submitted.job, watch, request_id_of(request))
    return SseResponse(
        frames,
        watch=watch,
        on_close=on_close,
        key_ended=lambda: _key_ended_frame(request),
        headers=headers_of(submitted.limits),
    )


def _key_ended_frame(request: Request) -> bytes:
    return sse_frame("error", document(not_valid(), request_id_of(request)))


async def _draft_of(request: Request, api: ApiState, caller: Caller) -> Draft:
    parse = partial(_parse, model=api.settings.model)
    return await read_body(request, caller, api.settings.max_body_bytes, parse)


def _parse(raw: bytes, *, model: str) -> Draft:
    return completion_draft_of(decode(raw), model=model)


def completion_draft_of(body: object, *, model: str) -> Draft:
    """The draft of a body ``{prompt, max_tokens}``. Raises InvalidRequest."""
    asked = read(CompletionRequest, body)
    request = {"model": model, "max_tokens": asked.max_tokens, "messages": user_message(asked.prompt)}
    options = JobOptions(timeout_s=TIMEOUT_S, expires_in_s=TIMEOUT_S)
    return drafted(model, msgspec.json.encode(request), options=options)


def answer_of(job: Job) -> Answer:
    """The answer of a job that succeeded."""
    result = msgspec.json.decode(job.result or b"", type=_Result)
    return Answer(result.text, result.message.model, job.usage.output_tokens if job.usage else 0)


def problem_of(job: Job, *, is_given_up: bool = False) -> Problem | None:
    """Why the job has no answer; None if it succeeded. ``is_given_up``: we cancelled it, since its time was over."""
    if job.state is JobState.SUCCEEDED:
        return None
    if job.error is not None:
        match job.error.code:
            case "upstream_rate_limited":
                return UpstreamRateLimited(job.error.message)
            case "timeout":
                return UpstreamTimeout(job.error.message)
            case code:
                return UpstreamFailed(job.error.message, code=code)
    if is_given_up or job.state is JobState.EXPIRED:
        return _too_late()
    return UpstreamFailed(f"The job {job.id} is {job.state}.")


def _too_late() -> UpstreamTimeout:
    return UpstreamTimeout(f"There was no complete answer within {TIMEOUT_S} s.")


async def _frames(api: ApiState, job: Job, watch: Watch, request_id: str) -> AsyncIterator[bytes]:
    """All frames of a stream. The last one is always ``[DONE]`` or an error."""
    deadline_s = asyncio.get_running_loop().time() + TIMEOUT_S
    try:
        async for frame in _frames_of_text(api, job, _until(deadline_s, watch.follow(job, is_new=True))):
            yield frame
        return
    except TimeoutError:
        problem: Problem = _too_late()
    except Closing:
        problem = ServerStopping()
    except Gone:
        problem = UpstreamFailed("The job was erased.")
    except Problem as error:
        problem = error
    await give_up(api, job.tenant, job.id)
    yield sse_frame("error", document(problem, request_id))


async def _frames_of_text(api: ApiState, job: Job, batches: AsyncIterator[list[Event]]) -> AsyncIterator[bytes]:
    """The frames of text, then ``[DONE]``. Raises Problem if the job does not succeed."""
    text = TextFrames()
    async for events in batches:
        if not events:
            yield PING
            continue
        said, taken_back = _said_in(events, after_text=text.has_begun)
        if frame := text.encode(said):
            yield frame
        if taken_back is not None:
            code = taken_back if taken_back in JOB_ERROR_CODES else None
            raise UpstreamFailed(sentence_of(taken_back), code=code)
        if events[-1].is_terminal:
            problem = problem_of(await api.runtime.jobs.get(job.id, job.tenant))
            if problem is not None:
                raise problem
            yield b"data: %b\n\n" % DONE.encode()


def _said_in(events: list[Event], *, after_text: bool) -> tuple[str, str | None]:
    """The text up to the event of a new attempt that makes text void, and the reason; None without such an event."""
    said = ""
    for number, event in enumerate(events):
        if event.name in {OurEvent.RETRY, OurEvent.RESET} and (said or after_text):
            return said, reason_of(events[number:])
        said += text_of(event) or ""
    return said, None


async def _until(deadline_s: float, batches: AsyncIterator[list[Event]]) -> AsyncIterator[list[Event]]:
    """Raises TimeoutError at the deadline. The timeout is around each step, since it must not span a ``yield``."""
    while True:
        async with asyncio.timeout_at(deadline_s):
            batch = await anext(batches, None)
        if batch is None:
            return
        yield batch


class TextFrames:
    r"""Encodes pieces of text as SSE frames that decode to the same text, and are never exactly ``[DONE]``.

    A text with line breaks is several ``data:`` lines of one frame. SSE has one kind of line break: ``\r\n`` and ``\r``
    arrive as ``\n``, also if a piece ends between the two.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._ends_with_return = False

    def encode(self, text: str) -> bytes:
        """One frame; none for a text that adds nothing; two if one would look like the end."""
        if self._ends_with_return and text.startswith("\n"):
            text = text[1:]
            self._ends_with_return = False
        if not text:
            return b""
        self.has_begun = True
        self._ends_with_return = text.endswith("\r")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text == DONE:
            return _frame_of(DONE[:-1]) + _frame_of(DONE[-1])
        return _frame_of(text)


def _frame_of(text: str) -> bytes:
    return ("".join([f"data: {line}\n" for line in text.split("\n")]) + "\n").encode()
