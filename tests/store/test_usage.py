"""Reading usage: a tenant sees only its own days."""

from datetime import date, timedelta
from typing import Any

import pytest

from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.runtime import Runtime
from shared.usage import METRICS, UsageRow, UsageSums
from tests.support.usage import count, read_usage

SUNDAY, MONDAY, TUESDAY = (date(2026, 11, 22) + timedelta(days=n) for n in range(3))


async def test_what_was_counted_is_read(runtime: Runtime) -> None:
    """Every metric, with any number up to int64, in which Redis counts."""
    sums = UsageSums(*[9_007_199_254_740_993 + place for place, _ in enumerate(METRICS)])
    await count(runtime, MONDAY, "vendor/a model:1", sums, key="key_1")
    assert await read_usage(runtime, "tenant-a", MONDAY, MONDAY) == [
        UsageRow(MONDAY, "vendor/a model:1", "key_1", sums)
    ]


async def test_two_counts_add_up(runtime: Runtime) -> None:
    """Metrics without a count are 0."""
    for _ in range(2):
        await count(runtime, MONDAY, "m", UsageSums(calls=1, input_tokens=5))
    (row,) = await read_usage(runtime, "tenant-a", MONDAY, MONDAY)
    assert row.sums == UsageSums(calls=2, input_tokens=10)


async def test_rows_come_by_day_model_and_key(runtime: Runtime) -> None:
    """In whatever order they were counted; the first and last days are included; a day without calls has no row."""
    await count(runtime, TUESDAY, "a", UsageSums(calls=1))
    await count(runtime, SUNDAY, "b", UsageSums(calls=2), key="key_2")
    await count(runtime, SUNDAY, "b", UsageSums(calls=4))
    await count(runtime, SUNDAY, "b", UsageSums(calls=8), key="key_1")
    await count(runtime, SUNDAY, "a", UsageSums(calls=16))
    rows = await read_usage(runtime, "tenant-a", SUNDAY, TUESDAY)
    assert [(row.day, row.model, row.key, row.sums.calls) for row in rows] == [
        (SUNDAY, "a", None, 16),
        (SUNDAY, "b", None, 4),
        (SUNDAY, "b", "key_1", 8),
        (SUNDAY, "b", "key_2", 2),
        (TUESDAY, "a", None, 1),
    ]


async def test_days_outside_are_left_out(runtime: Runtime) -> None:
    """Both ends are included."""
    for day in (SUNDAY, MONDAY, TUESDAY):
        await count(runtime, day, "m", UsageSums(calls=1))
    assert [row.day for row in await read_usage(runtime, "tenant-a", MONDAY, MONDAY)] == [MONDAY]
    assert [row.day for row in await read_usage(runtime, "tenant-a", SUNDAY, MONDAY)] == [SUNDAY, MONDAY]


async def test_a_tenant_sees_its_own_usage_alone(runtime: Runtime) -> None:
    """A name that begins like another tenant's, or looks like a pattern, is a different tenant."""
    for tenant in ("tenant-b", "tenant-a2", "tenant"):
        await count(runtime, MONDAY, "m", UsageSums(calls=1), tenant=tenant)
    assert await read_usage(runtime, "tenant-a", SUNDAY, TUESDAY) == []
    assert len(await read_usage(runtime, "tenant-b", SUNDAY, TUESDAY)) == 1


async def test_a_read_writes_nothing(runtime: Runtime) -> None:
    """A tenant without calls has no keys."""
    assert await read_usage(runtime, "tenant-a", SUNDAY, TUESDAY) == []
    assert await runtime._commands.call("DBSIZE") == 0


async def test_days_are_read_forty_at_a_time(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 round trips would be slow, and 400 full days at once would need much memory."""
    asked: list[list[str]] = [[]]
    ask, flush = Commands.call, Commands._flush

    def call(self: Commands, *arguments: Any) -> Any:
        asked[-1].append(arguments[1])
        return ask(self, *arguments)

    def new_turn(self: Commands) -> None:
        asked.append([])
        flush(self)

    monkeypatch.setattr(Commands, "call", call)
    monkeypatch.setattr(Commands, "_flush", new_turn)
    await read_usage(runtime, "tenant-a", TUESDAY - timedelta(days=399), TUESDAY)
    assert [len(turn) for turn in asked if turn] == [40] * 10
    assert asked[-2][-1] == redis_keys.usage("tenant-a", "2026-11-24")
