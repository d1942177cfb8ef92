"""What the decoders of all dialects share: the bytes of a response in, Messages events out.

Bounded: an event of more than 32 MiB is rubbish. Each dialect's own StreamDecoder knows what its events mean.
"""

from abc import ABC, abstractmethod
from typing import Final

from shared.completion import GarbledStream
from shared.event_stream import BlockDecoder
from worker.outcome import UpstreamError
from worker.providers.base import UpstreamEvent
from worker.providers.members import Members

MOST_BYTES: Final = 32 << 20
"""Of one event, and of an answer that comes in one piece."""


class StreamDecoder(ABC):
    """Feed it the pieces of a response; it gives the Messages events that they complete, the same however they are cut."""

    def __init__(self) -> None:
        self.is_over = False
        """Whether the stream said that it has ended. What comes after is passed over."""
        self.has_stopped = False
        """Whether the answer's end was given out: it is whole."""
        self.is_answered = False
        """Whether the answer is whole but for the words that end the stream: nothing that is needed is missing."""
        self.failure: GarbledStream | UpstreamError | None = None
        """What the next call raises: the events before it were given first."""
        self.oddity = ""
        """What was odd, and read as well as it can be: a later failure may come of it, and its sentence names it."""
        self._events: list[UpstreamEvent] = []
        self._blocks = BlockDecoder()

    def feed(self, piece: bytes) -> list[UpstreamEvent]:
        """Events in order. Raises GarbledStream, and UpstreamError for an error inside the stream."""
        if self.failure is not None:
            raise self.failure
        try:
            for block in self._blocks.feed(piece):
                if self.is_over:
                    break
                self._take(block)
            if self._blocks.unfinished_bytes > MOST_BYTES:
                raise GarbledStream("an event is over 32 MiB")
        except (GarbledStream, UpstreamError) as error:
            self._fail(error)
        events, self._events = self._events, []
        return events

    def feed_whole(self, body: Members) -> list[UpstreamEvent]:
        """All events of an answer that came in one piece, though a stream was asked for. Raises GarbledStream, UpstreamError."""
        self._take_whole(body)
        events = self.end()
        if not self.is_over:
            raise GarbledStream(f"its answer has no {self.missing}")
        return events

    def end(self) -> list[UpstreamEvent]:
        """What the end of the response adds: the end of an answer that is whole without its own, else nothing."""
        if self.failure is not None:
            raise self.failure
        try:
            if not self.is_over:
                self._finish()
        except GarbledStream as error:
            self._fail(error)
        events, self._events = self._events, []
        return events

    @property
    @abstractmethod
    def missing(self) -> str:
        """Which member or event an answer that is not whole lacks."""

    def _fail(self, error: GarbledStream | UpstreamError) -> None:
        self.failure = error
        if not self._events:
            raise error

    @abstractmethod
    def _take(self, block: bytes) -> None:
        """Adds to the events what a block of lines says."""

    @abstractmethod
    def _take_whole(self, body: Members) -> None:
        """Adds the events of a whole answer, but for its end. Raises GarbledStream if it is none."""

    @abstractmethod
    def _finish(self) -> None:
        """Adds the end of the answer, if it is whole."""
