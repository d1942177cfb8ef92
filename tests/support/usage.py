"""Writes and reads the sums of usage in Redis, as the ledger does."""

from datetime import date

import msgspec

from shared.store import redis_keys
from shared.store.runtime import Runtime
from shared.usage import UsageRow, UsageSums, field_of


async def count(
    runtime: Runtime, day: date, model: str, sums: UsageSums, *, tenant: str = "tenant-a", key: str | None = None
) -> None:
    """Adds to the sums of a day, model and API key. Sums of 0 are not written."""
    name = redis_keys.usage(tenant, day.isoformat())
    counted = {field_of(model, key, metric): by for metric, by in msgspec.structs.asdict(sums).items() if by}
    calls = [runtime._commands.call("HINCRBY", name, field, by) for field, by in counted.items()]
    calls.append(runtime._commands.call("EXPIRE", name, int(runtime.settings.usage_retention_s)))
    for call in calls:
        await call


async def read_usage(runtime: Runtime, tenant: str, first_day: date, last_day: date) -> list[UsageRow]:
    """All rows of these days."""
    return [row async for rows in runtime.usage.days(tenant, first_day, last_day) for row in rows]


async def read_usage_by_end_user(runtime: Runtime, tenant: str, first_day: date, last_day: date) -> list[UsageRow]:
    """The same, split by end user."""
    return [row async for rows in runtime.usage.days_by_end_user(tenant, first_day, last_day) for row in rows]
