"""Server-sent events, decoded from bytes as they arrive (WHATWG HTML, section 9.2.6), however they are cut.

Bounded: an event of more than 32 MiB is rubbish. What the events mean is the matter of each dialect's own StreamDecoder.
"""

from abc import ABC, abstractmethod
from typing import Final

from shared.completion import GarbledStream
from worker.outcome import UpstreamError
from worker.providers.base import UpstreamEvent
from worker.providers.members import Members

MOST_BYTES: Final = 32 << 20
"""Of one event, and of an answer that comes in one piece."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class StreamDecoder(ABC):
    """Feed it the pieces of a response; it gives the Messages events that they complete, the same however they are cut."""

    def __init__(self) -> None:
        self.is_over = False
        """Whether the stream said that it has ended. What comes after is passed over."""
        self.has_stopped = False
        """Whether the answer's end was told: it is whole."""
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


class BlockDecoder:
    """Feed it pieces; it gives the blocks of lines that they complete, each an event's. Its lines end in LF."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._ends_in_cr = False
        self._ends_in_lf = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Blocks in order, none empty. Raises GarbledStream."""
        if piece and (b"\r" in piece or self._ends_in_cr):
            piece = self._with_line_feeds(piece)
        if not piece:
            return []
        # Only an empty line ends an event: joining at every line would take quadratic time on one of many lines.
        ends_event = b"\n\n" in piece or (self._ends_in_lf and piece.startswith(b"\n"))
        self._ends_in_lf = piece.endswith(b"\n")
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MOST_BYTES:
            raise GarbledStream("an event is over 32 MiB")
        if not ends_event:
            return []
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        *blocks, rest = buffer.split(b"\n\n")
        self._pieces = [rest] if rest else []
        self._size = len(rest)
        return [block for block in blocks if block]

    def _with_line_feeds(self, piece: bytes) -> bytes:
        """CRLF and lone CR are line ends too; a CRLF may be cut in two."""
        if self._ends_in_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._ends_in_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def lines_of(block: bytes, field: bytes = b"data:") -> list[bytes]:
    """The values of a field in a block, in order."""
    return [
        line[len(field) :].removeprefix(b" ")
        for line in block.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
        if line.startswith(field)
    ]
