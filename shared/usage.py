"""Usage: the metrics of calls to the LLM, and how their sums are grouped.

One Redis hash holds the sums of a tenant's calls of one day (UTC); ``field_of`` names its fields. Pure: the ledger in
shared/store/ adds to the sums, and ``/v1/usage`` reads them.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import unquote

import msgspec


class UsageSums(msgspec.Struct, frozen=True):
    """The metrics. Each is a sum over calls. A call is added when it has ended, whatever happened to its job."""

    calls: int = 0
    """Calls to the LLM, including those of retries and takeovers."""
    estimated_calls: int = 0
    """Calls whose tokens are partly our estimate: the call broke off, or was cancelled or superseded, before the LLM's report."""
    input_tokens: int = 0
    """Tokens that were neither written to the LLM's cache nor read from it."""
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cost_nano_usd: int = 0
    """Billionths of a dollar, at the prices of the call's day. Calls whose price is unknown add nothing."""
    unpriced_calls: int = 0
    """Calls of models without a known price: the cost does not include them."""

    def __add__(self, other: "UsageSums") -> "UsageSums":
        return UsageSums(*[getattr(self, metric) + getattr(other, metric) for metric in METRICS])

    def __sub__(self, other: "UsageSums") -> "UsageSums":
        return UsageSums(*[getattr(self, metric) - getattr(other, metric) for metric in METRICS])

    @property
    def cost_usd(self) -> float | None:
        """The cost as far as it is known, in dollars; None if nothing is known, because 0 would mean free."""
        return None if self.unpriced_calls == self.calls > 0 else self.cost_nano_usd / 1_000_000_000


LOST: Final = "lost"
"""How a call ended if its worker died."""
UNMADE: Final = "unmade"
"""How a call ended that was reserved but never made: its row is deleted."""

METRICS: Final = UsageSums.__struct_fields__

MOST_ROWS_PER_DAY: Final = 500
"""Pairs of model and API key in a tenant's day. Callers can invent names of models: pairs beyond this are counted as OTHER."""
MOST_END_USER_ROWS_PER_DAY: Final = 2000
"""Triples of end user, model and API key in a tenant's day. Callers invent end users too: those beyond it are counted as OTHER."""
OTHER: Final = "other"
"""One row per API key, for models beyond the bound, and for calls that used nothing if their model has no row yet. Likewise
an end user."""


class UsageRow(NamedTuple):
    """The sums of a tenant's calls of one day, model and API key, and of an end user where the rows are split by it."""

    day: date
    model: str
    key: str | None
    """The API key's id; None for calls without one."""
    sums: UsageSums
    end_user: str | None = None
    """None for calls without one."""


class Grouping(StrEnum):
    """What rows can be grouped by. Groups are sorted in this order."""

    TENANT = "tenant"
    DAY = "day"
    MODEL = "model"
    KEY = "key"
    END_USER = "end_user"


class Group(NamedTuple):
    """The sum of the rows that agree in each chosen Grouping. The members that were not chosen are None."""

    tenant: str | None
    day: date | None
    model: str | None
    key: str | None
    end_user: str | None
    sums: UsageSums


def field_of(model: str, key_id: str | None, metric: str) -> str:
    """The name of a field of the day's hash. Split it from the right: neither a key's id nor a metric has a line break."""
    return f"{model}\n{key_id or ''}\n{metric}"


def rows_of(day: date, fields: Iterable[tuple[str, int]]) -> list[UsageRow]:
    """The rows of a day's hash, sorted by model and key. Leaves out a newer version's metrics, and rows of nothing but 0."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for field, amount in fields:
        model, key_id, metric = field.rsplit("\n", 2)
        if amount and metric in METRICS:
            found.setdefault((model, key_id), {})[metric] = amount
    return [UsageRow(day, model, key_id or None, UsageSums(**found[model, key_id])) for model, key_id in sorted(found)]


_LINE: Final = re.compile(r"([^\t\n]*)\n([^\t\n]*)\t([^\n]*)\n")


def rows_of_end_user(day: date, end_user: str, lines: str) -> list[UsageRow]:
    """The rows of an end user's field in the day's hash, as CLOSE_CALL writes it. Leaves out rows of nothing but 0."""
    found = [(model, key_id, UsageSums(*map(int, sums.split()))) for model, key_id, sums in _LINE.findall(lines[1:])]
    return [
        UsageRow(day, unquote(model), key_id or None, sums, end_user)
        for model, key_id, sums in found
        if sums != UsageSums()
    ]


GroupName = tuple[str | None, date | None, str | None, str | None, str | None]
"""Tenant, day, model, key and end user."""


class Summary:
    """Adds up rows: by group, and in total."""

    def __init__(self, by: frozenset[Grouping]) -> None:
        self._by = by
        self._found: dict[GroupName, UsageSums] = {}
        self.total = UsageSums()

    def add(self, rows: Iterable[UsageRow], tenant: str = "") -> None:
        for row in rows:
            name = (
                tenant if Grouping.TENANT in self._by else None,
                row.day if Grouping.DAY in self._by else None,
                row.model if Grouping.MODEL in self._by else None,
                row.key if Grouping.KEY in self._by else None,
                row.end_user if Grouping.END_USER in self._by else None,
            )
            found = self._found.get(name)
            self._found[name] = row.sums if found is None else found + row.sums
            self.total += row.sums

    def groups(self, *, after: GroupName | None = None, limit: int | None = None) -> list[Group]:
        """The groups after ``after``, at most ``limit`` of them, in the order of GroupName."""
        names = sorted(self._found, key=_order_of)
        begin = 0 if after is None else bisect_right(names, _order_of(after), key=_order_of)
        end = None if limit is None else begin + limit
        return [Group(*name, self._found[name]) for name in names[begin:end]]


def _order_of(name: GroupName) -> tuple[str, date, str, str, str]:
    tenant, day, *rest = name
    model, key, end_user = [text or "" for text in rest]
    return tenant or "", day or date.min, model, key, end_user
