"""``/v1/jobs``: submit, read, list, follow, cancel, retry, erase."""

from collections.abc import Collection
from functools import partial
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import (
    ALL_TENANTS,
    JOB_ID,
    Api,
    Canceller,
    JobCanceller,
    JobId,
    JobReader,
    NamedTenant,
    Reader,
    Submitter,
    caller_of,
    tenant_asked,
)
from api.http.body import read_body
from api.http.disconnects import while_connected
from api.http.headers import (
    EVENT_STREAM,
    JSON,
    MOST_WAIT_S,
    idempotency_key,
    must_accept,
    one,
    preferred_wait_s,
    wants_event_stream,
)
from api.http.invalid import refuse
from api.http.pages import DEFAULT_LIMIT, Limit
from api.http.rate_limit_headers import headers_of
from api.http.responses import json_response
from api.http.strict_json import decode
from api.jobs.filter import FILTER_IN_QUERY, filter_of_query
from api.jobs.request import Bounds, Draft, JobRequest, bounds_of, draft_of
from api.jobs.retry import retry
from api.jobs.submit import SHOWN_TO_READERS, Idempotency, Submitted, may_see_all, submit, waiting_for_of
from api.openapi import (
    IDEMPOTENCY_KEY,
    LAST_EVENT_ID,
    LISTS,
    READS,
    RETRIES,
    SUBMITS,
    body_of,
    header,
    json_of,
    nothing,
    operation,
    query,
    ref,
    stream,
)
from api.state.api_state import ApiState, api_of
from api.state.relay import Watch
from api.streams.job_stream import job_stream
from api.streams.sse import StreamFormat
from api.views.attempts import AttemptList, render_attempts
from api.views.job import JobPage, JobView, render, render_page, url_of
from shared.api_key import Caller, Scope
from shared.errors import FieldError, Forbidden, InvalidCursor
from shared.events import EventId, parse_cursor
from shared.job import Job, JobState, new_id
from shared.store.idempotency import fingerprint_of
from shared.store.jobs import Page
from shared.waiting import WaitingFor

router = APIRouter()

RETRY_AFTER: Final = {"Retry-After": "1"}
_FROM_NOW: Final = "now"


_EVENTS: Final = stream(
    'event: queued\ndata: {"job_id":"job_01m84bdq4t7w9k2p5x8r3n6v0c","queue_position":1,'
    '"waiting_for":[{"reason":"turn","position":1}]}\n\n'
    'id: 1795442531900-0\nevent: started\ndata: {"attempt":1}\n\n'
    'id: 1795442531900-3\nevent: delta\ndata: {"text":"Blue"}\n\n'
)
_FORMAT: Final = query(
    "format",
    "text: our events, with delta. messages: the upstream's own events.",
    {"enum": ["text", "messages"], "default": "text"},
)


@operation(
    {
        200: {
            "description": "The job, if it ended in time; or its events.",
            "content": {JSON: {"schema": ref(JobView)}, **_EVENTS},
        },
        202: json_of(JobView, "Accepted."),
        204: nothing("The client has already seen the last event."),
    },
    (*SUBMITS, 406),
    body=body_of(JobRequest),
    parameters=[
        IDEMPOTENCY_KEY,
        header("Prefer", "wait=N: respond when the job has ended, at the latest after N (at most 60) seconds."),
        header("Accept", f"{EVENT_STREAM} submits and follows in one request."),
        LAST_EVENT_ID,
        _FORMAT,
    ],
)
async def submit_job(request: Request) -> Response:
    """Submit a job: 202, with its path in ``Location``.

    ``Prefer: wait=N``: 200 if it ended within N seconds. ``Accept: text/event-stream`` follows it at once.
    """
    api = api_of(request)
    caller = await caller_of(request, Scope.SUBMIT, query=("format",))
    is_followed, form = wants_event_stream(request), _format_of(request)
    wait_s = preferred_wait_s(request)
    key = idempotency_key(request)
    cursor = cursor_of(one(request, b"last-event-id"))
    settings = api.settings
    parse = partial(_parse, key=key, default_model=settings.model, bounds=bounds_of(settings))
    draft, idempotency = await read_body(request, caller, settings.max_body_bytes, parse)
    if is_followed:
        return await _submit_and_follow(api, caller, draft, idempotency, form, cursor)
    if wait_s:
        return await _submit_and_wait(request, api, caller, draft, idempotency, wait_s)
    return _response_of(await submit(api, caller, draft, idempotency=idempotency), caller)


