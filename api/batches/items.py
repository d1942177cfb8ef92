"""The requests of a batch, checked one by one, and what they have in common.

Pure. A request that cannot run is a value, not an error: the batch goes on without it. What is said of it names fields
and places, never what stands there.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from api.batches.lines import JOB
from api.http.invalid import BODY, is_name, refuse, unknown_parameter
from api.http.strict_json import decode
from api.jobs.request import Draft, JobOptions, draft_of, latest_not_before_ms, options_of
from shared.batch import ITEM_PRIORITY, InvalidItem, NewItem
from shared.errors import FieldError, InvalidRequest
from shared.job import new_id
from shared.settings import Settings
from shared.webhook_address import Networks
from shared.webhooks import DEFAULT_BATCH_EVENTS, EventType

DraftOf = Callable[[Any], Draft]
"""What is asked of one request's parameters. Raises InvalidRequest, which names the fields."""

_MEMBERS: Final = frozenset({"custom_id", "params"})
MOST_CUSTOM_ID_CHARS: Final = 64
_SHOWN_FIELDS: Final = 3
_NOT_JSON: Final = "must be JSON"

_PRIORITIES: Final = {ITEM_PRIORITY.value: ITEM_PRIORITY}
_NUMBERS: Final = frozenset(JobOptions.__struct_fields__) - {"priority", "not_before_ms", "metadata", "webhook"}
_TEXTS: Final = frozenset({"priority", "not_before"})
_METADATA: Final = "metadata."
_WEBHOOK: Final = "webhook."
_BOOLEANS: Final = {"true": True, "false": False}
_EVENTS: Final = {True: sorted(EventType), False: DEFAULT_BATCH_EVENTS}
_DIGITS: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)


class ReadRequest(NamedTuple):
    """One request of a batch, read by itself."""

    digest: bytes
    """Of its canonical form, or of its bytes if it has none. Empty if nobody asked."""
    custom_id: str | None
    errors: Sequence[FieldError] = ()
    model: str = ""
    request: bytes = b""


def read_request(raw: bytes, *, draft_of: DraftOf, with_digest: bool) -> ReadRequest:
    """What can be said of a request without those before it. Raises nothing; takes long where it is large."""
    try:
        item = decode(raw)
    except InvalidRequest as problem:
        return ReadRequest(hashlib.sha256(raw).digest() if with_digest else b"", None, problem.errors)
    digest = hashlib.sha256(msgspec.json.encode(item, order="deterministic")).digest() if with_digest else b""
    if type(item) is not dict:
        return ReadRequest(digest, None, [FieldError(BODY, "must be a JSON object")])
    errors: list[FieldError] = []
    custom_id = _custom_id_of(item, errors)
    if len(item) > 2 or not item.keys() <= _MEMBERS:
        errors += [_unknown(name) for name in item if name not in _MEMBERS][: _SHOWN_FIELDS + 1]
    params = item.get("params")
    if type(params) is not dict:
        errors.append(FieldError("#/params", "must be an object" if "params" in item else "is missing"))
    if errors:
        return ReadRequest(digest, custom_id, errors)
    try:
        draft = draft_of(params)
    except InvalidRequest as problem:
        inside = [FieldError("#/params" + error.pointer[1:], error.detail) for error in problem.errors]
        return ReadRequest(digest, custom_id, inside)
    return ReadRequest(digest, custom_id, (), draft.model, draft.request)


def _custom_id_of(item: dict[str, Any], errors: list[FieldError]) -> str | None:
    custom_id = item.get("custom_id")
    if type(custom_id) is str and 1 <= len(custom_id) <= MOST_CUSTOM_ID_CHARS and custom_id.isprintable():
        return custom_id
    missing = "custom_id" not in item
    detail = "is missing" if missing else f"must be a text of 1 to {MOST_CUSTOM_ID_CHARS} printable characters"
    errors.append(FieldError("#/custom_id", detail))
    return None


def job_draft_of(params: Any, *, default_model: str, max_prompt_chars: int) -> Draft:
    """The parameters of a job, in a batch. Raises InvalidRequest."""
    if JOB in params:
        raise refuse(FieldError("#/job", "must stand beside requests, for all of them"))
    return draft_of(params, default_model=default_model, max_prompt_chars=max_prompt_chars)


