"""Server-sent events out of bytes, by the WHATWG rules; knows nothing of HTTP or of jobs.

Lines end at CR, LF or CRLF only. HTTP clients' own line readers also break at U+2028 and its like, which may stand raw
in a model's text.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

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
        self.retry_ms: int | None = None
        """How long to wait before a reconnect, when the server said it."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._unread = ""
        self._last_event_id = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        self._unread += self._decoder.decode(chunk)
        while (line := self._take_line()) is not None:
            if line:
                self._field(line)
                continue
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data), self._last_event_id)
            self._name, self._data = "", []

    def _take_line(self) -> str | None:
        ends = [end for end in (self._unread.find("\n"), self._unread.find("\r")) if end >= 0]
        if not ends:
            return None
        end = min(ends)
        after = end + 1
        if self._unread[end] == "\r":
            if after == len(self._unread):
                return None  # a line feed may still belong to it
            after += self._unread[after] == "\n"
        line, self._unread = self._unread[:end], self._unread[after:]
        return line

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._last_event_id = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= _MOST_RETRY_DIGITS:
                self.retry_ms = int(value)
            case _:
                pass  # a comment, or a field that we do not know
