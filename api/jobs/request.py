"""A submit's body, checked: what is ours is taken out, everything else goes to the LLM untouched.

Pure. The parameters of the Messages API are looked at only as far as we use them ourselves; what they mean is the LLM's
to judge, and what it refuses ends as ``upstream_rejected``.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from api.http.invalid import BODY, MOST_ERRORS, pointer, refuse, whole_of
from shared.clock import from_rfc3339, to_rfc3339
from shared.errors import FieldError
from shared.job import JobKind, Priority, prompt_hash_of
from shared.limits import MULTIPLIERS, OUTPUT_BOUNDS, Reservation, reservation_of
from shared.webhook_address import Networks, refusal_of_url
from shared.webhooks import JOB_EVENTS, EventType, Webhook

DEFAULT_MAX_TOKENS: Final = 1024
MOST_MODEL_CHARS: Final = 256
MOST_MAX_TOKENS: Final = 10_000_000
MOST_ANSWERS: Final = 128

_MOST_METADATA: Final = 16
_MOST_METADATA_KEY_CHARS: Final = 64
_MOST_METADATA_VALUE_CHARS: Final = 512
_YEAR_9999_MS: Final = 253_370_764_800_000

_RANGES: Final = {
    "timeout_s": (1, 3600),
    "connect_timeout_s": (1, 3600),
    "first_token_timeout_s": (1, 3600),
    "content_idle_timeout_s": (1, 3600),
    "expires_in_s": (1, 604_800),
    "max_attempts": (1, 10),
}
_PRIORITIES: Final = {priority.value: priority for priority in Priority}
_WEBHOOK_MEMBERS: Final = frozenset(Webhook.__struct_fields__)
_EVENTS_OF_JOB: Final = {True: sorted(JOB_EVENTS), False: sorted(JOB_EVENTS)}


class JobOptions(msgspec.Struct, frozen=True):
    """The ``job`` member, with its defaults."""

    priority: Priority = Priority.NORMAL
    timeout_s: int = 600
    connect_timeout_s: int | None = None
    first_token_timeout_s: int | None = None
    content_idle_timeout_s: int | None = None
    expires_in_s: int = 86_400
    max_attempts: int = 3
    not_before_ms: int | None = None
    metadata: dict[str, str] = {}
    webhook: Webhook | None = None


class UpstreamHeaders(NamedTuple):
    """What a caller's headers say to an upstream that knows them. Empty: nothing."""

    beta: str = ""
    """``anthropic-beta``"""
    version: str = ""
    """``anthropic-version``"""


NO_HEADERS: Final = UpstreamHeaders()


class Draft(msgspec.Struct, frozen=True):
    """A job that may be born: everything in it is valid."""

    model: str
    request: bytes
    """What the LLM is asked, as JSON."""
    options: JobOptions = JobOptions()
    kind: JobKind = JobKind.MESSAGES
    may_start_over: bool = True
    """See JobSpec."""
    upstream_headers: UpstreamHeaders = NO_HEADERS
    reservation: Reservation = Reservation()
    prompt_hash: str = ""


def drafted(model: str, request: bytes, **rest: Any) -> Draft:
    """A draft, with what is counted over its whole request: that takes long where the request is large."""
    return Draft(model, request, **rest, reservation=reservation_of(request), prompt_hash=prompt_hash_of(request))


_DEFAULTS: Final = JobOptions()


def latest_not_before_ms(max_not_before_s: int) -> int:
    """The latest ``not_before`` of a job that comes in now."""
    return time.time_ns() // 1_000_000 + max_not_before_s * 1000


