"""The requests of a batch, checked one by one, and their common options.

Pure. A request that cannot run is a value, not an exception: the batch goes on without it. Its message names fields and
places, never their content.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple, get_origin

import msgspec
from pydantic import Field, PlainValidator
from pydantic.fields import FieldInfo

from api.batches.lines import JOB
from api.http.invalid import BODY, in_query, is_name, refuse, unknown_parameter
from api.http.members import Body, Expected, Text, Whole, checked, expected, read
from api.http.strict_json import decode
from api.jobs.request import (
    EACH_ONCE,
    NO_BOUNDS,
    SOME,
    Bounds,
    Draft,
    EndUser,
    JobOptions,
    JobRequest,
    JobWebhook,
    asked_by,
    draft_of,
    some_of,
)
from shared.batch import InvalidItem, NewItem
from shared.errors import FieldError, InvalidRequest
from shared.job import Priority, new_id
from shared.settings import Settings
from shared.webhooks import DEFAULT_BATCH_EVENTS, EventType, Webhook

DraftOf = Callable[[Any], Draft]
"""Makes a draft of one request's parameters. Raises InvalidRequest, which names the fields."""

_SHOWN_FIELDS: Final = 3
_NOT_JSON: Final = "must be JSON"
_BOOLEANS: Final = {"true": True, "false": False}
_DIGITS: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)


def an_object_of(model: type[Body]) -> PlainValidator:
    """Accepts any object: the model reads it later."""
    return PlainValidator(_an_object, json_schema_input_type=model)


def _an_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise expected("must be an object")
    return value


class BatchLine(Body):
    """One request of a batch."""

    custom_id: Annotated[str, Text(1, 64, is_printable=True)]
    """Printable, and unique in the batch. Returned with the result."""
    end_user: EndUser = None
    """As the option of a job; by default the batch's."""
    params: Annotated[dict[str, Any], an_object_of(JobRequest)]
    """What ``POST /v1/jobs`` takes, without ``job``."""


class BatchWebhook(JobWebhook):
    """Who is notified of the end of a batch, or of its items."""

    events: Annotated[tuple[EventType, ...], SOME, EACH_ONCE, some_of(EventType)] = DEFAULT_BATCH_EVENTS  # type: ignore[assignment]
    """The ends to be notified of: the batch's, or its items'."""


class BatchOptions(JobOptions):
    """The options of all items. ``metadata`` is the batch's, and its items have none; ``tags`` are its items'."""

    priority: Annotated[Literal[Priority.LOW], Expected("must be low, which is the default")] = Priority.LOW
    """Items of batches run last."""
    webhook: Annotated[Webhook | None, asked_by(BatchWebhook)] = None
    """Who is notified of the end: see Webhooks."""


class BatchRequest(Body):
    """All requests of a batch and their common options, in one object."""

    requests: Annotated[list[BatchLine], Field(min_length=1)]
    """A request that cannot run becomes a failed item; the others run."""
    job: BatchOptions = Field(default_factory=BatchOptions)
    """Options of all items."""


class ReadRequest(NamedTuple):
    """One request of a batch, read without the others."""

    digest: bytes
    """SHA-256 of its canonical JSON, or of its bytes if it is no JSON. Empty if not wanted."""
    custom_id: str | None
    errors: Sequence[FieldError] = ()
    model: str = ""
    request: bytes = b""
    end_user: str | None = None


def read_request(raw: bytes, *, draft_of: DraftOf, with_digest: bool) -> ReadRequest:
    """Reads a request, without those before it. Raises nothing. Takes long for a large request."""
    try:
        item = decode(raw)
    except InvalidRequest as problem:
        return ReadRequest(hashlib.sha256(raw).digest() if with_digest else b"", None, problem.errors)
    digest = hashlib.sha256(msgspec.json.encode(item, order="deterministic")).digest() if with_digest else b""
    line, errors = checked(BatchLine, item)
    if line is None:
        is_good = type(item) is dict and all(error.pointer != "#/custom_id" for error in errors)
        return ReadRequest(digest, item["custom_id"] if is_good else None, errors)
    try:
        draft = draft_of(line.params)
    except InvalidRequest as problem:
        inside = [FieldError("#/params" + error.pointer[1:], error.detail) for error in problem.errors]
        return ReadRequest(digest, line.custom_id, inside)
    end_user = line.end_user or draft.options.end_user
    return ReadRequest(digest, line.custom_id, (), draft.model, draft.request, end_user)


def job_draft_of(params: Any, *, default_model: str, bounds: Bounds) -> Draft:
    """The draft of one request, whose parameters are a job's without ``job``. Raises InvalidRequest."""
    if JOB in params:
        raise refuse(FieldError("#/job", "is not allowed in a request: the options are the whole batch's"))
    return draft_of(params, default_model=default_model, bounds=bounds)


