"""The OpenAPI document: what FastAPI finds in the routes, and what it cannot see: bodies, answers, streams, problems.

Bodies are read by ourselves and answers encoded by ourselves, so both stand here as data. Answers' schemas are made from
the types that are encoded.
"""

import functools
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.anthropic_compat.batch_view import MessageBatch, MessageBatchPage
from api.anthropic_compat.models import DEFAULT_LIMIT, MOST_LIMIT, ModelPage
from api.anthropic_compat.models import Model as AnthropicModel
from api.batches.results import JSON_LINES, ResultLine
from api.http.anthropic_errors import ErrorEnvelope, is_on_surface
from api.http.errors import PROBLEM_JSON, ProblemDocument
from api.http.headers import EVENT_STREAM, JSON
from api.http.rotation import DEFAULT_GRACE_S, MOST_GRACE_S
from api.jobs.request import DEFAULT_MAX_TOKENS, MOST_MODEL_CHARS
from api.native.complete import DEFAULT_MAX_TOKENS as COMPLETE_MAX_TOKENS
from api.native.complete import MOST_MAX_TOKENS, MOST_PROMPT_CHARS, Answer
from api.native.usage import UsageReport
from api.native.webhooks import DeliveryPage, DeliveryView, SecretView
from api.ops.api_keys import (
    MOST_EXPIRES_IN_S,
    MOST_NAME_CHARS,
    MOST_USD,
    KeyLimits,
    KeyPage,
    KeyView,
)
from api.ops.api_keys import MOST_LIMIT as MOST_KEY_LIMIT
from api.ops.health import HealthReport
from api.streams.batch_stream import Progress
from api.views.batch import BatchPage, BatchView
from api.views.job import JobPage, JobView
from shared.api_key import DEFAULT_ENV, DEFAULT_SCOPES, Scope
from shared.batch import ITEM_PRIORITY
from shared.job import Priority
from shared.webhooks import JOB_EVENTS, MOST_URL_CHARS, EventType

DESCRIPTION: Final = (
    "Submit a completion, have a job id within milliseconds, and poll, wait or follow its tokens; leave and come back at "
    "any token. Errors are RFC 9457 problem documents; under /v1/messages and /v1/models, which are Anthropic's Messages "
    "API, they are in that API's error envelope."
)

_Schema = dict[str, Any]

_SCHEMAS: Final = "#/components/schemas/"
_SUBMIT: Final = "/v1/jobs"
_JOB: Final = "/v1/jobs/{job_id}"
_BATCHES: Final = "/v1/batches"
_BATCH: Final = "/v1/batches/{batch_id}"
_KEYS: Final = "/v1/keys"
_KEY: Final = "/v1/keys/{key_id}"
_SECRET: Final = "/v1/webhooks/secret"  # noqa: S105 - a path
_DELIVERIES: Final = "/v1/webhooks/deliveries"
_DELIVERY: Final = "/v1/webhooks/deliveries/{delivery_id}"
_MESSAGE_BATCHES: Final = "/v1/messages/batches"
_MESSAGE_BATCH: Final = "/v1/messages/batches/{batch_id}"


def describe(app: FastAPI) -> None:
    """Completes what ``app.openapi()`` gives, and serves it encoded once: as often as FastAPI would encode it, 3.4 ms each, a few
    strangers could keep a process busy (slowhttptest -X: others' p99 tenfold).
    """
    generate = app.openapi
    complete: _Schema = {}

    def openapi() -> _Schema:
        if not complete:
            complete.update(_completed(generate()))
        return complete

    app.openapi = openapi  # type: ignore[method-assign] # the way that FastAPI documents
    encoded = functools.cache(lambda: msgspec.json.encode(openapi()))

    async def document(_: Request) -> Response:
        return Response(encoded(), media_type=JSON)

    app.add_route("/openapi.json", document, include_in_schema=False)


