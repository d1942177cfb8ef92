"""Reads a submit's body: our own members are taken out, everything else goes to the LLM untouched.

Pure. Of the Messages API's parameters we check only what we use ourselves. The LLM judges the rest, and a job that it
refuses ends as ``upstream_rejected``.
"""

import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import InitErrorDetails

from api.http.invalid import MOST_ERRORS, refuse
from api.http.members import Body, Expected, Text, Whole, checked, expected
from shared.clock import from_rfc3339, to_rfc3339
from shared.errors import FieldError
from shared.job import JobKind, JobSpec, Priority, prompt_hash_of
from shared.limits import Reservation, reservation_of
from shared.settings import Settings
from shared.webhook_address import Networks, refusal_of_url
from shared.webhooks import JOB_EVENTS, MOST_URL_CHARS, EventType, Webhook

DEFAULT_MAX_TOKENS: Final = 1024
MOST_MODEL_CHARS: Final = 256
MOST_MAX_TOKENS: Final = 10_000_000
MOST_ANSWERS: Final = 128

MOST_END_USER_CHARS: Final = 64

_MOST_METADATA: Final = 16
_MOST_METADATA_KEY_CHARS: Final = 64
_MOST_METADATA_VALUE_CHARS: Final = 512
_MOST_TAGS: Final = 8
_YEAR_9999_MS: Final = 253_370_764_800_000


class Bounds(NamedTuple):
    """What the settings allow in a body. It is the context when the body is validated."""

    max_prompt_chars: int = sys.maxsize
    webhook_networks: Networks = ()
    """Networks that webhooks may reach, in addition to public addresses."""
    latest_not_before_ms: int = _YEAR_9999_MS


NO_BOUNDS: Final = Bounds()


def bounds_of(settings: Settings) -> Bounds:
    """The bounds of a body that comes now."""
    latest_ms = time.time_ns() // 1_000_000 + settings.max_not_before_s * 1000
    return Bounds(settings.max_prompt_chars, settings.webhook_allow_networks, latest_ms)


# --- the member job ---


def _allowed_url(url: str, info: ValidationInfo[Bounds]) -> str:
    refusal = refusal_of_url(url, info.context.webhook_networks)
    if refusal is not None:
        raise expected(refusal)
    return url


def _each_once(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(items)) < len(items):
        raise expected("must have each item once")
    return items


def some_of(events: Iterable[EventType]) -> Expected:
    """The error of a list that has other events than these."""
    return Expected("must be a list of some of: " + ", ".join(sorted(events)))


SOME: Final = Field(min_length=1, fail_fast=True, json_schema_extra={"uniqueItems": True})
EACH_ONCE: Final = AfterValidator(_each_once)
_JobEvent = Literal[
    EventType.JOB_CANCELLED,
    EventType.JOB_EXPIRED,
    EventType.JOB_FAILED,
    EventType.JOB_SUCCEEDED,
]


class JobWebhook(Body):
    """Who is notified of the end of a job."""

    url: Annotated[str, Text(most=MOST_URL_CHARS), AfterValidator(_allowed_url)]
    """https on port 443 of a public address, unless the operator opened other networks."""
    events: Annotated[tuple[_JobEvent, ...], SOME, EACH_ONCE, some_of(JOB_EVENTS)] = get_args(_JobEvent)
    """The ends to be notified of."""
    result: StrictBool = False
    """Whether the notification has the job's result."""


def asked_by(model: type[JobWebhook]) -> PlainValidator:
    """A validator that makes a Webhook of what this model reads."""

    def webhook_of(value: object, info: ValidationInfo[Bounds]) -> Webhook | None:
        if value is None or isinstance(value, Webhook):
            return value
        asked = model.model_validate(value, context=info.context)
        return Webhook(asked.url, tuple(sorted(map(EventType, asked.events))), asked.result)

    return PlainValidator(webhook_of, json_schema_input_type=model | None)