class BatchItems:
    """Makes the items of one batch from its requests, and remembers their custom ids, which must not come twice."""

    def __init__(
        self, settings: Settings, *, noun: str, with_fingerprint: bool, draft_of: DraftOf | None = None
    ) -> None:
        """``noun``: what messages call a line. ``draft_of``: how its parameters are read, by default as a job's."""
        self._max_line_bytes = settings.max_batch_line_bytes
        self._noun = noun
        self._custom_ids: set[str] = set()
        self._digest = hashlib.sha256() if with_fingerprint else None
        of_job = partial(job_draft_of, default_model=settings.model, bounds=Bounds(settings.max_prompt_chars))
        self.read: Callable[[bytes], ReadRequest] = partial(
            read_request, draft_of=draft_of or of_job, with_digest=with_fingerprint
        )
        """Reads a line's bytes. May run in another process, and in any order."""

    def item_of(self, number: int, read: ReadRequest) -> NewItem | InvalidItem:
        """The line as an item. Call it for line after line."""
        self._note(number, read.digest)
        custom_id = read.custom_id
        if custom_id is not None and custom_id in self._custom_ids:
            twin = FieldError("#/custom_id", f"is that of an earlier {self._noun}")
            return self._refused(number, [twin, *read.errors])
        if custom_id is not None:
            self._custom_ids.add(custom_id)
        if read.errors or custom_id is None:
            return self._refused(number, read.errors, custom_id)
        return NewItem(number, new_id("job"), custom_id, read.model, read.request, read.end_user)

    def too_long(self, number: int) -> InvalidItem:
        """The item of a line whose bytes were too many to keep."""
        self._note(number, b"too long")
        return self._refused(number, [FieldError(BODY, f"has more than {self._max_line_bytes} bytes")])

    def fingerprint(self, options: JobOptions) -> str:
        """A hash of the whole batch, after the last line. Equal JSON has the same hash, whatever its spacing."""
        assert self._digest is not None
        self._note(0, _canonical(options))
        return self._digest.hexdigest()[:32]

    def _note(self, number: int, canonical: bytes) -> None:
        if self._digest:
            self._digest.update(b"%d %d " % (number, len(canonical)))
            self._digest.update(canonical)

    def _refused(self, number: int, errors: Sequence[FieldError], custom_id: str | None = None) -> InvalidItem:
        said = [_sentence(error) for error in errors[:_SHOWN_FIELDS]]
        if len(errors) > _SHOWN_FIELDS:
            said.append("and more")
        return InvalidItem(number, f"{self._noun} {number} {'; '.join(said)}", custom_id)


_ALWAYS: Final = (
    "priority", "timeout_s", "connect_timeout_s", "first_token_timeout_s", "content_idle_timeout_s", "expires_in_s",
    "max_attempts", "not_before_ms", "metadata", "webhook",
)  # fmt: skip
"""Options that are in every fingerprint, in this order. Add none: stored fingerprints would not match any more."""


def _canonical(options: JobOptions) -> bytes:
    """As JSON. An option that came later is left out where it has its default: a body without it has the fingerprint that it had
    before there was that option.
    """
    later = [
        name
        for name, field in sorted(type(options).model_fields.items())
        if name not in _ALWAYS and getattr(options, name) != field.get_default(call_default_factory=True)
    ]
    members = [
        msgspec.json.encode(name) + b":" + msgspec.json.encode(getattr(options, name), order="deterministic")
        for name in (*_ALWAYS, *later)
    ]
    return b"{%b}" % b",".join(members)


def _sentence(error: FieldError) -> str:
    if error.pointer != BODY:
        return f"{error.pointer} {error.detail}"
    return (
        "is not JSON"
        if error.detail.startswith(_NOT_JSON + ";") or "but the body is empty" in error.detail
        else error.detail
    )


def options_of_job(raw: bytes, bounds: Bounds) -> BatchOptions:
    """The ``job`` member of a JSON body. Raises InvalidRequest, which names the fields."""
    at = f"#/{JOB}"
    try:
        job = decode(raw)
    except InvalidRequest as problem:
        raise refuse(*[FieldError(at + error.pointer[1:], error.detail) for error in problem.errors]) from None
    return read(BatchOptions, job, bounds, at=at)


_OPTIONS: Final = {field.alias or name: field for name, field in BatchOptions.model_fields.items()}
_INNER: Final[dict[str, dict[str, FieldInfo]]] = {"metadata": {}, "webhook": dict(BatchWebhook.model_fields)}
"""Options that are objects: each member is a parameter of its own, such as ``metadata.run`` or ``webhook.url``."""
_PARAMETERS: Final = (*(_OPTIONS.keys() - _INNER), "metadata.*", *(f"webhook.{name}" for name in _INNER["webhook"]))


def options_of_query(query: list[tuple[str, str]], bounds: Bounds = NO_BOUNDS) -> BatchOptions:
    """The options in a query:
    ``?timeout_s=60&metadata.run=nightly&webhook.url=…&webhook.events=batch.ended,job.failed``.

    Raises InvalidRequest, which names the parameters.
    """
    job: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, text in query:
        outer, is_inner, member = name.partition(".")
        if "\0" in name + text:
            errors.append(FieldError(BODY, "must not have the character U+0000"))
        elif is_inner and outer in _INNER:
            _put(job.setdefault(outer, {}), member, _value_of(_INNER[outer].get(member), text), name, errors)
        elif name in _OPTIONS and name not in _INNER:
            _put(job, name, _value_of(_OPTIONS[name], text), name, errors)
        else:
            errors.append(unknown_parameter(name, _PARAMETERS))
    options, wrong = checked(BatchOptions, job, bounds, at="")
    errors += in_query(wrong)
    if options is None or errors:
        raise refuse(*errors)
    return options


def _put(members: dict[str, Any], member: str, value: object, name: str, errors: list[FieldError]) -> None:
    if member in members:
        errors.append(FieldError(name if is_name(name) else BODY, "must be sent once"))
    members[member] = value


def _value_of(field: FieldInfo | None, text: str) -> object:
    """The parameter's text as the JSON value that the field takes. Any other text stays: validation refuses it."""
    if field is None:
        return text
    if any(isinstance(part, Whole) for part in field.metadata):
        return int(text) if _DIGITS.fullmatch(text) else text
    if field.annotation is bool:
        return _BOOLEANS.get(text, text)
    return text.split(",") if get_origin(field.annotation) is tuple else text


def refuse_query(query: list[tuple[str, str]]) -> None:
    """Raises InvalidRequest if there is a parameter: in a JSON body the options are in ``job``."""
    if query:
        raise refuse(*[unknown_parameter(name) for name, _ in query])