def _completed(schema: _Schema) -> _Schema:
    _, answers = msgspec.json.schema_components(
        (
            JobView,
            JobPage,
            BatchView,
            BatchPage,
            ResultLine,
            Progress,
            UsageReport,
            ProblemDocument,
            Answer,
            HealthReport,
            ErrorEnvelope,
            ModelPage,
            KeyView,
            KeyPage,
            SecretView,
            DeliveryView,
            DeliveryPage,
            MessageBatch,
            MessageBatchPage,
        ),
        ref_template=_SCHEMAS + "{name}",
    )
    schema["components"] = {"schemas": {**answers, **_REQUESTS}, "securitySchemes": _SECURITY_SCHEMES}
    for (method, path), operation in _OPERATIONS.items():
        found = schema["paths"].setdefault(path, {}).setdefault(method, {})
        # FastAPI's 422 is not ours: every invalid request is 400.
        found["responses"] = {}
        found |= {name: value for name, value in operation.items() if name != "parameters"}
        if "parameters" in operation:
            found["parameters"] = [*found.get("parameters", []), *operation["parameters"]]
        if "401" in found["responses"]:
            tell = _errors if is_on_surface(path) else _problems
            found["responses"] = dict(sorted({**found["responses"], **tell(403)}.items()))
            found["security"] = [{name: []} for name in _SECURITY_SCHEMES]
        if path.startswith(("/v1/", "/complete")):
            found["parameters"] = [*found.get("parameters", []), _TENANT]
    return schema


def _ref(name: str) -> _Schema:
    return {"$ref": _SCHEMAS + name}


def _json(description: str, name: str) -> _Schema:
    return {"description": description, "content": {JSON: {"schema": _ref(name)}}}


def _problems(*statuses: int) -> _Schema:
    return {
        str(status): {"description": _STATUSES[status], "content": {PROBLEM_JSON: {"schema": _ref("ProblemDocument")}}}
        for status in sorted(statuses)
    }


def _errors(*statuses: int) -> _Schema:
    """In the Anthropic envelope."""
    return {str(status): _json(_STATUSES[status], "ErrorEnvelope") for status in sorted(statuses)}


_STATUSES: Final = {
    400: "Not valid: the fields are named, never their content.",
    401: "No valid API key.",
    403: "The API key lacks the scope, or would give more than it has.",
    404: "Absent, or another tenant's.",
    406: "Nothing that Accept takes is offered.",
    409: "The job or batch has not ended, or nothing of it can be retried; the API key has ended, or there are too many.",
    413: "The body is too large.",
    415: "The body is not JSON, or compressed.",
    422: "The Idempotency-Key was used with another body.",
    429: "The LLM's rate limit is reached, or one of the caller's; or the tenant's other reads take all of its share.",
    500: "No answer; x-should-retry says whether another try makes sense.",
    502: "The LLM gave no answer.",
    503: "Full, or Redis is away; see Retry-After.",
    504: "The LLM did not answer in time.",
    529: "The LLM is overloaded, or the queue full.",
}


def _header(name: str, description: str, **schema: Any) -> _Schema:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", **schema}}


def _query(name: str, description: str, schema: _Schema) -> _Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_SECURITY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key; where TOKENSPOOL_AUTH is off, none is asked for.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, for clients that send it so.",
    },
}

_TENANT: Final = _header("X-Tenant", "The tenant, while TOKENSPOOL_AUTH is off.", pattern="^[A-Za-z0-9_.-]{1,64}$")
_IDEMPOTENCY_KEY: Final = _header(
    "Idempotency-Key",
    "1 to 255 printable characters. The same key with the same body finds the first job.",
    pattern=r'^([!#-~]([ -~]{0,253}[!-~])?|"[!#-\[\]-~]{1,255}")$',
)
_LAST_EVENT_ID: Final = _header(
    "Last-Event-ID",
    "The id of the last event that the client has; wins over after.",
    pattern=r"^([0-9]{1,15}-[0-9]{1,10})?$",
)
_FORMAT: Final = _query(
    "format", "text: ours, with delta. messages: the upstream's own.", {"enum": ["text", "messages"], "default": "text"}
)

_FRAMES: Final[_Schema] = {"description": "Frames of server-sent events."}
"""Neither a text nor an object: a reader of the document may take it for the whole stream or for each event."""

_STREAM: Final = {
    "schema": _FRAMES,
    "example": 'event: queued\ndata: {"job_id":"job_01m84bdq4t7w9k2p5x8r3n6v0c","queue_position":1}\n\n'
    'id: 1795442531900-0\nevent: started\ndata: {"attempt":1}\n\n'
    'id: 1795442531900-3\nevent: delta\ndata: {"text":"Blue"}\n\n',
}

