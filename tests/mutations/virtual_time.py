"""An event loop whose clock jumps while nothing happens: a minute of silence takes no time."""

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class _NoWaiting(selectors.SelectSelector):
    """There is no I/O: instead of waiting, it advances the clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Advances the clock. A timeout of None would never end; users of this loop always have a timer."""
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will come")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Only the loop's own pipe."""
        return super().get_map()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop without I/O, on a virtual clock."""

    def __init__(self) -> None:
        self._virtual = _NoWaiting()
        super().__init__(self._virtual)

    def time(self) -> float:
        """The virtual seconds that have passed."""
        return self._virtual.now_s
