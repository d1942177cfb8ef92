"""Errors as RFC 9457 problem documents, whoever raised them: our routes, FastAPI's validation or Starlette's router.

A document never holds content of the request; its ``type`` is the path of a page that this API serves. On the paths of
the Messages API the same errors have that API's own envelope.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from api.http import anthropic_errors
from api.http.headers import is_of_an_sdk
from api.http.invalid import BODY, is_name, refuse, sentence_of
from api.http.rate_limit_headers import headers_of
from shared.clock import to_rfc3339
from shared.errors import (
    FieldError,
    Forbidden,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    Problem,
    RateLimited,
    TooLarge,
    Unauthenticated,
    UnsupportedMediaType,
)
from shared.limits import NANO_USD, LimitOf, ReachedLimit

PROBLEM_JSON: Final = "application/problem+json"
REQUEST_ID: Final = "tokenspool.request_id"
"""The scope's key for the request id. The envelope sets it (api/edge/middleware.py)."""

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class SdkError(msgspec.Struct):
    """The member that vendors' SDKs read: without it they report "404 status code (no body)"."""

    message: str
    type: str
    code: str
    param: str | None
    """The first invalid field."""


class RefusedBy(msgspec.Struct):
    """The limit that refused a submit, in a 429. Of several, the one that refuses it for the longest."""

    of: LimitOf
    name: str
    """As in ``/v1/limits``. ``usd_per_day`` and ``usd_per_month`` are in dollars."""
    limit: float
    used: float
    needed: int
    """What the request needs of it; 0 for a budget."""
    opens_at: str | None
    """When the same request would be accepted if nothing else came; null if that is not a matter of time."""


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """An error, as an RFC 9457 problem document."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    limit: RefusedBy | None = None
    """Only for a limit of the key, the tenant or the address."""
    request_id: str = ""
    error: SdkError | None = None
    """Only for a vendor's SDK."""


def document(problem: Problem, request_id: str, *, for_sdk: bool = False) -> bytes:
    """The problem as one line of JSON."""
    return msgspec.json.encode(
        ProblemDocument(
            type=f"/problems/{problem.code}",
            title=problem.title,
            status=problem.status,
            code=problem.code,
            detail=problem.detail,
            errors=problem.errors,
            limit=_refused_by(problem.reached) if isinstance(problem, RateLimited) else None,
            request_id=request_id,
            error=_sdk_error_of(problem) if for_sdk else None,
        )
    )


def _refused_by(reached: ReachedLimit) -> RefusedBy:
    limit: float = reached.limit
    used: float = reached.used
    if reached.name.startswith("usd"):
        limit, used = limit / NANO_USD, used / NANO_USD
    opens_at = None if reached.opens_ms is None else to_rfc3339(reached.opens_ms)
    return RefusedBy(reached.of, reached.name, limit, used, reached.needed, opens_at)


def _sdk_error_of(problem: Problem) -> SdkError:
    refusal = anthropic_errors.refusal_of_problem(problem)
    param = problem.errors[0].pointer.removeprefix("#").removeprefix("/").replace("/", ".") if problem.errors else None
    return SdkError(refusal.message, anthropic_errors.type_of(problem.status), problem.code, param or None)


def request_id_of(request: Request) -> str:
    """The id of this request in responses and logs."""
    return str(request.scope.get(REQUEST_ID, ""))


def problem_response(
    problem: Problem, request_id: str, headers: Mapping[str, str] | None = None, *, for_sdk: bool = False
) -> Response:
    """The problem as a response."""
    response = Response(document(problem, request_id, for_sdk=for_sdk), problem.status, headers, PROBLEM_JSON)
    response.headers["Cache-Control"] = "no-store"
    if problem.retry_after_s is not None:
        response.headers["Retry-After"] = str(problem.retry_after_s)
    if isinstance(problem, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def error_response(scope: Scope, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem in the format of the surface that was called."""
    on_surface = anthropic_errors.is_on_surface(scope["path"])
    if isinstance(problem, RateLimited):
        headers = {**(headers or {}), **headers_of(problem.limits, on_messages_surface=on_surface)}
    request_id = str(scope.get(REQUEST_ID, ""))
    if on_surface:
        return anthropic_errors.problem_response(problem, request_id, headers)
    return problem_response(problem, request_id, headers, for_sdk=is_of_an_sdk(scope))


def add_handlers(app: FastAPI) -> None:
    """Makes every error that a route or the router raises a response."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_problem(request: Request, problem: Any) -> Response:
    return error_response(request.scope, problem)


async def _on_invalid_parameters(request: Request, error: Any) -> Response:
    fields = [FieldError(_name_of(found["loc"]), sentence_of(found)) for found in error.errors()]
    return error_response(request.scope, refuse(*fields))


def _name_of(location: tuple[Any, ...]) -> str:
    """The query parameter's name. It may be repeated to the sender, since only declared parameters are validated."""
    name = str(location[-1]) if location else ""
    return name if is_name(name) else BODY


async def _on_http_exception(request: Request, error: Any) -> Response:
    if error.status_code == MethodNotAllowed.status:
        allow = {"Allow": ", ".join(_allowed_methods(request))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return error_response(request.scope, MethodNotAllowed(), allow)
    if error.status_code == NotFound.status:  # raised by the router: routes raise Problem
        return error_response(request.scope, NotFound(_NO_PATH + _hint_of(request.scope["path"])))
    problem = _PROBLEMS.get(error.status_code, InvalidRequest if error.status_code < 500 else InternalError)
    return error_response(request.scope, problem())


def _hint_of(path: str) -> str:
    """Advice on the base URL: some clients add /v1 to it themselves, others do not."""
    if path.startswith("/v1/v1/"):
        return " Remove /v1 from the base URL: the client adds it."
    return " Append /v1 to the base URL." if anthropic_errors.is_on_surface("/v1" + path) else ""


_NO_PATH: Final = "This path is not served: see /openapi.json for those that are."
_PROBLEMS: Final[dict[int, type[Problem]]] = {
    kind.status: kind for kind in (Unauthenticated, Forbidden, NotFound, NotAcceptable, TooLarge, UnsupportedMediaType)
}


def _allowed_methods(request: Request) -> list[str]:
    """All methods of the path: Starlette's own Allow has only those of the first matching route."""
    scope = dict(request.scope)
    found = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return sorted({*found, "OPTIONS", *(["HEAD"] if "GET" in found else [])})
