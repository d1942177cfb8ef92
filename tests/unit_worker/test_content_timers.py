"""How long an attempt waits: silence is bounded, silence with pings is bounded later, and a job may ask for less."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from worker.content_timers import ContentTimers, SilenceBounds
from worker.outcome import How

FIRST_S, IDLE_S, PINGED_S = 120.0, 60.0, 600.0
SLACK_S = 1.0


class Attempt:
    """An attempt whose clock the test moves."""

    def __init__(self, *, first_s: float | None = None, idle_s: float | None = None) -> None:
        self.now_s = 1000.0
        self.ends_s: float | None = None
        self.scope = cast("asyncio.Timeout", SimpleNamespace(reschedule=self._reschedule))
        self.timers = ContentTimers(
            first=SilenceBounds.of(first_s, FIRST_S, PINGED_S),
            idle=SilenceBounds.of(idle_s, IDLE_S, PINGED_S),
            loop=cast("asyncio.AbstractEventLoop", SimpleNamespace(time=lambda: self.now_s)),
        )
        self.timers.start(self.scope)

    def _reschedule(self, when_s: float | None) -> None:
        self.ends_s = when_s

    @property
    def left_s(self) -> float:
        assert self.ends_s is not None
        return self.ends_s - self.now_s

    def content(self, *, after_s: float = 0) -> None:
        self.now_s += after_s
        self.timers.on_content(self.scope)

    def pings(self, *, for_s: float, every_s: float = 10) -> float:
        """Sends pings; returns how long the attempt lasted."""
        started_s = self.now_s
        while self.now_s < started_s + for_s and self.left_s > 0:
            self.now_s += every_s
            if self.left_s > 0:
                self.timers.on_life(self.scope)
        return self.now_s - started_s

    def how(self) -> tuple[How | None, str]:
        """How the attempt failed, and its message."""
        assert self.ends_s is not None
        self.now_s = self.ends_s
        failure = self.timers.failure()
        return failure.how, failure.error.message.removeprefix("The LLM failed: ")


def test_silence_is_bounded() -> None:
    attempt = Attempt()
    assert attempt.left_s == FIRST_S
    attempt.content(after_s=5)
    assert attempt.left_s == IDLE_S + SLACK_S
    assert attempt.how() == (How.STALLED, "nothing came for 60 s.")
    assert Attempt().how() == (How.SILENT, "nothing came for 120 s.")


@pytest.mark.parametrize("begins", [False, True])
def test_pings_extend_the_allowed_silence(begins: bool) -> None:
    """Models ping for more than 70 s inside a tool's input."""
    attempt = Attempt()
    if begins:
        attempt.content()
    assert PINGED_S <= attempt.pings(for_s=10_000) <= PINGED_S + 10 + SLACK_S
    assert attempt.how() == (How.STALLED if begins else How.SILENT, "no content came for 600 s.")


def test_silence_after_pings_is_silence() -> None:
    attempt = Attempt()
    attempt.content()
    attempt.pings(for_s=300)
    assert attempt.left_s == IDLE_S + SLACK_S
    assert attempt.how() == (How.STALLED, "nothing came for 60 s.")


def test_content_begins_both_anew() -> None:
    attempt = Attempt()
    for _ in range(5):
        attempt.content(after_s=10)
        assert attempt.pings(for_s=500) >= 500
        assert attempt.left_s > 0


@pytest.mark.parametrize(("own_s", "how"), [(5, How.IMPATIENT), (500, How.STALLED)])
def test_a_jobs_own_limit_holds_whatever_pings_come(own_s: float, how: How) -> None:
    """If it is shorter than the settings', the failure does not count against the upstream."""
    attempt = Attempt(idle_s=own_s)
    attempt.content()
    assert own_s <= attempt.pings(for_s=10_000, every_s=1) <= own_s + 2 * SLACK_S + 1
    found, message = attempt.how()
    assert found is how
    assert message.startswith(f"no content came for {own_s} s")


def test_not_reading_is_not_the_upstreams_silence() -> None:
    attempt = Attempt()
    attempt.content()
    attempt.timers.pause(attempt.scope)
    assert attempt.ends_s is None
    attempt.now_s += 1000
    attempt.timers.resume(attempt.scope)
    assert attempt.left_s == IDLE_S + SLACK_S
