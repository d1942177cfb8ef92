"""A job: its states, the table of its life cycle, its record, its id.

TRANSITIONS is the only place that says which state may follow which. The Redis scripts are given the allowed source
states from it and spell none themselves; the picture in the documentation is drawn from it.
"""

import functools
import hashlib
import secrets
import time
from enum import StrEnum
from typing import Final

import msgspec

from shared.errors import JobError
from shared.limits import CallerLimits, Reservation
from shared.webhooks import Webhook


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    """Waits for a worker, for its ``not_before``, or for its next attempt. CLAIM moves it on;
    CANCEL, EXPIRE or the end of its ``timeout_s`` ends it."""
    RUNNING = "running"
    """A worker holds its lease. FINISH or CANCEL ends it; RELEASE puts it back; so does REAP when the
    worker died, or it fails the job at the third death."""
    SUCCEEDED = "succeeded"
    """The whole answer is in ``result``. Final."""
    FAILED = "failed"
    """``error`` says why. Final."""
    CANCELLED = "cancelled"
    """The caller ended it. Final."""
    EXPIRED = "expired"
    """It did not start within ``expires_in_s``. Final."""


class Step(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    RELEASE = "release"
    REAP = "reap"
    SUCCEED = "succeed"
    FAIL = "fail"
    LOSE = "lose"
    TIME_OUT = "time_out"
    EXPIRE = "expire"
    CANCEL = "cancel"


TERMINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

TRANSITIONS: Final[dict[Step, tuple[frozenset[JobState], JobState]]] = {
    Step.CLAIM: (frozenset({JobState.QUEUED}), JobState.RUNNING),
    Step.RELEASE: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    Step.REAP: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    Step.SUCCEED: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    Step.FAIL: (frozenset({JobState.RUNNING}), JobState.FAILED),
    Step.LOSE: (frozenset({JobState.RUNNING}), JobState.FAILED),
    Step.TIME_OUT: (frozenset({JobState.QUEUED}), JobState.FAILED),
    Step.EXPIRE: (frozenset({JobState.QUEUED}), JobState.EXPIRED),
    Step.CANCEL: (frozenset({JobState.QUEUED, JobState.RUNNING}), JobState.CANCELLED),
}
"""Step → (the states it may start from, the state it leads to)."""


class Priority(StrEnum):
    """The band in which a job waits. Batch items are ``low``."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


BANDS: Final = tuple(Priority)
"""Highest first: the order in which CLAIM looks."""


LONGEST_WAIT_IN_SLOT_S: Final = 2.0
"""A retry that waits for longer is not slept in a worker's slot: the job goes back to the queue."""


class JobKind(StrEnum):
    """What the upstream is asked for."""

    MESSAGES = "messages"
    """An answer, streamed."""
    COUNT_TOKENS = "count_tokens"
    """How many tokens a request has. No log, no place in lists; forgotten a minute after its end."""


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What never changes after submit, but for the request itself. Written by SUBMIT; one JSON field of the record."""

    model: str
    """As asked; ``result.message.model`` is the one that answered."""
    priority: Priority = Priority.NORMAL
    timeout_s: int = 600
    """From the first start, over all attempts and waits."""
    max_attempts: int = 3
    """Upstream failures that are allowed, plus one. Takeovers and drains are not counted."""
    connect_timeout_s: int | None = None
    """This and the next two: None is the worker's setting."""
    first_token_timeout_s: int | None = None
    content_idle_timeout_s: int | None = None
    not_before_ms: int | None = None
    metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    batch_id: str | None = None
    custom_id: str | None = None
    retry_of: str | None = None
    prompt_hash: str = ""
    """sha-256 of the request, first 12 hex digits: what logs carry in place of a prompt."""
    kind: JobKind = JobKind.MESSAGES
    may_start_over: bool = True
    """Whether a failed attempt whose content is out may be followed by another. False: its only follower has no word for
    ``reset``."""
    anthropic_beta: str = ""
    """The caller's ``anthropic-beta`` header, for an upstream that knows it."""
    anthropic_version: str = ""
    """The caller's ``anthropic-version`` header, for an upstream that knows it. Empty: as the worker's settings."""
    key_id: str = ""
    """The API key that it was submitted with; what its calls cost is counted for it. Empty: none."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the upstream reported them for the attempt that gave the result."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Job(msgspec.Struct, frozen=True):
    """A job as its record has it. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    tenant: str
    state: JobState
    spec: JobSpec
    created_ms: int
    expires_ms: int
    """When it ends as ``expired`` if it never started."""
    attempts: int = 0
    """Upstream calls begun."""
    epoch: int = 0
    """Of the newest claim, or of the script that wrote last without one."""
    started_ms: int | None = None
    """First claim."""
    first_token_ms: int | None = None
    """When the first content of the attempt that gave the result was there."""
    ended_ms: int | None = None
    end_id: str | None = None
    """The id of the terminal event; a follower whose cursor this is has seen everything."""
    error: JobError | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    """Of all its calls. None if the price of one is not known, and until one has ended."""
    webhook: Webhook | None = None
    """Its own; an item's is its batch's."""
    result: msgspec.Raw | None = None
    """``{"text", "stop_reason", "message"}`` as stored by FINISH; None unless succeeded and asked for."""

    @property
    def has_ended(self) -> bool:
        """Whether the state is terminal."""
        return self.state in TERMINAL_STATES


class Submission(msgspec.Struct, frozen=True):
    """A job about to be born."""

    id: str
    tenant: str
    spec: JobSpec
    request: bytes
    """The upstream request as JSON, without ``stream``. The prompt is stored here, and nowhere else."""
    idempotency_key: str | None = None
    fingerprint: str = ""
    """Of the parsed body: equal JSON is the same body."""
    limits: CallerLimits = CallerLimits()
    """Of the API key; those of the tenant are in Redis."""
    reservation: Reservation = Reservation()
    webhook: Webhook | None = None
    attended_by: str = ""
    """The API process whose client waits for it: with neither it is cancelled. Empty: nobody has to wait."""


_ALPHABET: Final = b"0123456789abcdefghjkmnpqrstvwxyz"
_ANY_BYTE_TO_ALPHABET: Final = _ALPHABET * 8
"""For ``bytes.translate``: 256 values onto 32 characters, each as likely as the others."""


def new_id(prefix: str) -> str:
    """``job_01m84bdq4t7w9k2p5x8r3n6v0c``: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32.

    Sorts by time of birth, and cannot be guessed.
    """
    # A byte a character, and the moment once per millisecond: a submit makes two ids, and each took 8 µs; now 2.
    chance = secrets.token_bytes(16).translate(_ANY_BYTE_TO_ALPHABET).decode()
    return f"{prefix}_{_moment(time.time_ns() // 1_000_000)}{chance}"


@functools.lru_cache(maxsize=1)
def _moment(moment_ms: int) -> str:
    return bytes(_ALPHABET[moment_ms >> shift & 31] for shift in range(45, -1, -5)).decode()


def prompt_hash_of(request: bytes) -> str:
    """What logs carry in place of a prompt."""
    return hashlib.sha256(request).hexdigest()[:12]
