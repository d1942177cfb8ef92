"""``/v1/batches``: submit, read, list, follow, results, cancel, retry, erase."""

from typing import Annotated, Final, Literal

from fastapi import APIRouter, FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.batches.items import options_of_query, refuse_query
from api.batches.results import results_answer
from api.batches.retry import retry
from api.batches.submit import BatchForm, form_of, submit_batch
from api.dependencies import BATCH_ID, Api, BatchId, Canceller, Reader, Submitter, caller_of
from api.http.headers import EVENT_STREAM, idempotency_key, must_accept, one
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_answer
from api.jobs.request import bounds_of
from api.native.jobs import RETRY_AFTER, cursor_of
from api.state.api_state import ApiState, api_of
from api.streams.batch_stream import batch_stream, end_id_of
from api.streams.sse import StreamFormat
from api.views.batch import render, render_page, url_of
from shared.api_key import Scope
from shared.errors import FieldError, InvalidCursor
from shared.job import JobState
from shared.store.batches import Order

router = APIRouter()

_MOST_S: Final = 0.5
"""So long a call works on what it began; the loops go on with the rest."""

EndedState = Literal["succeeded", "failed", "cancelled", "expired"]
"""Written out, as are the others: an enumeration would be a schema of its own in the OpenAPI document."""


def add_submit(app: FastAPI) -> None:
    """Past FastAPI, which would read the body before it calls us."""
    app.router.routes.append(Route("/v1/batches", submit_batch_route, methods=["POST"]))


async def submit_batch_route(request: Request) -> Response:
    """Take a batch in: 202 and where it is found. A repeat of one that has ended answers 200."""
    api = api_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    form = form_of(request)
    query = request.query_params.multi_items()
    if form is BatchForm.LINES:
        submitted = await submit_batch(
            request,
            api,
            caller,
            form=form,
            options=options_of_query(query, bounds_of(api.settings)),
        )
    else:
        refuse_query(query)
        submitted = await submit_batch(request, api, caller, takes_options=True)
    batch, is_replayed, limits = submitted
    headers = {"Location": url_of(batch.id), **headers_of(limits)}
    if is_replayed:
        headers["Idempotency-Replayed"] = "true"
    if not batch.has_ended:
        headers["Retry-After"] = "1"
    status = 200 if is_replayed and batch.has_ended else 202
    return json_answer(render(batch), status, headers)


@router.get("/v1/batches")
async def list_batches(
    request: Request,
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """The caller's batches, newest first."""
    if after is not None and not BATCH_ID.fullmatch(after):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
    page = await api.runtime.batches.page(caller.tenant, after=after, limit=limit)
    await api.key_ring.still(request.scope)
    return json_answer(render_page(page.batches, page.next_after))


@router.get("/v1/batches/{batch_id}")
async def read_batch(api: Api, caller: Reader, batch_id: BatchId) -> Response:
    """The batch as it stands, with live counts."""
    return await _as_it_stands(api, caller.tenant, batch_id)


@router.get("/v1/batches/{batch_id}/results")
async def read_results(
    api: Api,
    caller: Reader,
    batch_id: BatchId,
    order: Literal["submitted", "finished"] = "submitted",
    status: EndedState | None = None,
    after: Annotated[str | None, Query(description="The ``line`` of the last one that the client has.")] = None,
) -> Response:
    """What has ended so far, one JSON object a line."""
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    wanted = None if status is None else JobState(status)
    return await results_answer(api.runtime, batch, order=Order(order), status=wanted, after=_line_of(after))


def _line_of(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise InvalidCursor(errors=[FieldError("after", "must be the line of a result")])
    return int(text)


@router.get("/v1/batches/{batch_id}/events")
async def follow_batch(
    request: Request,
    api: Api,
    caller: Reader,
    batch_id: BatchId,
    tokens: Annotated[bool, Query(description="true: every item's events too.")] = False,
    form: Annotated[
        Literal["text", "messages"],
        Query(alias="format", description="Of the items' events: ours, or the upstream's own."),
    ] = "text",
) -> Response:
    """Its progress, as server-sent events, until it has ended; 204 for a client that has seen the end."""
    must_accept(request, EVENT_STREAM)
    seen = cursor_of(one(request, b"last-event-id"))
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    if seen is not None and seen == end_id_of(batch):
        return Response(status_code=204)  # a browser's EventSource then stops coming back
    return batch_stream(api, batch, items_as=StreamFormat(form) if tokens else None)


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(api: Api, caller: Canceller, batch_id: BatchId) -> Response:
    """End what has not ended; what is done stays. A batch that has ended stays as it is."""
    if await api.runtime.batches.cancel(batch_id, caller.tenant):
        await api.runtime.batches.advance_all(batch_id, most_s=_MOST_S)
    return await _as_it_stands(api, caller.tenant, batch_id)


@router.post("/v1/batches/{batch_id}/retry", status_code=202)
async def retry_batch(request: Request, api: Api, caller: Submitter, batch_id: BatchId) -> Response:
    """Submit the items that did not succeed once more, as a new batch with ``retry_of``. Lines that cannot run are left out."""
    key = idempotency_key(request)
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    again, is_replayed, limits = await retry(request, api, caller, batch, idempotency_key=key)
    headers = {"Location": url_of(again.id), **headers_of(limits)}
    if is_replayed:
        headers["Idempotency-Replayed"] = "true"
    if not again.has_ended:
        headers |= RETRY_AFTER
    return json_answer(render(again), 200 if is_replayed and again.has_ended else 202, headers)


@router.delete("/v1/batches/{batch_id}", status_code=204)
async def erase_batch(api: Api, caller: Canceller, batch_id: BatchId) -> Response:
    """Erase a batch that has ended, with all its items."""
    await api.runtime.batches.erase(batch_id, caller.tenant)
    await api.runtime.batches.advance_all(batch_id, most_s=_MOST_S)
    return Response(status_code=204)


async def _as_it_stands(api: ApiState, tenant: str, batch_id: str) -> Response:
    batch = await api.runtime.batches.get(batch_id, tenant)
    return json_answer(render(batch), headers=None if batch.has_ended else RETRY_AFTER)
