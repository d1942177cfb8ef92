"""Reads the sums of a tenant's calls, day by day. The ledger adds to them; nothing is written here."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date, timedelta

from shared.store import redis_keys
from shared.store.commands import Commands
from shared.usage import UsageRow, rows_of

_DAYS_AT_ONCE = 40


class UsageBook:
    """The sums of all tenants. They are outside of the shards, and reading them touches no job."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def days(self, tenant: str, first_day: date, last_day: date) -> AsyncIterator[list[UsageRow]]:
        """The tenant's rows of each of these days (UTC, both included) that has any, sorted by model and key.

        Lets other tasks run after each day, which may have MOST_ROWS_PER_DAY rows and some more. Raises StorageUnavailable.
        """
        days = [first_day + timedelta(days=count) for count in range((last_day - first_day).days + 1)]
        for begin in range(0, len(days), _DAYS_AT_ONCE):
            some = days[begin : begin + _DAYS_AT_ONCE]
            replies = [self._commands.call("HGETALL", redis_keys.usage(tenant, day.isoformat())) for day in some]
            for day, reply in zip(some, replies, strict=True):
                found: list[bytes] = await reply
                if found:
                    fields = zip(found[::2], found[1::2], strict=True)
                    yield rows_of(day, [(field.decode(), int(amount)) for field, amount in fields])
                    await asyncio.sleep(0)
