"""Errors in the format of the Messages API: its envelope, its error types, and the headers that its SDK reads.

All errors on this surface's paths have this format, whoever raised them. None holds content of a request.
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
"""The SDK retries 408, 409, 429 and 5xx by itself, unless this header says not to."""


def is_on_surface(path: str) -> bool:
    """Whether the path belongs to the Messages API."""
    return path.startswith(_BELOW) or path in _PATHS


class Refusal(NamedTuple):
    """Why there is no answer."""

    status: int
    type: str
    """The error type, such as ``rate_limit_error``, which the SDK maps to an exception."""
    message: str
    may_retry: bool = True
    """Whether a retry makes sense. False keeps the SDK from its own."""
    retry_after_s: int | None = None


class ErrorBody(msgspec.Struct):
    """The error type and a message."""

    type: str
    message: str


class ErrorEnvelope(msgspec.Struct):
    """An error of the Messages API."""

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
    """The last frame of a stream that fails: if it just ended, the SDK would call it a success (seen in 0.75, 2.12)."""
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
    """The problem as a response, in the format of this surface."""
    response = refusal_response(refusal_of_problem(problem), request_id, headers)
    if isinstance(problem, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def refusal_of_problem(problem: Problem) -> Refusal:
    """The problem, in the terms of this surface."""
    status = 529 if isinstance(problem, QueueFull | StorageFull) else problem.status
    message = "; ".join([_named(error) for error in problem.errors]) or problem.detail
    # A budget is renewed with the next day or month. The SDK waits for a minute at most, and would retry in vain.
    may_retry = (status == 429 and not isinstance(problem, BudgetExceeded)) or (status >= 500 and status != 504)
    return Refusal(status, type_of(status), message, may_retry, problem.retry_after_s)


def _named(error: FieldError) -> str:
    """``#/messages/0/content`` → ``messages.0.content``, as the Messages API names it."""
    where = error.pointer.removeprefix("#").removeprefix("/").replace("/", ".")
    return f"{where or 'body'}: {error.detail}"
