"""``POST /v1/messages``, streamed or not, and ``POST /v1/messages/count_tokens``: each call is a job.

If the client disconnects, its job is cancelled, unless the client can come back for the answer: it sent an
Idempotency-Key, or ``x-on-disconnect: continue``.
"""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.anthropic_compat import message_stream
from api.anthropic_compat.batch_view import MESSAGE
from api.anthropic_compat.message_request import (
    COUNT_TIMEOUT_S,
    UPSTREAM_HEADERS,
    MessageRequest,
    TokenCountRequest,
    call_headers_of,
    parse_count,
    parse_message_call,
    upstream_headers_of,
)
from api.anthropic_compat.message_stream import ERASED, HeldFrames, ended_job, frames_of, message_of
from api.anthropic_compat.refusals import Refused, refusal_of_end
from api.dependencies import Api, Submitter, caller_of
from api.http.anthropic_errors import Refusal, error_frame, refusal_of_problem, refusal_response, type_of
from api.http.body import read_body
from api.http.disconnects import while_connected
from api.http.errors import request_id_of
from api.http.headers import JSON
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_response
from api.jobs.cancel import give_up
from api.jobs.request import Draft
from api.jobs.submit import SHOWN_TO_READERS, Idempotency, Submitted, may_see_all, submit
from api.openapi import IDEMPOTENCY_KEY, Schema, body_of, content, header, named, operation, stream
from api.state.api_state import ApiState, api_of
from api.state.key_ring import not_valid
from api.state.relay import Watch
from api.streams.sse import SseResponse
from shared.api_key import Caller, Scope
from shared.errors import Forbidden, InternalError, NotFound, Problem, ServerStopping, StorageUnavailable
from shared.job import Job, JobState, new_id
from shared.waiting import queue_position_of

_REPLAYED: Final = {"idempotency-replayed": "true"}
_LONGEST_WAIT_S: Final = 86_400 + 600 + 60
"""Longer than any of these jobs lives."""


router = APIRouter()


