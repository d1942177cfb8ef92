"""What this worker last saw of the LLM, for ``GET /health``: from real traffic first, a free call second."""

import asyncio
import time
from collections import deque

from worker.outcome import Failure, Outcome

_REMEMBERED = 20


class LlmState:
    """Reachable, degraded (some of the last 20 calls failed) or unreachable (all of them did)."""

    def __init__(self) -> None:
        self._failed: deque[bool] = deque(maxlen=_REMEMBERED)
        self._state = "unknown"
        self._since_ms = 0
        self._noted_s = float("-inf")
        self.changed = asyncio.Event()
        """Set when it is another than before: ``/health`` is to know at once."""

    def is_idle(self, for_s: float) -> bool:
        """Whether no call has ended for that long."""
        return time.monotonic() - self._noted_s > for_s

    def note_check(self, failure: Failure | None) -> None:
        """What a free call showed. It is asked while there is no traffic, so it says all that is known."""
        self._failed.clear()
        self._add(has_failed=failure is not None and failure.is_of_route)

    def note(self, outcome: Outcome) -> None:
        """One call's outcome. What concerns that call alone shows that the LLM can be reached."""
        self._add(has_failed=isinstance(outcome, Failure) and outcome.is_of_route)

    def _add(self, has_failed: bool) -> None:
        self._noted_s = time.monotonic()
        self._failed.append(has_failed)
        state = "reachable" if not any(self._failed) else "unreachable" if all(self._failed) else "degraded"
        if state != self._state:
            self._state, self._since_ms = state, time.time_ns() // 1_000_000
            self.changed.set()

    @property
    def facts(self) -> dict[str, str | int]:
        """A part of what the worker says of itself; nothing before the first call. ``llm_age_s``: since the newest call."""
        if not self._failed:
            return {}
        age_s = int(time.monotonic() - self._noted_s)
        return {"llm": self._state, "llm_since_ms": self._since_ms, "llm_age_s": age_s}
