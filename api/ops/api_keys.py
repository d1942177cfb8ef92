"""``/v1/keys``: the API keys of the caller's tenant, for keys with the scope ``admin``. With ``operator`` too, a key reads,
changes and revokes those of any tenant, but never makes a secret for it: that would open the tenant's prompts.

A key cannot grant more than it has: no other scope, no wider limit, no later expiry. Otherwise a key that may do
little, but make keys, could do everything. But each key's use is counted by itself: several keys, each within the
limits of one, can use more than that one could. Only the tenant's limits bound them together. Without
TOKENSPOOL_AUTH=keys all of this is refused: anybody could make keys that would be valid later.
"""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Admin, Api, NamedTenant, tenant_asked
from api.http.body import read_json
from api.http.headers import one
from api.http.invalid import refuse
from api.http.members import Body, Expected, Text, Whole, read
from api.http.pages import DEFAULT_LIMIT, Limit
from api.http.responses import json_response
from api.http.rotation import RotateRequest, grace_s_of
from api.openapi import LISTS, body_of, json_of, operation
from api.state.api_state import ApiState
from api.state.key_ring import Credential, credential_of
from shared.api_key import (
    DEFAULT_ENV,
    DEFAULT_SCOPES,
    ENV,
    KEY_ID,
    TENANT_SCOPES,
    ApiKey,
    Caller,
    Scope,
    is_within,
)
from shared.clock import to_rfc3339
from shared.errors import FieldError, Forbidden, InvalidCursor, NotFound
from shared.limits import CallerLimits
from shared.settings import Auth

router = APIRouter()

MOST_NAME_CHARS: Final = 128
MOST_EXPIRES_IN_S: Final = int(timedelta(days=3650).total_seconds())
MOST_LIMIT: Final = 1_000_000_000_000
MOST_USD: Final = 1_000_000

_NANO: Final = 1_000_000_000
_LEAST_USD: Final = 0.5 / _NANO
"""Anything up to this would be rounded to 0, which means no limit."""


class KeyStatus(StrEnum):
    """Whether the key is valid."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyLimits(msgspec.Struct, frozen=True):
    """What the key may use. Null is no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    running_jobs: int | None
    queued_jobs: int | None
    usd_per_day: float | None
    usd_per_month: float | None


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """An API key."""

    id: str
    type: str
    status: KeyStatus
    name: str
    env: str
    scopes: list[Scope]
    limits: KeyLimits
    created_at: str
    made_by: str | None
    """The id of the key that made it; null if the command line did."""
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    rotated_at: str | None
    old_secret_until: str | None
    """Until when the secret from before the last rotation is valid too; null if it is not."""
    key: str | msgspec.UnsetType = msgspec.UNSET
    """The key itself: only in the response that makes it or its new secret."""


class KeyPage(msgspec.Struct, frozen=True):
    """A list of keys; ``next`` is the ``after`` of the next page."""

    data: list[KeyView]
    has_more: bool
    next: str | None


_Limit = Annotated[int | None, Whole(1, MOST_LIMIT, or_null=True)]
Dollars = Annotated[
    Annotated[float, Field(strict=True, gt=_LEAST_USD, le=MOST_USD)] | None,
    Expected(f"must be a number above 0, at most {MOST_USD}, or null"),
]


class LimitsRequest(Body):
    """Limits of a key. Null is no limit; one that is left out is that of the key that makes it, or stays as it is."""

    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    running_jobs: _Limit = None
    queued_jobs: _Limit = None
    usd_per_day: Dollars = None
    usd_per_month: Dollars = None

    def over(self, own: CallerLimits) -> CallerLimits:
        """The limits, with ``own`` for all that are left out: those of the key that makes it, or the ones before."""
        named = {name: getattr(self, name) or 0 for name in self.model_fields_set}
        members = {
            f"nano_{name}" if name.startswith("usd") else name: round(limit * _NANO)
            if name.startswith("usd")
            else limit
            for name, limit in named.items()
        }
        return msgspec.structs.replace(own, **members)


_Name = Annotated[str, Text(most=MOST_NAME_CHARS, is_printable=True)]
_Scopes = Annotated[
    tuple[Scope, ...],
    Field(min_length=1, fail_fast=True),
    Expected("must be a list of any of: " + ", ".join(Scope)),
]


class KeyRequest(Body):
    """A new key. All members may be left out."""

    name: _Name = ""
    """For people."""
    env: Annotated[str, Field(pattern=f"^{ENV.pattern}$"), Expected("must be 1 to 16 characters of a-z and 0-9")] = (
        DEFAULT_ENV
    )
    """1 to 16 of a-z and 0-9: the word after ``ts_``, for people and for programs that look for leaked keys."""
    scopes: _Scopes = tuple(scope for scope in Scope if scope in DEFAULT_SCOPES)
    """What it may do. ``operator`` is refused: the command line alone gives it."""
    expires_in_s: Annotated[int | None, Whole(1, MOST_EXPIRES_IN_S, or_null=True)] = None
    """At most ten years. Null or left out: no end, or that of the key that makes it."""
    limits: LimitsRequest = Field(default_factory=LimitsRequest)
    """How much its jobs may use. Null is no limit; one that is left out is that of the key that makes it."""