# The hottest route: through FastAPI a submit would cost a quarter more (docs/decisions/0018).
router.add_route("/v1/jobs", submit_job, methods=["POST"])


def _parse(raw: bytes, *, key: str | None, default_model: str, bounds: Bounds) -> tuple[Draft, Idempotency | None]:
    body = decode(raw)
    draft = draft_of(body, default_model=default_model, bounds=bounds)
    return draft, Idempotency(key, fingerprint_of(body)) if key is not None else None


async def _submit_and_wait(
    request: Request, api: ApiState, caller: Caller, draft: Draft, idempotency: Idempotency | None, wait_s: int
) -> Response:
    job_id = new_id("job")
    watch = api.relay.watch(job_id)
    try:
        submitted = await submit(api, caller, draft, idempotency=idempotency, job_id=job_id)
        job = submitted.job
        if submitted.is_replayed:
            if not job.has_ended:
                await while_connected(request, api.relay.wait_for_end(job.id, wait_s))
        else:
            await while_connected(request, api.relay.wait_for_end(job_id, wait_s, watch, is_new=True))
    finally:
        watch.close()
    job = await api.runtime.jobs.get(job.id, caller.tenant, with_result=True)
    now = submitted._replace(job=job, waiting_for=await waiting_for_of(api, job))
    return _response_of(now, caller, {"Preference-Applied": f"wait={wait_s}"})


async def _submit_and_follow(
    api: ApiState,
    caller: Caller,
    draft: Draft,
    idempotency: Idempotency | None,
    form: StreamFormat,
    cursor: EventId | None,
) -> Response:
    job_id = new_id("job")
    watch = api.relay.watch(job_id)
    try:
        submitted = await submit(api, caller, draft, idempotency=idempotency, job_id=job_id)
    except BaseException:
        watch.close()
        raise
    job, waiting_for, is_replayed, limits = submitted
    headers = {"Location": url_of(job.id), **headers_of(limits)}
    if not is_replayed:
        return job_stream(api, job, waiting_for=waiting_for, form=form, watch=watch, is_new=True, headers=headers)
    watch.close()
    if not may_see_all(submitted, caller):
        raise Forbidden(SHOWN_TO_READERS)
    return _follow(api, job, waiting_for, form, cursor, headers | _REPLAYED, watch=api.relay.watch(job.id))


_REPLAYED: Final = {"Idempotency-Replayed": "true"}


def _response_of(submitted: Submitted, caller: Caller, headers: dict[str, str] | None = None) -> Response:
    job = submitted.job
    may_see_all_of_it = may_see_all(submitted, caller)
    all_headers = {"Location": url_of(job.id), **headers_of(submitted.limits), **(headers or {})}
    if submitted.is_replayed:
        all_headers |= _REPLAYED
    if not job.has_ended:
        all_headers |= RETRY_AFTER
    body = render(job, submitted.waiting_for, with_result=may_see_all_of_it, with_metadata=may_see_all_of_it)
    return json_response(body, 200 if job.has_ended else 202, all_headers)


