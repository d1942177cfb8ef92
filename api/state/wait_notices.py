"""What one follower knows of why its job waits, and when to send it more."""

from typing import Final

from shared.events import Event, OurEvent
from shared.waiting import Turn, WaitingFor, notice_of

_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 10.0
_PLACES_PER_S: Final = 100
"""Each hundred places before a job add a second between two notices that differ in numbers only: a job far from its turn
moves with every start, and a thousand such followers would keep a process busy."""


class Notices:
    """Of one watch. Holds the newest notice only, so a slow client skips those before it."""

    __slots__ = ("_epoch", "_sent", "_sent_s", "_unsent", "may_wait", "model")

    def __init__(self, model: str, epoch: int, *, may_wait: bool) -> None:
        """``epoch``: that of the record when it was read; events up to it say nothing about now."""
        self.model = model
        self.may_wait = may_wait
        """Whether it is worth a look why the job waits."""
        self._epoch = epoch
        self._sent: WaitingFor | None = None
        self._sent_s = 0.0
        self._unsent: WaitingFor | None = None

    def sent(self, waiting_for: WaitingFor, now_s: float) -> None:
        """The follower has been sent this."""
        self._sent, self._sent_s = waiting_for, now_s

    def heard(self, event: Event) -> None:
        """An event of the log: the job runs, or has failed and may wait for its next attempt."""
        if event.id is not None and event.id.epoch > self._epoch:
            self.may_wait = event.name == OurEvent.RETRY
            self._sent = self._unsent = None

    def note(self, waiting_for: WaitingFor | None, now_s: float) -> bool:
        """Takes what holds the job back now. Returns whether a notice is due."""
        if waiting_for is None:
            self.may_wait = False
        elif self.may_wait and self._is_due(waiting_for, now_s):
            self._unsent = waiting_for
            return True
        return False

    def _is_due(self, waiting_for: WaitingFor, now_s: float) -> bool:
        if waiting_for == self._sent:
            return False
        if self._sent is None:
            return True
        last = waiting_for[-1]
        is_far = isinstance(last, Turn) and _kinds_of(waiting_for) == _kinds_of(self._sent)
        pace_s = last.position / _PLACES_PER_S if is_far and isinstance(last, Turn) else 0
        return now_s - self._sent_s >= min(max(pace_s, _SHORTEST_S), _LONGEST_S)

    @property
    def has_unsent(self) -> bool:
        """Whether a notice is due."""
        return self._unsent is not None

    def take(self, job_id: str, now_s: float) -> list[Event]:
        """The notice that is due, if any: from then on it counts as sent."""
        if self._unsent is None:
            return []
        waiting_for, self._unsent = self._unsent, None
        self.sent(waiting_for, now_s)
        return [Event(None, OurEvent.WAITING, notice_of(job_id, waiting_for))]


def _kinds_of(waiting_for: WaitingFor) -> list[tuple[object, ...]]:
    return [(type(each), getattr(each, "of", None), getattr(each, "because", None)) for each in waiting_for]
