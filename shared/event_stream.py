"""Server-sent events out of bytes as they arrive (WHATWG HTML, section 9.2.6), however they are cut.

Knows nothing of HTTP or of jobs. Lines end at LF, CR or CRLF only: HTTP clients' own line readers also break at U+2028
and its like, which may stand raw in a model's text.
"""

from typing import Final

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class BlockDecoder:
    """Feed it pieces; it gives the blocks of lines that they complete, each an event's. The lines of a block end in LF."""

    def __init__(self) -> None:
        self.unfinished_bytes = 0
        """Of the event that has begun. Whoever reads from strangers bounds it."""
        self._pieces: list[bytes] = []
        self._ends_in_cr = False
        self._ends_in_lf = False

    @property
    def unfinished_lines(self) -> bytes:
        """The lines of the event that has begun, as far as they are whole."""
        return b"".join(self._pieces).rpartition(b"\n")[0]

    def feed(self, piece: bytes) -> list[bytes]:
        """Blocks in order, none empty. An event that was cut off before its blank line is never given."""
        if piece and (b"\r" in piece or self._ends_in_cr):
            piece = self._with_line_feeds(piece)
        if not piece:
            return []
        # Only an empty line ends an event: joining at every line would take quadratic time on one of many lines.
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
        """CRLF and lone CR are line ends too; a CRLF may be cut in two."""
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