@router.get("/v1/jobs/{job_id}")
@operation({200: json_of(JobView, "The job's current state.")}, READS)
async def read_job(
    request: Request,
    api: Api,
    caller: Reader,
    job_id: JobId,
    wait: Annotated[
        int, Query(ge=0, description=f"Seconds to wait for the end. More than {MOST_WAIT_S} counts as {MOST_WAIT_S}.")
    ] = 0,
    result: Annotated[bool, Query(description="false leaves out the result, and the partial of an ended job.")] = True,
    partial: Annotated[bool, Query(description="true: what came so far, also of a job that has not ended.")] = False,
) -> Response:
    """The job's current state, or its end if that comes within ``wait`` seconds."""
    headers: dict[str, str] = {}
    job = await api.runtime.jobs.get(job_id, caller.tenant, with_result=result)
    if wait:
        wait_s = min(wait, MOST_WAIT_S)
        headers["Preference-Applied"] = f"wait={wait_s}"
        if not job.has_ended:
            await while_connected(request, api.relay.wait_for_end(job_id, wait_s))
            job = await api.runtime.jobs.get(job_id, caller.tenant, with_result=result)
    if partial or (result and job.has_ended and job.state is not JobState.SUCCEEDED):
        job = await api.runtime.partials.added_to(job)
    if not job.has_ended:
        headers |= RETRY_AFTER
    waiting_for = await waiting_for_of(api, job)
    await api.key_ring.still(request.scope)  # the reads may have waited for seconds. All lists check this too
    return json_response(render(job, waiting_for, with_result=result), headers=headers)


@router.get("/v1/jobs/{job_id}/attempts")
@operation({200: json_of(AttemptList, "The calls to the LLM, oldest first.")}, READS)
async def list_attempts(request: Request, api: Api, caller: Reader, job_id: JobId) -> Response:
    """What was tried: each call to the LLM that the ledger still has, at most the newest 200."""
    attempts = await api.runtime.attempts.of(job_id, caller.tenant)
    await api.key_ring.still(request.scope)
    return json_response(render_attempts(attempts))


@router.get("/v1/jobs")
@operation({200: json_of(JobPage, "A page.")}, LISTS, parameters=FILTER_IN_QUERY)
async def list_jobs(
    request: Request,
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    tenant: NamedTenant = None,
    sort: Annotated[
        Literal["oldest_waiting", "longest_running"] | None,
        Query(description="Only with tenant, which may be * for all of them, and without after and filters."),
    ] = None,
) -> Response:
    """The caller's jobs, newest first, without their results. Several conditions are combined by AND. A page of large
    jobs holds fewer than ``limit``. So does a page with conditions, which looks at a few thousand jobs: it may even be empty, and
    have a ``next``.
    """
    if sort is not None:
        given = request.query_params.keys() - {"tenant", "sort", "limit"}
        page = await _sorted(api, caller, tenant or "", sort, limit, given)
    else:
        of_tenant = tenant_asked(caller, tenant)
        if after is not None and not JOB_ID.fullmatch(after):
            raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
        wanted = filter_of_query(request.query_params.multi_items())
        page = await api.runtime.jobs.list(of_tenant, wanted, after=after, limit=limit)
    queued = [(job.id, job.spec.model) for job in page.jobs if job.state is JobState.QUEUED]
    waits = await api.runtime.waits.of(queued, tenant=caller.tenant)
    await api.key_ring.still(request.scope)
    waits_by_id = {job_id: waiting_for for (job_id, _), waiting_for in zip(queued, waits, strict=True)}
    return json_response(render_page(page.jobs, waits_by_id, page.next_after, for_operator=tenant is not None))


async def _sorted(api: ApiState, caller: Caller, tenant: str, sort: str, limit: int, given: Collection[str]) -> Page:
    """The first jobs in another order than that of their ids, for an operator; ``given``: parameters that do not go with it."""
    of_tenant = tenant_asked(caller, tenant, may_be_all=True)
    if given:
        raise refuse(*[FieldError(name, "cannot be combined with sort") for name in sorted(given)])
    oversight = api.runtime.oversight
    read = oversight.oldest_waiting if sort == "oldest_waiting" else oversight.longest_running
    jobs = await read(caller.tenant, tenant=None if of_tenant == ALL_TENANTS else of_tenant, limit=limit)
    return Page(jobs, None)


