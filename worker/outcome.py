"""How an attempt at the LLM can end, as values; and the one table that says which failures are worth another attempt.

Classified by the upstream's error type first and its HTTP status second: an ``error`` event inside a stream comes
with status 200 (measured on the official SDK, anthropic-sdk-python#1258).
"""

from typing import Final, NamedTuple

from shared.errors import JobError
from shared.job import Usage


class Answered(NamedTuple):
    """The whole answer is there."""

    result: bytes
    """As the job will show it, JSON."""
    usage: Usage
    first_content_s: float | None
    """Since the claim."""


class Failure(NamedTuple):
    """The attempt failed."""

    error: JobError
    retry_after_s: float | None = None
    """What the upstream asked for, uncapped."""


Outcome = Answered | Failure


class UpstreamError(Exception):
    """How a provider reports a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.code)
        self.failure = failure


class _Kind(NamedTuple):
    code: str
    retryable: bool
    sentence: str


_REJECTED: Final = _Kind("upstream_rejected", False, "The LLM refused the request")
_AUTH: Final = _Kind("upstream_auth", False, "The LLM refused our credentials")
_RATE_LIMITED: Final = _Kind("upstream_rate_limited", True, "The LLM's rate limit was reached")
_OVERLOADED: Final = _Kind("upstream_overloaded", True, "The LLM was overloaded")
_ERROR: Final = _Kind("upstream_error", True, "The LLM failed")
_TRUNCATED: Final = _Kind("upstream_truncated", True, "The LLM's answer broke off")

_BY_TYPE: Final[dict[str, _Kind]] = {
    "invalid_request_error": _REJECTED,
    "billing_error": _REJECTED,
    "not_found_error": _REJECTED,
    "request_too_large": _REJECTED,
    "authentication_error": _AUTH,
    "permission_error": _AUTH,
    "rate_limit_error": _RATE_LIMITED,
    "overloaded_error": _OVERLOADED,
    "timeout_error": _ERROR,
    "conflict_error": _ERROR,
    "api_error": _ERROR,
}

_BY_STATUS: Final[dict[int, _Kind]] = {
    401: _AUTH,
    403: _AUTH,
    408: _ERROR,
    409: _ERROR,
    429: _RATE_LIMITED,
    529: _OVERLOADED,
}


def failure_of(
    *, status: int | None, error_type: str | None, message: str = "", retry_after_s: float | None = None
) -> Failure:
    """From what the upstream said. Unknown types go by the status: 4xx is final, everything else is retried."""
    kind = _BY_TYPE.get(error_type or "") or _BY_STATUS.get(status or 0)
    if kind is None:
        kind = _REJECTED if status is not None and 400 <= status < 500 else _ERROR
    said = f" ({_readable(error_type, 64)})" if error_type else ""
    detail = f": {_readable(message, 500)}" if message else ""
    return Failure(JobError(kind.code, f"{kind.sentence}{said}{detail}.", kind.retryable, status), retry_after_s)


def _readable(text: str, most: int) -> str:
    """Cut, and without lone surrogates: no encoder of ours takes one."""
    return text[:most].encode(errors="replace").decode()


def broken(what: str) -> Failure:
    """The connection failed, or a timer ran out, before the answer was whole."""
    return Failure(JobError(_ERROR.code, f"{_ERROR.sentence}: {what}.", _ERROR.retryable))


def truncated(what: str) -> Failure:
    """The stream ended, or turned to rubbish, before ``message_stop`` and a stop reason."""
    return Failure(JobError(_TRUNCATED.code, f"{_TRUNCATED.sentence}: {what}.", _TRUNCATED.retryable))


TIMED_OUT: Final = Failure(JobError("timeout", "The job was not done within its timeout_s.", retryable=True))
"""The job's own time is over. Not tried again: there is no time left to do it in."""
