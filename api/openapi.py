"""The OpenAPI document: what FastAPI finds in the routes, and what it cannot see: bodies, responses, streams, problems.

We read bodies and encode responses ourselves, so each route declares both in its ``@operation``. pydantic makes the
schemas of bodies from their models, msgspec those of responses from their types.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core.core_schema import WithDefaultSchema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.http.anthropic_errors import ErrorEnvelope, is_on_surface
from api.http.errors import PROBLEM_JSON, ProblemDocument
from api.http.headers import EVENT_STREAM, JSON

Schema = dict[str, Any]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

DESCRIPTION: Final = (
    "Submit a completion and get a job id within milliseconds. Poll, wait, or follow the tokens as they are generated; "
    "disconnect and resume at any token. Errors are RFC 9457 problem documents. Under /v1/messages and /v1/models, which "
    "are Anthropic's Messages API, they have that API's error envelope."
)

_SCHEMAS: Final = "#/components/schemas/"

_STATUSES: Final = {
    400: "The request is not valid. Its invalid fields are named, never their content.",
    401: "No valid API key.",
    403: "The API key lacks the scope, or would grant more than it has.",
    404: "It does not exist, or is another tenant's.",
    406: "Accept allows none of the media types offered.",
    409: "The job or batch has not ended, or has nothing to retry; the API key has ended, or there are too many keys.",
    413: "The body is too large.",
    415: "The body is not JSON, or is compressed.",
    422: "The Idempotency-Key was used with another body.",
    429: "The LLM's rate limit or one of the caller's is reached, or the tenant has too many reads in progress.",
    500: "There is no answer. x-should-retry says whether a retry makes sense.",
    502: "The LLM gave no answer.",
    503: "The service is full, or cannot reach Redis; see Retry-After.",
    504: "The LLM did not answer in time.",
    529: "The LLM is overloaded, or the queue is full.",
}

# Statuses of errors that many routes share.
LISTS: Final = (400, 401, 429, 503)
READS: Final = (*LISTS, 404)
SUBMITS: Final = (400, 401, 404, 413, 415, 422, 429, 503)
RETRIES: Final = (*READS, 409, 422)


# --- what a route declares ---


class _Operation(NamedTuple):
    responses: Mapping[int, Schema]
    errors: Iterable[int]
    body: Schema | None
    parameters: Sequence[Schema]
    is_open: bool


_operations: Final[dict[Callable[..., Any], _Operation]] = {}
_kinds: Final[dict[str, type]] = {}
_by_hand: Final[dict[str, Schema]] = {}


def operation(
    responses: Mapping[int, Schema],
    errors: Iterable[int] = (),
    *,
    body: Schema | None = None,
    parameters: Sequence[Schema] = (),
    is_open: bool = False,
) -> Callable[[Endpoint], Endpoint]:
    """Declares what the document says of a route, in addition to what FastAPI finds.

    ``errors``: the statuses of its errors; 401 brings 403 with it. ``is_open``: callers without a key get a response
    too, though not all of it.
    """

    def note(endpoint: Endpoint) -> Endpoint:
        _operations[endpoint] = _Operation(responses, errors, body, parameters, is_open)
        return endpoint

    return note


def ref(kind: type) -> Schema:
    """A reference to the schema made from a body's model or a response's type."""
    _kinds[kind.__name__] = kind
    return {"$ref": _SCHEMAS + kind.__name__}


def named(name: str, schema: Schema) -> Schema:
    """A reference to a schema written by hand, for what no type of ours describes."""
    _by_hand[name] = schema
    return {"$ref": _SCHEMAS + name}


def content(schema: Schema, description: str, media_type: str = JSON) -> Schema:
    """A response with a body."""
    return {"description": description, "content": {media_type: {"schema": schema}}}


def json_of(kind: type, description: str) -> Schema:
    """A response with an object of this type as JSON."""
    return content(ref(kind), description)


def stream(example: str, **more: Any) -> Schema:
    """The content of a streamed response. Its schema has no type: a tool may apply a type to the whole stream or to
    each event, and neither would fit.
    """
    return {EVENT_STREAM: {"schema": {"description": "Frames of server-sent events."}, "example": example, **more}}


def nothing(description: str) -> Schema:
    """A response without a body."""
    return {"description": description}


def body_of(kind: type, others: Mapping[str, Schema] | None = None, *, required: bool = True) -> Schema:
    """A request body. ``others``: the schemas of other forms that it may have, by media type."""
    contents = {JSON: ref(kind), **(others or {})}
    return {
        "required": required,
        "content": {media_type: {"schema": schema} for media_type, schema in contents.items()},
    }


def header(name: str, description: str, **schema: Any) -> Schema:
    """A parameter in a header."""
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", **schema}}


def query(name: str, description: str, schema: Schema) -> Schema:
    """A parameter in the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


