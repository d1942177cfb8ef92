"""Reads the sums of a tenant's calls, day by day. The ledger adds to them; nothing is written here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from shared.store import redis_keys
from shared.store.commands import Commands
from shared.usage import UsageRow, UsageSums, rows_of, rows_of_end_user

_DAYS_AT_ONCE: Final = 40
_DAYS_BY_END_USER_AT_ONCE: Final = 2
_END_USERS_AT_ONCE: Final = 500
"""Let other tasks run after so many."""


class UsageBook:
    """The sums of all tenants. They are outside of the shards, and reading them touches no job."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def tenants(self, first_day: date) -> list[str]:
        """The tenants that may have used something since the beginning of that day."""
        since_ms = int(datetime.combine(first_day, time(), UTC).timestamp() * 1000)
        found = await self._commands.call("ZRANGEBYSCORE", redis_keys.plain("usage_tenants"), since_ms, "+inf")
        return sorted(name.decode() for name in found)

    async def days(self, tenant: str, first_day: date, last_day: date) -> AsyncIterator[list[UsageRow]]:
        """The tenant's rows of each of these days (UTC, both included) that has any, sorted by model and key.

        Lets other tasks run after each day, which may have MOST_ROWS_PER_DAY rows and some more. Raises StorageUnavailable.
        """
        days = _days(first_day, last_day)
        for begin in range(0, len(days), _DAYS_AT_ONCE):
            some = days[begin : begin + _DAYS_AT_ONCE]
            replies = [self._commands.call("HGETALL", redis_keys.usage(tenant, day.isoformat())) for day in some]
            for day, reply in zip(some, replies, strict=True):
                if found := await reply:
                    yield _rows_of(day, found)
                    await asyncio.sleep(0)

    async def days_of_end_user(
        self, tenant: str, end_user: str, first_day: date, last_day: date
    ) -> AsyncIterator[list[UsageRow]]:
        """As ``days``, but of the calls of one end user. Raises StorageUnavailable."""
        days = _days(first_day, last_day)
        replies = [
            self._commands.call("HGET", redis_keys.end_user_usage(tenant, day.isoformat()), end_user) for day in days
        ]
        for day, reply in zip(days, replies, strict=True):
            if lines := await reply:
                yield rows_of_end_user(day, end_user, lines.decode())

    async def days_by_end_user(self, tenant: str, first_day: date, last_day: date) -> AsyncIterator[list[UsageRow]]:
        """As ``days``, with a row for each end user too, in several lists for a day. Raises StorageUnavailable."""
        days = _days(first_day, last_day)
        for begin in range(0, len(days), _DAYS_BY_END_USER_AT_ONCE):
            some = days[begin : begin + _DAYS_BY_END_USER_AT_ONCE]
            # The end users' first: a call that is counted in between then looks as if it had none.
            replies = [
                (
                    self._commands.call("HGETALL", redis_keys.end_user_usage(tenant, day.isoformat())),
                    self._commands.call("HGETALL", redis_keys.usage(tenant, day.isoformat())),
                )
                for day in some
            ]
            for day, (of_end_users, of_all) in zip(some, replies, strict=True):
                rest = {(row.model, row.key): row for row in _rows_of(day, await of_all)}
                fields = _pairs(await of_end_users)
                for at in range(0, len(fields), _END_USERS_AT_ONCE):
                    rows = [
                        row
                        for end_user, lines in fields[at : at + _END_USERS_AT_ONCE]
                        if end_user  # the others' number is in the field without a name
                        for row in rows_of_end_user(day, end_user.decode(), lines.decode())
                    ]
                    for row in rows:
                        if (whole := rest.get((row.model, row.key))) is not None:
                            rest[row.model, row.key] = whole._replace(sums=whole.sums - row.sums)
                    yield rows
                    await asyncio.sleep(0)
                yield [row for row in rest.values() if row.sums != UsageSums()]


def _days(first_day: date, last_day: date) -> list[date]:
    return [first_day + timedelta(days=count) for count in range((last_day - first_day).days + 1)]


def _rows_of(day: date, found: Sequence[bytes]) -> list[UsageRow]:
    return rows_of(day, [(field.decode(), int(amount)) for field, amount in _pairs(found)])


def _pairs(found: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(found[::2], found[1::2], strict=True))
