"""The only place where a job is created."""

import contextlib
from typing import Final, NamedTuple

from api.jobs.request import Draft, spec_members
from api.state.api_state import ApiState
from shared.api_key import Caller, Scope
from shared.errors import StorageFull, StorageUnavailable
from shared.job import Job, JobSpec, JobState, Submission, new_id
from shared.limits import LimitState
from shared.store.jobs import Created
from shared.waiting import WaitingFor


class Idempotency(NamedTuple):
    """What keeps a repeated submit from creating a second job."""

    key: str
    fingerprint: str
    """A hash of the parsed body: the same key with another body is refused."""


class Submitted(NamedTuple):
    """The job: new, or the one that the Idempotency-Key already has."""

    job: Job
    waiting_for: WaitingFor | None
    is_replayed: bool
    limits: tuple[LimitState, ...] = ()
    """State of each configured limit after this submit."""


SHOWN_TO_READERS: Final = (
    "The Idempotency-Key was used by another API key: its job is shown only to keys with the scope read."
)


def may_see_all(submitted: Submitted, caller: Caller) -> bool:
    """Whether the caller is shown the job's result, end user, metadata, tags and webhook.

    A key without the scope ``read`` sees only what it has sent itself: neither what another key sent with the same
    Idempotency-Key, nor what a retry has copied from the first job.
    """
    spec = submitted.job.spec
    is_own = not submitted.is_replayed or spec.key_id == (caller.key_id or "")
    return Scope.READ in caller.scopes or (is_own and spec.retry_of is None)


async def submit(
    api: ApiState,
    caller: Caller,
    draft: Draft,
    *,
    idempotency: Idempotency | None = None,
    retry_of: str | None = None,
    job_id: str | None = None,
    is_attended: bool = False,
) -> Submitted:
    """Creates a job, or finds the one that the Idempotency-Key already has.

    ``job_id`` (of ``new_id``): for a caller that watches the job from before its creation; a replayed job has another
    id. ``is_attended``: the client waits for the job here; if this process dies, the job is cancelled.

    Raises StorageFull, QueueFull, StorageUnavailable, RateLimited, TooManyQueued, BudgetExceeded, IdempotencyKeyReused;
    InvalidRequest if no limit will ever let it in; NotFound if the key's job was erased.
    """
    try:
        api.runtime.memory.check()
    except StorageFull:  # a repeat needs no room
        if idempotency is None or await api.runtime.batches.known(caller.tenant, idempotency.key) is None:
            raise
    options = draft.options
    submission = Submission(
        id=job_id or new_id("job"),
        tenant=caller.tenant,
        spec=JobSpec(
            model=draft.model,
            **spec_members(options),
            retry_of=retry_of,
            prompt_hash=draft.prompt_hash,
            kind=draft.kind,
            may_start_over=draft.may_start_over,
            anthropic_beta=draft.upstream_headers.beta,
            anthropic_version=draft.upstream_headers.version,
            key_id=caller.key_id or "",
        ),
        request=draft.request,
        idempotency_key=idempotency.key if idempotency else None,
        fingerprint=idempotency.fingerprint if idempotency else "",
        limits=caller.limits,
        reservation=draft.reservation,
        webhook=options.webhook,
        attended_by=api.name if is_attended else "",
    )
    outcome = await api.runtime.jobs.submit(submission, expires_in_s=options.expires_in_s)
    if isinstance(outcome, Created):
        api.log.debug("job_submitted", job_id=submission.id, prompt_hash=submission.spec.prompt_hash, model=draft.model)
        born = _born(submission, outcome)
        waiting_for: WaitingFor | None = None
        with contextlib.suppress(StorageUnavailable):  # the job is there, whatever this look finds
            waiting_for = await api.runtime.waits.of_new(born, outcome.position)
        return Submitted(born, waiting_for, is_replayed=False, limits=outcome.limits)
    job = await api.runtime.jobs.get(outcome.job_id, caller.tenant, with_result=True)
    api.log.debug("submit_replayed", job_id=job.id)
    return Submitted(job, await waiting_for_of(api, job), is_replayed=True)


def _born(submission: Submission, created: Created) -> Job:
    """The record as the script has just written it, without reading it back."""
    return Job(
        id=submission.id,
        tenant=submission.tenant,
        state=JobState.QUEUED,
        spec=submission.spec,
        created_ms=created.created_ms,
        expires_ms=created.expires_ms,
        webhook=submission.webhook,
    )


async def waiting_for_of(api: ApiState, job: Job) -> WaitingFor | None:
    """What holds the job back; None if it does not wait."""
    if job.state is not JobState.QUEUED:
        return None
    (waiting_for,) = await api.runtime.waits.of([(job.id, job.spec.model)], tenant=job.tenant)
    return waiting_for
