"""``/v1/tenants``: created, listed, changed and erased whole, for keys with the scope ``operator``."""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Api, Operator
from api.http.body import read_json
from api.http.members import Body, Expected, Whole, read
from api.http.pages import DEFAULT_LIMIT, Limit
from api.http.responses import json_response
from api.openapi import LISTS, body_of, json_of, operation
from api.ops.api_keys import MOST_LIMIT, Dollars, time_of
from api.state.api_state import ApiState
from shared.api_key import TENANT, Caller
from shared.clock import to_rfc3339
from shared.errors import FieldError, Forbidden, InvalidCursor, NotFound
from shared.limits import TENANT_OPTIONS, shown_settings, stored_settings
from shared.store.erasures import Erasure, ErasureStep
from shared.store.tenants import Tenant

router = APIRouter()

_MOST_RETENTION_S: Final = 315_360_000

_Limit = Annotated[int | None, Whole(1, MOST_LIMIT, or_null=True)]
_Retention = Annotated[
    Annotated[float, Field(strict=True, gt=0, le=_MOST_RETENTION_S)] | None,
    Expected(f"must be a number above 0, at most {_MOST_RETENTION_S}, or null"),
]


class TenantRequest(Body):
    """A tenant's settings. Null is no limit, and the retention that holds for all tenants."""

    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    running_jobs: _Limit = None
    queued_jobs: _Limit = None
    waiting_bytes: _Limit = None
    usd_per_day: Dollars = None
    usd_per_month: Dollars = None
    end_user_running_jobs: _Limit = None
    end_user_usd_per_day: Dollars = None
    end_user_usd_per_month: Dollars = None
    log_retention_s: _Retention = None
    result_retention_s: _Retention = None


class TenantSettingsView(msgspec.Struct, frozen=True):
    """A tenant's settings. Null is no limit, and the retention that holds for all tenants."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    running_jobs: int | None
    queued_jobs: int | None
    waiting_bytes: int | None
    usd_per_day: float | None
    usd_per_month: float | None
    end_user_running_jobs: int | None
    end_user_usd_per_day: float | None
    end_user_usd_per_month: float | None
    log_retention_s: float | None
    result_retention_s: float | None


class ErasureView(msgspec.Struct, frozen=True):
    """How far the erasure of a tenant is."""

    since: str
    step: ErasureStep
    keys_revoked: int
    operations_erased: int
    batches_erased: int
    jobs_erased: int
    """Without the items of batches."""
    jobs_cancelled: int
    """How many of these had not ended."""
    deliveries_erased: int


class TenantView(msgspec.Struct, frozen=True):
    """A tenant."""

    name: str
    type: str
    created_at: str | None
    """When it was created here; null if it began with a key, a setting or a job."""
    settings: TenantSettingsView
    queued: int
    running: int
    erasure: ErasureView | None
    """Not null while the tenant is being erased."""


class TenantPage(msgspec.Struct, frozen=True):
    """A list of tenants; ``next`` is the ``after`` of the next page."""

    data: list[TenantView]
    has_more: bool
    next: str | None


async def _name(name: Annotated[str, Path()]) -> str:
    if not TENANT.fullmatch(name):
        raise NotFound
    return name


TenantName = Annotated[str, Depends(_name)]

_ERRORS: Final = (400, 401, 404, 503)
_CHANGES: Final = (*_ERRORS, 413, 415)


@router.get("/v1/tenants")
@operation({200: json_of(TenantPage, "A page, sorted by name.")}, LISTS)
async def list_tenants(
    request: Request,
    api: Api,
    _caller: Operator,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """All tenants that were created, have a setting or a key, or have used anything."""
    if after is not None and not TENANT.fullmatch(after):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")])
    tenants, next_after = await api.runtime.tenants.page(after=after or "", limit=limit)
    views = [await _view_of(api, tenant) for tenant in tenants]
    await api.key_ring.still(request.scope)
    return json_response(msgspec.json.encode(TenantPage(views, next_after is not None, next_after)))


@router.get("/v1/tenants/{name}")
@operation({200: json_of(TenantView, "The tenant.")}, _ERRORS)
async def read_tenant(api: Api, _caller: Operator, name: TenantName) -> Response:
    """The tenant, and how far its erasure is. 404 if there is nothing of it, so also when it has been erased."""
    return await _current(api, name)


@router.put("/v1/tenants/{name}")
@operation(
    {200: json_of(TenantView, "The tenant."), 201: json_of(TenantView, "A new tenant.")},
    _CHANGES,
    body=body_of(TenantRequest),
)
async def put_tenant(request: Request, api: Api, caller: Operator, name: TenantName) -> Response:
    """Create the tenant, or replace all its settings. What is left out is null."""
    asked = read(TenantRequest, await read_json(request, caller))
    is_new = await api.runtime.tenants.find(name) is None
    await _set(api, caller, name, asked, TENANT_OPTIONS)
    return await _current(api, name, 201 if is_new else 200)


@router.patch("/v1/tenants/{name}")
@operation({200: json_of(TenantView, "The tenant.")}, _CHANGES, body=body_of(TenantRequest))
async def change_tenant(request: Request, api: Api, caller: Operator, name: TenantName) -> Response:
    """Change some settings. What is left out stays as it is."""
    asked = read(TenantRequest, await read_json(request, caller))
    await _found(api, name)
    await _set(api, caller, name, asked, asked.model_fields_set)
    return await _current(api, name)


@router.delete("/v1/tenants/{name}", status_code=202)
@operation({202: json_of(TenantView, "It is being erased.")}, _ERRORS)
async def erase_tenant(api: Api, caller: Operator, name: TenantName) -> Response:
    """Erase all that belongs to the tenant: jobs (running ones too), batches, keys, usage, settings.

    From now on it is refused everything. Its ``erasure`` shows the progress until it is a 404; then the name is free.
    """
    await _found(api, name)
    if caller.key_id is not None and caller.tenant == name:
        raise Forbidden("A key cannot erase its own tenant: use another tenant's key, or tokenspool tenants erase.")
    await api.runtime.erasures.begin(name)
    api.log.info("tenant_erased", of_tenant=name, by=caller.key_id)
    return await _current(api, name, 202)


async def _set(api: ApiState, caller: Caller, name: str, asked: TenantRequest, options: Iterable[str]) -> None:
    changes = stored_settings({option: getattr(asked, option) for option in options})
    await api.runtime.tenants.set(name, changes, is_created=True)
    api.log.info("tenant_changed", of_tenant=name, by=caller.key_id)


async def _found(api: ApiState, name: str) -> Tenant:
    tenant = await api.runtime.tenants.find(name)
    if tenant is None:
        raise NotFound
    return tenant


async def _current(api: ApiState, name: str, status: int = 200) -> Response:
    return json_response(msgspec.json.encode(await _view_of(api, await _found(api, name))), status)


async def _view_of(api: ApiState, tenant: Tenant) -> TenantView:
    erasure = await api.runtime.erasures.get(tenant.name)
    return TenantView(
        name=tenant.name,
        type="tenant",
        created_at=time_of(tenant.created_ms),
        settings=msgspec.convert(shown_settings(tenant.settings), TenantSettingsView),
        queued=tenant.queued,
        running=tenant.running,
        erasure=None if erasure is None else _shown(erasure),
    )


def _shown(erasure: Erasure) -> ErasureView:
    return ErasureView(to_rfc3339(erasure.since_ms), *erasure[1:])
