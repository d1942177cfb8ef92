"""``/v1/limits``: what the caller's tenant and key may do, and how much of it is used."""

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from api.dependencies import Api, Reader
from api.http.responses import json_response
from api.openapi import LISTS, json_of, operation
from shared.api_key import Scope
from shared.clock import to_rfc3339
from shared.limits import NANO_USD, LimitUse

router = APIRouter()


class LimitView(msgspec.Struct, frozen=True):
    """How much of a limit is used."""

    limit: int
    used: int
    remaining: int
    resets_at: str | None
    """When the whole limit is free again if no more is submitted; null if it is free now, or if time alone does not free it."""


class BudgetView(msgspec.Struct, frozen=True):
    """How much of a budget is spent."""

    limit_usd: float
    spent_usd: float
    held_usd: float
    """The most that the running jobs may still cost: no job starts on it."""
    remaining_usd: float
    """What is neither spent nor held."""
    resets_at: str
    """When the next day or month begins (UTC)."""


class LimitsOfKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key's limits. Null is no limit."""

    id: str
    requests_per_minute: LimitView | None = None
    tokens_per_minute: LimitView | None = None
    running_jobs: LimitView | None = None
    queued_jobs: LimitView | None = None
    usd_per_day: BudgetView | None = None
    usd_per_month: BudgetView | None = None


class LimitsOfTenant(LimitsOfKey, frozen=True, kw_only=True):
    """The tenant's limits. Null is no limit."""

    waiting_bytes: LimitView | None = None


class LimitsView(msgspec.Struct, frozen=True):
    """All limits that the caller's submits must keep, as they were in one moment."""

    read_at: str
    scopes: list[Scope]
    """What the caller may do."""
    tenant: LimitsOfTenant
    key: LimitsOfKey | None
    """Null for a caller without an API key."""


@router.get("/v1/limits")
@operation({200: json_of(LimitsView, "The limits, and what is used of them.")}, LISTS)
async def read_limits(api: Api, caller: Reader) -> Response:
    """The limits of the caller's tenant and key: how much of each is used, and when it is free again."""
    found = await api.runtime.limits.of(caller)
    view = LimitsView(
        to_rfc3339(found.now_ms),
        [scope for scope in Scope if scope in caller.scopes],
        LimitsOfTenant(id=caller.tenant, **_views_of(found.tenant)),
        None if caller.key_id is None else LimitsOfKey(id=caller.key_id, **_views_of(found.key)),
    )
    return json_response(msgspec.json.encode(view))


def _views_of(uses: dict[str, LimitUse]) -> dict[str, Any]:
    return {name: _budget_of(use) if name.startswith("usd") else _view_of(use) for name, use in uses.items()}


def _view_of(use: LimitUse) -> LimitView:
    resets_at = None if use.resets_ms is None else to_rfc3339(use.resets_ms)
    return LimitView(use.limit, use.used, max(0, use.limit - use.used), resets_at)


def _budget_of(use: LimitUse) -> BudgetView:
    remaining = max(0, use.limit - use.used - use.held)
    return BudgetView(
        limit_usd=use.limit / NANO_USD,
        spent_usd=use.used / NANO_USD,
        held_usd=use.held / NANO_USD,
        remaining_usd=remaining / NANO_USD,
        resets_at=to_rfc3339(use.resets_ms or 0),
    )
