"""``/v1/webhooks``: the secret that deliveries are signed with; list, read and repeat deliveries."""

import re
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import BATCH_ID, JOB_ID, Admin, Api, Reader, Submitter, caller_of
from api.http.pages import DEFAULT_LIMIT, Limit
from api.http.responses import json_response
from api.http.rotation import RotateRequest, grace_s_of
from api.openapi import LISTS, READS, body_of, json_of, operation
from shared.api_key import Scope
from shared.clock import to_rfc3339
from shared.errors import FieldError, InvalidCursor, NotFound
from shared.webhooks import Attempt, Delivery, DeliveryState, EventType, Reason, Secrets

router = APIRouter()

DELIVERY_ID: Final = re.compile(r"evt_[0-9a-hjkmnp-tv-z]{26}", re.ASCII)


class SecretView(msgspec.Struct, frozen=True):
    """The secret that a tenant's deliveries are signed with."""

    type: str
    secret: str
    created_at: str
    previous_secret_until: str | None
    """Until when the secret before it signs as well; null if it does not."""


class AttemptView(msgspec.Struct, frozen=True):
    """One attempt that has ended."""

    at: str
    status: int | None
    """The receipt's status; null if there was no receipt."""
    error: Reason | None
    """Why the attempt failed; null if it succeeded."""
    took_ms: int


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery."""

    id: str
    type: str
    event: EventType
    status: DeliveryState
    job_id: str | None
    batch_id: str | None
    custom_id: str | None
    url: str
    created_at: str
    next_attempt_at: str | None
    ended_at: str | None
    attempts: list[AttemptView]


class DeliveryPage(msgspec.Struct, frozen=True):
    """A list of deliveries; ``next`` is the ``after`` of the next page."""

    data: list[DeliveryView]
    has_more: bool
    next: str | None


async def _delivery_id(delivery_id: Annotated[str, Path()]) -> str:
    if not DELIVERY_ID.fullmatch(delivery_id):
        raise NotFound
    return delivery_id


DeliveryId = Annotated[str, Depends(_delivery_id)]


@router.get("/v1/webhooks/secret")
@operation({200: json_of(SecretView, "The secret that deliveries are signed with.")}, (400, 401, 503))
async def read_secret(api: Api, caller: Admin) -> Response:
    """The secret that the tenant's deliveries are signed with. The first call creates it."""
    return _secret(await api.runtime.webhooks.secrets(caller.tenant))


@router.post("/v1/webhooks/secret/rotate")
@operation(
    {200: json_of(SecretView, "The new secret.")},
    (400, 401, 413, 415, 503),
    body=body_of(RotateRequest, required=False),
)
async def rotate_secret(request: Request, api: Api, caller: Admin) -> Response:
    """Create a new secret. The old one signs too for ``grace_s`` seconds."""
    grace_s = await grace_s_of(request, caller)
    await caller_of(request, Scope.ADMIN)  # again: while the body came, the key's own secret may have been replaced
    return _secret(await api.runtime.webhooks.rotate(caller.tenant, grace_s=grace_s))


@router.get("/v1/webhooks/deliveries")
@operation({200: json_of(DeliveryPage, "A page, newest job or batch first.")}, LISTS)
async def list_deliveries(
    request: Request,
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    status: DeliveryState | None = None,
    job_id: str | None = None,
    batch_id: str | None = None,
) -> Response:
    """The tenant's deliveries, newest job or batch first. ``batch_id``: those of the batch and of its items."""
    if after is not None and not DELIVERY_ID.fullmatch(after):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
    is_none = (job_id is not None and not JOB_ID.fullmatch(job_id)) or (
        batch_id is not None and not BATCH_ID.fullmatch(batch_id)
    )
    if is_none:
        return json_response(msgspec.json.encode(DeliveryPage([], has_more=False, next=None)))
    page = await api.runtime.webhooks.page(
        caller.tenant, after=after, limit=limit, state=status, job_id=job_id, batch_id=batch_id
    )
    await api.key_ring.still(request.scope)
    views = [view_of(delivery) for delivery in page.deliveries]
    return json_response(msgspec.json.encode(DeliveryPage(views, page.next_after is not None, page.next_after)))


@router.get("/v1/webhooks/deliveries/{delivery_id}")
@operation({200: json_of(DeliveryView, "The delivery's current state.")}, READS)
async def read_delivery(api: Api, caller: Reader, delivery_id: DeliveryId) -> Response:
    """A delivery, and its attempts."""
    return json_response(render(await api.runtime.webhooks.get(delivery_id, caller.tenant)))


@router.post("/v1/webhooks/deliveries/{delivery_id}/redeliver", status_code=202)
@operation({202: json_of(DeliveryView, "The delivery's current state.")}, READS)
async def redeliver(api: Api, caller: Submitter, delivery_id: DeliveryId) -> Response:
    """Send the delivery again now, whatever its state. One that is being sent does not change."""
    return json_response(render(await api.runtime.webhooks.redeliver(delivery_id, caller.tenant)), 202)


def _secret(secrets: Secrets) -> Response:
    until_ms = secrets.previous_until_ms
    view = SecretView(
        "webhook_secret", secrets.current, to_rfc3339(secrets.created_ms), to_rfc3339(until_ms) if until_ms else None
    )
    return json_response(msgspec.json.encode(view), 200, {"Cache-Control": "no-store"})


def render(delivery: Delivery) -> bytes:
    """The delivery as one line of JSON."""
    return msgspec.json.encode(view_of(delivery))


def view_of(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        type="webhook_delivery",
        event=delivery.event,
        status=delivery.state,
        job_id=None if delivery.is_of_batch else delivery.subject,
        batch_id=delivery.subject if delivery.is_of_batch else delivery.batch_id,
        custom_id=delivery.custom_id,
        url=delivery.url,
        created_at=to_rfc3339(delivery.created_ms),
        next_attempt_at=_time(delivery.due_ms),
        ended_at=_time(delivery.ended_ms),
        attempts=[_attempt_of(attempt) for attempt in delivery.attempts],
    )


def _attempt_of(attempt: Attempt) -> AttemptView:
    return AttemptView(to_rfc3339(attempt.at_ms), attempt.status, attempt.reason, attempt.took_ms)


def _time(time_ms: int | None) -> str | None:
    return None if time_ms is None else to_rfc3339(time_ms)