class KeyChange(Body):
    """What to change of a key. What is left out stays as it is."""

    name: _Name = ""
    """For people."""
    scopes: _Scopes = ()
    """What it may do from now on. ``operator`` cannot be added: the command line alone gives it."""
    limits: LimitsRequest = Field(default_factory=LimitsRequest)
    """The limits to change. Null is no limit."""


async def _manager(api: Api, caller: Admin) -> Caller:
    if api.settings.auth is not Auth.KEYS:
        raise Forbidden(
            "Keys cannot be managed here under TOKENSPOOL_AUTH=off: set TOKENSPOOL_AUTH=keys, or use tokenspool keys."
        )
    return caller


async def _key_id(key_id: Annotated[str, Path()]) -> str:
    if not KEY_ID.fullmatch(key_id):
        raise NotFound
    return key_id


Manager = Annotated[Caller, Depends(_manager)]
KeyId = Annotated[str, Depends(_key_id)]

_ERRORS: Final = (400, 401, 404, 503)


@router.post("/v1/keys", status_code=201)
@operation(
    {201: json_of(KeyView, "The key, with its text in key: shown once.")},
    (400, 401, 409, 413, 415, 503),
    body=body_of(KeyRequest),
)
async def create_key(request: Request, api: Api, caller: Manager) -> Response:
    """Create a key for the caller's tenant. Only this response has its text."""
    if one(request, b"idempotency-key") is not None:
        raise refuse(
            FieldError(
                "Idempotency-Key", "must not be sent: a key is shown only once, so its response cannot be repeated"
            )
        )
    asked = read(KeyRequest, await read_json(request, caller))
    scopes, limits = frozenset(asked.scopes), asked.limits.over(caller.limits)
    credential = credential_of(request.scope)
    _must_be_given(scopes)
    if not scopes <= caller.scopes or not is_within(limits, caller.limits):
        raise _gives_too_much()
    made = await api.runtime.api_keys.create(
        caller.tenant,
        env=asked.env,
        name=asked.name,
        scopes=scopes,
        limits=limits,
        expires_in_s=asked.expires_in_s,
        latest_end_ms=None if credential is None else credential.ends_ms,
        maker=None if credential is None else credential.presented,
    )
    if made is None:
        raise _gives_too_much()
    api.log.info("api_key_created", key_id=made.key.id, by=caller.key_id)
    return json_response(render(made.key, made.key.created_ms, made.text), 201, {"Location": f"/v1/keys/{made.key.id}"})


@router.get("/v1/keys")
@operation({200: json_of(KeyPage, "A page, newest first.")}, LISTS)
async def list_keys(
    request: Request,
    api: Api,
    caller: Manager,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    tenant: NamedTenant = None,
) -> Response:
    """The tenant's keys, newest first; expired and revoked keys are listed for 90 more days."""
    of_tenant = tenant_asked(caller, tenant)
    if after is not None and not KEY_ID.fullmatch(after):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
    page = await api.runtime.api_keys.page(of_tenant, after=after, limit=limit)
    now_ms = await api.runtime.api_keys.now_ms()
    await api.key_ring.still(request.scope)
    views = [view_of(key, now_ms) for key in page.keys]
    return json_response(msgspec.json.encode(KeyPage(views, page.next_after is not None, page.next_after)))


@router.get("/v1/keys/{key_id}")
@operation({200: json_of(KeyView, "The key, without its text.")}, _ERRORS)
async def read_key(api: Api, caller: Manager, key_id: KeyId, tenant: NamedTenant = None) -> Response:
    """A key, without its text."""
    return await _current(api, await api.runtime.api_keys.get(key_id, tenant_asked(caller, tenant)))


@router.patch("/v1/keys/{key_id}")
@operation(
    {200: json_of(KeyView, "The key as it is now, without its text.")},
    (*_ERRORS, 409, 413, 415),
    body=body_of(KeyChange),
)
async def change_key(
    request: Request, api: Api, caller: Manager, key_id: KeyId, tenant: NamedTenant = None
) -> Response:
    """Change the key's name, scopes or limits: every process follows within 5 s.

    Neither before nor after may it have more rights than the caller's key, unless an operator names its ``tenant``.
    """
    of_tenant = tenant_asked(caller, tenant)
    change = read(KeyChange, await read_json(request, caller))
    own = credential_of(request.scope)

    def changed(key: ApiKey) -> ApiKey:
        scopes = frozenset(change.scopes) or key.scopes
        _must_be_given(scopes - key.scopes)
        after = msgspec.structs.replace(
            key,
            name=change.name if "name" in change.model_fields_set else key.name,
            scopes=scopes,
            limits=change.limits.over(key.limits),
        )
        if tenant is None:
            _must_be_within(caller, own, key)
            _must_be_within(caller, own, after)
        return after

    key = await api.runtime.api_keys.change(
        key_id, of_tenant, changed, maker=None if own is None else own.presented, maker_tenant=caller.tenant
    )
    api.log.info("api_key_changed", key_id=key_id, by=caller.key_id)
    return await _current(api, key)


