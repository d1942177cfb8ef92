"""What the worker does while Redis does not reply or refuses commands: it waits, tries again, and logs why nothing moves.

It logs each problem at most once in 10 s, not once for each of a thousand calls.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from shared.errors import Problem, StorageFull, StorageUnavailable
from shared.telemetry import Logger

AWAY: Final = (StorageUnavailable, StorageFull)
"""What a call to Redis raises that may succeed later."""
AGAIN_S: Final = 0.1
_LOGGED_EVERY_S: Final = 10.0

T = TypeVar("T")


class Outage:
    """One for a worker process."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._logged_s: dict[str, float] = {}

    def note(self, problem: Problem) -> None:
        """A call to Redis failed."""
        now_s, detail = time.monotonic(), problem.reason or problem.detail
        if now_s - self._logged_s.get(detail, -_LOGGED_EVERY_S) >= _LOGGED_EVERY_S:
            self._logged_s[detail] = now_s
            self._logger.warning("redis_trouble", code=problem.code, detail=detail)

    async def outlast(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Returns what ``ask`` returns, however long Redis is away; ``ask`` must be safe to repeat."""
        while True:
            try:
                return await ask()
            except AWAY as problem:
                self.note(problem)
                await asyncio.sleep(AGAIN_S)
