"""``/v1/batches``: submit, read, list, follow, results, cancel, retry, erase."""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.batches import submit
from api.batches.items import BatchLine, BatchOptions, BatchRequest, BatchWebhook, options_of_query, refuse_query
from api.batches.results import JSON_LINES, ResultLine, results_response
from api.batches.retry import retry
from api.dependencies import BATCH_ID, Api, BatchId, Canceller, NamedTenant, Reader, Submitter, tenant_asked
from api.http.headers import EVENT_STREAM, idempotency_key, must_accept, one
from api.http.pages import DEFAULT_LIMIT, Limit
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_response
from api.jobs.request import bounds_of
from api.native.jobs import RETRY_AFTER, cursor_of
from api.openapi import (
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    LISTS,
    READS,
    RETRIES,
    SUBMITS,
    Schema,
    body_of,
    content,
    json_of,
    nothing,
    operation,
    query,
    ref,
    schemas_of,
    stream,
)
from api.state.api_state import ApiState
from api.streams.batch_stream import Progress, batch_stream, end_id_of
from api.streams.sse import StreamFormat
from api.views.batch import BatchPage, BatchView, render, render_page, url_of
from shared.errors import FieldError, InvalidCursor
from shared.job import JobState
from shared.store.batches import Order

router = APIRouter()

_MOST_CUSTOM_IDS: Final = 100
_MOST_S: Final = 0.5
"""How long a request advances the batch itself; the background loops finish the rest."""

EndedState = Literal["succeeded", "failed", "cancelled", "expired"]
"""Written out, like other literals below: an enum would be a schema of its own in the OpenAPI document."""


_EVENTS: Final = stream(
    'event: progress\ndata: {"counts":{"total":2,"queued":0,"running":2,"succeeded":0,"failed":0,"cancelled":0,'
    '"expired":0},"rate_per_s":null,"estimated_end_at":null}\n\n'
    'event: delta\ndata: {"custom_id":"row-1","job_id":"job_01m84bf2k14h8s2z6q9d3f7j5m","text":"Blue"}\n\n',
    **{"x-progress": ref(Progress)},
)


def _options_in_query() -> Iterator[Schema]:
    """The members of ``job`` as query parameters, for a body of JSON lines."""
    schemas = schemas_of([BatchOptions, BatchWebhook])
    for name, schema in schemas["BatchOptions"]["properties"].items():
        if name == "webhook":
            for inner, member in schemas["BatchWebhook"]["properties"].items():
                yield _option_in_query(f"webhook.{inner}", member)
        elif name == "metadata":
            names = {"pattern": r"^metadata\..{1,64}$"}
            described = "Only for JSON lines: metadata.NAME=VALUE, once for each name."
            yield {**query(name, described, {**schema, "propertyNames": names}), "style": "form", "explode": True}
        else:
            yield _option_in_query(name, schema)


def _option_in_query(name: str, schema: Schema) -> Schema:
    parameter = query(name, f"Only for JSON lines: the member {name} of job.", schema)
    return {**parameter, "style": "form", "explode": False} if schema.get("type") == "array" else parameter


@router.post("/v1/batches", status_code=202, operation_id="submit_batch")
@operation(
    {
        200: json_of(BatchView, "The batch that the Idempotency-Key already has, if it has ended."),
        202: json_of(BatchView, "Accepted."),
    },
    SUBMITS,
    body=body_of(BatchRequest, {JSON_LINES: ref(BatchLine)}),
    parameters=[IDEMPOTENCY_KEY, *_options_in_query()],
)
async def submit_batch(request: Request, api: Api, caller: Submitter) -> Response:
    """Submit a batch: one object with all requests and their common options, or one request per line, with the options
    as query parameters. No item starts before the whole body has arrived.
    """
    form = submit.form_of(request)
    query = request.query_params.multi_items()
    if form is submit.BatchForm.LINES:
        options = options_of_query(query, bounds_of(api.settings))
        submitted = await submit.submit_batch(request, api, caller, form=form, options=options)
    else:
        refuse_query(query)
        submitted = await submit.submit_batch(request, api, caller, takes_options=True)
    batch, is_replayed, limits = submitted
    headers = {"Location": url_of(batch.id), **headers_of(limits)}
    if is_replayed:
        headers["Idempotency-Replayed"] = "true"
    if not batch.has_ended:
        headers["Retry-After"] = "1"
    status = 200 if is_replayed and batch.has_ended else 202
    return json_response(render(batch), status, headers)


@router.get("/v1/batches")
@operation({200: json_of(BatchPage, "A page.")}, LISTS)
async def list_batches(
    request: Request,
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    tenant: NamedTenant = None,
) -> Response:
    """The caller's batches, newest first."""
    of_tenant = tenant_asked(caller, tenant)
    if after is not None and not BATCH_ID.fullmatch(after):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
    page = await api.runtime.batches.page(of_tenant, after=after, limit=limit)
    await api.key_ring.still(request.scope)
    return json_response(render_page(page.batches, page.next_after, for_operator=tenant is not None))