_BATCH_STREAM: Final = {
    "schema": _FRAMES,
    "x-progress": _ref("Progress"),
    "example": 'event: progress\ndata: {"counts":{"total":2,"queued":0,"running":2,"succeeded":0,"failed":0,"cancelled":0,'
    '"expired":0},"rate_per_s":null,"estimated_end_at":null}\n\n'
    'event: delta\ndata: {"custom_id":"row-1","job_id":"job_01m84bf2k14h8s2z6q9d3f7j5m","text":"Blue"}\n\n',
}

_TIMER: Final[_Schema] = {"type": "integer", "minimum": 1, "maximum": 3600}
_OPTIONS: Final[dict[str, _Schema]] = {
    "timeout_s": {**_TIMER, "default": 600},
    "connect_timeout_s": _TIMER,
    "first_token_timeout_s": _TIMER,
    "content_idle_timeout_s": _TIMER,
    "expires_in_s": {"type": "integer", "minimum": 1, "maximum": 604_800, "default": 86_400},
    "max_attempts": {"type": "integer", "minimum": 1, "maximum": 10, "default": 3},
    "not_before": {"type": "string", "format": "date-time"},
}
_METADATA: Final[_Schema] = {
    "type": "object",
    "maxProperties": 16,
    "propertyNames": {"minLength": 1, "maxLength": 64},
    "additionalProperties": {"type": "string", "maxLength": 512},
}
_BATCH_PRIORITY: Final[_Schema] = {"enum": [ITEM_PRIORITY.value], "default": ITEM_PRIORITY.value}


def _webhook(events: Iterable[EventType]) -> _Schema:
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "required": ["url"],
        "properties": {
            "url": {
                "type": "string",
                "maxLength": MOST_URL_CHARS,
                "description": "https, on port 443 of a public address.",
            },
            "events": {
                "type": "array",
                "minItems": 1,
                "uniqueItems": True,
                "items": {"enum": sorted(events)},
            },
            "result": {"type": "boolean", "default": False},
        },
    }


def _options(priority: _Schema, events: Iterable[EventType]) -> _Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"priority": priority, **_OPTIONS, "metadata": _METADATA, "webhook": _webhook(events)},
    }


_BATCH_QUERY: Final = [
    _query(name, "Only beside lines: the member of job of that name.", schema)
    for name, schema in {"priority": _BATCH_PRIORITY, **_OPTIONS}.items()
]
_WEBHOOK_QUERY: Final = [
    _query(
        "webhook.url",
        "Only beside lines: the member url of job.webhook.",
        {"type": "string", "maxLength": MOST_URL_CHARS},
    ),
    _query("webhook.events", "Only beside lines, comma separated.", {"type": "string"}),
    _query("webhook.result", "Only beside lines.", {"type": "boolean"}),
]
_METADATA_QUERY: Final = {
    **_query(
        "metadata",
        "Only beside lines: metadata.NAME=VALUE, as often as there are names.",
        {
            "type": "object",
            "maxProperties": 16,
            "propertyNames": {"pattern": r"^metadata\..{1,64}$"},
            "additionalProperties": {"type": "string", "maxLength": 512},
        },
    ),
    "style": "form",
    "explode": True,
}

_CUSTOM_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "description": "Printable, and in the batch once.",
}


def _result(kind: str, **members: _Schema) -> _Schema:
    return {
        "type": "object",
        "required": ["type", *members],
        "properties": {"type": {"const": kind}, **members},
    }


