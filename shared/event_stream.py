"""Decodes server-sent events from bytes as they arrive, wherever they are cut (WHATWG HTML, section 9.2.6).

Knows nothing of HTTP or of jobs. Lines end at LF, CR or CRLF only. The line readers of HTTP clients also break at U+2028
and the like, which a model's text may contain unescaped.
"""

from typing import Final

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class BlockDecoder:
    """Feed it pieces of bytes; it returns the blocks of lines that they complete, one block per event, with LF line ends."""

    def __init__(self) -> None:
        self.unfinished_bytes = 0
        """Size of the event that has begun. A caller that does not trust the sender must bound it."""
        self._pieces: list[bytes] = []
        self._ends_in_cr = False
        self._ends_in_lf = False

    @property
    def unfinished_lines(self) -> bytes:
        """The whole lines of the event that has begun."""
        return b"".join(self._pieces).rpartition(b"\n")[0]

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the completed blocks in order, none empty. An event that is cut off before its blank line is never returned."""
        if piece and (b"\r" in piece or self._ends_in_cr):
            piece = self._with_line_feeds(piece)
        if not piece:
            return []
        # Join only when an empty line ends an event: joining at every line would take quadratic time for a long event.
        ends_event = b"\n\n" in piece or (self._ends_in_lf and piece.startswith(b"\n"))
        self._ends_in_lf = piece.endswith(b"\n")
        self._pieces.append(piece)
        if not ends_event:
            self.unfinished_bytes += len(piece)
            return []
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        *blocks, rest = buffer.split(b"\n\n")
        self._pieces = [rest] if rest else []
        self.unfinished_bytes = len(rest)
        return [block for block in blocks if block]

    def _with_line_feeds(self, piece: bytes) -> bytes:
        """Turns CRLF and a lone CR into LF. A CRLF may be cut in two."""
        if self._ends_in_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._ends_in_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def lines_of(block: bytes, field: bytes = b"data:") -> list[bytes]:
    """The values of a field in a block, in order."""
    return [
        line[len(field) :].removeprefix(b" ")
        for line in block.removeprefix(BYTE_ORDER_MARK).split(b"\n")
        if line.startswith(field)
    ]
