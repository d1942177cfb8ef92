"""Why a job has no answer, in the terms of the Messages API."""

from typing import Final

from api.http.anthropic_errors import Refusal, type_of
from shared.errors import JobError
from shared.job import Job, JobState


class Refused(Exception):
    """There is no answer, or no more of it. ``has_ended``: the job has ended too."""

    def __init__(self, refusal: Refusal, *, has_ended: bool = False) -> None:
        super().__init__(refusal.type)
        self.refusal = refusal
        self.has_ended = has_ended


def refusal_of_end(job: Job) -> Refusal:
    """Why a job that has ended did not succeed."""
    if job.error is not None:
        return refusal_of_failure(job.error)
    if job.state is JobState.EXPIRED:
        return Refusal(
            504, type_of(504), "The request waited in the queue for too long and was not started.", may_retry=False
        )
    return Refusal(500, type_of(500), f"The job {job.id} was {job.state}.", may_retry=False)


def refusal_of_failure(error: JobError) -> Refusal:
    """Why a job failed. If the LLM refuses our own key, that is our failure, and never the caller's 401.

    An SDK must not retry any of these: the job's attempts or its time are used up, or another try is in vain. Retries
    by the SDK would multiply our attempts by its own, and so many failed calls would open the circuit for everybody.
    """
    match error.code:
        case "upstream_rejected":
            status = _rejected_status(error.upstream_status)
        case "upstream_rate_limited":
            return Refusal(429, type_of(429), error.message, may_retry=False, retry_after_s=10)
        case "upstream_overloaded":
            status = 529
        case "timeout":
            return Refusal(504, type_of(504), error.message, may_retry=False)
        case "upstream_error" if error.upstream_status in _UPSTREAM_FAILURES:
            status = error.upstream_status or 500
        case _:
            status = 500
    return Refusal(status, type_of(status), error.message, may_retry=False)


_UPSTREAM_FAILURES: Final = (500, 502, 503)
"""Passed on as they were: a program may look at them."""


def _rejected_status(upstream_status: int | None) -> int:
    """The upstream's error status; 400 for its 401 and 403, which would seem to be about the caller's key."""
    if upstream_status is None or not 400 <= upstream_status < 600 or upstream_status in (401, 403):
        return 400
    return upstream_status
