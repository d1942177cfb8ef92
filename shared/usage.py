"""What calls to the LLM add up to: the metrics, written down once, and how sums are split and put together.

A tenant's calls of one day (UTC) lie in one hash of Redis, whose fields ``field_of`` names. Pure; the ledger in
shared/store/ counts up, ``/v1/usage`` reads.
"""

from bisect import bisect_right
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec


class UsageSums(msgspec.Struct, frozen=True):
    """The metrics. Each is a sum over calls, and counted up when a call has ended, whatever became of its job."""

    calls: int = 0
    """Calls to the LLM, those of retries and takeovers included."""
    estimated_calls: int = 0
    """Those of them whose tokens are partly our estimate, since the LLM did not report them: cut, cancelled, superseded."""
    input_tokens: int = 0
    """Neither written to the LLM's cache nor read from it."""
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cost_nano_usd: int = 0
    """Billionths of a dollar, at the prices of the day of the call; the calls whose price nobody knew add nothing."""
    unpriced_calls: int = 0
    """Calls of a model that the price table does not know: they are missing in the cost."""

    def __add__(self, other: "UsageSums") -> "UsageSums":
        return UsageSums(*[getattr(self, metric) + getattr(other, metric) for metric in METRICS])

    @property
    def cost_usd(self) -> float | None:
        """What is known of the cost; None if nothing is, as 0 would say that it was free."""
        return None if self.unpriced_calls == self.calls > 0 else self.cost_nano_usd / 1_000_000_000


LOST: Final = "lost"
"""How a call ended whose worker is dead."""
UNMADE: Final = "unmade"
"""How a call ended that was reserved, and never made: its row is taken away."""

METRICS: Final = UsageSums.__struct_fields__

MOST_ROWS_PER_DAY: Final = 500
"""Models times API keys. Callers invent the names of models: what comes beyond this in a tenant's day is counted as OTHER."""
OTHER: Final = "other"
"""Of each API key one: the models beyond the bound, and those of calls that used nothing before their model used anything."""


class UsageRow(NamedTuple):
    """What a tenant's calls of one day, model and API key add up to."""

    day: date
    model: str
    key: str | None
    """The API key's id; None for calls without one."""
    sums: UsageSums


class Grouping(StrEnum):
    """What sums can be split by. Their order is that of the rows."""

    DAY = "day"
    MODEL = "model"
    KEY = "key"


class Group(NamedTuple):
    """Rows put together: those that agree in all that they were split by. The rest is None."""

    day: date | None
    model: str | None
    key: str | None
    sums: UsageSums


def field_of(model: str, key_id: str | None, metric: str) -> str:
    """The field of the day's hash. Neither an API key's id nor a metric has a line break in it."""
    return f"{model}\n{key_id or ''}\n{metric}"


def rows_of(day: date, fields: Iterable[tuple[str, int]]) -> list[UsageRow]:
    """The rows that a day's hash holds, sorted. A metric that a newer version counts is left out, and a row of nothing."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for field, amount in fields:
        model, key_id, metric = field.rsplit("\n", 2)
        if amount and metric in METRICS:
            found.setdefault((model, key_id), {})[metric] = amount
    return [UsageRow(day, model, key_id or None, UsageSums(**found[model, key_id])) for model, key_id in sorted(found)]


GroupName = tuple[date | None, str | None, str | None]
"""Day, model and key."""


class Summary:
    """Rows put together as they come, and all of them in one."""

    def __init__(self, by: frozenset[Grouping]) -> None:
        self._by = by
        self._found: dict[GroupName, UsageSums] = {}
        self.total = UsageSums()

    def add(self, rows: Iterable[UsageRow]) -> None:
        """Some more."""
        for row in rows:
            name = (
                row.day if Grouping.DAY in self._by else None,
                row.model if Grouping.MODEL in self._by else None,
                row.key if Grouping.KEY in self._by else None,
            )
            found = self._found.get(name)
            self._found[name] = row.sums if found is None else found + row.sums
            self.total += row.sums

    def groups(self, *, after: GroupName | None = None, limit: int | None = None) -> list[Group]:
        """Sorted by day, model and key; those after that one, and no more than that."""
        names = sorted(self._found, key=_order_of)
        begin = 0 if after is None else bisect_right(names, _order_of(after), key=_order_of)
        end = None if limit is None else begin + limit
        return [Group(*name, self._found[name]) for name in names[begin:end]]


def _order_of(name: GroupName) -> tuple[date, str, str]:
    return name[0] or date.min, name[1] or "", name[2] or ""
