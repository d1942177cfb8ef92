"""``/v1/messages/batches``: our batches in the words of the Messages API, with live counts."""

from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from api.anthropic_compat.batch_view import our_id_of, render, render_deleted, render_line, render_page
from api.anthropic_compat.message_request import batch_draft_of, upstream_headers_of
from api.anthropic_compat.models import PAGE_QUERY, limit_of
from api.batches.results import results_answer
from api.batches.submit import submit_batch
from api.dependencies import BATCH_ID, caller_of
from api.http.invalid import refuse
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_answer
from api.state.api_state import ApiState, api_of
from shared.api_key import Scope
from shared.batch import Batch
from shared.errors import FieldError, NotFound

_ADVANCED_S: Final = 0.5
"""So long a call works on what it began; the loops go on with the rest."""


async def create_batch(request: Request) -> Response:
    """Requests in, a batch back. Each that is not valid is an errored result of its own."""
    api = api_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
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
    return json_answer(render(submitted.batch), headers=headers)


async def list_batches(request: Request) -> Response:
    """The caller's, newest first."""
    api = api_of(request)
    caller = await caller_of(request, Scope.READ, query=PAGE_QUERY)
    limit = limit_of(request)
    after, before = _cursor_of(request, "after_id"), _cursor_of(request, "before_id")
    if after and before:
        raise refuse(FieldError("before_id", "must not stand beside after_id"))
    page = await api.runtime.batches.page(caller.tenant, after=after, before=before, limit=limit)
    await api.key_ring.still(request.scope)
    return json_answer(render_page(page.batches, has_more=page.next_after is not None))


async def read_batch(request: Request) -> Response:
    """As it stands."""
    _, batch = await _batch_of(request, Scope.READ)
    return json_answer(render(batch))


async def read_results(request: Request) -> Response:
    """What has ended so far, one JSON object a line."""
    api, batch = await _batch_of(request, Scope.READ)
    return await results_answer(api.runtime, batch, encode=render_line)


async def cancel_batch(request: Request) -> Response:
    """End what has not ended; what is done stays."""
    api, batch = await _batch_of(request, Scope.CANCEL)
    if await api.runtime.batches.cancel(batch.id, batch.tenant):
        await api.runtime.batches.advance_all(batch.id, most_s=_ADVANCED_S)
    return json_answer(render(await api.runtime.batches.get(batch.id, batch.tenant)))


async def delete_batch(request: Request) -> Response:
    """Erase a batch that has ended, with all its results."""
    api, batch = await _batch_of(request, Scope.CANCEL)
    await api.runtime.batches.erase(batch.id, batch.tenant)
    await api.runtime.batches.advance_all(batch.id, most_s=_ADVANCED_S)
    return json_answer(render_deleted(batch.id))


_ONE: Final = "/v1/messages/batches/{batch_id}"

router = Router(
    [
        Route("/v1/messages/batches", create_batch, methods=["POST"]),
        Route("/v1/messages/batches", list_batches, methods=["GET"]),
        Route(_ONE, read_batch, methods=["GET"]),
        Route(_ONE, delete_batch, methods=["DELETE"]),
        Route(f"{_ONE}/results", read_results, methods=["GET"]),
        Route(f"{_ONE}/cancel", cancel_batch, methods=["POST"]),
    ]
)


async def _batch_of(request: Request, scope: Scope) -> tuple[ApiState, Batch]:
    """Raises NotFound, for what is no id of ours too."""
    api = api_of(request)
    caller = await caller_of(request, scope)
    batch_id = our_id_of(request.path_params["batch_id"])
    if not BATCH_ID.fullmatch(batch_id):
        raise NotFound
    return api, await api.runtime.batches.get(batch_id, caller.tenant)


def _cursor_of(request: Request, name: str) -> str | None:
    text = request.query_params.get(name)
    if not text:
        return None
    batch_id = our_id_of(text)
    if not BATCH_ID.fullmatch(batch_id):
        raise refuse(FieldError(name, "must be the id of a batch"))
    return batch_id
