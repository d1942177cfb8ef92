"""Retries a job that ended without success, as a new job: for a caller of one, and for an operation on many."""

from api.jobs.request import JobOptions, UpstreamHeaders, drafted, spec_members
from api.jobs.submit import Idempotency, Submitted, submit
from api.state.api_state import ApiState
from shared.api_key import Caller
from shared.errors import NotEnded, NotFound
from shared.job import Job, JobKind, JobState
from shared.store.idempotency import fingerprint_of


async def retry(api: ApiState, caller: Caller, job_id: str, *, idempotency_key: str | None) -> Submitted:
    """The new job, or the one that the Idempotency-Key already has. Raises NotFound, NotEnded, and what ``submit`` does."""
    job, upstream_request = await api.runtime.jobs.request_of(job_id, caller.tenant)
    if job.spec.kind is JobKind.COUNT_TOKENS:
        raise NotFound  # not listed either: a client sends the count again
    if not can_be_retried(job):
        raise NotEnded("Only a job that ended without success can be retried.")
    draft = drafted(
        job.spec.model,
        upstream_request,
        options=_options_again(job),
        upstream_headers=UpstreamHeaders(job.spec.anthropic_beta, job.spec.anthropic_version),
    )
    idempotency = (
        Idempotency(idempotency_key, fingerprint_of({"retry_of": job_id})) if idempotency_key is not None else None
    )
    return await submit(api, caller, draft, idempotency=idempotency, retry_of=job_id)


def can_be_retried(job: Job) -> bool:
    """Whether it ended without success."""
    return job.has_ended and job.state is not JobState.SUCCEEDED


def _options_again(job: Job) -> JobOptions:
    """The job's options, without ``not_before``, which has passed."""
    spec = job.spec
    expires_in_ms = job.expires_ms - max(job.created_ms, spec.not_before_ms or 0)
    # Not validated: all comes from a record. A batch's item has as long to start as its batch had.
    return JobOptions.model_construct(
        **spec_members(spec) | {"not_before_ms": None},
        expires_in_s=max(1, expires_in_ms // 1000),
        webhook=job.webhook,
    )