def time_ms(value: object) -> int:
    """The milliseconds of an RFC 3339 time. Raises an error for pydantic."""
    try:
        moment_ms = from_rfc3339(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        moment_ms = None
    if moment_ms is None:
        raise expected("must be a time like 2026-11-23T14:02:11Z (RFC 3339, with its offset)")
    if not 0 <= moment_ms < _YEAR_9999_MS:
        raise expected("must be a time from 1970 to 9998")
    return moment_ms


def _moment_ms(value: object, info: ValidationInfo[Bounds]) -> int:
    moment_ms = time_ms(value)
    latest_ms = info.context.latest_not_before_ms
    if moment_ms > latest_ms:
        raise expected(f"must be no later than {to_rfc3339(latest_ms)} (TOKENSPOOL_MAX_NOT_BEFORE_S)")
    return moment_ms


def metadata_of(metadata: object) -> object:
    """Before each member is looked at: there may be ten thousand. And their names, since pydantic gives an error in a name the
    location of a member called ``[key]``.
    """
    if not isinstance(metadata, dict) or len(metadata) > _MOST_METADATA:
        raise expected(f"must be an object of at most {_MOST_METADATA} members")
    if not all(1 <= len(name) <= _MOST_METADATA_KEY_CHARS for name in metadata):
        raise expected(f"must have names of 1 to {_MOST_METADATA_KEY_CHARS} characters")
    return metadata


def _few_tags(tags: object) -> object:
    """Before each is looked at."""
    if isinstance(tags, list) and len(tags) > _MOST_TAGS:
        raise expected(f"must have at most {_MOST_TAGS} items")
    return tags


EndUser = Annotated[str | None, Text(1, MOST_END_USER_CHARS, is_printable=True)]
_MetadataName = Annotated[str, Field(min_length=1, max_length=_MOST_METADATA_KEY_CHARS)]
_Timer = Annotated[int | None, Whole(1, 3600)]


class JobOptions(Body):
    """The ``job`` member, with its defaults. It is never sent to the LLM."""

    priority: Priority = Priority.NORMAL
    """Which jobs run first."""
    timeout_s: Annotated[int, Whole(1, 3600)] = 600
    """Seconds from the first start, over all attempts and waits; then the job ends as ``failed``, code ``timeout``."""
    expires_in_s: Annotated[int, Whole(1, 604_800)] = 86_400
    """A job that has not started after this many seconds ends as ``expired``. Counted from ``not_before``, if that is later
    than the submit."""
    max_attempts: Annotated[int, Whole(1, 10)] = 3
    """How often the LLM may fail. Takeovers, drains and waits for a rate limit or an open circuit are not counted."""
    connect_timeout_s: _Timer = None
    """Seconds to open the connection to the LLM; an attempt that takes longer has failed. By default the worker's
    setting."""
    first_token_timeout_s: _Timer = None
    """Seconds to the LLM's first content, even if pings come; an attempt that takes longer has failed. By default the
    worker's setting, which gives more time while pings come."""
    content_idle_timeout_s: _Timer = None
    """Seconds between two pieces of content, even if pings come; an attempt that takes longer has failed. By default the
    worker's setting, which gives more time while pings come."""
    not_before_ms: Annotated[
        int | None,
        PlainValidator(_moment_ms, json_schema_input_type=str),
        Field(alias="not_before", json_schema_extra={"format": "date-time"}),
    ] = None
    """The job does not start earlier. At most 30 days ahead (``TOKENSPOOL_MAX_NOT_BEFORE_S``)."""
    metadata: Annotated[
        dict[_MetadataName, Annotated[str, Text(most=_MOST_METADATA_VALUE_CHARS)]],
        Field(max_length=_MOST_METADATA),
        BeforeValidator(metadata_of),
    ] = Field(default_factory=dict)
    """Texts of yours, returned with the job: names of 1 to 64 characters, values of up to 512."""
    tags: Annotated[
        tuple[Annotated[str, Text(1, 64, is_printable=True)], ...],
        Field(max_length=_MOST_TAGS, json_schema_extra={"uniqueItems": True}),
        BeforeValidator(_few_tags),
        EACH_ONCE,
    ] = ()
    """At most 8, each once and of 1 to 64 printable characters, returned with the job. ``GET /v1/jobs?tag=`` lists the jobs that
    have one. In a batch's query commas separate tags, so a tag cannot have one there."""
    end_user: EndUser = None
    """Your own user whom the job is for, 1 to 64 printable characters, returned with the job. Usage is summed by it, and the
    tenant may have limits for each: see End users."""
    webhook: Annotated[Webhook | None, asked_by(JobWebhook)] = None
    """Who is notified of the end: see Webhooks."""


NO_OPTIONS: Final = JobOptions()
_OF_SPEC: Final = tuple(name for name in JobOptions.model_fields if name in JobSpec.__struct_fields__)


def spec_members(options: JobOptions | JobSpec) -> dict[str, Any]:
    """The options that are members of a job's spec too, by name: all but ``expires_in_s`` and ``webhook``."""
    return {name: getattr(options, name) for name in _OF_SPEC}


# --- what the LLM is asked ---


class Message(Body):
    """A message, with the members that every model needs. Others are passed on untouched."""

    # For the schema only: see _checked_messages.
    model_config = ConfigDict(extra="ignore")

    role: Annotated[str, Text()]
    content: str | list[Any]


def _checked_messages(messages: object) -> list[Any]:
    """Without a model of each message, which would double what a conversation costs; and no further than errors are named."""
    if not isinstance(messages, list):
        raise expected("must be a list")
    if not messages:
        raise expected("must not be empty")
    wrong: list[InitErrorDetails] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            wrong.append(_at("must be an object", number))
        else:
            if not isinstance(message.get("role"), str):
                wrong.append(_at("must be a text" if "role" in message else "is missing", number, "role"))
            if not isinstance(message.get("content"), (str, list)):
                detail = "must be a text or a list of blocks" if "content" in message else "is missing"
                wrong.append(_at(detail, number, "content"))
        if len(wrong) > MOST_ERRORS:
            break
    if wrong:
        raise ValidationError.from_exception_data("messages", wrong, hide_input=True)
    return messages


def _at(sentence: str, *location: int | str) -> InitErrorDetails:
    return InitErrorDetails(type=expected(sentence), loc=location, input=None)


Model = Annotated[str | None, Text(1, MOST_MODEL_CHARS, is_printable=True)]
MaxTokens = Annotated[int, Whole(1, MOST_MAX_TOKENS)]
Messages = Annotated[
    list[Any],
    PlainValidator(_checked_messages, json_schema_input_type=Annotated[list[Message], Field(min_length=1)]),
]
_OtherMax = Annotated[int | None, Whole(1, MOST_MAX_TOKENS, or_null=True)]
_Answers = Annotated[int | None, Whole(1, MOST_ANSWERS, or_null=True)]


class Parameters(Body):
    """Parameters of the LLM that reserve tokens, and are passed on. Those that are not listed are passed on too."""

    model_config = ConfigDict(extra="ignore")

    max_completion_tokens: _OtherMax = None
    """Another name for ``max_tokens``, counted like it."""
    max_output_tokens: _OtherMax = None
    """Another name for ``max_tokens``, counted like it."""
    max_new_tokens: _OtherMax = None
    """Another name for ``max_tokens``, counted like it."""
    n_predict: _OtherMax = None
    """Another name for ``max_tokens``, counted like it."""
    num_predict: _OtherMax = None
    """Another name for ``max_tokens``, counted like it."""
    n: _Answers = None
    """How many answers are asked for; ``max_tokens`` counts for each."""
    best_of: _Answers = None
    """How many answers are asked for; ``max_tokens`` counts for each."""
    num_return_sequences: _Answers = None
    """How many answers are asked for; ``max_tokens`` counts for each."""


def _short(prompt: str, info: ValidationInfo[Bounds]) -> str:
    if len(prompt) > info.context.max_prompt_chars:
        raise expected(f"must be a text of at most {info.context.max_prompt_chars} characters")
    return prompt


class JobRequest(Parameters):
    """The parameters of the Messages API; those that are not listed are passed on untouched."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]},
    )

    stream: StrictBool | None = None
    """Accepted and ignored: every call to the LLM is streamed."""
    job: JobOptions = Field(default_factory=lambda: NO_OPTIONS)
    """Options of the job, never sent to the LLM."""
    model: Model = None
    """Printable; by default ``TOKENSPOOL_MODEL``."""
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS
    """``1024.0`` is 1024, here and wherever a whole number is meant."""
    prompt: Annotated[str | None, Text(1), AfterValidator(_short)] = None
    """Short for one user message. Its size is bounded by ``TOKENSPOOL_MAX_PROMPT_CHARS``."""
    messages: Messages = Field(default_factory=list)
    """Objects with ``role`` and ``content``, passed on untouched. Either these or ``prompt`` must be sent."""


class UpstreamHeaders(NamedTuple):
    """The caller's headers for an upstream that knows them. Empty: not sent."""

    beta: str = ""
    """``anthropic-beta``"""
    version: str = ""
    """``anthropic-version``"""


NO_HEADERS: Final = UpstreamHeaders()


class Draft(msgspec.Struct, frozen=True):
    """A job that can be created: everything in it is valid."""

    model: str
    request: bytes
    """The LLM's request, as JSON."""
    options: JobOptions = NO_OPTIONS
    kind: JobKind = JobKind.MESSAGES
    may_start_over: bool = True
    """See JobSpec."""
    upstream_headers: UpstreamHeaders = NO_HEADERS
    reservation: Reservation = Reservation()
    prompt_hash: str = ""


def drafted(model: str, request: bytes, **rest: Any) -> Draft:
    """A draft, with the reservation and the hash of its request. Takes long for a large request."""
    return Draft(model, request, **rest, reservation=reservation_of(request), prompt_hash=prompt_hash_of(request))


def draft_of(body: object, *, default_model: str, bounds: Bounds = NO_BOUNDS) -> Draft:
    """The draft of a body. Raises InvalidRequest, which names every field that is not valid."""
    asked, errors = checked(JobRequest, body, bounds)
    if not isinstance(body, dict):
        raise refuse(*errors)
    if "prompt" in body and "messages" in body:
        errors.append(FieldError("#/prompt", "cannot be combined with messages: send one of the two"))
    elif "prompt" not in body and "messages" not in body:
        errors.append(FieldError("#/messages", "is missing: send messages or prompt"))
    if asked is None or errors:
        raise refuse(*errors)
    request = passed_on({"model": default_model, "max_tokens": DEFAULT_MAX_TOKENS, **body}, asked)
    request.pop("job", None)
    if asked.prompt is not None:
        del request["prompt"]
        request["messages"] = user_message(asked.prompt)
    return drafted(request["model"], msgspec.json.encode(request), options=asked.job)


_COUNTED: Final = ("max_tokens", *Parameters.model_fields)


def passed_on(request: dict[str, Any], asked: Parameters) -> dict[str, Any]:
    """Makes ``request`` what is passed on: without ``stream``, since we always stream, and with 1024 for ``1024.0``."""
    request.pop("stream", None)
    for name in _COUNTED:
        if name in request:
            request[name] = getattr(asked, name)
    return request


def user_message(prompt: str) -> list[dict[str, str]]:
    """The messages that ``prompt`` is short for."""
    return [{"role": "user", "content": prompt}]