@router.get("/v1/jobs/{job_id}/events")
@operation(
    {
        200: {"description": "Events until the job has ended.", "content": _EVENTS},
        204: nothing("The client has already seen the last event."),
    },
    (*READS, 406),
    parameters=[LAST_EVENT_ID],
)
async def follow_job(
    request: Request,
    api: Api,
    caller: JobReader,
    job_id: JobId,
    after: Annotated[
        str | None, Query(description="An event id to continue after; or now, for new events only.")
    ] = None,
    form: Annotated[
        Literal["text", "messages"],
        Query(alias="format", description="text: our events, with delta. messages: the upstream's own events."),
    ] = "text",
) -> Response:
    """Follow the job as server-sent events: from its newest attempt on, or after the client's last event."""
    must_accept(request, EVENT_STREAM)
    sent = one(request, b"last-event-id")
    from_now = not sent and after == _FROM_NOW
    cursor = None if from_now else cursor_of(sent or after)
    job = await api.runtime.jobs.get(job_id, caller.tenant)
    return _follow(api, job, await waiting_for_of(api, job), StreamFormat(form), cursor, from_now=from_now)


def _follow(
    api: ApiState,
    job: Job,
    waiting_for: WaitingFor | None,
    form: StreamFormat,
    cursor: EventId | None,
    headers: dict[str, str] | None = None,
    *,
    from_now: bool = False,
    watch: Watch | None = None,
) -> Response:
    if cursor is not None and str(cursor) == job.end_id:
        if watch is not None:
            watch.close()
        return Response(status_code=204, headers=headers)  # it has seen everything: a browser then stops reconnecting
    return job_stream(
        api,
        job,
        waiting_for=waiting_for,
        form=form,
        cursor=cursor,
        from_now=from_now,
        watch=watch,
        headers=headers,
    )


def _format_of(request: Request) -> StreamFormat:
    if not request.scope["query_string"]:
        return StreamFormat.TEXT
    try:
        return StreamFormat(request.query_params.get("format", StreamFormat.TEXT))
    except ValueError:
        raise refuse(FieldError("format", "must be one of: " + ", ".join(StreamFormat))) from None


def cursor_of(text: str | None) -> EventId | None:
    """The event id that a client sent, None without one. Raises InvalidCursor if it is not an event id."""
    if not text:
        return None
    cursor = parse_cursor(text)
    if cursor is None:
        raise InvalidCursor("Not a valid event id. Omit Last-Event-ID to replay from the start.")
    return cursor


@router.post("/v1/jobs/{job_id}/cancel")
@operation({200: json_of(JobView, "The job as it ended.")}, READS)
async def cancel_job(api: Api, caller: JobCanceller, job_id: JobId) -> Response:
    """End the job now, even if it runs. A job that has ended does not change. Keys without ``read`` get no result."""
    await api.runtime.jobs.cancel(job_id, caller.tenant)
    may_read = Scope.READ in caller.scopes
    job = await api.runtime.jobs.get(job_id, caller.tenant, with_result=may_read)
    if may_read and job.state is not JobState.SUCCEEDED:
        job = await api.runtime.partials.added_to(job)
    return json_response(render(job, None, with_result=may_read))


@router.post("/v1/jobs/{job_id}/retry", status_code=202)
@operation(
    {
        200: json_of(JobView, "The job that the Idempotency-Key already has, if it has ended."),
        202: json_of(JobView, "A new job."),
    },
    RETRIES,
    parameters=[IDEMPOTENCY_KEY],
)
async def retry_job(request: Request, api: Api, caller: Submitter, job_id: JobId) -> Response:
    """Submit a job that ended without success again, as a new job with ``retry_of``."""
    key = idempotency_key(request)
    return _response_of(await retry(api, caller, job_id, idempotency_key=key), caller)


@router.delete("/v1/jobs/{job_id}", status_code=204)
@operation({204: nothing("Erased.")}, (*READS, 409))
async def erase_job(api: Api, caller: Canceller, job_id: JobId) -> Response:
    """Erase the prompt, the events and the result of a job that has ended."""
    await api.runtime.jobs.erase(job_id, caller.tenant)
    return Response(status_code=204)
