"""What followers were shown of an answer that did not come to its end: a job's events so far, added up. Pure."""

import contextlib

from shared.completion import Completion, GarbledStream
from shared.events import OUR_NAMES, Event, OurEvent


class Folding:
    """Add the events of a log in order, from the first of the newest claim on: any earlier content was reset by it."""

    def __init__(self) -> None:
        self._heard = Completion()

    def add(self, event: Event) -> None:
        """Adds one event. A ``reset`` discards all before it."""
        if event.name == OurEvent.RESET:
            self._heard = Completion()
        elif event.name not in OUR_NAMES:
            with contextlib.suppress(GarbledStream):
                self._heard.add(event.name, event.data)

    @property
    def partial(self) -> bytes | None:
        """The blocks so far, as ``Completion.partial`` gives it."""
        return self._heard.partial()
