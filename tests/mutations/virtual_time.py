"""An event loop whose clock jumps while nothing happens: a minute of silence takes no time."""

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class _NoWaiting(selectors.SelectSelector):
    """There is no I/O: instead of waiting for some, the time passes."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Moves the clock. None would be a wait for ever: whoever uses this loop has a timer."""
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will come")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Of the loop's own pipe alone."""
        return super().get_map()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Without I/O."""

    def __init__(self) -> None:
        self._virtual = _NoWaiting()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds that would have passed."""
        return self._virtual.now_s
