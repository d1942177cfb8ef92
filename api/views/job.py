"""A job as its caller sees it: one JSON object, the same in every response and in the last event of its stream, but for
``partial``.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.clock import to_rfc3339
from shared.errors import JobError
from shared.job import Job, JobState, Usage
from shared.waiting import WaitingFor, queue_position_of
from shared.webhooks import Webhook

_encode: Final = msgspec.json.Encoder().encode


class Timing(msgspec.Struct, frozen=True):
    """Spans of the job's life, in milliseconds; null until they are known."""

    queued_ms: int | None
    """Submit to first start."""
    first_token_ms: int | None
    """Submit to the first content of the attempt that gave the result."""
    running_ms: int | None
    """First start to end."""
    total_ms: int | None
    """Submit to end."""


class Urls(msgspec.Struct, frozen=True):
    """Where the job is found and what can be done with it."""

    self: str
    events: str
    cancel: str


class PartialView(msgspec.Struct, frozen=True):
    """What followers were shown of an answer that is not whole."""

    text: str
    content: msgspec.Raw
    last_token_at: str | None


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job. ``result`` is null unless the job succeeded, and absent if it was not asked for.

    ``partial`` is null if nothing came. Only a read with ``?partial=true``, and a read or cancel of a job that ended without
    success have it.
    """

    id: str
    type: str
    tenant: str | msgspec.UnsetType = msgspec.UNSET
    """Only in a list that an operator reads."""
    status: JobState
    model: str
    priority: str
    queue_position: int | None
    waiting_for: WaitingFor | None
    attempts: int
    max_attempts: int
    timeout_s: int
    created_at: str
    not_before: str | None
    expires_at: str
    started_at: str | None
    ended_at: str | None
    batch_id: str | None
    custom_id: str | None
    retry_of: str | None
    end_user: str | None
    metadata: dict[str, str]
    tags: tuple[str, ...]
    webhook: Webhook | None
    result: msgspec.Raw | msgspec.UnsetType | None = msgspec.UNSET
    partial: PartialView | msgspec.UnsetType | None = msgspec.UNSET
    usage: Usage | None
    cost_usd: float | None
    error: JobError | None
    timing: Timing
    urls: Urls


class JobPage(msgspec.Struct, frozen=True):
    """A list of jobs; ``next`` is the ``after`` of the next page."""

    data: list[JobView]
    has_more: bool
    next: str | None


def url_of(job_id: str) -> str:
    """The job's path, which is its ``Location``."""
    return f"/v1/jobs/{job_id}"


def render(job: Job, waiting_for: WaitingFor | None, *, with_result: bool = True, with_metadata: bool = True) -> bytes:
    """The job as one line of JSON. ``with_metadata``: with what its submitter set: end_user, metadata, tags and webhook."""
    view = view_of(job, waiting_for, with_result=with_result)
    return _encode(
        view if with_metadata else msgspec.structs.replace(view, end_user=None, metadata={}, tags=(), webhook=None)
    )


def render_page(
    jobs: list[Job], waits: Mapping[str, WaitingFor | None], next_after: str | None, *, for_operator: bool = False
) -> bytes:
    """A page of jobs without results, as one line of JSON. ``waits``: by id. ``for_operator``: with their tenant, and without
    what their submitter wrote.
    """
    views = [view_of(job, waits.get(job.id), with_result=False) for job in jobs]
    if for_operator:
        unseen: dict[str, Any] = {"end_user": None, "metadata": {}, "tags": (), "custom_id": None, "webhook": None}
        pairs = zip(views, jobs, strict=True)
        views = [msgspec.structs.replace(view, tenant=job.tenant, **unseen) for view, job in pairs]
    return _encode(JobPage(data=views, has_more=next_after is not None, next=next_after))


def view_of(job: Job, waiting_for: WaitingFor | None, *, with_result: bool) -> JobView:
    """The job's JSON form. ``waiting_for`` is shown only while the job is queued."""
    spec = job.spec
    url = url_of(job.id)
    if job.state is not JobState.QUEUED:
        waiting_for = None
    return JobView(
        id=job.id,
        type="job",
        status=job.state,
        model=spec.model,
        priority=spec.priority,
        queue_position=queue_position_of(waiting_for),
        waiting_for=waiting_for,
        attempts=job.attempts,
        max_attempts=spec.max_attempts,
        timeout_s=spec.timeout_s,
        created_at=to_rfc3339(job.created_ms),
        not_before=_time(spec.not_before_ms),
        expires_at=to_rfc3339(job.expires_ms),
        started_at=_time(job.started_ms),
        ended_at=_time(job.ended_ms),
        batch_id=spec.batch_id,
        custom_id=spec.custom_id,
        retry_of=spec.retry_of,
        end_user=spec.end_user,
        metadata=spec.metadata,
        tags=spec.tags,
        webhook=job.webhook,
        result=job.result if with_result else msgspec.UNSET,
        partial=_partial_of(job),
        usage=job.usage,
        cost_usd=job.cost_usd,
        error=job.error,
        timing=Timing(
            queued_ms=_span(job.created_ms, job.started_ms),
            first_token_ms=_span(job.created_ms, job.first_token_ms),
            running_ms=_span(job.started_ms, job.ended_ms),
            total_ms=_span(job.created_ms, job.ended_ms),
        ),
        urls=Urls(self=url, events=f"{url}/events", cancel=f"{url}/cancel"),
    )


class _Block(msgspec.Struct):
    type: Any = None
    text: Any = None
    """A block of a type that we do not know may have anything here."""


def _partial_of(job: Job) -> PartialView | msgspec.UnsetType | None:
    if job.partial is None or job.partial is msgspec.UNSET:
        return job.partial
    blocks = msgspec.json.decode(job.partial, type=list[_Block])
    text = "".join(block.text for block in blocks if block.type == "text" and isinstance(block.text, str))
    return PartialView(text, job.partial, _time(job.last_token_ms))


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else to_rfc3339(time_ms)


def _span(start_ms: int | None, end_ms: int | None) -> int | None:
    return None if start_ms is None or end_ms is None else end_ms - start_ms