_REQUESTS: Final[_Schema] = {
    "JobRequest": {
        "description": "The parameters of the Messages API; those that are not listed are passed on untouched.",
        "type": "object",
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": MOST_MODEL_CHARS},
            "max_tokens": {"type": "integer", "minimum": 1, "default": DEFAULT_MAX_TOKENS},
            "prompt": {"type": "string", "minLength": 1, "description": "Short for one user message."},
            "messages": {"type": "array", "minItems": 1, "items": _ref("Message")},
            "stream": {"type": ["boolean", "null"], "description": "Accepted and ignored."},
            "job": _ref("JobOptions"),
        },
        "oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
    },
    "Message": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"type": "string"}, "content": {"type": ["string", "array"]}},
    },
    "JobOptions": _options({"enum": [priority.value for priority in Priority], "default": "normal"}, JOB_EVENTS),
    "BatchRequest": {
        "type": "object",
        "additionalProperties": False,
        "required": ["requests"],
        "properties": {
            "requests": {
                "description": "One that cannot run becomes a failed item; the others run.",
                "type": "array",
                "minItems": 1,
                "items": _ref("BatchLine"),
            },
            "job": _ref("BatchOptions"),
        },
    },
    "BatchOptions": _options(_BATCH_PRIORITY, EventType),
    "BatchLine": {
        "type": "object",
        "additionalProperties": False,
        "required": ["custom_id", "params"],
        "properties": {"custom_id": _CUSTOM_ID, "params": {**_ref("JobRequest"), "description": "Without job."}},
    },
    "MessageRequest": {
        "description": "The parameters of the Messages API; those that are not listed are passed on untouched.",
        "type": "object",
        "required": ["max_tokens", "messages"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": MOST_MODEL_CHARS},
            "max_tokens": {"type": "integer", "minimum": 1},
            "messages": {"type": "array", "minItems": 1, "items": _ref("Message")},
            "stream": {"type": ["boolean", "null"], "default": False},
        },
    },
    "MessageBatchRequest": {
        "type": "object",
        "additionalProperties": False,
        "required": ["requests"],
        "properties": {
            "requests": {
                "description": "One that cannot run becomes an errored result; the others run.",
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["custom_id", "params"],
                    "properties": {"custom_id": _CUSTOM_ID, "params": _ref("MessageRequest")},
                },
            }
        },
    },
    "MessageBatchResult": {
        "type": "object",
        "required": ["custom_id", "result"],
        "properties": {
            "custom_id": {"type": "string", "description": "Empty where the request had none that could be taken."},
            "result": {
                "oneOf": [
                    _result("succeeded", message=_ref("MessageAnswer")),
                    _result("errored", error=_ref("MessageBatchError")),
                    _result("canceled"),
                    _result("expired"),
                ]
            },
        },
    },
    "MessageBatchError": {
        "description": "The envelope, without a request id.",
        "type": "object",
        "required": ["type", "error", "request_id"],
        "properties": {"type": {"const": "error"}, "error": _ref("ErrorBody"), "request_id": {"type": "null"}},
    },
    "DeletedMessageBatch": {
        "type": "object",
        "required": ["id", "type"],
        "properties": {"id": {"type": "string"}, "type": {"const": "message_batch_deleted"}},
    },
    "TokenCountRequest": {
        "type": "object",
        "required": ["messages"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": MOST_MODEL_CHARS},
            "messages": {"type": "array", "minItems": 1, "items": _ref("Message")},
        },
    },
    "MessageAnswer": {
        "description": "The Message of the Messages API, as the LLM gave it.",
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "type": {"const": "message"},
            "role": {"type": "string"},
            "model": {"type": "string"},
            "content": {"type": "array", "items": {"type": "object"}},
            "stop_reason": {"type": ["string", "null"]},
            "usage": {"type": "object"},
        },
    },
    "TokenCount": {
        "type": "object",
        "required": ["input_tokens"],
        "properties": {"input_tokens": {"type": "integer", "minimum": 0}},
    },
    "KeyRequest": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": MOST_NAME_CHARS, "default": "", "description": "For people."},
            "env": {"type": "string", "pattern": "^[a-z0-9]{1,16}$", "default": DEFAULT_ENV},
            "scopes": {
                "type": "array",
                "minItems": 1,
                "items": {"enum": [scope.value for scope in Scope]},
                "default": [scope.value for scope in Scope if scope in DEFAULT_SCOPES],
            },
            "expires_in_s": {
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": MOST_EXPIRES_IN_S,
                "description": "Null or left out: without an end, or with that of the key that makes it.",
            },
            "limits": {
                "description": "Null is none; those that are left out are those of the key that makes it.",
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    name: {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": MOST_USD}
                    if name.startswith("usd")
                    else {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_KEY_LIMIT}
                    for name in KeyLimits.__struct_fields__
                },
            },
        },
    },
    "RotateRequest": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "grace_s": {
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_GRACE_S,
                "default": DEFAULT_GRACE_S,
                "description": "So long the secret before it is taken too.",
            }
        },
    },
    "CompletionRequest": {
        "type": "object",
        "additionalProperties": False,
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "maxLength": MOST_PROMPT_CHARS},
            "max_tokens": {
                "type": "integer",
                "minimum": 1,
                "maximum": MOST_MAX_TOKENS,
                "default": COMPLETE_MAX_TOKENS,
            },
        },
    },
}


