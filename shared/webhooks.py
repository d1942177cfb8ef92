"""Webhooks: which events a caller asks for, what is sent, and when a failed attempt is repeated.

Standard Webhooks (standardwebhooks.com): the body is thin, the same bytes at every attempt, and signed; ``webhook-id`` is the
delivery's id. A delivery is created by the script that ends its job or batch, so that no end goes unreported.
"""

import hashlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from shared.clock import to_rfc3339


class EventType(StrEnum):
    """The events that a webhook can ask for."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    BATCH_ENDED = "batch.ended"


JOB_EVENTS: Final = frozenset(EventType) - {EventType.BATCH_ENDED}
"""Events of a job, or of a batch's items."""
DEFAULT_BATCH_EVENTS: Final = (EventType.BATCH_ENDED,)

MOST_URL_CHARS: Final = 2000
MOST_ATTEMPTS: Final = 20
"""The most attempts of one schedule, and so the longest history."""
LONGEST_RETRY_AFTER_S: Final = 86_400.0
_JITTER: Final = 0.1


class Webhook(msgspec.Struct, frozen=True):
    """The webhook that a submit names."""

    url: str
    events: tuple[EventType, ...]
    result: bool = False
    """Whether the body includes the job's result."""


class _Stored(msgspec.Struct, frozen=True):
    """The form in the record, for the scripts."""

    url: str
    events: tuple[EventType, ...]
    result: bool
    origin: str
    """Hash of the URL's origin: deliveries to one origin share a lane."""
    endpoint: str
    """Hash of the URL: a 410 disables the endpoint that it names."""


STANDARD_PORTS: Final = {"https": 443, "http": 80}


def stored_form(webhook: Webhook | None) -> bytes:
    """JSON for a record; empty if there is no webhook."""
    if webhook is None:
        return b""
    parts = urlsplit(webhook.url)
    port = parts.port or STANDARD_PORTS.get(parts.scheme)  # https://x and https://x:443 are one receiver
    origin = f"{parts.scheme}://{parts.hostname}:{port}"
    stored = _Stored(webhook.url, webhook.events, webhook.result, _short_hash(origin), _short_hash(webhook.url))
    return msgspec.json.encode(stored)


def webhook_of(stored: bytes) -> Webhook:
    """The inverse of ``stored_form``."""
    return msgspec.json.decode(stored, type=Webhook)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def delivery_id_of(subject: str) -> str:
    """The id of the delivery for a job or batch: it ends once, so it has one delivery."""
    return "evt_" + subject.partition("_")[2]


class DeliveryState(StrEnum):
    PENDING = "pending"
    """It waits for its next attempt, or is being sent."""
    DELIVERED = "delivered"
    """The receiver sent a 2xx receipt."""
    FAILED = "failed"
    """No attempt is left, or the receiver sent a 410. A redelivery starts over."""


class Reason(StrEnum):
    """Why an attempt got no 2xx receipt."""

    STATUS = "status"
    """A status that is not 2xx, 3xx or 410."""
    REDIRECT = "redirect"
    """A 3xx, which is never followed."""
    GONE = "gone"
    """410: the endpoint is disabled."""
    DISABLED = "disabled"
    """The endpoint sent a 410 to an earlier delivery: nothing was sent."""
    FORBIDDEN_ADDRESS = "forbidden_address"
    UNRESOLVABLE = "unresolvable"
    REFUSED_CONNECTION = "refused_connection"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    """The receipt was not HTTP, or broke off."""


class Attempt(msgspec.Struct, frozen=True):
    """One attempt that has ended."""

    at_ms: int
    took_ms: int
    status: int | None = None
    reason: Reason | None = None
    """None if it was delivered."""


class Delivery(msgspec.Struct, frozen=True):
    """A delivery, read from its record. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    tenant: str
    event: EventType
    subject: str
    """The job or batch that has ended."""
    status: str
    """The state in which the subject ended."""
    url: str
    state: DeliveryState
    created_ms: int
    """When the subject ended."""
    with_result: bool = False
    batch_id: str | None = None
    custom_id: str | None = None
    usage: msgspec.Raw | None = None
    counts: msgspec.Raw | None = None
    error: msgspec.Raw | None = None
    due_ms: int | None = None
    """When the next attempt is due; None if no attempt is left, or one is under way."""
    ended_ms: int | None = None
    attempts: tuple[Attempt, ...] = ()
    """The attempts of the newest schedule: a redelivery begins a new one."""

    @property
    def is_of_batch(self) -> bool:
        """True for a batch, False for a job."""
        return self.event is EventType.BATCH_ENDED


def body_of(delivery: Delivery, result: bytes | None = None) -> bytes:
    """What is sent: the same bytes at every attempt, as long as the result is kept. ``result``: as stored, if requested."""
    data: dict[str, Any] = {}
    if delivery.is_of_batch:
        data["batch_id"] = delivery.subject
    else:
        data["job_id"] = delivery.subject
        if delivery.batch_id is not None:
            data |= {"batch_id": delivery.batch_id, "custom_id": delivery.custom_id}
    data["status"] = delivery.status
    data["usage"] = delivery.usage
    if delivery.counts is not None:
        data["counts"] = delivery.counts
    if delivery.error is not None:
        data["error"] = delivery.error
    data["url"] = f"/v1/{'batches' if delivery.is_of_batch else 'jobs'}/{delivery.subject}"
    if delivery.with_result:
        data["result"] = msgspec.Raw(result) if result else None
    return msgspec.json.encode(
        {"type": delivery.event, "timestamp": to_rfc3339(delivery.created_ms), "data": data},
    )


class Next(msgspec.Struct, frozen=True):
    """The state of a delivery after an attempt."""

    state: DeliveryState
    reason: Reason | None = None
    delay_s: float = 0
    """Delay before the next attempt; 0 unless it is pending."""


def next_of(
    *,
    status: int | None,
    reason: Reason | None,
    retry_after_s: float | None,
    failed_before: int,
    retry_s: Sequence[float],
    chance: Callable[[], float],
) -> Next:
    """2xx delivers, 410 ends it, anything else is tried again: after ``retry_s[failed_before]``, up to a tenth longer, and not
    before the receiver's ``Retry-After`` of at most a day. ``status`` is None without a receipt; then ``reason`` says why.
    """
    if status is not None and 200 <= status < 300:
        return Next(DeliveryState.DELIVERED)
    if status == 410:
        return Next(DeliveryState.FAILED, Reason.GONE)
    if status is not None:
        reason = Reason.REDIRECT if 300 <= status < 400 else Reason.STATUS
    if failed_before >= len(retry_s):
        return Next(DeliveryState.FAILED, reason)
    delay_s = retry_s[failed_before] * (1 + _JITTER * chance())
    return Next(DeliveryState.PENDING, reason, max(delay_s, min(retry_after_s or 0, LONGEST_RETRY_AFTER_S)))


class Secrets(msgspec.Struct, frozen=True):
    """The secrets that sign a tenant's deliveries. ``repr`` shows none."""

    current: str
    """``whsec_`` and 32 random bytes in base 64."""
    created_ms: int
    previous: str | None = None
    """It also signs, until ``previous_until_ms``."""
    previous_until_ms: int | None = None

    def __repr__(self) -> str:
        """No secrets, which must not reach a log or a traceback."""
        return f"Secrets(created_ms={self.created_ms})"

    @property
    def live(self) -> tuple[str, ...]:
        """The secrets to sign with, newest first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)
