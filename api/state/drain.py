"""How an API process ends after SIGTERM: which requests go on, and until when new ones are accepted.

Requests that wait for a job go on for up to ``grace_s``. Followers are asked at once to reconnect elsewhere: they
resume by their last event id and miss nothing. New requests are accepted for ``notice_s``, the time that a load
balancer needs to notice that ``/health/ready`` is 503. Each response closes its connection.
"""

from enum import IntEnum
from typing import Final

_POLLED_WITHIN_S: Final = 60.0
"""If /health/ready was called within this time before the stop, we expect a load balancer that will call it again."""


class Phase(IntEnum):
    """How far a drain is."""

    LISTENING = 0
    """New connections and requests are accepted."""
    CLOSED = 1
    """No new ones are accepted; open requests go on."""
    OVER = 2
    """Requests that still wait are asked to come again, and the process ends."""


class Drain:
    """The drain of one API process. Times are the event loop's, in seconds."""

    def __init__(self, *, grace_s: float, notice_s: float) -> None:
        self._grace_s = grace_s
        self._notice_s = min(notice_s, grace_s)
        self._begun_s: float | None = None
        self._polled_s: float | None = None
        self.open_requests = 0
        """Requests in progress, without those of followers: they are asked to reconnect, and not waited for."""

    @property
    def is_begun(self) -> bool:
        """Whether the process has been asked to stop."""
        return self._begun_s is not None

    def begin(self, now_s: float) -> None:
        """Notes that the process is asked to stop. Calls after the first change nothing."""
        if self._begun_s is None:
            self._begun_s = now_s

    def note_poll(self, now_s: float) -> None:
        """Notes a call of ``/health/ready``."""
        self._polled_s = now_s

    def phase(self, now_s: float) -> Phase:
        """How far the drain is at ``now_s``. Call ``begin`` first."""
        assert self._begun_s is not None
        waited_s = now_s - self._begun_s
        is_polled = self._polled_s is not None and self._polled_s > self._begun_s - _POLLED_WITHIN_S
        is_busy = self.open_requests > 0
        if waited_s < self._notice_s and (is_polled or is_busy):
            return Phase.LISTENING
        return Phase.CLOSED if is_busy and waited_s < self._grace_s else Phase.OVER
