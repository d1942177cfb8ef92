"""Builders with defaults for everything: a test names only what matters to it."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec

from shared.batch import ITEM_PRIORITY, BatchSpec, InvalidItem, NewItem
from shared.job import JobSpec, Priority, Submission, Usage, new_id
from shared.limits import NO_LIMITS, CallerLimits, Reservation
from shared.store.idempotency import fingerprint_of
from shared.webhooks import EventType, Webhook

A_REQUEST = b'{"model":"a-model","max_tokens":16,"messages":[{"role":"user","content":"Say hello."}]}'

_births = itertools.count()


def a_submission(
    *,
    tenant: str = "tenant-a",
    model: str = "a-model",
    priority: Priority = Priority.NORMAL,
    idempotency_key: str | None = None,
    body: Any = "the body",
    request: bytes = A_REQUEST,
    job_id: str | None = None,
    attended_by: str = "",
    limits: CallerLimits = NO_LIMITS,
    tokens: int = 0,
    max_tokens: int = 0,
    webhook: Webhook | None = None,
    **spec: Any,
) -> Submission:
    """A job to submit. Its fingerprint is made from ``body``; ``spec`` holds any other members of JobSpec."""
    return Submission(
        id=job_id or an_id(),
        tenant=tenant,
        spec=JobSpec(model=model, priority=priority, **spec),
        request=request,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint_of(body),
        limits=limits,
        reservation=Reservation(tokens, max_tokens),
        webhook=webhook,
        attended_by=attended_by,
    )


def a_batch_id() -> str:
    """Sorts after every earlier one, as ``an_id`` does."""
    return an_id("batch")


def a_webhook(url: str = "https://hooks.example.com/told", *events: EventType, result: bool = False) -> Webhook:
    """A webhook for all terminal events, unless ``events`` are named."""
    return Webhook(url, events or tuple(EventType), result)


def a_batch_spec(
    *,
    metadata: dict[str, str] | None = None,
    retry_of: str | None = None,
    webhook: Webhook | None = None,
    **items: Any,
) -> BatchSpec:
    """``items``: members of JobSpec that all items share."""
    common = JobSpec(**{"model": "", "priority": ITEM_PRIORITY, **items})
    return BatchSpec(items=common, metadata=metadata or {}, retry_of=retry_of, webhook=webhook)


def a_line(
    line: int,
    *,
    custom_id: str | None = None,
    model: str = "a-model",
    request: bytes = A_REQUEST,
    end_user: str | None = None,
) -> NewItem:
    """A valid line."""
    return NewItem(line, an_id(), custom_id or f"item-{line}", model, request, end_user)


def a_bad_line(line: int, *, custom_id: str | None = None) -> InvalidItem:
    """An invalid line."""
    return InvalidItem(line, "max_tokens must be a number.", custom_id)


def lines(count: int, *, start: int = 1) -> list[NewItem | InvalidItem]:
    """``count`` valid lines."""
    return [a_line(number) for number in range(start, start + count)]


def an_id(prefix: str = "job") -> str:
    """An id that sorts after every earlier one of this process, even in the same millisecond."""
    return f"{new_id(prefix)[: len(prefix) + 11]}{next(_births):016d}"


def a_text_delta(text: str, *, index: int = 0) -> tuple[str, bytes]:
    """The name and data of a text delta."""
    return "content_block_delta", encoded(
        {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
    )


def an_answer(
    *texts: str, stop_reason: str | None = "end_turn", usage: Usage | None = None, stops: bool = True
) -> list[tuple[str, bytes]]:
    """The events of a Messages stream with one text block."""
    usage = usage or Usage(input_tokens=12, output_tokens=len(texts))
    events: list[tuple[str, Any]] = [
        message_start(input_tokens=usage.input_tokens),
        block_start(0, {"type": "text", "text": ""}),
        *((("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})) for text in texts),
        block_stop(0),
        message_delta(stop_reason, output_tokens=usage.output_tokens),
    ]
    if stops:
        events.append(("message_stop", {}))
    return wired(events)


def message_start(**usage: int) -> tuple[str, Any]:
    """Before wired()."""
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "a-model-20260101",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    return "message_start", {"message": message}


def block_start(index: int, block: dict[str, Any]) -> tuple[str, Any]:
    """Before wired()."""
    return "content_block_start", {"index": index, "content_block": block}


def block_delta(index: int, **delta: Any) -> tuple[str, Any]:
    """Before wired()."""
    return "content_block_delta", {"index": index, "delta": delta}


def block_stop(index: int) -> tuple[str, Any]:
    """Before wired()."""
    return "content_block_stop", {"index": index}


def message_delta(stop_reason: str | None, **usage: int | None) -> tuple[str, Any]:
    """Before wired()."""
    return "message_delta", {"delta": {"stop_reason": stop_reason, "stop_sequence": None}, "usage": usage}


MESSAGE_STOP: tuple[str, Any] = ("message_stop", {})


def wired(events: Sequence[tuple[str, Any]]) -> list[tuple[str, bytes]]:
    """Encodes (name, members) pairs as the upstream sends them: ``type`` repeats the name."""
    return [(name, encoded({"type": name, **members})) for name, members in events]


def encoded(value: Any) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(value)
