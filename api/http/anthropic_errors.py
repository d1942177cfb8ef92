"""How a response on a path of the Messages API says that something went wrong: its envelope, its error types, its SDK's headers.

Everything on a path of this surface speaks so, whoever raised it. Nothing here ever holds content of a request.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from starlette.responses import Response

from shared.errors import (
    BudgetExceeded,
    FieldError,
    Problem,
    QueueFull,
    StorageFull,
    Unauthenticated,
)

_JSON: Final = "application/json"
_PATHS: Final = ("/v1/messages", "/v1/models")
_BELOW: Final = ("/v1/messages/", "/v1/models/")

NO_RETRY: Final = {"x-should-retry": "false"}
"""The SDK repeats 408, 409, 429 and 5xx by itself, unless a header says that this would be in vain."""


def is_on_surface(path: str) -> bool:
    """Whether responses on this path are in the words of the Messages API."""
    return path.startswith(_BELOW) or path in _PATHS


class Refusal(NamedTuple):
    """Why there is no answer."""

    status: int
    type: str
    """As the SDK maps it: ``rate_limit_error``."""
    message: str
    may_retry: bool = True
    """Whether the SDK's own retry makes sense, where it would make one."""
    retry_after_s: int | None = None


class ErrorBody(msgspec.Struct):
    """What is wrong."""

    type: str
    message: str


class ErrorEnvelope(msgspec.Struct):
    """What is sent."""

    type: str
    error: ErrorBody
    request_id: str


_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def type_of(status: int) -> str:
    """The error type that goes with a status."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def envelope(refusal: Refusal, request_id: str) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(ErrorEnvelope("error", ErrorBody(refusal.type, refusal.message), request_id))


def error_frame(refusal: Refusal, request_id: str) -> bytes:
    """The end of a stream that has begun: the SDK calls a stream that just ends a success (measured, 0.75 and 2.12)."""
    return b"event: error\ndata: %b\n\n" % envelope(refusal, request_id)


def refusal_response(refusal: Refusal, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """The refusal as a response."""
    response = Response(envelope(refusal, request_id), refusal.status, headers, _JSON)
    response.headers["Cache-Control"] = "no-store"
    if not refusal.may_retry:
        response.headers.update(NO_RETRY)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    return response


def problem_response(problem: Problem, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem, in the words of this surface."""
    response = refusal_response(refusal_of_problem(problem), request_id, headers)
    if isinstance(problem, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def refusal_of_problem(problem: Problem) -> Refusal:
    """What is wrong with the request, or with us."""
    status = 529 if isinstance(problem, QueueFull | StorageFull) else problem.status
    message = "; ".join([_named(error) for error in problem.errors]) or problem.detail
    # A budget comes back when a day begins: the SDK would try again at once, since it waits for a minute at most.
    may_retry = (status == 429 and not isinstance(problem, BudgetExceeded)) or (status >= 500 and status != 504)
    return Refusal(status, type_of(status), message, may_retry, problem.retry_after_s)


def _named(error: FieldError) -> str:
    """``#/messages/0/content`` → ``messages.0.content``, as the Messages API names it."""
    where = error.pointer.removeprefix("#").removeprefix("/").replace("/", ".")
    return f"{where or 'body'}: {error.detail}"
