"""Which workers died. Redis drops the subscriptions of a killed process in the moment its sockets close, and keeps those of
one that is paused or cut off.

Each worker subscribes to a channel of its own. At each look, all of these channels are asked for in one command. A worker
is dead if its channel had a subscriber before, had none at three looks in a row, and the worker wrote nothing meanwhile.
Only what was seen on one and the same connection counts, so that a restart of Redis, which ends all subscriptions, is no
sign of a death. Whoever is not noticed here loses its jobs when its leases expire.
"""

from dataclasses import dataclass
from typing import Final

from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands

LOOK_S: Final = 0.75
_LOOKS: Final = 3
"""The first and the last are 1.5 s apart; a living worker announces itself every second."""


@dataclass
class _Missing:
    """A worker without a subscription. Times are milliseconds by Redis's clock."""

    since_ms: int
    seen_ms: int
    """When it had announced itself last."""
    looks: int = 1


class Presence:
    """What one worker sees of the others."""

    def __init__(self, commands: Commands, settings: Settings) -> None:
        self._commands = commands
        self._lease_ms = int(settings.lease_s * 1000)
        self._connection_number = -1
        self._present: set[str] = set()
        self._missing: dict[str, _Missing] = {}

    async def look(self) -> list[str]:
        """Looks at all workers, and ends the leases of those that died. Returns their names."""
        names = [name.decode() for name in await self._commands.call("SMEMBERS", redis_keys.plain("workers"))]
        channels = [redis_keys.presence(name) for name in names]
        counts = (await self._commands.call("PUBSUB", "NUMSUB", *channels))[1::2]
        if self._commands.connection_number != self._connection_number:
            self._connection_number = self._commands.connection_number
            self._present, self._missing = set(), {}
        self._present &= set(names)
        absent = [name for name, count in zip(names, counts, strict=True) if not count and name in self._present]
        self._present |= {name for name, count in zip(names, counts, strict=True) if count}
        self._missing = {name: self._missing[name] for name in absent if name in self._missing}
        return [name for name in absent if await self._is_dead(name)]

    async def _is_dead(self, name: str) -> bool:
        missing = self._missing.get(name)
        if missing is None:
            now = self._commands.call("TIME")
            seen_ms = int(await self._commands.call("HGET", redis_keys.worker(name), "seen_ms") or 0)
            seconds, microseconds = await now
            self._missing[name] = _Missing(int(seconds) * 1000 + int(microseconds) // 1000, seen_ms)
            return False
        missing.looks += 1
        return missing.looks >= _LOOKS and await self._bury(name, missing)

    async def _bury(self, name: str, missing: _Missing) -> bool:
        """Ends its leases, once. False if there were none, or if it lives."""
        self._present.discard(name)
        ended, cursor = 0, b"0"
        while True:
            cursor, count = await self._commands.run(
                "bury",
                worker=name,
                seen_ms=missing.seen_ms,
                since_ms=missing.since_ms,
                lease_ms=self._lease_ms,
                cursor=cursor,
            )
            ended += int(count)
            if cursor == b"0":
                return ended > 0