@router.get("/v1/batches/{batch_id}")
@operation({200: json_of(BatchView, "The batch's current state.")}, READS)
async def read_batch(api: Api, caller: Reader, batch_id: BatchId) -> Response:
    """The batch's current state, with live counts."""
    return await _current(api, caller.tenant, batch_id)


@router.get("/v1/batches/{batch_id}/results")
@operation({200: content(ref(ResultLine), "The results so far, one object per line.", JSON_LINES)}, READS)
async def read_results(
    api: Api,
    caller: Reader,
    batch_id: BatchId,
    order: Literal["submitted", "finished"] = "submitted",
    status: EndedState | None = None,
    after: Annotated[str | None, Query(description="The ``line`` of the last result that the client has.")] = None,
    custom_id: Annotated[
        list[str] | None, Query(max_length=_MOST_CUSTOM_IDS, description="Only of these items; repeated for several.")
    ] = None,
) -> Response:
    """The results of all items that have ended so far, one JSON object per line."""
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    wanted = None if status is None else JobState(status)
    return await results_response(
        api.runtime,
        batch,
        order=Order(order),
        status=wanted,
        after=_line_of(after),
        custom_ids=None if custom_id is None else frozenset(custom_id),
    )


def _line_of(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise InvalidCursor(errors=[FieldError("after", "must be the line of a result")])
    return int(text)


@router.get("/v1/batches/{batch_id}/events")
@operation(
    {
        200: {
            "description": "progress until the batch has ended, and with tokens=true its items' events; then ended.",
            "content": _EVENTS,
        },
        204: nothing("The client has already seen ended."),
    },
    (*READS, 406),
    parameters=[LAST_EVENT_ID],
)
async def follow_batch(
    request: Request,
    api: Api,
    caller: Reader,
    batch_id: BatchId,
    tokens: Annotated[bool, Query(description="true: the events of all items too.")] = False,
    form: Annotated[
        Literal["text", "messages"],
        Query(alias="format", description="The items' events. text: ours, with delta. messages: the upstream's own."),
    ] = "text",
) -> Response:
    """Follow the batch's progress as server-sent events, until it has ended; 204 if the client has seen the end."""
    must_accept(request, EVENT_STREAM)
    seen = cursor_of(one(request, b"last-event-id"))
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    if seen is not None and seen == end_id_of(batch):
        return Response(status_code=204)  # a browser's EventSource then stops reconnecting
    return batch_stream(api, batch, items_as=StreamFormat(form) if tokens else None)


@router.post("/v1/batches/{batch_id}/cancel")
@operation({200: json_of(BatchView, "The batch's current state.")}, READS)
async def cancel_batch(api: Api, caller: Canceller, batch_id: BatchId) -> Response:
    """End all items that have not ended; results so far are kept. A batch that has ended does not change."""
    if await api.runtime.batches.cancel(batch_id, caller.tenant):
        await api.runtime.batches.advance_all(batch_id, most_s=_MOST_S)
    return await _current(api, caller.tenant, batch_id)


@router.post("/v1/batches/{batch_id}/retry", status_code=202)
@operation(
    {
        200: json_of(BatchView, "The batch that the Idempotency-Key already has, if it has ended."),
        202: json_of(BatchView, "A new batch."),
    },
    RETRIES,
    parameters=[IDEMPOTENCY_KEY],
)
async def retry_batch(
    request: Request,
    api: Api,
    caller: Submitter,
    batch_id: BatchId,
    retryable: Annotated[
        bool, Query(description="true: only items that failed with an error that is ``retryable``.")
    ] = False,
) -> Response:
    """Submit all items that did not succeed again, as a new batch with ``retry_of``, without lines that cannot run."""
    key = idempotency_key(request)
    batch = await api.runtime.batches.get(batch_id, caller.tenant)
    again, is_replayed, limits = await retry(request, api, caller, batch, only_retryable=retryable, idempotency_key=key)
    headers = {"Location": url_of(again.id), **headers_of(limits)}
    if is_replayed:
        headers["Idempotency-Replayed"] = "true"
    if not again.has_ended:
        headers |= RETRY_AFTER
    return json_response(render(again), 200 if is_replayed and again.has_ended else 202, headers)


@router.delete("/v1/batches/{batch_id}", status_code=204)
@operation({204: nothing("Erased, with its items.")}, (*READS, 409))
async def erase_batch(api: Api, caller: Canceller, batch_id: BatchId) -> Response:
    """Erase a batch that has ended, with all its items."""
    await api.runtime.batches.erase(batch_id, caller.tenant)
    await api.runtime.batches.advance_all(batch_id, most_s=_MOST_S)
    return Response(status_code=204)


async def _current(api: ApiState, tenant: str, batch_id: str) -> Response:
    batch = await api.runtime.batches.get(batch_id, tenant)
    return json_response(render(batch), headers=None if batch.has_ended else RETRY_AFTER)
