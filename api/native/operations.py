"""``/v1/operations``: one action on all jobs that a filter finds: begin, read, list, cancel."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query
from pydantic import StrictBool
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, Canceller, Reader, Submitter
from api.http.body import read_json
from api.http.headers import idempotency_key
from api.http.invalid import refuse
from api.http.members import Body, read
from api.http.pages import DEFAULT_LIMIT, Limit
from api.http.responses import json_response
from api.jobs.filter import JobFilterRequest
from api.openapi import IDEMPOTENCY_KEY, LISTS, READS, body_of, json_of, operation
from api.state.api_state import ApiState
from api.views.operation import DryRun, OperationPage, OperationView, render, render_dry_run, render_page, url_of
from shared.api_key import Caller, Scope
from shared.errors import FieldError, Forbidden, InvalidCursor, NotFound
from shared.job_filter import EVERY_JOB, JobFilter
from shared.operation import OperationAction
from shared.store.idempotency import fingerprint_of

router = APIRouter()

OPERATION_ID: Final = re.compile(r"op_[0-9a-hjkmnp-tv-z]{26}", re.ASCII)
_COUNTED_JOBS: Final = 5_000
"""A dry run counts up to so many, in pages."""
_PAGE_JOBS: Final = 100
_MOST_PAGES: Final = 50


class OperationRequest(Body):
    """On which jobs the operation is done: those that exist when it begins."""

    filter: JobFilterRequest | None = None
    """What ``GET /v1/jobs`` takes as its query. At least one condition."""
    all: StrictBool = False
    """true, in place of ``filter``: all jobs, except the items of batches."""
    dry_run: StrictBool = False
    """true: only count the jobs."""

    @property
    def wanted(self) -> JobFilter:
        """The jobs that are meant. Raises InvalidRequest."""
        wanted = EVERY_JOB if self.filter is None else self.filter.wanted
        if self.all and wanted != EVERY_JOB:
            raise refuse(FieldError("#/all", "cannot be combined with filter: send one of the two"))
        if not self.all and wanted == EVERY_JOB:
            raise refuse(FieldError("#/filter", 'must have a condition; send {"all": true} for all jobs'))
        return wanted


async def _operation_id(operation_id: Annotated[str, Path()]) -> str:
    if not OPERATION_ID.fullmatch(operation_id):
        raise NotFound
    return operation_id


OperationId = Annotated[str, Depends(_operation_id)]

_BEGINS: Final = operation(
    {202: json_of(OperationView, "Begun; or the operation that the Idempotency-Key already has."),
     200: json_of(DryRun, "With dry_run: how many jobs there are.")},
    (400, 401, 413, 415, 422, 429, 503),
    body=body_of(OperationRequest),
    parameters=[IDEMPOTENCY_KEY],
)  # fmt: skip


@router.post("/v1/jobs/cancel", status_code=202)
@_BEGINS
async def cancel_jobs(request: Request, api: Api, caller: Canceller) -> Response:
    """Cancel all jobs that the filter finds, in pieces. Those that have ended are skipped."""
    return await _begin(request, api, caller, OperationAction.CANCEL)


@router.post("/v1/jobs/erase", status_code=202)
@_BEGINS
async def erase_jobs(request: Request, api: Api, caller: Canceller) -> Response:
    """Erase all jobs that the filter finds, in pieces. Those that have not ended are skipped."""
    return await _begin(request, api, caller, OperationAction.ERASE)


@router.post("/v1/jobs/retry", status_code=202)
@_BEGINS
async def retry_jobs(request: Request, api: Api, caller: Submitter) -> Response:
    """Retry all jobs that the filter finds, in pieces. Those that have not ended, or succeeded, are skipped.

    Needs the scope ``read`` too. A limit makes it wait.
    """
    _check_may_read(caller)
    return await _begin(request, api, caller, OperationAction.RETRY)


def _check_may_read(caller: Caller) -> None:
    """Raises Forbidden without the scope. A count of the jobs that a filter finds says what is in them."""
    if Scope.READ not in caller.scopes:
        raise Forbidden(f"The key lacks the scope {Scope.READ}.")


async def _begin(request: Request, api: ApiState, caller: Caller, action: OperationAction) -> Response:
    key = idempotency_key(request)
    body = await read_json(request, caller)
    asked = read(OperationRequest, body)
    wanted = asked.wanted
    if asked.dry_run:
        _check_may_read(caller)
        return json_response(await _dry_run(api, caller, action, wanted))
    operation_id, is_replayed = await api.runtime.operations.create(
        caller,
        action,
        wanted,
        idempotency_key=key,
        fingerprint=fingerprint_of({"action": action, "body": body}),
    )
    begun = await api.runtime.operations.get(operation_id, caller.tenant)
    headers = {"Location": url_of(begun.id), **({"Idempotency-Replayed": "true"} if is_replayed else {})}
    api.log.info("operation_begun", operation_id=begun.id, action=action, is_replayed=is_replayed)
    return json_response(render(begun), 202, headers)


async def _dry_run(api: ApiState, caller: Caller, action: OperationAction, wanted: JobFilter) -> bytes:
    matched, after = 0, None
    for _ in range(_MOST_PAGES):
        page = await api.runtime.jobs.list(caller.tenant, wanted, after=after, limit=_PAGE_JOBS)
        matched, after = matched + len(page.jobs), page.next_after
        if after is None:
            break
    return render_dry_run(action, wanted, matched=matched, has_more=after is not None)


@router.get("/v1/operations")
@operation({200: json_of(OperationPage, "A page.")}, LISTS)
async def list_operations(
    request: Request,
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """The caller's operations, newest first."""
    if after is not None and not OPERATION_ID.fullmatch(after):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
    page = await api.runtime.operations.page(caller.tenant, after=after, limit=limit)
    await api.key_ring.still(request.scope)
    return json_response(render_page(page.operations, page.next_after))


@router.get("/v1/operations/{operation_id}")
@operation({200: json_of(OperationView, "The operation's current state.")}, READS)
async def read_operation(api: Api, caller: Reader, operation_id: OperationId) -> Response:
    """The operation's current state, with live counts."""
    return json_response(render(await api.runtime.operations.get(operation_id, caller.tenant)))


@router.post("/v1/operations/{operation_id}/cancel")
@operation({200: json_of(OperationView, "The operation's current state.")}, READS)
async def cancel_operation(api: Api, caller: Canceller, operation_id: OperationId) -> Response:
    """Do nothing more for the operation. What is done stays. An operation that has ended does not change."""
    await api.runtime.operations.cancel(operation_id, caller.tenant)
    return json_response(render(await api.runtime.operations.get(operation_id, caller.tenant)))
