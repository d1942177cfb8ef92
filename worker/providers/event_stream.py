"""Server-sent events, decoded from bytes as they arrive (WHATWG HTML, section 9.2.6), however they are cut.

Bounded: an event of more than 32 MiB is rubbish. ``id`` and ``retry`` fields and comments are passed over.
"""

import msgspec

from shared.completion import GarbledStream
from worker.providers.base import UpstreamEvent

_MOST_BYTES = 32 << 20


class EventDecoder:
    """Feed it pieces; it gives the events that they complete."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._ends_in_cr = False

    @property
    def has_rest(self) -> bool:
        """Whether an event was begun and not ended."""
        return any(self._pieces)

    def feed(self, piece: bytes) -> list[UpstreamEvent]:
        """Events in order. Raises GarbledStream."""
        if b"\r" in piece or self._ends_in_cr:
            piece = self._with_line_feeds(piece)
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _MOST_BYTES:
            raise GarbledStream("an event is over 32 MiB")
        if b"\n" not in piece:
            return []
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        *blocks, rest = buffer.split(b"\n\n")
        self._pieces = [rest]
        self._size = len(rest)
        events = [_event_of(block) for block in blocks if block]
        return [event for event in events if event is not None]

    def _with_line_feeds(self, piece: bytes) -> bytes:
        """CRLF and lone CR are line ends too; a CRLF may be cut in two."""
        if self._ends_in_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._ends_in_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _event_of(block: bytes) -> UpstreamEvent | None:
    name, lines = b"", list[bytes]()
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    if not lines:
        return None
    data = lines[0]
    try:
        if len(lines) > 1:
            data = msgspec.json.format(b"\n".join(lines), indent=-1)
        return UpstreamEvent(name.decode() or _type_of(data), data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GarbledStream("an event is not JSON") from error


class _Typed(msgspec.Struct):
    type: str = ""


def _type_of(data: bytes) -> str:
    return msgspec.json.decode(data, type=_Typed).type