def _body(name: str) -> _Schema:
    return {"required": True, "content": {JSON: {"schema": _ref(name)}}}


def _in_path(name: str) -> _Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


_READS: Final = _problems(400, 401, 404, 429, 503)
_KEY_CALLS: Final = _problems(400, 401, 404, 503)
_SUBMITS: Final = _problems(400, 401, 413, 415, 422, 503)
_COMPLETES: Final = _problems(400, 401, 413, 415, 429, 502, 503, 504)
_MESSAGE_BATCH_READS: Final = _errors(400, 401, 404, 429, 500, 503)

_ANTHROPIC_BETA: Final = _header(
    "anthropic-beta", "Passed on to an upstream that knows it.", maxLength=1024, pattern="^[ -~]*$"
)
_ANTHROPIC_VERSION: Final = _header(
    "anthropic-version",
    "Passed on to an upstream that knows it; without it the version that the workers are set to.",
    maxLength=64,
    pattern="^[ -~]*$",
)
_PAGE_QUERY: Final = [
    _query("limit", "", {"type": "integer", "minimum": 1, "maximum": MOST_LIMIT, "default": DEFAULT_LIMIT}),
    _query("after_id", "The last_id of the page before.", {"type": "string"}),
    _query("before_id", "The first_id of the page behind; not beside after_id.", {"type": "string"}),
]
_MESSAGE_STREAM: Final = {
    "schema": _FRAMES,
    "example": 'event: message_start\ndata: {"type":"message_start","message":{"content":[]}}\n\n'
    'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    '{"type":"text_delta","text":"Blue"}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n',
}

