"""Reads a request of the Messages API, and checks only what we use ourselves: the LLM judges the rest.

Pure, but for reading headers. ``stream`` is taken out, since we always stream. All other members are passed on, even
those called ``job`` or ``prompt``.
"""

import hashlib
import re
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from pydantic import ConfigDict, Field, StrictBool
from starlette.requests import Request

from api.batches.items import BatchLine, an_object_of
from api.http.headers import idempotency_key, one, several
from api.http.invalid import refuse
from api.http.members import Body, read
from api.http.strict_json import decode
from api.jobs.request import (
    MOST_END_USER_CHARS,
    NO_HEADERS,
    NO_OPTIONS,
    Draft,
    JobOptions,
    MaxTokens,
    Messages,
    Model,
    Parameters,
    UpstreamHeaders,
    drafted,
    passed_on,
)
from api.jobs.submit import Idempotency
from api.openapi import header
from shared.errors import FieldError
from shared.job import JobKind, Priority
from shared.store.idempotency import fingerprint_of

COUNT_TIMEOUT_S: Final = 10

_COUNT_OPTIONS: Final = JobOptions(
    priority=Priority.HIGH, timeout_s=COUNT_TIMEOUT_S, expires_in_s=COUNT_TIMEOUT_S, max_attempts=2
)
_MOST_BETA_CHARS: Final = 1024
_MOST_VERSION_CHARS: Final = 64
_PRINTABLE: Final = re.compile(r"[ -~]*", re.ASCII)
_ON_DISCONNECT: Final = ("cancel", "continue")


class MessageRequest(Parameters):
    """The parameters of the Messages API; those that are not listed are passed on untouched."""

    stream: StrictBool | None = None
    model: Model = None
    max_tokens: MaxTokens
    messages: Messages


class TokenCountRequest(Body):
    """The parameters of the Messages API; those that are not listed are passed on untouched."""

    model_config = ConfigDict(extra="ignore")

    model: Model = None
    messages: Messages


class MessageBatchLine(BatchLine):
    """One request of a batch."""

    params: Annotated[dict[str, Any], an_object_of(MessageRequest)]


class MessageBatchRequest(Body):
    """All requests of a batch."""

    requests: Annotated[list[MessageBatchLine], Field(min_length=1)]
    """A request that cannot run becomes an errored result; the others run."""


UPSTREAM_HEADERS: Final = (
    header("anthropic-beta", "Passed on to an upstream that knows it.", maxLength=_MOST_BETA_CHARS, pattern="^[ -~]*$"),
    header(
        "anthropic-version",
        "Passed on to an upstream that knows it. By default the version in the workers' settings.",
        maxLength=_MOST_VERSION_CHARS,
        pattern="^[ -~]*$",
    ),
)


class CallHeaders(NamedTuple):
    """What a request's headers ask for."""

    key: str | None
    """The Idempotency-Key."""
    is_cancelled_by_leaving: bool
    upstream: UpstreamHeaders = NO_HEADERS


def call_headers_of(request: Request) -> CallHeaders:
    """What this request's headers ask for. Raises InvalidRequest."""
    key = idempotency_key(request)
    return CallHeaders(key, _is_cancelled_by_leaving(request, key), upstream_headers_of(request))


def _is_cancelled_by_leaving(request: Request, key: str | None) -> bool:
    """By default if there is no Idempotency-Key: without one, no client can come back for the answer."""
    wish = one(request, b"x-on-disconnect")
    if wish is None:
        return key is None
    if wish not in _ON_DISCONNECT:
        raise refuse(FieldError("x-on-disconnect", "must be one of: " + ", ".join(_ON_DISCONNECT)))
    return wish == "cancel"


def upstream_headers_of(request: Request) -> UpstreamHeaders:
    """The headers that are passed on to the LLM. Raises InvalidRequest."""
    return UpstreamHeaders(_beta_of(request), _version_of(request))


