"""``/v1/messages/batches``: our batches in the format of the Messages API, with live counts."""

from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from api.anthropic_compat.batch_view import (
    DELETED,
    RESULT,
    MessageBatch,
    MessageBatchPage,
    our_id_of,
    render,
    render_deleted,
    render_line,
    render_page,
)
from api.anthropic_compat.message_request import (
    UPSTREAM_HEADERS,
    MessageBatchRequest,
    batch_draft_of,
    upstream_headers_of,
)
from api.anthropic_compat.models import AfterId, BeforeId, Limit, refuse_both
from api.batches.results import JSON_LINES, results_response
from api.batches.submit import submit_batch
from api.dependencies import BATCH_ID, Api, Canceller, Reader, Submitter
from api.http.invalid import refuse
from api.http.pages import DEFAULT_LIMIT
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_response
from api.openapi import IDEMPOTENCY_KEY, LISTS, READS, SUBMITS, body_of, content, json_of, operation
from shared.errors import FieldError, NotFound

router = APIRouter()

_ADVANCED_S: Final = 0.5
"""How long a request advances the batch itself; the background loops finish the rest."""


async def _our_id(batch_id: Annotated[str, Path()]) -> str:
    our_id = our_id_of(batch_id)
    if not BATCH_ID.fullmatch(our_id):
        raise NotFound
    return our_id


OurId = Annotated[str, Depends(_our_id)]
"""Path parameter, as the store's id. A malformed id is a 404, like an absent one."""


_READS: Final = (*READS, 500)


@router.post("/v1/messages/batches", operation_id="create_message_batch")
@operation(
    {200: json_of(MessageBatch, "Accepted; or the batch that the Idempotency-Key already has.")},
    (*SUBMITS, 500, 529),
    body=body_of(MessageBatchRequest),
    parameters=[IDEMPOTENCY_KEY, *UPSTREAM_HEADERS],
)
async def create_message_batch(request: Request, api: Api, caller: Submitter) -> Response:
    """Submit a batch. A request that is not valid becomes an errored result."""
    submitted = await submit_batch(
        request,
        api,
        caller,
        draft_of=partial(batch_draft_of, default_model=api.settings.model),
        upstream_headers=upstream_headers_of(request),
    )
    headers = headers_of(submitted.limits, on_messages_surface=True)
    if submitted.is_replayed:
        headers["idempotency-replayed"] = "true"
    return json_response(render(submitted.batch), headers=headers)


@router.get("/v1/messages/batches", operation_id="list_message_batches")
@operation({200: json_of(MessageBatchPage, "A page, newest first.")}, (*LISTS, 500))
async def list_message_batches(
    request: Request,
    api: Api,
    caller: Reader,
    limit: Limit = DEFAULT_LIMIT,
    after_id: AfterId = None,
    before_id: BeforeId = None,
) -> Response:
    """The caller's batches, newest first."""
    after, before = _cursor_of(after_id, "after_id"), _cursor_of(before_id, "before_id")
    refuse_both(after, before)
    page = await api.runtime.batches.page(caller.tenant, after=after, before=before, limit=limit)
    await api.key_ring.still(request.scope)
    return json_response(render_page(page.batches, has_more=page.next_after is not None))


@router.get("/v1/messages/batches/{batch_id}", operation_id="read_message_batch")
@operation({200: json_of(MessageBatch, "The batch's current state, with live counts.")}, _READS)
async def read_message_batch(api: Api, caller: Reader, batch_id: OurId) -> Response:
    """The batch's current state, with live counts."""
    return json_response(render(await api.runtime.batches.get(batch_id, caller.tenant)))


@router.get("/v1/messages/batches/{batch_id}/results", operation_id="read_message_batch_results")
@operation({200: content(RESULT, "The results so far, one object per line.", JSON_LINES)}, _READS)
async def read_message_batch_results(api: Api, caller: Reader, batch_id: OurId) -> Response:
    """The results of all requests that have ended so far, one JSON object per line."""
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    return await results_response(api.runtime, batch, encode=render_line)


@router.post("/v1/messages/batches/{batch_id}/cancel", operation_id="cancel_message_batch")
@operation({200: json_of(MessageBatch, "The batch's current state.")}, _READS)
async def cancel_message_batch(api: Api, caller: Canceller, batch_id: OurId) -> Response:
    """End all requests that have not ended; results so far are kept."""
    if await api.runtime.batches.cancel(batch_id, caller.tenant):
        await api.runtime.batches.advance_all(batch_id, most_s=_ADVANCED_S)
    return json_response(render(await api.runtime.batches.get(batch_id, caller.tenant)))


@router.delete("/v1/messages/batches/{batch_id}", operation_id="delete_message_batch")
@operation({200: content(DELETED, "Erased, with its results.")}, (*_READS, 409))
async def delete_message_batch(api: Api, caller: Canceller, batch_id: OurId) -> Response:
    """Erase a batch that has ended, with all its results."""
    await api.runtime.batches.erase(batch_id, caller.tenant)
    await api.runtime.batches.advance_all(batch_id, most_s=_ADVANCED_S)
    return json_response(render_deleted(batch_id))


def _cursor_of(text: str | None, name: str) -> str | None:
    if not text:
        return None
    batch_id = our_id_of(text)
    if not BATCH_ID.fullmatch(batch_id):
        raise refuse(FieldError(name, "must be the id of a batch"))
    return batch_id
