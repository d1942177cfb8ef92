"""The one error tree.

TokenspoolError
├── SettingsError                    a setting is wrong; the message is the sentence to print
└── Problem                          an error response to an API caller; rendered as RFC 9457 by api/http/errors.py
    ├── InvalidRequest      400      body, query or header; names the fields, never their content
    ├── InvalidCursor       400
    ├── Unauthenticated     401
    ├── Forbidden           403
    │   └── TenantErased        the tenant is being erased
    ├── NotFound            404      the same for absent ids and for another tenant's
    ├── MethodNotAllowed    405
    ├── NotAcceptable       406
    ├── RequestTimeout      408      the head did not arrive in time
    ├── NotEnded            409      only an ended job can be erased or retried
    ├── KeyEnded            409      a revoked or expired key cannot be rotated
    ├── TooManyKeys         409
    ├── TooLarge            413
    ├── UnsupportedMediaType 415
    ├── IdempotencyKeyReused 422
    ├── HeadTooLarge        431
    ├── RateLimited         429 ┐    a limit of the key, the tenant or the address; with Retry-After and the fields of
    │   ├── TooManyQueued       │    RateLimit
    │   └── BudgetExceeded      ┘
    ├── QueueFull           503 ┐
    ├── StorageFull         503 │    with Retry-After
    ├── StorageUnavailable  503 │
    │   └── TooManyReads    429 │
    ├── TooManyConnections  503 │
    ├── ServerStopping      503 ┘
    ├── UpstreamFailed      502      how the job of a /complete ended; the code is that of the job's error
    │   ├── UpstreamRateLimited 429
    │   └── UpstreamTimeout 504
    └── InternalError       500

How a job failed is not an exception but a value: ``JobError``, stored in the record.
"""

from collections.abc import Sequence

import msgspec

from shared.limits import LimitState, ReachedLimit


class TokenspoolError(Exception):
    """Base of every error that we raise on purpose."""


class SettingsError(TokenspoolError):
    """The message is one sentence: the variable, what was expected, what it was."""


class FieldError(msgspec.Struct, frozen=True):
    """One field that is not valid. ``pointer`` is a JSON pointer as a URI fragment (RFC 6901), or a header's name."""

    pointer: str
    detail: str


