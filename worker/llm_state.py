"""What this worker last saw of the LLM, for ``GET /health``: from real traffic, or from a free call if there is none."""

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
        """Set when the state changes, so that the worker announces it to ``/health`` at once."""

    def is_idle(self, for_s: float) -> bool:
        """Whether no call has ended for that long."""
        return time.monotonic() - self._noted_s > for_s

    def note_check(self, failure: Failure | None) -> None:
        """Notes a free call's outcome. Such a call is made only without traffic, so it replaces what was known."""
        self._failed.clear()
        self._add(has_failed=failure is not None and failure.is_of_route)

    def note(self, outcome: Outcome) -> None:
        """Notes a call's outcome. A failure that concerns only that call shows that the LLM can be reached."""
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
        """Facts for the worker to announce; none before the first call. ``llm_age_s``: seconds since the newest call."""
        if not self._failed:
            return {}
        age_s = int(time.monotonic() - self._noted_s)
        return {"llm": self._state, "llm_since_ms": self._since_ms, "llm_age_s": age_s}
