"""A batch in the format of the Messages API: its object, its pages, and the lines of its results."""

from typing import Final

import msgspec

from api.anthropic_compat.refusals import refusal_of_failure
from api.batches.results import ResultLine
from api.http.anthropic_errors import ErrorBody
from api.openapi import Schema, named, ref
from shared.batch import Batch, BatchState
from shared.clock import to_rfc3339
from shared.errors import JobError
from shared.job import JobState

_PREFIX: Final = "msgbatch_"
_OUR_PREFIX: Final = "batch_"

_encode: Final = msgspec.json.Encoder().encode


class RequestCounts(msgspec.Struct, frozen=True):
    """How many requests are in each state. Counted live; the real API counts all as ``processing`` until the end."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch, as Anthropic's SDK expects it."""

    id: str
    type: str = "message_batch"
    processing_status: str
    request_counts: RequestCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: str | None = None
    results_url: str | None


class MessageBatchPage(msgspec.Struct, frozen=True):
    """``last_id`` is the ``after_id`` of the next page, ``first_id`` the ``before_id`` of the one before."""

    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


_STATUSES: Final = {
    BatchState.RECEIVING: "in_progress",
    BatchState.RUNNING: "in_progress",
    BatchState.CANCELLING: "canceling",
    BatchState.ENDED: "ended",
}


def id_of(batch_id: str) -> str:
    """The id of ``batch_…`` on this surface."""
    return _PREFIX + batch_id.removeprefix(_OUR_PREFIX)


def our_id_of(message_batch_id: str) -> str:
    """The store's id of ``msgbatch_…``; empty if it is no id of this surface."""
    return _OUR_PREFIX + message_batch_id.removeprefix(_PREFIX) if message_batch_id.startswith(_PREFIX) else ""


def view_of(batch: Batch) -> MessageBatch:
    """The batch in this format. ``results_url`` is relative: the SDK sends its key wherever an absolute URL leads."""
    counts = batch.counts
    own_id = id_of(batch.id)
    return MessageBatch(
        id=own_id,
        processing_status=_STATUSES[batch.state],
        request_counts=RequestCounts(
            processing=counts.queued + counts.running,
            succeeded=counts.succeeded,
            errored=counts.failed,
            canceled=counts.cancelled,
            expired=counts.expired,
        ),
        created_at=to_rfc3339(batch.created_ms),
        expires_at=to_rfc3339(batch.expires_ms),
        ended_at=_time(batch.ended_ms),
        cancel_initiated_at=_time(batch.cancelled_ms),
        results_url=f"/v1/messages/batches/{own_id}/results" if batch.has_ended else None,
    )


def render(batch: Batch) -> bytes:
    """The batch as one line of JSON."""
    return _encode(view_of(batch))


def render_page(batches: list[Batch], *, has_more: bool) -> bytes:
    """A page of batches, as one line of JSON."""
    views = [view_of(batch) for batch in batches]
    ids = [view.id for view in views]
    return _encode(MessageBatchPage(views, has_more, ids[0] if ids else None, ids[-1] if ids else None))


def render_deleted(batch_id: str) -> bytes:
    """The response for a batch that was erased."""
    return _encode({"id": id_of(batch_id), "type": "message_batch_deleted"})


def _object(**members: Schema) -> Schema:
    return {"type": "object", "required": list(members), "properties": members}


MESSAGE: Final = named(
    "MessageAnswer",
    {
        "description": "The Message of the Messages API, as the LLM gave it.",
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "type": {"const": "message"},
            "role": {"type": "string"},
            "model": {"type": "string"},
            "content": {"type": "array", "items": {"type": "object"}},
            "stop_reason": {"type": ["string", "null"]},
            "usage": {"type": "object"},
        },
    },
)
_ERROR: Final = named(
    "MessageBatchError",
    {
        "description": "The error envelope, without a request id.",
        **_object(type={"const": "error"}, error=ref(ErrorBody), request_id={"type": "null"}),
    },
)
RESULT: Final = named(
    "MessageBatchResult",
    _object(
        custom_id={"type": "string", "description": "Empty if the request had no valid one."},
        result={
            "oneOf": [
                _object(type={"const": "succeeded"}, message=MESSAGE),
                _object(type={"const": "errored"}, error=_ERROR),
                _object(type={"const": "canceled"}),
                _object(type={"const": "expired"}),
            ]
        },
    ),
)
DELETED: Final = named("DeletedMessageBatch", _object(id={"type": "string"}, type={"const": "message_batch_deleted"}))


class _Stored(msgspec.Struct):
    message: msgspec.Raw


class _Error(msgspec.Struct):
    error: ErrorBody
    type: str = "error"
    request_id: None = None


class _Outcome(msgspec.Struct, omit_defaults=True):
    type: str
    message: msgspec.Raw | None = None
    error: _Error | None = None


class _Line(msgspec.Struct):
    custom_id: str
    result: _Outcome


def render_line(line: ResultLine) -> bytes:
    """One line of the results. ``custom_id`` is empty if the request had none: the real API would have refused it."""
    return _encode(_Line(line.custom_id or "", _outcome_of(line)))


def _outcome_of(line: ResultLine) -> _Outcome:
    match line.status:
        case JobState.SUCCEEDED if line.result is not None:
            return _Outcome("succeeded", message=msgspec.json.decode(line.result, type=_Stored).message)
        case JobState.CANCELLED:
            return _Outcome("canceled")
        case JobState.EXPIRED:
            return _Outcome("expired")
        case _:
            return _Outcome("errored", error=_Error(_error_of(line.error)))


def _error_of(error: JobError | None) -> ErrorBody:
    if error is None:
        return ErrorBody("api_error", "The request failed.")
    if error.code == "invalid_line":
        return ErrorBody("invalid_request_error", error.message)
    return ErrorBody(refusal_of_failure(error).type, error.message)


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else to_rfc3339(time_ms)