@router.post("/v1/keys/{key_id}/rotate")
@operation(
    {200: json_of(KeyView, "The key, with its new text in key: shown once.")},
    (*_ERRORS, 409, 413, 415),
    body=body_of(RotateRequest, required=False),
)
async def rotate_key(request: Request, api: Api, caller: Manager, key_id: KeyId) -> Response:
    """Give the key a new secret. The old one stays valid for ``grace_s`` seconds."""
    grace_s = await grace_s_of(request, caller)
    key = await api.runtime.api_keys.get(key_id, caller.tenant)
    own = credential_of(request.scope)
    _must_be_within(caller, own, key)
    made = await api.runtime.api_keys.rotate(
        key_id, caller.tenant, grace_s=grace_s, maker=None if own is None else own.presented
    )
    api.log.info("api_key_rotated", key_id=key_id, by=caller.key_id)
    return json_response(render(made.key, await api.runtime.api_keys.now_ms(), made.text))


@router.post("/v1/keys/{key_id}/revoke")
@operation({200: json_of(KeyView, "The key's current state.")}, _ERRORS)
async def revoke_key(api: Api, caller: Manager, key_id: KeyId, tenant: NamedTenant = None) -> Response:
    """Revoke the key: every process refuses it within 5 s. A key that is already revoked does not change.

    The caller's key must have all scopes of the other: else a lesser key could lock the tenant out.
    """
    of_tenant = tenant_asked(caller, tenant)
    found = await api.runtime.api_keys.get(key_id, of_tenant)
    if tenant is None and not found.scopes <= caller.scopes:
        raise Forbidden("A key cannot revoke a key with more scopes than its own.")
    key = await api.runtime.api_keys.revoke(key_id, of_tenant)
    api.log.info("api_key_revoked", key_id=key_id, by=caller.key_id)
    return await _current(api, key)


async def _current(api: ApiState, key: ApiKey) -> Response:
    return json_response(render(key, await api.runtime.api_keys.now_ms()))


def _must_be_given(scopes: frozenset[Scope]) -> None:
    """Raises Forbidden for a scope that no key gives to another."""
    if not scopes <= TENANT_SCOPES:
        raise Forbidden(
            "The scope operator is given by the command line alone: tokenspool keys create --scope operator."
        )


def _must_be_within(caller: Caller, own: Credential | None, key: ApiKey) -> None:
    """Raises Forbidden for a key that has more rights than the caller's own, or has them for longer."""
    outlives = own is not None and own.ends_ms is not None and (key.expires_ms is None or key.expires_ms > own.ends_ms)
    if outlives or not key.scopes <= caller.scopes or not is_within(key.limits, caller.limits):
        raise _gives_too_much()


def _gives_too_much() -> Forbidden:
    return Forbidden("A key cannot grant more than it has: no other scope, no wider limit, no later expiry.")


# --- the JSON form ----------------------------------------------------------------------------------------------------


def render(key: ApiKey, now_ms: int, text: str | None = None) -> bytes:
    """The key as one line of JSON. ``text``: the key itself, if it is to be shown."""
    return msgspec.json.encode(view_of(key, now_ms, text))


def view_of(key: ApiKey, now_ms: int, text: str | None = None) -> KeyView:
    is_rotating = not key.has_ended(now_ms) and key.retiring_ms is not None and key.retiring_ms > now_ms
    return KeyView(
        id=key.id,
        type="key",
        status=status_of(key, now_ms),
        name=key.name,
        env=key.env,
        scopes=[scope for scope in Scope if scope in key.scopes],
        limits=_shown(key.limits),
        created_at=to_rfc3339(key.created_ms),
        made_by=key.made_by,
        expires_at=time_of(key.expires_ms),
        revoked_at=time_of(key.revoked_ms),
        last_used_at=time_of(key.last_used_ms),
        rotated_at=time_of(key.rotated_ms),
        old_secret_until=time_of(key.retiring_ms) if is_rotating else None,
        key=msgspec.UNSET if text is None else text,
    )


def status_of(key: ApiKey, now_ms: int) -> KeyStatus:
    """The key's status. A key that was revoked and then expired is revoked."""
    if key.revoked_ms is not None:
        return KeyStatus.REVOKED
    return KeyStatus.EXPIRED if key.has_ended(now_ms) else KeyStatus.ACTIVE


def _shown(limits: CallerLimits) -> KeyLimits:
    return KeyLimits(
        requests_per_minute=limits.requests_per_minute or None,
        tokens_per_minute=limits.tokens_per_minute or None,
        running_jobs=limits.running_jobs or None,
        queued_jobs=limits.queued_jobs or None,
        usd_per_day=limits.nano_usd_per_day / _NANO or None,
        usd_per_month=limits.nano_usd_per_month / _NANO or None,
    )


def time_of(time_ms: int | None) -> str | None:
    return None if time_ms is None else to_rfc3339(time_ms)
