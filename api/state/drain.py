"""How an API process ends after SIGTERM: which requests go on, until when new ones are taken, and when all of them end.

Requests that wait for a job go on for the grace. Followers are asked at once to reconnect elsewhere: they resume by
their last event id and miss nothing. New requests are taken for the notice, which is the time that a load balancer needs to see
that ``/health/ready`` says 503; each response then closes its connection.
"""

from enum import IntEnum
from typing import Final

_POLLED_WITHIN_S: Final = 60.0
"""Whoever asked for the readiness this long before the stop is taken for a load balancer that will ask again."""


class Phase(IntEnum):
    """How far a drain is."""

    LISTENING = 0
    """New connections and requests are taken."""
    CLOSED = 1
    """None are taken; those at hand go on."""
    OVER = 2
    """What still waits is asked to come again, and the process ends."""


class Drain:
    """Of one API process. Times are the event loop's, in seconds."""

    def __init__(self, *, grace_s: float, notice_s: float) -> None:
        self._grace_s = grace_s
        self._notice_s = min(notice_s, grace_s)
        self._begun_s: float | None = None
        self._polled_s: float | None = None
        self.open_requests = 0
        """Requests at work, without followers: those are asked to reconnect, and not waited for."""

    @property
    def is_begun(self) -> bool:
        """Whether the process has been asked to stop."""
        return self._begun_s is not None

    def begin(self, now_s: float) -> None:
        """The process is asked to stop. Calls after the first change nothing."""
        if self._begun_s is None:
            self._begun_s = now_s

    def note_poll(self, now_s: float) -> None:
        """Somebody asks whether to send requests here."""
        self._polled_s = now_s

    def phase(self, now_s: float) -> Phase:
        """Call ``begin`` first."""
        assert self._begun_s is not None
        waited_s = now_s - self._begun_s
        is_polled = self._polled_s is not None and self._polled_s > self._begun_s - _POLLED_WITHIN_S
        is_busy = self.open_requests > 0
        if waited_s < self._notice_s and (is_polled or is_busy):
            return Phase.LISTENING
        return Phase.CLOSED if is_busy and waited_s < self._grace_s else Phase.OVER
