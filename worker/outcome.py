"""How an attempt at the LLM can end, as values; and ``classify``: the one place that says what a failure is.

What the upstream said is classified by its error type first and its HTTP status second: an ``error`` event inside a
stream comes with status 200 (measured on the official SDK, anthropic-sdk-python#1258).
"""

from enum import Enum
from typing import Final, NamedTuple

from shared.errors import JobError
from shared.job import Usage
from worker.rate_limit_headers import Allowance


class Answered(NamedTuple):
    """The answer is complete, or the tokens are counted."""

    result: bytes
    """The job's ``result``, as JSON."""
    usage: Usage | None
    """None for a count of tokens, which uses none."""
    first_content_s: float | None
    """Seconds from the claim to the first content."""


class Failure(NamedTuple):
    """The attempt failed."""

    error: JobError
    retry_after_s: float | None = None
    """What the upstream's Retry-After asks for, uncapped."""
    allowance: Allowance | None = None
    """What the response's headers say about limits."""
    how: "How | None" = None
    """What broke, if the upstream itself reported no error."""
    has_stand_in: bool = False
    """Whether a fallback is called next, at once."""
    is_last: bool = False
    """Whether another attempt is forbidden, because followers have output that cannot be retracted."""
    own_words: str = ""
    """The error's message without what the upstream said, if it said something."""

    @property
    def is_retryable(self) -> bool:
        """Whether another attempt may help. After a timeout it cannot, although the caller may retry with a new job."""
        return self.error.retryable and self.error.code != "timeout" and not self.is_last

    @property
    def is_trouble(self) -> bool:
        """Whether it shows trouble of the upstream itself, not just of this call."""
        return self.error.code in _TROUBLE and self.how not in NO_VERDICT

    @property
    def is_of_route(self) -> bool:
        """Whether it concerns all who use the route: trouble, its limits, our API key, or a base URL that redirects.
        Another refusal concerns one caller's request.
        """
        status = self.error.upstream_status or 0
        return self.is_trouble or self.error.code == "upstream_rate_limited" or status == 401 or 300 <= status < 400

    @property
    def opens_circuit(self) -> bool:
        """True for trouble, and for a rate limit without a Retry-After: only calls, one at a time, show when it is over."""
        return self.is_trouble or (self.error.code == "upstream_rate_limited" and not self.retry_after_s)


Outcome = Answered | Failure


class UpstreamError(Exception):
    """How a provider reports a failure. ``was_asked``: whether a request went out, or at least tried to."""

    def __init__(self, failure: Failure, *, was_asked: bool = True) -> None:
        super().__init__(failure.error.code)
        self.failure = failure
        self.was_asked = was_asked


class Refusal(NamedTuple):
    """The upstream reported an error: with a response, or with an event inside a stream."""

    status: int | None = None
    """None: it came inside a stream."""
    error_type: str | None = None
    message: str = ""
    retry_after_s: float | None = None
    code: str | None = None
    """OpenAI's more exact code. It wins over the type: ``invalid_api_key`` has the type ``invalid_request_error``."""


class How(Enum):
    """The ways to fail without an error from the upstream."""

    UNREACHABLE = "no connection to it"
    UNHEARD = "it closed the connection without an answer"
    UNANSWERED = "it did not answer in time"
    SILENT = "no content in time"
    """The first-token timer; pings are no content."""
    STALLED = "its content stopped"
    """The content-idle timer."""
    IMPATIENT = "no content within the job's own limit"
    """One of these two timers, which the job had set shorter than the settings do."""
    CUT = "the connection was cut"
    ENDED_EARLY = "it ended before the answer was complete"
    GARBLED = "it sent what no answer contains"
    """A habit of the server: its bytes arrived intact, but their meaning is in doubt."""
    FAULTY = "calling it failed"
    """On our side, in an SDK or below it."""
    OUT_OF_TIME = "the job's time is over"


