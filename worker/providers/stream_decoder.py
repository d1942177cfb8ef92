"""What the decoders of all upstream formats share: the bytes of a response go in, Messages events come out.

An event of more than 32 MiB is refused. Each format has its own StreamDecoder, which knows what its events mean.
"""

from abc import ABC, abstractmethod
from typing import Final

from shared.completion import GarbledStream
from shared.event_stream import BlockDecoder
from worker.outcome import UpstreamError
from worker.providers.base import UpstreamEvent
from worker.providers.members import Members

MOST_BYTES: Final = 32 << 20
"""The largest event, and the largest answer that comes in one piece."""


class StreamDecoder(ABC):
    """Feed it the pieces of a response; it returns the Messages events that they complete, the same however they are cut."""

    def __init__(self) -> None:
        self.is_over = False
        """Whether the stream said that it has ended. What comes after is ignored."""
        self.has_stopped = False
        """Whether ``message_stop`` was returned: the answer is whole."""
        self.is_answered = False
        """Whether the answer is whole and only the end of the stream is missing."""
        self.failure: GarbledStream | UpstreamError | None = None
        """What the next call raises. The events before it were returned first."""
        self.oddity = ""
        """Something odd that was read as well as possible. It may cause a later failure, whose message then names it."""
        self._events: list[UpstreamEvent] = []
        self._blocks = BlockDecoder()

    def feed(self, piece: bytes) -> list[UpstreamEvent]:
        """Returns the events in order. Raises GarbledStream, and UpstreamError for an error inside the stream."""
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
        """What the end of the response adds: the end of an answer that is whole but has none yet, else nothing."""
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
        """Which member or event is missing in an answer that is not whole."""

    def _fail(self, error: GarbledStream | UpstreamError) -> None:
        self.failure = error
        if not self._events:
            raise error

    @abstractmethod
    def _take(self, block: bytes) -> None:
        """Adds the events in a block of lines."""

    @abstractmethod
    def _take_whole(self, body: Members) -> None:
        """Adds the events of a whole answer, without its end. Raises GarbledStream if ``body`` is no answer."""

    @abstractmethod
    def _finish(self) -> None:
        """Adds the end of the answer, if it is whole."""
