"""``/v1/usage``: what the caller's tenant used and what it cost, by day, model and API key."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from api.dependencies import Api, Reader
from api.http.invalid import refuse
from api.http.pages import DIGITS
from api.http.responses import json_response
from api.openapi import json_of, operation
from shared.errors import FieldError, InvalidCursor
from shared.usage import Group, Grouping, GroupName, Summary, UsageSums

router = APIRouter()

MOST_DAYS: Final = 400
DEFAULT_DAYS: Final = 7
MOST_LINES: Final = 1000
DEFAULT_GROUPING: Final = "day,model"

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of some calls. ``day``, ``model`` and ``key`` are present if the sums are grouped by them."""

    day: str | msgspec.UnsetType = msgspec.UNSET
    """UTC."""
    model: str | msgspec.UnsetType = msgspec.UNSET
    """The model that answered."""
    key: str | msgspec.UnsetType | None = msgspec.UNSET
    """The API key's id; null for calls without one."""
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
        description=f"The last day, included; by default today. At most {MOST_DAYS} days in all.",
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


class UsageReport(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Rows sorted by day, model and key, and their total. What was not used has no row."""

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
    after: Annotated[str | None, Query(description="The ``next`` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LINES, description="Rows of a page."), DIGITS] = MOST_LINES,
) -> Response:
    """The tokens, calls and cost of the caller's tenant."""
    first_day, last_day = _days_of(first, last, today=datetime.now(UTC).date())
    by = _grouping_of([DEFAULT_GROUPING] if group_by is None else group_by)
    place = None if after is None else _place_of(after)
    summary = Summary(by)
    async for rows in api.runtime.usage.days(caller.tenant, first_day, last_day):
        summary.add(rows)
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


class _Place(msgspec.Struct, array_like=True):
    """The last row of a page, which its ``next`` encodes."""

    day: date | None
    model: str | None
    key: str | None


def _cursor_of(group: Group) -> str:
    place = msgspec.json.encode(_Place(group.day, group.model, group.key))
    return urlsafe_b64encode(place).decode().rstrip("=")


def _place_of(cursor: str) -> GroupName:
    """Raises InvalidCursor."""
    try:
        place = msgspec.json.decode(urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)), type=_Place)
    except (ValueError, msgspec.DecodeError):
        raise InvalidCursor(errors=[FieldError("after", "must be the next of a page")]) from None
    return place.day, place.model, place.key


def _line_of(group: Group, by: frozenset[Grouping]) -> UsageLine:
    names = {Grouping.DAY: group.day and group.day.isoformat(), Grouping.MODEL: group.model, Grouping.KEY: group.key}
    return _line(group.sums, **{grouping: names[grouping] for grouping in by})


def _line(sums: UsageSums, **names: Any) -> UsageLine:
    return UsageLine(**names, **msgspec.structs.asdict(sums), cost_usd=sums.cost_usd)


def _days_of(first: str | None, last: str | None, *, today: date) -> tuple[date, date]:
    """The first day and the last. Raises InvalidRequest, which names the one that is wrong."""
    days = {"from": _day_of(first), "to": _day_of(last)}
    wrong = [name for name, text in (("from", first), ("to", last)) if text is not None and days[name] is None]
    if wrong:
        raise refuse(*(FieldError(name, "must be a day, YYYY-MM-DD") for name in wrong))
    last_day = days["to"] or today
    first_day = days["from"] or date.fromordinal(max(1, last_day.toordinal() - DEFAULT_DAYS + 1))
    if first_day > last_day:
        raise refuse(FieldError("from", "must not be later than `to` (default: today)"))
    if (last_day - first_day).days >= MOST_DAYS:
        raise refuse(FieldError("from", f"must be at most {MOST_DAYS - 1} days before `to`"))
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