class Breakage(NamedTuple):
    """The transport or the stream broke, or a timer ran out."""

    how: How
    detail: str = ""
    """More exact than ``how``. Never holds content."""


def classify(evidence: Refusal | Breakage) -> Failure:
    """Turns what happened into the job's error. For an unknown type the status decides: 3xx and 4xx are final, others retried."""
    match evidence:
        case Refusal(status, error_type, message, retry_after_s, code):
            kind = _BY_TYPE.get(code or "") or _BY_TYPE.get(error_type or "") or _BY_STATUS.get(status or 0)
            if kind is None:
                kind = _REJECTED if status is not None and 300 <= status < 500 else _ERROR
            named = code or error_type
            said = f" ({_readable(named, 64)})" if named else ""
            detail = f": {_readable(message, 500).rstrip('.')}" if message else ""
            if retry_after_s and retry_after_s >= 1:
                detail += f"; it asks to retry in {retry_after_s:.0f} s"
            error = _error_of(kind, f"{kind.sentence}{said}{detail}.", status)
            return Failure(error, retry_after_s, own_words=f"{kind.sentence}.")
        case Breakage(How.OUT_OF_TIME):
            return TIMED_OUT
        case Breakage(how, detail):
            kind = _TRUNCATED if how in _BROKE_OFF else _ERROR
            return Failure(_error_of(kind, f"{kind.sentence}: {detail or how.value}."), how=how)


def _error_of(kind: "_Kind", message: str, status: int | None = None) -> JobError:
    return JobError(kind.code, message, kind.retryable, status)


def _readable(text: str, most: int) -> str:
    """The text, cut to ``most`` characters and without lone surrogates, which our encoders refuse."""
    return text[:most].encode(errors="replace").decode()


TIMED_OUT: Final = Failure(
    JobError("timeout", "The job was not done within its timeout_s.", retryable=True), how=How.OUT_OF_TIME
)
"""The job's own time is over. No other attempt is made: there is no time left for it."""

CUT_SHORT: Final = Failure(
    JobError(
        "worker_lost",
        "The worker was lost or stopped after the start of the answer, which cannot be retracted: send the request again.",
        retryable=True,
    ),
    is_last=True,
)
"""Followers have a part of the answer from an earlier claim, and their protocol has no ``reset``."""


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
    # OpenAI's codes and types, and those of llama.cpp and Moonshot. Others go by their type or status.
    "context_length_exceeded": _REJECTED,
    "content_policy_violation": _REJECTED,
    "exceed_context_size_error": _REJECTED,
    "insufficient_quota": _REJECTED,  # a 429, but waiting does not help
    "billing_hard_limit_reached": _REJECTED,
    "billing_not_active": _REJECTED,
    "model_not_found": _REJECTED,
    "not_supported_error": _REJECTED,  # with status 501
    "invalid_api_key": _AUTH,
    "account_deactivated": _AUTH,
    "rate_limit_exceeded": _RATE_LIMITED,
    "engine_overloaded": _OVERLOADED,
    "engine_overloaded_error": _OVERLOADED,
    "unavailable_error": _OVERLOADED,  # the model is still being loaded
}

_BY_STATUS: Final[dict[int, _Kind]] = {
    401: _AUTH,
    403: _AUTH,
    408: _ERROR,
    409: _ERROR,
    429: _RATE_LIMITED,
    529: _OVERLOADED,
}

_BROKE_OFF: Final = frozenset((How.CUT, How.ENDED_EARLY, How.GARBLED))
"""Failures of an answer that had begun to arrive."""

NO_VERDICT: Final = frozenset((How.GARBLED, How.IMPATIENT, How.FAULTY, How.OUT_OF_TIME))
"""Failures that say nothing about the upstream's health: it may be fine for all other calls."""

_TROUBLE: Final = frozenset(kind.code for kind in (_OVERLOADED, _ERROR, _TRUNCATED))