def _beta_of(request: Request) -> str:
    """``anthropic-beta`` as one list, even if it was sent several times."""
    names = [name.strip(" \t") for name in several(request, b"anthropic-beta").split(",")]
    beta = ",".join([name for name in names if name])
    if len(beta) > _MOST_BETA_CHARS or not _PRINTABLE.fullmatch(beta):
        detail = f"must be at most {_MOST_BETA_CHARS} printable ASCII characters"
        raise refuse(FieldError("anthropic-beta", detail))
    return beta


def _version_of(request: Request) -> str:
    """``anthropic-version``, whatever it is: only the LLM knows which are valid."""
    version = one(request, b"anthropic-version") or ""
    if len(version) > _MOST_VERSION_CHARS or not _PRINTABLE.fullmatch(version):
        detail = f"must be at most {_MOST_VERSION_CHARS} printable ASCII characters"
        raise refuse(FieldError("anthropic-version", detail))
    return version


_NOBODY: Final = CallHeaders(key=None, is_cancelled_by_leaving=False)


class MessageCall(NamedTuple):
    """A call, as its body and headers describe it."""

    draft: Draft
    is_streamed: bool
    idempotency: Idempotency | None


def parse_message_call(raw: bytes, *, headers: CallHeaders, default_model: str) -> "MessageCall":
    """Reads a body. Raises InvalidRequest, which names every field that is not valid."""
    body = decode(raw)
    draft, is_streamed = message_draft_of(body, headers, default_model=default_model)
    return MessageCall(draft, is_streamed, idempotency_of(body, headers.key))


def parse_count(raw: bytes, *, default_model: str, headers: UpstreamHeaders) -> Draft:
    """Reads the body of a count. Raises InvalidRequest."""
    return count_draft_of(decode(raw), default_model=default_model, headers=headers)


def message_draft_of(body: Any, headers: CallHeaders, *, default_model: str) -> tuple[Draft, bool]:
    """The draft, and whether its answer is to be streamed. Raises InvalidRequest, which names all invalid fields."""
    asked = read(MessageRequest, body)
    request = passed_on({"model": default_model, **body}, asked)
    end_user = _end_user_of(body)
    draft = drafted(
        request["model"],
        msgspec.json.encode(request),
        options=JobOptions(end_user=end_user) if end_user else NO_OPTIONS,
        # The stream cannot take text back, but a client that can come back for the whole answer wants another attempt.
        may_start_over=not (asked.stream and headers.is_cancelled_by_leaving),
        upstream_headers=headers.upstream,
    )
    return draft, asked.stream is True


def _end_user_of(body: dict[str, Any]) -> str | None:
    """``metadata.user_id``. One that has not the form of an end user is hashed, so that the limits of end users hold for it too;
    what is no text is left to the LLM.
    """
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user_id, str) or not user_id:
        return None
    if len(user_id) <= MOST_END_USER_CHARS and user_id.isprintable():
        return user_id
    return "sha256:" + hashlib.sha256(user_id.encode()).hexdigest()[:32]


def batch_draft_of(params: object, *, default_model: str) -> Draft:
    """The draft of one request of a batch. Raises InvalidRequest."""
    return message_draft_of(params, _NOBODY, default_model=default_model)[0]


def count_draft_of(body: Any, *, default_model: str, headers: UpstreamHeaders) -> Draft:
    """The job that counts a request's tokens. Raises InvalidRequest."""
    read(TokenCountRequest, body)
    request = {"model": default_model, **body}
    request.pop("stream", None)
    return drafted(
        request["model"],
        msgspec.json.encode(request),
        options=_COUNT_OPTIONS,
        kind=JobKind.COUNT_TOKENS,
        upstream_headers=headers,
    )


def idempotency_of(body: dict[str, Any], key: str | None) -> Idempotency | None:
    """The fingerprint leaves ``stream`` out: a repeat may ask for the same answer streamed, or whole."""
    if key is None:
        return None
    return Idempotency(key, fingerprint_of({name: value for name, value in body.items() if name != "stream"}))