_STREAM: Final = stream(
    'event: message_start\ndata: {"type":"message_start","message":{"content":[]}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    '{"type":"text_delta","text":"Blue"}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
_COUNT: Final[Schema] = {
    "type": "object",
    "required": ["input_tokens"],
    "properties": {"input_tokens": {"type": "integer", "minimum": 0}},
}


@operation(
    {
        200: {
            "description": "The answer, whole or as it is generated. x-job-id is the id of its job.",
            "content": {JSON: {"schema": MESSAGE}, **_STREAM},
        }
    },
    (400, 401, 404, 413, 415, 422, 429, 500, 503, 504, 529),
    body=body_of(MessageRequest),
    parameters=[
        IDEMPOTENCY_KEY,
        header(
            "x-on-disconnect",
            "continue or cancel: what happens to the job if the client disconnects. By default continue with an "
            "Idempotency-Key, cancel without one.",
        ),
        *UPSTREAM_HEADERS,
    ],
)
async def create_message(request: Request) -> Response:
    """The LLM's answer, whole or as it is generated."""
    call, is_streamed = await _message_call(request)  # a function of its own, so that the body is freed before the wait
    return await (call.stream() if is_streamed else call.whole(_message_response, _LONGEST_WAIT_S))


# As hot as a submit, so not through FastAPI (docs/decisions/0018).
router.add_route("/v1/messages", create_message, methods=["POST"])


async def _message_call(request: Request) -> "tuple[_Call, bool]":
    """The submitted call, and whether its answer is to be streamed."""
    api = api_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    headers = call_headers_of(request)
    parse = partial(parse_message_call, headers=headers, default_model=api.settings.model)
    asked = await read_body(request, caller, api.settings.max_body_bytes, parse)
    call = await _begun(
        request,
        api,
        caller,
        asked.draft,
        idempotency=asked.idempotency,
        is_cancelled_by_leaving=headers.is_cancelled_by_leaving,
    )
    return call, asked.is_streamed


@router.post("/v1/messages/count_tokens", operation_id="count_tokens")
@operation(
    {200: content(named("TokenCount", _COUNT), "The number of tokens, as the LLM counts them.")},
    (400, 401, 413, 415, 429, 500, 503, 504, 529),
    body=body_of(TokenCountRequest),
    parameters=UPSTREAM_HEADERS,
)
async def count_tokens(request: Request, api: Api, caller: Submitter) -> Response:
    """How many tokens a request has, as the LLM counts them."""
    parse = partial(parse_count, default_model=api.settings.model, headers=upstream_headers_of(request))
    draft = await read_body(request, caller, api.settings.max_body_bytes, parse)
    call = await _begun(request, api, caller, draft, idempotency=None, is_cancelled_by_leaving=True)
    return await call.whole(_count_response, COUNT_TIMEOUT_S)


async def _begun(
    request: Request,
    api: ApiState,
    caller: Caller,
    draft: Draft,
    *,
    idempotency: Idempotency | None,
    is_cancelled_by_leaving: bool,
) -> "_Call":
    """Submits the job of a call, and watches it. Raises what ``submit`` does."""
    job_id = new_id("job")
    watch = api.relay.watch(job_id)
    try:
        submitted = await submit(
            api, caller, draft, idempotency=idempotency, job_id=job_id, is_attended=is_cancelled_by_leaving
        )
    except BaseException as error:
        watch.close()
        # The job may have been created. Nobody will get its answer, and the SDK is about to send the request again.
        if is_cancelled_by_leaving and not (isinstance(error, Problem) and not isinstance(error, StorageUnavailable)):
            await give_up(api, caller.tenant, job_id)
        raise
    if submitted.is_replayed:
        watch.close()
        if not may_see_all(submitted, caller):
            raise Forbidden(SHOWN_TO_READERS)
        watch = api.relay.watch(submitted.job.id)
    return _Call(request, api, submitted, watch, has_key=idempotency is not None, is_attended=is_cancelled_by_leaving)


class _Call:
    """A client that waits for a job. However that ends, the watch is closed, and no attended job is left."""

    def __init__(
        self, request: Request, api: ApiState, submitted: Submitted, watch: Watch, *, has_key: bool, is_attended: bool
    ) -> None:
        self._request = request
        self._api = api
        self._job, self._is_replayed = submitted.job, submitted.is_replayed
        self._watch = watch
        self._has_key = has_key
        self._is_attended = is_attended
        self._headers = _headers_of(submitted)

    async def whole(self, answer: Callable[[Job, dict[str, str]], Response], most_s: float) -> Response:
        """Waits for the job's end, at most ``most_s`` seconds. ``answer`` makes the response of a success."""
        has_ended = False
        try:
            ended = await while_connected(self._request, self._ended(most_s))
            has_ended = ended is not None
        except Problem as problem:
            return self._refusal_response(refusal_of_problem(problem))
        except Refused as refused:
            has_ended = refused.has_ended
            return self._refusal_response(refused.refusal)
        finally:
            self._watch.close()
            if not has_ended:
                await self._leave()
        if ended is None:
            return self._refusal_response(refusal_of_problem(ServerStopping()) if self._is_stopping else _TOO_LATE)
        if ended.state is not JobState.SUCCEEDED:
            return self._refusal_response(self._refusal_of_end(ended))
        return answer(ended, self._headers)

    async def stream(self) -> Response:
        """Waits for the answer's beginning, so that a failure before it has its own status. Then streams the answer."""
        if self._job.has_ended and self._job.state is not JobState.SUCCEEDED:
            self._watch.close()
            return self._refusal_response(self._refusal_of_end(self._job))
        held = HeldFrames(frames_of(self._api, self._job, self._watch, is_new=not self._is_replayed))
        is_handed_on = has_ended = False
        try:
            await while_connected(self._request, held.begin(message_stream.HOLD_S))
            is_handed_on = True
        except Refused as refused:
            has_ended = refused.has_ended
            return self._refusal_response(self._as_final(refused.refusal) if has_ended else refused.refusal)
        finally:
            if not is_handed_on:
                await held.close()
                self._watch.close()
                if not has_ended:
                    await self._leave()

        async def on_close(finished: bool) -> None:
            await held.close()
            if not finished:
                await self._leave()

        return SseResponse(
            self._frames(held),
            watch=self._watch,
            on_close=on_close,
            key_ended=lambda: error_frame(refusal_of_problem(not_valid()), request_id_of(self._request)),
            headers=self._headers,
        )

    async def _frames(self, held: HeldFrames) -> AsyncIterator[bytes]:
        """All frames. The last one is always ``message_stop`` or an error."""
        request_id = request_id_of(self._request)
        try:
            async for frames in held.rest():
                yield frames
            return
        except Refused as refused:
            refusal, has_ended = refused.refusal, refused.has_ended
            if self._is_stopping and not has_ended:
                refusal = _STOPPING
        except Exception as error:  # whatever it is, the client must not take it for the end of the answer
            self._api.log.exception("request_failed", request_id=request_id, method="POST", exc_info=error)
            refusal, has_ended = refusal_of_problem(InternalError()), False
        if not has_ended:
            await self._leave()
        yield error_frame(refusal, request_id)

    async def _ended(self, most_s: float) -> Job | None:
        """The ended job; None if it has not ended in time, or the process stops."""
        if not self._job.has_ended and not await self._api.relay.wait_for_end(
            self._job.id, most_s, self._watch, is_new=not self._is_replayed
        ):
            return None
        try:
            return await ended_job(self._api, self._job)
        except NotFound:
            raise Refused(ERASED, has_ended=True) from None

    async def _leave(self) -> None:
        if self._is_attended:
            await give_up(self._api, self._job.tenant, self._job.id)

    @property
    def _is_stopping(self) -> bool:
        return self._api.shutdown.is_set()

    def _refusal_of_end(self, job: Job) -> Refusal:
        return self._as_final(refusal_of_end(job))

    def _as_final(self, refusal: Refusal) -> Refusal:
        """Without a retry by the SDK if there is an Idempotency-Key: a repeat would find the same end."""
        return refusal._replace(may_retry=False, retry_after_s=None) if self._has_key else refusal

    def _refusal_response(self, refusal: Refusal) -> Response:
        return refusal_response(refusal, request_id_of(self._request), self._headers)


_TOO_LATE: Final = Refusal(504, type_of(504), "There was no answer in time.", may_retry=False)
_STOPPING: Final = Refusal(529, type_of(529), "The server is stopping: send the request again.")


def _headers_of(submitted: Submitted) -> dict[str, str]:
    headers = {"x-job-id": submitted.job.id, **headers_of(submitted.limits, on_messages_surface=True)}
    position = queue_position_of(submitted.waiting_for)
    if position is not None:
        headers["x-queue-position"] = str(position)
    return headers | _REPLAYED if submitted.is_replayed else headers


def _message_response(job: Job, headers: dict[str, str]) -> Response:
    return json_response(message_of(job), headers=headers)


def _count_response(job: Job, headers: dict[str, str]) -> Response:
    return json_response(bytes(job.result or b""), headers=headers)
