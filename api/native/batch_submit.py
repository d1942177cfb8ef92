"""``POST /v1/batches``: a batch as one JSON object, or as lines of JSON whose options stand in the query."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.batches.items import options_of_query, refuse_query
from api.batches.submit import BatchForm, form_of, submit_batch
from api.dependencies import caller_of
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_answer
from api.state.api_state import api_of
from api.views.batch import render, url_of
from shared.api_key import Scope


def add_submit_batch(app: FastAPI) -> None:
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
            options=options_of_query(query, api.settings.webhook_allow_networks, api.settings.max_not_before_s),
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
