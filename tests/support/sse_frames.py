"""Parses server-sent events exactly as the WHATWG HTML standard (section 9.2.6) says.

Slow and simple on purpose, and without the product's own parsers: tests compare those to this one.
"""

from typing import NamedTuple


class Frame(NamedTuple):
    """What a browser would dispatch."""

    event: str
    data: str
    id: str | None
    """The id in this frame itself."""


class SseFrames:
    """Takes bytes, cut anywhere, and returns the frames that they complete. Keeps comments and ``retry``."""

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.comments: list[str] = []
        self._bytes = b""
        self._lines: list[str] = []

    def feed(self, piece: bytes) -> list[Frame]:
        """Frames in order."""
        self._bytes += piece
        found: list[Frame] = []
        while (line := self._line()) is not None:
            if line:
                self._lines.append(line)
            else:
                found += self._dispatch()
        return found

    def _line(self) -> str | None:
        ends = [place for place in (self._bytes.find(b"\n"), self._bytes.find(b"\r")) if place >= 0]
        if not ends:
            return None
        end = min(ends)
        behind = end + 1
        if self._bytes[end : end + 1] == b"\r":
            if behind == len(self._bytes):
                return None  # a line feed may follow
            behind += self._bytes[behind : behind + 1] == b"\n"
        line, self._bytes = self._bytes[:end], self._bytes[behind:]
        return line.decode("utf-8", errors="replace")

    def _dispatch(self) -> list[Frame]:
        event, data, own_id = "", list[str](), None
        for line in self._lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not name:
                self.comments.append(value)
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)
            elif name == "id" and "\0" not in value:
                own_id = self.last_event_id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry_ms = int(value)
        self._lines.clear()
        return [Frame(event or "message", "\n".join(data), own_id)] if data else []
