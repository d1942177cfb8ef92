"""Server-sent events as the command line reads them: fields by the WHATWG rules, and what a reconnect needs."""

from collections.abc import Iterator
from dataclasses import dataclass

from shared.event_stream import BYTE_ORDER_MARK, BlockDecoder, lines_of

_MOST_RETRY_DIGITS = 9  # eleven days; Python refuses to read numbers of thousands of digits


@dataclass(frozen=True)
class Event:
    """One complete event. ``last_event_id`` is what a reconnect has to send: this one's id, or the newest before it."""

    name: str
    data: str
    last_event_id: str


class EventReader:
    """Feed it chunks as they come. An event that was cut off before its blank line is never given out."""

    def __init__(self) -> None:
        self._retry_ms: int | None = None
        self._blocks = BlockDecoder()
        self._has_begun = False
        self._last_event_id = ""

    @property
    def retry_ms(self) -> int | None:
        """How long to wait before a reconnect, if the server said it: a ``retry`` counts as soon as its line is whole."""
        self._note_retry(self._blocks.unfinished_lines)
        return self._retry_ms

    def feed(self, chunk: bytes) -> Iterator[Event]:
        for block in self._blocks.feed(chunk):
            event = self._event_in(block if self._has_begun else block.removeprefix(BYTE_ORDER_MARK))
            self._has_begun = True
            if event is not None:
                yield event

    def _event_in(self, block: bytes) -> Event | None:
        """None if it has no data: then its id and its retry count all the same."""
        self._note_retry(block)
        event_name = ""
        data: list[str] = []
        for line in block.decode(errors="replace").split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "event":
                    event_name = value
                case "data":
                    data.append(value)
                case "id" if "\0" not in value:
                    self._last_event_id = value
                case _:
                    pass  # a comment, or a field that we do not know
        return Event(event_name or "message", "\n".join(data), self._last_event_id) if data else None

    def _note_retry(self, lines: bytes) -> None:
        for value in lines_of(lines, b"retry:"):
            if value.isdigit() and len(value) <= _MOST_RETRY_DIGITS:
                self._retry_ms = int(value)