def query_names(endpoint: Callable[..., Any]) -> list[str]:
    """The query parameters that a route declares here. ``metadata.*`` stands for all that begin with ``metadata.``."""
    declared = _operations.get(endpoint)
    return [
        f"{parameter['name']}.*" if parameter["schema"].get("type") == "object" else parameter["name"]
        for parameter in (declared.parameters if declared is not None else ())
        if parameter["in"] == "query"
    ]


IDEMPOTENCY_KEY: Final = header(
    "Idempotency-Key",
    "1 to 255 printable characters. The same key with the same body finds the first job.",
    pattern=r'^([!#-~]([ -~]{0,253}[!-~])?|"[!#-\[\]-~]{1,255}")$',
)
LAST_EVENT_ID: Final = header(
    "Last-Event-ID",
    "The id of the last event that the client has. It takes precedence over after.",
    pattern=r"^([0-9]{1,15}-[0-9]{1,10})?$",
)
_TENANT: Final = header("X-Tenant", "The tenant, if TOKENSPOOL_AUTH is off.", pattern="^[A-Za-z0-9_.-]{1,64}$")

_SECURITY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key. Not needed if TOKENSPOOL_AUTH is off.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same API key, for clients that send it in this header.",
    },
}


# --- the schemas of bodies ---


class _Plain(GenerateJsonSchema):
    """Without titles, which only repeat names, and without null defaults, even of members that may not be null."""

    def field_title_should_be_set(self, _schema: Any) -> bool:
        return False

    def default_schema(self, schema: WithDefaultSchema) -> Schema:
        return (
            super().default_schema(schema)
            if schema.get("default") is not None
            else self.generate_inner(schema["schema"])
        )


def schemas_of(models: Iterable[type[BaseModel]]) -> dict[str, Schema]:
    """The schemas of these models, and of all that they refer to, by name."""
    wanted = [(model, "validation") for model in models]
    _, schema = models_json_schema(wanted, ref_template=_SCHEMAS + "{model}", schema_generator=_Plain)  # type: ignore[arg-type]
    found: dict[str, Schema] = schema.get("$defs", {})
    return found


# --- the document ---


def describe(app: FastAPI) -> None:
    """Completes ``app.openapi()``, and serves the document at /openapi.json, encoded once.

    FastAPI would encode it for each request. That takes 3.4 ms, so a few clients without a key could keep a process
    busy (measured with slowhttptest -X: ten times the p99 of others).
    """
    generate = app.openapi
    complete: Schema = {}

    def openapi() -> Schema:
        if not complete:
            complete.update(_completed(generate(), app))
        return complete

    app.openapi = openapi  # type: ignore[method-assign] # the way that FastAPI documents
    encoded = functools.cache(lambda: msgspec.json.encode(openapi()))

    async def document(_: Request) -> Response:
        return Response(encoded(), media_type=JSON)

    app.add_route("/openapi.json", document, include_in_schema=False)


def _completed(schema: Schema, app: FastAPI) -> Schema:
    for route in app.router.routes:
        if isinstance(route, Route) and (declared := _operations.get(route.endpoint)) is not None:
            path = re.sub(r":\w+\}", "}", route.path)
            for method in (route.methods or set()) - {"HEAD"}:
                found = schema["paths"].setdefault(path, {}).setdefault(method.lower(), _seen_by_us(route))
                found |= _described(declared, path, found.get("parameters", []))
    models = [kind for kind in _kinds.values() if issubclass(kind, BaseModel)]
    types = [kind for kind in _kinds.values() if not issubclass(kind, BaseModel)]
    _, encoded = msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    schema["components"] = {
        "schemas": {**schemas_of(models), **encoded, **_by_hand},
        "securitySchemes": _SECURITY_SCHEMES,
    }
    return schema


def _seen_by_us(route: Route) -> Schema:
    """What FastAPI says of its own routes, for a route that is Starlette's."""
    return {
        "summary": route.name.replace("_", " ").title(),
        "description": inspect.cleandoc(route.endpoint.__doc__ or ""),
        "operationId": route.name,
    }


def _described(declared: _Operation, path: str, parameters: Sequence[Schema]) -> Schema:
    errors = {*declared.errors, 403} if 401 in declared.errors else declared.errors
    kind, media_type = (ErrorEnvelope, JSON) if is_on_surface(path) else (ProblemDocument, PROBLEM_JSON)
    refusals = {status: content(ref(kind), _STATUSES[status], media_type) for status in errors}
    of_tenant = [_TENANT] if path.startswith(("/v1/", "/complete")) else []
    described: Schema = {
        # Not FastAPI's own: its 422 for invalid requests is a 400 here.
        "responses": {str(status): response for status, response in sorted({**declared.responses, **refusals}.items())},
    }
    if all_parameters := [*parameters, *declared.parameters, *of_tenant]:
        described["parameters"] = all_parameters
    if declared.body is not None:
        described["requestBody"] = declared.body
    if 401 in declared.errors or declared.is_open:
        described["security"] = [*([{}] if declared.is_open else []), *({name: []} for name in _SECURITY_SCHEMES)]
    return described