_OPERATIONS: Final[dict[tuple[str, str], _Schema]] = {
    ("post", _SUBMIT): {
        "summary": "Submit Job",
        "operationId": "submit_job",
        "parameters": [
            _IDEMPOTENCY_KEY,
            _header("Prefer", "wait=N answers when the job has ended, at the latest after N (at most 60) seconds."),
            _header("Accept", f"{EVENT_STREAM} submits and follows in one request."),
            _LAST_EVENT_ID,
            _FORMAT,
        ],
        "requestBody": _body("JobRequest"),
        "responses": {
            "200": {
                "description": "Ended in time, or followed.",
                "content": {JSON: {"schema": _ref("JobView")}, EVENT_STREAM: _STREAM},
            },
            "202": _json("Taken in.", "JobView"),
            "204": {"description": "Followed again behind its last event."},
            **_SUBMITS,
            **_problems(404, 406),
        },
    },
    ("get", _SUBMIT): {"responses": {"200": _json("A page.", "JobPage"), **_problems(400, 401, 429, 503)}},
    ("get", _JOB): {"responses": {"200": _json("The job as it stands.", "JobView"), **_READS}},
    ("delete", _JOB): {"responses": {"204": {"description": "Erased."}, **_READS, **_problems(409)}},
    ("get", f"{_JOB}/events"): {
        "parameters": [_LAST_EVENT_ID],
        "responses": {
            "200": {"description": "Events until the job has ended.", "content": {EVENT_STREAM: _STREAM}},
            "204": {"description": "The client has seen the last event."},
            **_READS,
            **_problems(406),
        },
    },
    ("post", f"{_JOB}/cancel"): {"responses": {"200": _json("The job as it ended.", "JobView"), **_READS}},
    ("post", f"{_JOB}/retry"): {
        "parameters": [_IDEMPOTENCY_KEY],
        "responses": {
            "200": _json("The key's job, which has ended.", "JobView"),
            "202": _json("A new job.", "JobView"),
            **_READS,
            **_problems(409, 422),
        },
    },
    ("post", _BATCHES): {
        "summary": "Submit Batch",
        "description": "One object with all requests and what they have in common, or a request a line, whose common "
        "options are query parameters. Nothing is begun before the body is whole.",
        "operationId": "submit_batch",
        "parameters": [_IDEMPOTENCY_KEY, *_BATCH_QUERY, _METADATA_QUERY, *_WEBHOOK_QUERY],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _ref("BatchRequest")},
                JSON_LINES: {"schema": _ref("BatchLine")},
            },
        },
        "responses": {
            "200": _json("The key's batch, which has ended.", "BatchView"),
            "202": _json("Taken in.", "BatchView"),
            **_SUBMITS,
            **_problems(404),
        },
    },
    ("get", _BATCHES): {"responses": {"200": _json("A page.", "BatchPage"), **_problems(400, 401, 429, 503)}},
    ("get", _BATCH): {"responses": {"200": _json("The batch as it stands.", "BatchView"), **_READS}},
    ("delete", _BATCH): {"responses": {"204": {"description": "Erased, with its items."}, **_READS, **_problems(409)}},
    ("get", f"{_BATCH}/results"): {
        "responses": {
            "200": {
                "description": "What has ended so far, one object a line.",
                "content": {JSON_LINES: {"schema": _ref("ResultLine")}},
            },
            **_READS,
        },
    },
    ("get", f"{_BATCH}/events"): {
        "parameters": [_LAST_EVENT_ID],
        "responses": {
            "200": {
                "description": "progress until the batch has ended, and with tokens=true its items' events; then ended.",
                "content": {EVENT_STREAM: _BATCH_STREAM},
            },
            "204": {"description": "The client has seen ended."},
            **_READS,
            **_problems(406),
        },
    },
    ("post", f"{_BATCH}/cancel"): {"responses": {"200": _json("The batch as it is now.", "BatchView"), **_READS}},
    ("post", f"{_BATCH}/retry"): {
        "parameters": [_IDEMPOTENCY_KEY],
        "responses": {
            "200": _json("The key's batch, which has ended.", "BatchView"),
            "202": _json("A new batch.", "BatchView"),
            **_READS,
            **_problems(409, 422),
        },
    },
    ("get", "/v1/usage"): {
        "responses": {"200": _json("What was used, and its cost.", "UsageReport"), **_problems(400, 401, 503)}
    },
    ("post", "/v1/messages"): {
        "summary": "Create Message",
        "operationId": "create_message",
        "parameters": [
            _IDEMPOTENCY_KEY,
            _header("x-on-disconnect", "continue or cancel: what becomes of the job when its client goes."),
            _ANTHROPIC_BETA,
            _ANTHROPIC_VERSION,
        ],
        "requestBody": _body("MessageRequest"),
        "responses": {
            "200": {
                "description": "The answer, whole or as it is written; x-job-id names the job behind it.",
                "content": {JSON: {"schema": _ref("MessageAnswer")}, EVENT_STREAM: _MESSAGE_STREAM},
            },
            **_errors(400, 401, 404, 413, 415, 422, 429, 500, 503, 504, 529),
        },
    },
    ("post", "/v1/messages/count_tokens"): {
        "summary": "Count Tokens",
        "operationId": "count_tokens",
        "parameters": [_ANTHROPIC_BETA, _ANTHROPIC_VERSION],
        "requestBody": _body("TokenCountRequest"),
        "responses": {
            "200": _json("As the LLM counts them.", "TokenCount"),
            **_errors(400, 401, 413, 415, 429, 500, 503, 504, 529),
        },
    },
    ("post", _MESSAGE_BATCHES): {
        "summary": "Create Message Batch",
        "operationId": "create_message_batch",
        "parameters": [_IDEMPOTENCY_KEY, _ANTHROPIC_BETA, _ANTHROPIC_VERSION],
        "requestBody": _body("MessageBatchRequest"),
        "responses": {
            "200": _json("Taken in; or, by its Idempotency-Key, the first batch as it stands.", "MessageBatch"),
            **_errors(400, 401, 404, 413, 415, 422, 500, 503, 529),
        },
    },
    ("get", _MESSAGE_BATCHES): {
        "summary": "List Message Batches",
        "operationId": "list_message_batches",
        "parameters": _PAGE_QUERY,
        "responses": {"200": _json("A page, newest first.", "MessageBatchPage"), **_errors(400, 401, 429, 500, 503)},
    },
    ("get", _MESSAGE_BATCH): {
        "summary": "Read Message Batch",
        "operationId": "read_message_batch",
        "parameters": [_in_path("batch_id")],
        "responses": {"200": _json("As it stands, with live counts.", "MessageBatch"), **_MESSAGE_BATCH_READS},
    },
    ("delete", _MESSAGE_BATCH): {
        "summary": "Delete Message Batch",
        "operationId": "delete_message_batch",
        "parameters": [_in_path("batch_id")],
        "responses": {
            "200": _json("Erased, with its results.", "DeletedMessageBatch"),
            **_MESSAGE_BATCH_READS,
            **_errors(409),
        },
    },
    ("get", f"{_MESSAGE_BATCH}/results"): {
        "summary": "Read Message Batch Results",
        "operationId": "read_message_batch_results",
        "parameters": [_in_path("batch_id")],
        "responses": {
            "200": {
                "description": "What has ended so far, one object a line.",
                "content": {JSON_LINES: {"schema": _ref("MessageBatchResult")}},
            },
            **_MESSAGE_BATCH_READS,
        },
    },
    ("post", f"{_MESSAGE_BATCH}/cancel"): {
        "summary": "Cancel Message Batch",
        "operationId": "cancel_message_batch",
        "parameters": [_in_path("batch_id")],
        "responses": {"200": _json("As it is now.", "MessageBatch"), **_MESSAGE_BATCH_READS},
    },
    ("get", "/v1/models"): {
        "summary": "List Models",
        "operationId": "list_models",
        "parameters": _PAGE_QUERY,
        "responses": {"200": _json("A page.", "ModelPage"), **_errors(400, 401, 503)},
    },
    ("get", "/v1/models/{model_id}"): {
        "summary": "Read Model",
        "operationId": "read_model",
        "parameters": [_in_path("model_id")],
        "responses": {"200": _json("The model.", AnthropicModel.__name__), **_errors(400, 401, 404, 503)},
    },
    ("post", _KEYS): {
        "requestBody": _body("KeyRequest"),
        "responses": {
            "201": _json("The key, with its text in key: shown once.", "KeyView"),
            **_problems(400, 401, 409, 413, 415, 503),
        },
    },
    ("get", _KEYS): {"responses": {"200": _json("A page, newest first.", "KeyPage"), **_problems(400, 401, 429, 503)}},
    ("get", _KEY): {"responses": {"200": _json("The key, without its text.", "KeyView"), **_KEY_CALLS}},
    ("post", f"{_KEY}/rotate"): {
        "requestBody": {**_body("RotateRequest"), "required": False},
        "responses": {
            "200": _json("The key, with its new text in key: shown once.", "KeyView"),
            **_KEY_CALLS,
            **_problems(409, 413, 415),
        },
    },
    ("get", _SECRET): {
        "responses": {"200": _json("What deliveries are signed with.", "SecretView"), **_problems(400, 401, 503)}
    },
    ("post", f"{_SECRET}/rotate"): {
        "requestBody": {**_body("RotateRequest"), "required": False},
        "responses": {"200": _json("The new secret.", "SecretView"), **_problems(400, 401, 413, 415, 503)},
    },
    ("get", _DELIVERIES): {
        "responses": {
            "200": _json("A page, newest job or batch first.", "DeliveryPage"),
            **_problems(400, 401, 429, 503),
        }
    },
    ("get", _DELIVERY): {"responses": {"200": _json("The delivery as it stands.", "DeliveryView"), **_READS}},
    ("post", f"{_DELIVERY}/redeliver"): {
        "responses": {"202": _json("The delivery as it is now.", "DeliveryView"), **_READS}
    },
    ("post", f"{_KEY}/revoke"): {"responses": {"200": _json("The key as it is now.", "KeyView"), **_KEY_CALLS}},
    ("post", "/complete"): {
        "requestBody": _body("CompletionRequest"),
        "responses": {"200": _json("The whole answer.", "Answer"), **_COMPLETES},
    },
    ("post", "/complete/stream"): {
        "requestBody": _body("CompletionRequest"),
        "responses": {
            "200": {
                "description": "The text, and [DONE]; or an error event with a problem document.",
                "content": {
                    EVENT_STREAM: {
                        "schema": _FRAMES,
                        "example": "data: Blue\n\ndata:  light\n\ndata: [DONE]\n\n",
                    }
                },
            },
            **_problems(400, 401, 413, 415, 503),
        },
    },
    ("get", "/health"): {
        "security": [{}, *[{name: []} for name in _SECURITY_SCHEMES]],
        "responses": {
            "200": _json("As it is; the status alone for who has no key with the scope read.", "HealthReport"),
            "503": _json("Redis is away.", "HealthReport"),
        },
    },
    ("get", "/health/live"): {"responses": {"200": {"description": "The process runs."}}},
    ("get", "/health/ready"): {
        "responses": {"200": {"description": "Send requests."}, "503": {"description": "Send none."}}
    },
    ("get", "/problems/{code}"): {
        "responses": {
            "200": {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}},
            **_problems(400, 404),
        }
    },
}
