"""Which of a tenant's jobs are meant: the conditions of a list and of an operation, and the labels that find jobs by them.

A label is a word of the index ``labels``. From its submit on a job has one for each tag, each member of its metadata and its end user, and from
an end without success on its state and its error's code. A job without any of these is not in the index.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec

from shared.job import TERMINAL_STATES, Job, JobSpec, JobState

_UNSUCCESSFUL: Final = TERMINAL_STATES - {JobState.SUCCEEDED}


class JobFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """The jobs that meet all conditions. None, and no metadata, is no condition."""

    status: JobState | None = None
    model: str | None = None
    """As the caller asked for it."""
    tag: str | None = None
    metadata: dict[str, str] = {}
    """All of these members; a job may have more."""
    end_user: str | None = None
    key_id: str | None = None
    """The API key that submitted them."""
    error_code: str | None = None
    batch_id: str | None = None
    """Items of this batch. Without it, no items of batches."""
    created_after_ms: int | None = None
    """At this moment or later."""
    created_before_ms: int | None = None
    """Earlier than this moment."""

    def matches(self, job: Job) -> bool:
        """Whether the job meets all conditions."""
        return (
            self.status in (None, job.state)
            and self.key_id in (None, job.spec.key_id)
            and self.error_code in (None, job.error and job.error.code)
            and self.batch_id == job.spec.batch_id
            and (self.created_after_ms is None or job.created_ms >= self.created_after_ms)
            and (self.created_before_ms is None or job.created_ms < self.created_before_ms)
            and self.matches_spec(job.spec)
        )

    def matches_spec(self, spec: JobSpec) -> bool:
        """Whether the job of this spec can meet them."""
        return (
            self.model in (None, spec.model)
            and self.end_user in (None, spec.end_user)
            and (self.tag is None or self.tag in spec.tags)
            and self.metadata.items() <= spec.metadata.items()
        )

    @property
    def concerns_spec(self) -> bool:
        """Whether ``matches_spec`` can be false."""
        return self.model is not None or self.tag is not None or self.end_user is not None or bool(self.metadata)

    @property
    def concerns_state(self) -> bool:
        """Whether a job's state or its API key matters."""
        return self.status is not None or self.key_id is not None or self.error_code is not None

    def by_label(self) -> tuple[str, "JobFilter"] | None:
        """The label that all these jobs have, and the conditions that are left for those that have it; the rarest label first."""
        if self.error_code is not None:
            return self.error_code, msgspec.structs.replace(self, error_code=None)
        if self.metadata:
            name, value = next(iter(self.metadata.items()))
            others = {other: each for other, each in self.metadata.items() if other != name}
            return _label("metadata", name, value), msgspec.structs.replace(self, metadata=others)
        if self.end_user is not None:
            return _label("end_user", self.end_user), msgspec.structs.replace(self, end_user=None)
        if self.status in _UNSUCCESSFUL:
            return self.status, msgspec.structs.replace(self, status=None)
        if self.tag is not None:
            return _label("tag", self.tag), msgspec.structs.replace(self, tag=None)
        return None


EVERY_JOB: Final = JobFilter()


def labels_of(spec: JobSpec) -> str:
    """The labels of a job from its submit on, separated by blanks."""
    if not spec.tags and not spec.metadata and spec.end_user is None:
        return ""
    return " ".join(_labels_of(spec))


def _labels_of(spec: JobSpec) -> Iterator[str]:
    yield from (_label("tag", tag) for tag in spec.tags)
    if spec.end_user is not None:
        yield _label("end_user", spec.end_user)
    yield from (_label("metadata", name, value) for name, value in spec.metadata.items())


def _label(*words: str) -> str:
    """A hash: what callers write is no part of an index. Two texts with the same one cost a look at a record."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