class Problem(TokenspoolError):
    """An error response to an API caller. ``detail`` never holds content of the request."""

    status = 500
    code = "internal_error"
    title = "Internal error"
    retry_after_s: int | None = None
    reason = ""
    """For operators, in logs and on the command line; not sent to callers."""

    def __init__(
        self, detail: str = "", *, errors: Sequence[FieldError] = (), retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or f"{self.title}."
        self.errors = tuple(errors)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class InvalidRequest(Problem):
    """The body, the query or a header is not valid."""

    status, code, title = 400, "invalid_request", "The request is not valid"


class InvalidCursor(Problem):
    """A cursor or ``Last-Event-ID`` that this API did not issue."""

    status, code, title = 400, "invalid_cursor", "The cursor is not valid"


class Unauthenticated(Problem):
    """No valid API key."""

    status, code, title = 401, "unauthenticated", "A valid API key is needed"


class Forbidden(Problem):
    """The key lacks the scope."""

    status, code, title = 403, "forbidden", "This key may not do that"


class TenantErased(Forbidden):
    """The tenant is being erased: nothing new of it is taken until that is done."""

    code, title = "tenant_being_erased", "The tenant is being erased"


class NotFound(Problem):
    """It does not exist, or belongs to another tenant: the response is the same."""

    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(Problem):
    """The path does not allow the method; ``Allow`` names those that it does."""

    status, code, title = 405, "method_not_allowed", "This path does not allow the method"


class NotAcceptable(Problem):
    """None of the media types in ``Accept`` is available."""

    status, code, title = 406, "not_acceptable", "None of the accepted media types is available"


class NotEnded(Problem):
    """The job or batch has not ended yet, or has nothing to retry."""

    status, code, title = 409, "not_ended", "The job or batch is not in a state that allows this"


class KeyEnded(Problem):
    """The API key is revoked or expired: create a new one."""

    status, code, title = 409, "key_ended", "The key is revoked or expired"


class TooManyKeys(Problem):
    """The tenant has reached the number of API keys that can be created over HTTP; revoked and expired keys count for 90 days.
    ``tokenspool keys create`` has no such limit.
    """

    status, code, title = 409, "too_many_keys", "The tenant has too many keys"


class TooLarge(Problem):
    """The body is larger than its limit."""

    status, code, title = 413, "too_large", "The request is too large"


class UnsupportedMediaType(Problem):
    """The body is not JSON, or is compressed."""

    status, code, title = 415, "unsupported_media_type", "The media type is not supported"


class IdempotencyKeyReused(Problem):
    """The Idempotency-Key was used with another body: send a new key for a new request."""

    status, code, title = 422, "idempotency_key_reused", "The Idempotency-Key was used with another body"


class RateLimited(Problem):
    """The key, the tenant or the address has used up its requests or tokens of the last minute."""

    status, code, title = 429, "rate_limited", "The rate limit is reached"

    def __init__(
        self, detail: str, *, retry_after_s: int, reached: ReachedLimit, limits: Sequence[LimitState] = ()
    ) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.reached = reached
        self.limits = tuple(limits)


class TooManyQueued(RateLimited):
    """The key or the tenant has as many waiting jobs, batch items included, or as many bytes of requests, as its limit allows."""

    code, title = "too_many_queued", "The limit of waiting jobs is reached"


class BudgetExceeded(RateLimited):
    """The key or the tenant has spent its budget for the day or the month (UTC)."""

    code, title = "budget_exceeded", "The budget is spent"


class QueueFull(Problem):
    """The queue is full (``TOKENSPOOL_MAX_QUEUED``), or too many large bodies or batches are being received."""

    status, code, title, retry_after_s = 503, "queue_full", "The queue is full", 10


class StorageFull(Problem):
    """Redis is near or at its ``maxmemory``."""

    status, code, title, retry_after_s = 503, "storage_full", "The storage is full", 30


class StorageUnavailable(Problem):
    """Redis did not reply in time. Whether a write happened is unknown: repeat it with its Idempotency-Key."""

    status, code, title, retry_after_s = 503, "storage_unavailable", "The storage does not reply", 2

    def __init__(self, detail: str = "", *, reason: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


class TooManyReads(StorageUnavailable):
    """The tenant's other reads used its whole share for 10 s: send fewer reads at once. Other tenants are not affected."""

    # A StorageUnavailable, so that code which waits for Redis waits for this too.
    status, code, title = 429, "too_many_reads", "This tenant is reading too much at once"


class ServerStopping(Problem):
    """The process is stopping: send the request again, to another one."""

    status, code, title, retry_after_s = 503, "server_stopping", "The server is stopping", 1


class RequestTimeout(Problem):
    """The request's head did not arrive completely in time."""

    status, code, title = 408, "request_timeout", "The request did not arrive in time"


class HeadTooLarge(Problem):
    """More than 64 KiB of target and headers, or of trailers and other frames of a chunked body; or more than 100 headers."""

    status, code, title = 431, "head_too_large", "The head of the request is too large"


class TooManyConnections(Problem):
    """The process, or the tenant in it, has as many connections open as it may."""

    status, code, title, retry_after_s = 503, "too_many_connections", "Too many connections are open", 5


class UpstreamFailed(Problem):
    """The job of a call that waits for its answer did not succeed. ``code`` is one of JOB_ERROR_CODES."""

    status, code, title = 502, "upstream_error", "The LLM gave no answer"

    def __init__(self, detail: str = "", *, code: str | None = None) -> None:
        super().__init__(detail)
        if code is not None:
            self.code = code


class UpstreamRateLimited(UpstreamFailed):
    """The LLM's rate limit held for longer than the caller may wait."""

    status, code, title, retry_after_s = 429, "upstream_rate_limited", "The LLM's rate limit is reached", 10


class UpstreamTimeout(UpstreamFailed):
    """The answer was not complete in time."""

    status, code, title = 504, "timeout", "The LLM did not answer in time"


class InternalError(Problem):
    """A bug in tokenspool: report it with its ``request_id``."""


class JobError(msgspec.Struct, frozen=True):
    """Why a job did not succeed: the ``error`` of its record. Never holds a prompt or an answer."""

    code: str
    """One of JOB_ERROR_CODES."""
    message: str
    retryable: bool
    upstream_status: int | None = None


INVALID_LINE = "invalid_line"

JOB_ERROR_CODES: dict[str, str] = {
    "upstream_rejected": "The LLM refused the request as invalid.",
    "upstream_auth": "The LLM refused our credentials.",
    "upstream_rate_limited": "The LLM's rate limit held for longer than the job may take.",
    "upstream_overloaded": "The LLM was overloaded on every attempt.",
    "upstream_error": "The LLM failed on every attempt.",
    "upstream_truncated": "The LLM's answer broke off on every attempt.",
    "timeout": "The job was not done within its timeout_s.",
    "worker_lost": "The workers that ran the job died repeatedly.",
    INVALID_LINE: "The request in the batch is not valid; no job was made of it.",
}
