"""How long a call to the LLM waits for the first content, and then for each next piece. Pings extend that, up to a bound."""

import asyncio
from typing import NamedTuple

from worker.outcome import Breakage, Failure, How, classify


class SilenceBounds(NamedTuple):
    """How long the next content may take, in seconds."""

    silence_s: float
    """If nothing arrives at all."""
    most_s: float
    """If pings arrive."""
    is_impatient: bool
    """Whether the job's own limit is shorter than the settings': then a failure says nothing about the route."""

    @classmethod
    def of(cls, own_s: float | None, silence_s: float, most_s: float) -> "SilenceBounds":
        """``own_s``: the job's own limit. Pings do not extend it: after it, the caller wants to go on without the answer."""
        if own_s is not None:
            return cls(own_s, own_s, is_impatient=own_s < silence_s)
        return cls(silence_s, max(silence_s, most_s), is_impatient=False)


class ContentTimers:
    """The timers of one call. ``scope`` is the timeout that they move, at most once per slack.

    So it fires up to one slack late, never early.
    """

    def __init__(self, *, first: SilenceBounds, idle: SilenceBounds, loop: asyncio.AbstractEventLoop) -> None:
        self._bounds = first
        self._idle = idle
        self._loop = loop
        self.content_s = loop.time()
        """When the last content arrived, or the request began."""
        self._moved_s = 0.0
        self._has_content = False

    def start(self, scope: asyncio.Timeout) -> None:
        scope.reschedule(self.content_s + self._bounds.silence_s)

    def on_content(self, scope: asyncio.Timeout) -> None:
        """Something arrived that adds to the answer."""
        now_s = self._loop.time()
        self.content_s = now_s
        if not self._has_content or now_s - self._moved_s >= self._slack_s:
            self._has_content = True
            self._bounds = self._idle
            self._moved_s = now_s
            scope.reschedule(now_s + self._bounds.silence_s + self._slack_s)

    def on_life(self, scope: asyncio.Timeout) -> None:
        """Something arrived that adds nothing to the answer."""
        now_s = self._loop.time()
        if now_s - self._moved_s >= self._slack_s:
            self._moved_s = now_s
            alive_s = now_s + self._bounds.silence_s
            scope.reschedule(min(alive_s, self.content_s + self._bounds.most_s) + self._slack_s)

    @property
    def _slack_s(self) -> float:
        return min(1.0, self._bounds.silence_s / 10)

    def pause(self, scope: asyncio.Timeout) -> None:
        """Stops the timers until content arrives again."""
        self._moved_s = 0.0
        scope.reschedule(None)

    def resume(self, scope: asyncio.Timeout) -> None:
        self.on_content(scope)

    def failure(self) -> Failure:
        silence_s, most_s, is_impatient = self._bounds
        is_silence = self._loop.time() - self.content_s < most_s
        waited = f"nothing came for {silence_s:g} s" if is_silence else f"no content came for {most_s:g} s"
        if is_impatient:
            return classify(Breakage(How.IMPATIENT, f"{waited}, the job's own limit"))
        return classify(Breakage(How.STALLED if self._has_content else How.SILENT, waited))
