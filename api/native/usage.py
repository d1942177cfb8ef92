"""``/v1/usage``: what the caller's tenant used and what it cost, by day, model, API key and end user; for an operator that of
any tenant, or of all.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from api.dependencies import ALL_TENANTS, Api, Reader, tenant_asked
from api.http.invalid import refuse
from api.http.pages import DIGITS
from api.http.responses import json_response
from api.jobs.request import MOST_END_USER_CHARS
from api.openapi import json_of, operation
from shared.errors import FieldError, InvalidCursor
from shared.store.usage import UsageBook
from shared.usage import Group, Grouping, GroupName, Summary, UsageSums

router = APIRouter()

MOST_DAYS: Final = 400
MOST_DAYS_BY_END_USER: Final = 31
DEFAULT_DAYS: Final = 7
MOST_LINES: Final = 1000
MOST_TENANT_DAYS: Final = 10_000
"""Days of all tenants together that one report reads."""
MOST_TENANT_DAYS_BY_END_USER: Final = 100
DEFAULT_GROUPING: Final = "day,model"

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of some calls. ``tenant``, ``day``, ``model``, ``key`` and ``end_user`` are present if grouped by them."""

    tenant: str | msgspec.UnsetType = msgspec.UNSET
    day: str | msgspec.UnsetType = msgspec.UNSET
    """UTC."""
    model: str | msgspec.UnsetType = msgspec.UNSET
    """The model that answered."""
    key: str | msgspec.UnsetType | None = msgspec.UNSET
    """The API key's id; null for calls without one."""
    end_user: str | msgspec.UnsetType | None = msgspec.UNSET
    """Null for calls without one; ``other`` for those beyond the bound of a day."""
    calls: int
    estimated_calls: int
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cost_nano_usd: int
    unpriced_calls: int
    cost_usd: float | None
    """The cost of the calls whose price is known; null if there are none."""


_From = Annotated[
    str | None,
    Query(
        alias="from",
        description=f"The first day, YYYY-MM-DD in UTC; by default {DEFAULT_DAYS - 1} days before the last.",
        json_schema_extra={"format": "date"},
    ),
]
_To = Annotated[
    str | None,
    Query(
        alias="to",
        description=f"The last day, included; by default today. At most {MOST_DAYS} days in all, "
        f"{MOST_DAYS_BY_END_USER} if they are grouped by end_user.",
        json_schema_extra={"format": "date"},
    ),
]
_GroupBy = Annotated[
    list[str] | None,
    Query(
        description=f"Any of {', '.join(Grouping)}, separated by commas or repeated; empty for one sum. "
        f"By default {DEFAULT_GROUPING}."
    ),
]

_EndUser = Annotated[
    str | None,
    Query(min_length=1, max_length=MOST_END_USER_CHARS, description="Only the calls for this end user."),
]


