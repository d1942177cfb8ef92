"""How much work a turn of the event loop holds, and how many ``low`` jobs may therefore run at once.

Jobs whose upstream answers at once fill the loop without a pause: a job that somebody waits for would be claimed, and its
tokens sent, after all of them. So they begin few at a time, and more as long as the loop's turns stay short. With two
workers and an upstream at no delay on two cores, another job's p99 wait is 10 to 13 ms instead of 68 to 95, at the same
rate of the batch; at 50 tokens 20 ms apart all slots are used (measured, bench and its machine).
"""

import asyncio
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 0.02
"""How often the loop's turn is measured while ``low`` jobs run."""

_LONGEST_TURN_S: Final = 0.0015
_FADES_BY: Final = 0.9
_LEAST: Final = 4
"""At these the turns stay short, and Redis and the upstream have their next request before the last one is done (measured)."""


def room_after(room: int, turn_s: float, most: int) -> int:
    """How many may run, after a turn of the loop that took ``turn_s``. Never none, so that a batch goes on."""
    if turn_s > _LONGEST_TURN_S:
        return max(min(most, _LEAST), room * 3 // 4)
    return min(most, room + 1 + room // 8)


class Lag:
    """One for a worker process. ``cpu_s``: of the loop's thread. A machine that is busy with other work is not our doing."""

    def __init__(self, most: int, cpu_s: Callable[[], float]) -> None:
        self._most = most
        self._cpu_s = cpu_s
        self._turn_s = 0.0
        self.room = min(most, _LEAST)

    def rest(self) -> None:
        """No such job runs: the next ones begin few at a time."""
        self.room = min(self._most, _LEAST)

    async def look(self) -> bool:
        """Takes a turn of the loop. Whether there is more room than before."""
        begun_s = self._cpu_s()
        await asyncio.sleep(0)
        self._turn_s = max(self._cpu_s() - begun_s, self._turn_s * _FADES_BY)
        before, self.room = self.room, room_after(self.room, self._turn_s, self._most)
        return self.room > before
