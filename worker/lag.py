"""How busy the event loop is, and how many ``low`` jobs it may therefore run.

Jobs whose upstream answers at once keep the loop busy without a pause: a job that somebody waits for would be claimed, and
its tokens told, behind all of them. The batch pays little for it
(measured on 2 busy cores with 2 workers: 490 to 585 jobs/s instead of 520 to 580, the median wait of another job 9 ms
instead of 18).
"""

import asyncio
from collections.abc import Callable
from typing import Final

AGAIN_S: Final = 0.02
"""While there is less room than slots, it is looked at so often."""

_LONGEST_TURN_S: Final = 0.005
_FADES_BY: Final = 0.9
_LEAST: Final = 16
"""With fewer, each waits for Redis and its upstream more than for the others, and the batch takes longer: with 8 by a third (one run).
A machine that is busy with something else would take the loop's turns for ours, and all of the room.
"""


def room_after(room: int, turn_s: float, most: int) -> int:
    """How many may run, after a turn of the loop that took so long. Some always, so that a batch goes on."""
    if turn_s > _LONGEST_TURN_S:
        return max(min(most, _LEAST), room * 3 // 4)
    return min(most, room + 1 + room // 8)


class Lag:
    """One for a worker process."""

    def __init__(self, most: int, now_s: Callable[[], float]) -> None:
        self._most = most
        self._now_s = now_s
        self._turn_s = 0.0
        self.room = most

    @property
    def is_felt(self) -> bool:
        """Whether it takes room."""
        return self.room < self._most

    async def look(self) -> None:
        """Takes a turn of the loop."""
        begun_s = self._now_s()
        await asyncio.sleep(0)
        self._turn_s = max(self._now_s() - begun_s, self._turn_s * _FADES_BY)
        self.room = room_after(self.room, self._turn_s, self._most)