class UsageReport(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Rows sorted by tenant, day, model, key and end user, and their total. What was not used has no row."""

    from_: str
    to: str
    group_by: list[Grouping]
    data: list[UsageLine]
    total: UsageLine
    """The sums of all requested days, the same on every page."""
    has_more: bool
    next: str | None
    """The ``after`` of the next page."""


@router.get("/v1/usage")
@operation({200: json_of(UsageReport, "What was used, and its cost.")}, (400, 401, 503))
async def read_usage(
    api: Api,
    caller: Reader,
    first: _From = None,
    last: _To = None,
    group_by: _GroupBy = None,
    end_user: _EndUser = None,
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES, description="Rows of a page."), DIGITS] = MOST_LINES,
    tenant: Annotated[
        str | None, Query(description="Another tenant, or * for all; only for keys with the scope operator.")
    ] = None,
) -> Response:
    """The tokens, calls and cost of the caller's tenant."""
    of_tenant = tenant_asked(caller, tenant, may_be_all=True)
    by = _grouping_of([DEFAULT_GROUPING] if group_by is None else group_by)
    is_split = end_user is None and Grouping.END_USER in by
    most_days = MOST_DAYS_BY_END_USER if is_split else MOST_DAYS
    first_day, last_day = _days_of(first, last, today=datetime.now(UTC).date(), most_days=most_days)
    place = None if after is None else _place_of(after)
    summary = Summary(by)
    usage = api.runtime.usage
    for name in await _tenants_of(usage, of_tenant, first_day, last_day, is_split=is_split):
        if end_user is not None:
            days = usage.days_of_end_user(name, end_user, first_day, last_day)
        else:
            days = (usage.days_by_end_user if is_split else usage.days)(name, first_day, last_day)
        async for rows in days:
            summary.add(rows, name)
    groups = summary.groups(after=place, limit=limit + 1)
    page = groups[:limit]
    report = UsageReport(
        from_=first_day.isoformat(),
        to=last_day.isoformat(),
        group_by=[grouping for grouping in Grouping if grouping in by],
        data=[_line_of(group, by) for group in page],
        total=_line(summary.total),
        has_more=len(groups) > limit,
        next=_cursor_of(page[-1]) if len(groups) > limit else None,
    )
    return json_response(msgspec.json.encode(report))


async def _tenants_of(usage: UsageBook, tenant: str, first_day: date, last_day: date, *, is_split: bool) -> list[str]:
    """Raises InvalidRequest if a report over all of them would read too much."""
    if tenant != ALL_TENANTS:
        return [tenant]
    tenants = await usage.tenants(first_day)
    days = (last_day - first_day).days + 1
    if len(tenants) * days > (MOST_TENANT_DAYS_BY_END_USER if is_split else MOST_TENANT_DAYS):
        raise refuse(
            FieldError("tenant", f"must name one of {len(tenants)} tenants, or the report must have fewer days")
        )
    return tenants


class _Place(msgspec.Struct, array_like=True):
    """The last row of a page, which its ``next`` encodes."""

    tenant: str | None
    day: date | None
    model: str | None
    key: str | None
    end_user: str | None = None


def _cursor_of(group: Group) -> str:
    place = msgspec.json.encode(_Place(*group[:-1]))
    return urlsafe_b64encode(place).decode().rstrip("=")


def _place_of(cursor: str) -> GroupName:
    """Raises InvalidCursor."""
    try:
        place = msgspec.json.decode(urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)), type=_Place)
    except (ValueError, msgspec.DecodeError):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")]) from None
    return msgspec.structs.astuple(place)


def _line_of(group: Group, by: frozenset[Grouping]) -> UsageLine:
    names = {grouping: getattr(group, grouping) for grouping in by}
    if group.day is not None:
        names[Grouping.DAY] = group.day.isoformat()
    return _line(group.sums, **names)


def _line(sums: UsageSums, **names: Any) -> UsageLine:
    return UsageLine(**names, **msgspec.structs.asdict(sums), cost_usd=sums.cost_usd)


def _days_of(first: str | None, last: str | None, *, today: date, most_days: int) -> tuple[date, date]:
    """The first day and the last. Raises InvalidRequest, which names the one that is wrong."""
    days = {"from": _day_of(first), "to": _day_of(last)}
    wrong = [name for name, text in (("from", first), ("to", last)) if text is not None and days[name] is None]
    if wrong:
        raise refuse(*(FieldError(name, "must be a day, YYYY-MM-DD") for name in wrong))
    last_day = days["to"] or today
    first_day = days["from"] or date.fromordinal(max(1, last_day.toordinal() - DEFAULT_DAYS + 1))
    if first_day > last_day:
        raise refuse(FieldError("from", "must not be later than `to` (default: today)"))
    if (last_day - first_day).days >= most_days:
        grouped = "" if most_days == MOST_DAYS else " if grouped by end_user"
        raise refuse(FieldError("from", f"must be at most {most_days - 1} days before `to`{grouped}"))
    return first_day, last_day


def _day_of(text: str | None) -> date | None:
    if text is None or not _DAY.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:  # the 30th of February
        return None


def _grouping_of(texts: list[str]) -> frozenset[Grouping]:
    names = {name.strip() for text in texts for name in text.split(",")} - {""}
    try:
        return frozenset(Grouping(name) for name in names)
    except ValueError:
        raise refuse(FieldError("group_by", "must be any of: " + ", ".join(Grouping))) from None