def draft_of(
    body: object,
    *,
    default_model: str,
    max_prompt_chars: int,
    webhook_networks: Networks = (),
    latest_ms: int = _YEAR_9999_MS,
) -> Draft:
    """Raises InvalidRequest, which names every field that is not valid."""
    if not isinstance(body, dict):
        raise refuse(FieldError(BODY, "must be a JSON object"))
    errors: list[FieldError] = []
    request: dict[str, Any] = {"model": default_model, "max_tokens": DEFAULT_MAX_TOKENS, **body}
    take_stream(request, errors)
    options = _DEFAULTS
    if "job" in request:
        options = options_of(request.pop("job"), errors, webhook_networks=webhook_networks, latest_ms=latest_ms)
    check_model(request["model"], errors)
    request["max_tokens"] = max_tokens_of(request["max_tokens"], MOST_MAX_TOKENS, errors)
    check_output(request, errors)
    if "prompt" in request:
        prompt = request.pop("prompt")
        if "messages" in request:
            errors.append(FieldError("#/prompt", "must not stand beside messages"))
        check_prompt(prompt, max_prompt_chars, errors)
        request["messages"] = user_message(prompt)
    elif "messages" in request:
        check_messages(request["messages"], errors)
    else:
        errors.append(FieldError("#/messages", "is missing, and so is prompt: one of them is needed"))
    if errors:
        raise refuse(*errors)
    return drafted(request["model"], msgspec.json.encode(request), options=options)


def take_stream(request: dict[str, Any], errors: list[FieldError]) -> bool:
    """``stream`` out of the request, since we always stream: whether the caller wants it. Null is absent."""
    is_streamed = request.pop("stream", None)
    if is_streamed is not None and type(is_streamed) is not bool:
        errors.append(FieldError("#/stream", "must be true or false"))
    return is_streamed is True


def user_message(prompt: str) -> list[dict[str, str]]:
    """What ``prompt`` is short for."""
    return [{"role": "user", "content": prompt}]


def check_prompt(prompt: object, max_chars: int, errors: list[FieldError]) -> None:
    """A text that is neither empty nor too long."""
    if not isinstance(prompt, str) or not 1 <= len(prompt) <= max_chars:
        errors.append(FieldError("#/prompt", f"must be a text of 1 to {max_chars} characters"))


def max_tokens_of(value: object, most: int, errors: list[FieldError]) -> int | None:
    """A whole number from 1 on; None if it is none, which is added to ``errors``."""
    max_tokens = whole_of(value, 1, most)
    if max_tokens is None:
        is_too_many = type(value) in (int, float) and value > most  # type: ignore[operator]
        detail = f"must be at most {most}" if is_too_many else "must be a whole number of at least 1"
        errors.append(FieldError("#/max_tokens", detail))
    return max_tokens


def check_output(request: dict[str, Any], errors: list[FieldError]) -> None:
    """The other names for ``max_tokens``, and how many answers are asked for: they are passed on, so they are counted."""
    for names, most in ((OUTPUT_BOUNDS[1:], MOST_MAX_TOKENS), (MULTIPLIERS, MOST_ANSWERS)):
        for name in names:
            if request.get(name) is not None:
                request[name] = whole_of(request[name], 1, most)
                if request[name] is None:
                    errors.append(FieldError(f"#/{name}", f"must be a whole number from 1 to {most}"))


def check_model(model: object, errors: list[FieldError]) -> None:
    """A name of a model, whatever it is."""
    if not isinstance(model, str) or not 1 <= len(model) <= MOST_MODEL_CHARS or not model.isprintable():
        errors.append(FieldError("#/model", f"must be a text of 1 to {MOST_MODEL_CHARS} printable characters"))


def check_messages(messages: object, errors: list[FieldError]) -> None:
    """As far as every model needs them: a role and a content each."""
    if not isinstance(messages, list) or not messages:
        errors.append(FieldError("#/messages", "must be a list of at least one message"))
        return
    for index, message in enumerate(messages):
        where = f"#/messages/{index}"
        if not isinstance(message, dict):
            errors.append(FieldError(where, "must be an object"))
        else:
            if not isinstance(message.get("role"), str):
                errors.append(FieldError(f"{where}/role", "must be a text"))
            if not isinstance(message.get("content"), str | list):
                errors.append(FieldError(f"{where}/content", "must be a text or a list of blocks"))
        if len(errors) > MOST_ERRORS:
            return


