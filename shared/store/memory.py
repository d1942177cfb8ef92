"""How much memory Redis uses, and how much it may use."""

import asyncio
from typing import Final, NamedTuple

from shared.errors import StorageFull, StorageUnavailable
from shared.store.commands import Commands
from shared.store.redis_problems import MAY_EVICT, NOT_PERSISTENT, RedisProblems

_LOOK_S: Final = 1.0
_PERSISTENCE: Final = {"1": "aof", "0": "none"}


class RedisFacts(NamedTuple):
    """What Redis said of itself at the last look; None: it did not say."""

    used_bytes: int | None = None
    max_bytes: int | None = None
    """None, too, if it has no ``maxmemory``."""
    policy: str | None = None
    """Its ``maxmemory-policy``."""
    persistence: str | None = None
    """``aof`` or ``none``: only an append-only file keeps all acknowledged jobs."""


class Memory:
    """Looks once a second how full Redis is, so that submits are refused before running jobs lack memory. The same look
    finds out whether Redis may lose jobs.
    """

    def __init__(self, commands: Commands, *, high_water: float, tenant_share: float, problems: RedisProblems) -> None:
        self._commands = commands
        self._high_water = high_water
        self._tenant_share = tenant_share
        self._problems = problems
        self.is_full = False
        self.facts = RedisFacts()
        self.tenant_bytes = 0
        """What the requests of one tenant may take by default. 0 is no limit: none is set, or Redis has no ``maxmemory``."""

    def check(self) -> None:
        """Raises StorageFull above the high-water mark."""
        if self.is_full:
            raise StorageFull("Redis is nearly full: retry later. Ended jobs make room when their retention ends.")

    async def look(self) -> None:
        """Reads two parts of INFO. A server that does not report its memory (fakeredis), or is away, counts as not full."""
        parts = [self._commands.call("INFO", part) for part in ("memory", "persistence")]  # 6.2 takes one at a time
        try:
            facts = _facts_in(*[await part for part in parts])
        except StorageUnavailable:
            self.is_full = False
            return
        most = int(facts.get("maxmemory", 0))
        self.tenant_bytes = int(most * self._tenant_share)
        self.is_full = most > 0 and int(facts.get("used_memory", 0)) > self._high_water * most
        self.facts = RedisFacts(
            int(facts["used_memory"]) if "used_memory" in facts else None,
            most or None,
            facts.get("maxmemory_policy"),
            _PERSISTENCE.get(facts.get("aof_enabled", "")),
        )
        if facts.get("maxmemory_policy", "noeviction") != "noeviction":
            self._problems.note(MAY_EVICT)
        if facts.get("aof_enabled") == "0":
            self._problems.note(NOT_PERSISTENT)

    async def watch(self) -> None:
        """Looks once a second, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)


def _facts_in(*texts: bytes) -> dict[str, str]:
    lines = [line for text in texts for line in text.decode().splitlines()]
    return dict(line.split(":", 1) for line in lines if ":" in line)