class BatchItems:
    """Makes the items of one batch of its requests, and remembers what must not come twice."""

    def __init__(
        self, settings: Settings, *, noun: str, with_fingerprint: bool, draft_of: DraftOf | None = None
    ) -> None:
        """``noun`` is what a line is called in messages; ``draft_of`` how its parameters are read, if not as a job's."""
        self._max_line_bytes = settings.max_batch_line_bytes
        self._noun = noun
        self._custom_ids: set[str] = set()
        self._digest = hashlib.sha256() if with_fingerprint else None
        of_job = partial(job_draft_of, default_model=settings.model, max_prompt_chars=settings.max_prompt_chars)
        self.read: Callable[[bytes], ReadRequest] = partial(
            read_request, draft_of=draft_of or of_job, with_digest=with_fingerprint
        )
        """Of a line's bytes: can be done anywhere, in any order."""

    def item_of(self, number: int, read: ReadRequest) -> NewItem | InvalidItem:
        """The line as an item; line after line."""
        self._note(number, read.digest)
        custom_id = read.custom_id
        if custom_id is not None and custom_id in self._custom_ids:
            twin = FieldError("#/custom_id", f"is that of an earlier {self._noun}")
            return self._refused(number, [twin, *read.errors])
        if custom_id is not None:
            self._custom_ids.add(custom_id)
        if read.errors or custom_id is None:
            return self._refused(number, read.errors, custom_id)
        return NewItem(number, new_id("job"), custom_id, read.model, read.request)

    def too_long(self, number: int) -> InvalidItem:
        """A line whose bytes were not kept."""
        self._note(number, b"too long")
        return self._refused(number, [FieldError(BODY, f"has more than {self._max_line_bytes} bytes")])

    def fingerprint(self, options: JobOptions) -> str:
        """Of all that came in, once it is all there: equal JSON is the same body, whatever its spacing."""
        assert self._digest is not None
        self._note(0, msgspec.json.encode(options, order="deterministic"))
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


def _sentence(error: FieldError) -> str:
    if error.pointer != BODY:
        return f"{error.pointer} {error.detail}"
    return (
        "is not JSON"
        if error.detail.startswith(_NOT_JSON + ";") or "but the body is empty" in error.detail
        else error.detail
    )


def _unknown(name: str) -> FieldError:
    return (
        FieldError(f"#/{name}", "is not known") if is_name(name) else FieldError(BODY, "has a member that is not known")
    )


def options_of_job(
    raw: bytes | None, webhook_networks: Networks = (), max_not_before_s: int | None = None
) -> JobOptions:
    """The ``job`` member of a JSON body, with its defaults. Raises InvalidRequest, which names the fields."""
    if raw is None:
        return _DEFAULTS
    try:
        job = decode(raw)
    except InvalidRequest as problem:
        raise refuse(*[FieldError(f"#/{JOB}{error.pointer[1:]}", error.detail) for error in problem.errors]) from None
    return _checked(job, [], webhook_networks, max_not_before_s)


def options_of_query(
    query: list[tuple[str, str]], webhook_networks: Networks = (), max_not_before_s: int | None = None
) -> JobOptions:
    """The same as query parameters: ``?timeout_s=60&metadata.run=nightly&webhook.url=…&webhook.events=batch.ended,job.failed``.

    Raises InvalidRequest.
    """
    job: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    webhook: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, value in query:
        key, found = name, job
        for prefix, members in ((_METADATA, metadata), (_WEBHOOK, webhook)):
            if name.startswith(prefix):
                key, found = name.removeprefix(prefix), members
        if "\0" in name + value:
            errors.append(FieldError(BODY, "must not have the character U+0000"))
        elif found is job and name not in _NUMBERS and name not in _TEXTS:
            errors.append(unknown_parameter(name))
        elif key in found:
            errors.append(FieldError(_parameter(name), "must be sent once"))
        else:
            found[key] = int(value) if name in _NUMBERS and _DIGITS.fullmatch(value) else value
    if webhook:
        if "events" in webhook:
            webhook["events"] = webhook["events"].split(",")
        if "result" in webhook:
            webhook["result"] = _BOOLEANS.get(webhook["result"], webhook["result"])
        job["webhook"] = webhook
    if metadata:
        job["metadata"] = metadata
    try:
        return _checked(job, errors, webhook_networks, max_not_before_s)
    except InvalidRequest as problem:
        named = [
            FieldError(error.pointer.removeprefix(f"#/{JOB}/").replace("/", "."), error.detail)
            for error in problem.errors
        ]
        raise refuse(*named) from None


def refuse_query(query: list[tuple[str, str]]) -> None:
    """Raises InvalidRequest if there is a parameter: the body has a member for what it would say."""
    if query:
        raise refuse(*[unknown_parameter(name) for name, _ in query])


def _parameter(name: str) -> str:
    return name if is_name(name) else BODY


def _checked(
    job: object, errors: list[FieldError], webhook_networks: Networks, max_not_before_s: int | None
) -> JobOptions:
    latest = {} if max_not_before_s is None else {"latest_ms": latest_not_before_ms(max_not_before_s)}
    options = options_of(
        job, errors, priorities=_PRIORITIES, webhook_networks=webhook_networks, webhook_events=_EVENTS, **latest
    )
    if errors:
        raise refuse(*errors)
    return msgspec.structs.replace(options, priority=ITEM_PRIORITY)


_DEFAULTS: Final = JobOptions(priority=ITEM_PRIORITY)