def options_of(
    job: object,
    errors: list[FieldError],
    *,
    priorities: Mapping[str, Priority] = _PRIORITIES,
    webhook_networks: Networks = (),
    latest_ms: int = _YEAR_9999_MS,
    webhook_events: Mapping[bool, Sequence[EventType]] = _EVENTS_OF_JOB,
) -> JobOptions:
    """The ``job`` member, checked; what is not valid is added to ``errors``. ``webhook_networks``: where webhooks may lead
    beside public addresses; ``latest_ms``: of a ``not_before``; ``webhook_events``: those that may be asked for (True), and that are if none is named (False).
    """
    if not isinstance(job, dict):
        errors.append(FieldError("#/job", "must be an object"))
        return _DEFAULTS
    found: dict[str, Any] = {}
    for name, value in job.items():
        where = pointer("#/job", name)
        if name in _RANGES:
            least, most = _RANGES[name]
            found[name] = whole_of(value, least, most)
            if found[name] is None:
                errors.append(FieldError(where, f"must be a whole number from {least} to {most}"))
        elif name == "priority":
            if not isinstance(value, str) or value not in priorities:
                errors.append(FieldError(where, "must be one of: " + ", ".join(priorities)))
            else:
                found[name] = priorities[value]
        elif name == "not_before":
            found["not_before_ms"] = _not_before_ms(value, errors, latest_ms)
        elif name == "metadata":
            _check_metadata(value, errors)
            found[name] = value
        elif name == "webhook":
            found[name] = _webhook_of(value, errors, webhook_networks, webhook_events)
        else:
            detail = "is not known" if where != "#/job" else "has a member that is not known"
            errors.append(FieldError(where, detail))
            if len(errors) > MOST_ERRORS:
                break
    return _DEFAULTS if errors else JobOptions(**found)


def _not_before_ms(value: object, errors: list[FieldError], latest_ms: int) -> int | None:
    detail = "must be a time like 2026-11-23T14:02:11Z (RFC 3339, with its offset)"
    try:
        moment_ms = from_rfc3339(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        moment_ms = None
    if moment_ms is None:
        errors.append(FieldError("#/job/not_before", detail))
    elif not 0 <= moment_ms < _YEAR_9999_MS:
        errors.append(FieldError("#/job/not_before", "must be a time from 1970 to 9998"))
    elif moment_ms > latest_ms:
        latest = to_rfc3339(latest_ms)
        errors.append(FieldError("#/job/not_before", f"must be no later than {latest} (TOKENSPOOL_MAX_NOT_BEFORE_S)"))
    return moment_ms


def _webhook_of(
    value: object, errors: list[FieldError], networks: Networks, events: Mapping[bool, Sequence[EventType]]
) -> Webhook | None:
    where = "#/job/webhook"
    if value is None:
        return None
    if not isinstance(value, dict):
        errors.append(FieldError(where, "must be an object, or null"))
        return None
    for name in value:
        if name not in _WEBHOOK_MEMBERS:
            at = pointer(where, name)
            errors.append(FieldError(at, "is not known" if at != where else "has a member that is not known"))
            break
    url = value.get("url")
    refusal = refusal_of_url(url, networks) if isinstance(url, str) else "must be a text"
    if refusal is not None:
        errors.append(FieldError(f"{where}/url", refusal))
    asked = value.get("events", list(events[False]))
    if (
        not isinstance(asked, list)
        or not asked
        or not all(isinstance(event, str) and event in events[True] for event in asked)
        or len(set(asked)) < len(asked)
    ):
        errors.append(FieldError(f"{where}/events", "must be a list of some of: " + ", ".join(events[True])))
    result = value.get("result", False)
    if type(result) is not bool:
        errors.append(FieldError(f"{where}/result", "must be true or false"))
    if errors:
        return None
    return Webhook(str(url), tuple(sorted(map(EventType, asked))), bool(result))


def _check_metadata(metadata: object, errors: list[FieldError]) -> None:
    where = "#/job/metadata"
    if not isinstance(metadata, dict) or len(metadata) > _MOST_METADATA:
        errors.append(FieldError(where, f"must be an object of at most {_MOST_METADATA} members"))
        return
    for name, value in metadata.items():
        if not 1 <= len(name) <= _MOST_METADATA_KEY_CHARS:
            errors.append(FieldError(where, f"must have names of 1 to {_MOST_METADATA_KEY_CHARS} characters"))
        if not isinstance(value, str) or len(value) > _MOST_METADATA_VALUE_CHARS:
            detail = f"must be a text of at most {_MOST_METADATA_VALUE_CHARS} characters"
            errors.append(FieldError(pointer(where, name), detail))
