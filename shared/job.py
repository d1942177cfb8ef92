"""A job: its states, the table of its life cycle, its record, its id.

TRANSITIONS is the only place that says which state may follow which. The Redis scripts get the allowed states from it as
arguments and name none themselves; the diagram in the documentation is drawn from it.
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
"""A job that must wait longer than this for its retry does not keep its worker's slot: it goes back to the queue."""


class JobKind(StrEnum):
    """What the upstream is asked for."""

    MESSAGES = "messages"
    """An answer, streamed."""
    COUNT_TOKENS = "count_tokens"
    """The number of a request's tokens. Such a job has no log, is in no list, and is erased a minute after its end."""


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What never changes after the submit, without the request itself. SUBMIT writes it as one field of the record, as JSON."""

    model: str
    """The model that the caller asked for; ``result.message.model`` is the one that answered."""
    priority: Priority = Priority.NORMAL
    timeout_s: int = 600
    """Counted from the first start, over all attempts and waits."""
    max_attempts: int = 3
    """Upstream failures that are allowed, plus one. Takeovers and drains are not counted."""
    connect_timeout_s: int | None = None
    """For this and the next two, None means the worker's setting."""
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
    """Whether another attempt may follow one that failed after followers saw some of its content. False where the protocol of
    the only follower has no ``reset``."""
    anthropic_beta: str = ""
    """The caller's ``anthropic-beta`` header, for an upstream that knows it."""
    anthropic_version: str = ""
    """The caller's ``anthropic-version`` header, for an upstream that knows it. Empty: as the worker's settings."""
    end_user: str | None = None
    """Whom of the tenant's own users the job is for. It gives no rights."""
    key_id: str = ""
    """The id of the API key that submitted it; the cost of its calls counts towards that key's budget. Empty: none."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the upstream reported them for the attempt that gave the result."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Job(msgspec.Struct, frozen=True):
    """A job, read from its record. Times are milliseconds since 1970 by Redis's clock."""

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
    """The epoch of the newest claim, or of a later script that wrote without a claim."""
    claim_epoch: int = 0
    """The epoch of the newest claim."""
    started_ms: int | None = None
    """When it was first claimed."""
    first_token_ms: int | None = None
    """When the first content arrived, in the attempt that gave the result."""
    has_published: bool = False
    """Whether followers may have something of an answer that was not reset."""
    last_token_ms: int | None = None
    """When the newest content arrived, as its worker last reported it. None: not reported for the newest claim."""
    ended_ms: int | None = None
    end_id: str | None = None
    """The id of the terminal event; a follower whose cursor this is has seen everything."""
    error: JobError | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    """The cost of all its calls. None if the price of one is unknown, and until the first call has ended."""
    webhook: Webhook | None = None
    """The job's own webhook. None for an item: its batch has the webhook."""
    result: msgspec.Raw | None = None
    """``{"text", "stop_reason", "message"}`` as stored by FINISH; None unless the job succeeded and the reader asked for it."""
    partial: msgspec.Raw | msgspec.UnsetType | None = msgspec.UNSET
    """What came so far of a job that has not succeeded: its content blocks. None if nothing came. Unset: the reader did not ask."""

    @property
    def has_ended(self) -> bool:
        """Whether the state is terminal."""
        return self.state in TERMINAL_STATES


class Submission(msgspec.Struct, frozen=True):
    """A job to be created."""

    id: str
    tenant: str
    spec: JobSpec
    request: bytes
    """The upstream request as JSON, without ``stream``. The prompt is stored here, and nowhere else."""
    idempotency_key: str | None = None
    fingerprint: str = ""
    """Hash of the parsed body: bodies of equal JSON have the same one."""
    limits: CallerLimits = CallerLimits()
    """The API key's limits; the tenant's are in Redis."""
    reservation: Reservation = Reservation()
    webhook: Webhook | None = None
    attended_by: str = ""
    """The API process whose client waits for the job: if either is gone, the job is cancelled. Empty: not attended."""


_ALPHABET: Final = b"0123456789abcdefghjkmnpqrstvwxyz"
_ANY_BYTE_TO_ALPHABET: Final = _ALPHABET * 8
"""For ``bytes.translate``: 256 values onto 32 characters, each as likely as the others."""


def new_id(prefix: str) -> str:
    """``job_01m84bdq4t7w9k2p5x8r3n6v0c``: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32.

    Ids sort by creation time, and cannot be guessed.
    """
    # One random byte per character, and the time's part cached for its millisecond: 2 µs an id instead of 8 (measured).
    chance = secrets.token_bytes(16).translate(_ANY_BYTE_TO_ALPHABET).decode()
    return f"{prefix}_{_moment(time.time_ns() // 1_000_000)}{chance}"


def id_at(prefix: str, moment_ms: int) -> str:
    """Sorts before every id of that millisecond, and after all earlier ones. Nothing has it."""
    return f"{prefix}_{_moment(moment_ms)}{'0' * 16}"


SPAN_CHARS: Final = 5
"""Ids that begin with the same letters of the time belong to one span, of nine hours; see lib/labels.lua."""


def spans_between(newest: str, oldest: str) -> list[str]:
    """The spans of the ids of jobs from the newest to the oldest, both included."""
    last, first = [functools.reduce(_number, each[4 : 4 + SPAN_CHARS].encode(), 0) for each in (newest, oldest)]
    return [
        bytes(_ALPHABET[span >> shift & 31] for shift in range(5 * SPAN_CHARS - 5, -1, -5)).decode()
        for span in range(last, first - 1, -1)
    ]


def _number(so_far: int, digit: int) -> int:
    return so_far * 32 + _ALPHABET.index(digit)


def first_id_of(span: str) -> str:
    """Sorts before every id of a job of that span, and after those of earlier ones."""
    return f"job_{span:0<26}"


@functools.lru_cache(maxsize=1)
def _moment(moment_ms: int) -> str:
    return bytes(_ALPHABET[moment_ms >> shift & 31] for shift in range(45, -1, -5)).decode()


def prompt_hash_of(request: bytes) -> str:
    """What logs carry in place of a prompt."""
    return hashlib.sha256(request).hexdigest()[:12]
