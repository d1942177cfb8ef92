"""Tells that Redis does not answer or refuses a command: once in a while, not once for each of a thousand calls.

The worker itself bears it: it waits and asks again. Whoever runs it should hear why nothing moves.
"""

import time
from typing import Final

from shared.errors import Problem
from shared.telemetry import Logger

_EVERY_S: Final = 10.0


class Outage:
    """One for a worker process."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._told_s: dict[str, float] = {}

    def note(self, problem: Problem) -> None:
        """A call failed."""
        now_s, detail = time.monotonic(), problem.reason or problem.detail
        if now_s - self._told_s.get(detail, -_EVERY_S) >= _EVERY_S:
            self._told_s[detail] = now_s
            self._logger.warning("redis_trouble", code=problem.code, detail=detail)
