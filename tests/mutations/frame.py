"""A stream as an upstream would send it, in parts that a mutation can change: frames, their line ends and the end.

A frame holds the bytes and their meaning. A mutation changes both, so that the oracle never has to decode bytes.
"""

import copy
import gzip
import itertools
import random
import zlib
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple, Self

import msgspec

ABSENT: Final = object()
"""There is no JSON."""


class Dialect(StrEnum):
    """The two wire formats."""

    MESSAGES = "messages"
    CHAT = "chat"


# --- what a frame means -----------------------------------------------------------------------------------------------


class Starts(NamedTuple):
    """The message begins; a chat stream has no event for that."""


class Begins(NamedTuple):
    """A block or a tool call begins."""

    block: int
    kind: str
    name: str = ""


class Says(NamedTuple):
    """A piece of a block: ``text``, ``thinking`` or ``input``, which is JSON."""

    block: int
    kind: str
    piece: str


class Closes(NamedTuple):
    """The block is complete."""

    block: int


class Reasons(NamedTuple):
    """The stop reason."""

    reason: str


class Uses(NamedTuple):
    """The usage, in our form."""

    tokens: dict[str, int]


class Stops(NamedTuple):
    """``message_stop``, ``[DONE]``: nothing that follows matters."""


class Refuses(NamedTuple):
    """The upstream's own error."""

    code: str


Meaning = Starts | Begins | Says | Closes | Reasons | Uses | Stops | Refuses


class Doubt(NamedTuple):
    """An oddity that the error must name, with one word of each tuple."""

    members: tuple[str, ...]
    how: tuple[str, ...]
    is_habit: bool = True
    """Whether it is a habit of the server, which opens no circuit; otherwise the stream broke."""


@dataclass(slots=True)
class Frame:
    """One event of the stream."""

    kind: str
    """Its kind, for labels."""
    name: str | None = None
    """The name in the ``event:`` line; None: no such line."""
    json: Any = ABSENT
    data: bytes | None = None
    """Data that replaces the JSON."""
    block: bytes | None = None
    """Lines that replace the whole frame, without the empty line."""
    means: tuple[Meaning, ...] = ()
    pause_s: float = 0.0
    """The silence before it."""
    is_pretty: bool = False
    has_space: bool = True
    doubts: tuple[Doubt, ...] = ()
    questions: tuple[Doubt, ...] = ()
    """Oddities for which the rule leaves open whether the attempt fails."""
    loose: frozenset[str] = frozenset()
    """Members of the answer that are not compared."""
    labels: tuple[str, ...] = ()
    original: "Frame | None" = None
    can_undo: bool = True
    """Whether this frame alone can be restored; False: others were changed with it."""

    def touched(self, label: str) -> Self:
        """Adds a label, and keeps the original frame."""
        if self.original is None:
            self.original = copy.copy(self)
            self.json = copy.deepcopy(self.json)
        self.labels = (*self.labels, label)
        return self

    def wire(self, line_end: bytes) -> bytes:
        """The frame's bytes, with its empty line."""
        if self.block is not None:
            lines = self.block.split(b"\n")
        else:
            lines = [] if self.name is None else [b"event: " + self.name.encode()]
            mark = b"data: " if self.has_space else b"data:"
            lines += [mark + line for line in self.payload().split(b"\n")]
        return line_end.join([*lines, b"", b""])

    def payload(self) -> bytes:
        """The bytes of its data."""
        if self.data is not None:
            return self.data
        if self.json is ABSENT:
            return b""
        encoded = msgspec.json.encode(self.json)
        return msgspec.json.format(encoded, indent=2) if self.is_pretty else encoded


# --- the stream -------------------------------------------------------------------------------------------------------


class End(Enum):
    """What happens after the last byte."""

    CLEAN = "a clean end"
    CUT = "a cut"
    HELD = "silence"


class Cuts(Enum):
    """How the network cuts the stream into pieces."""

    FRAMES = "a frame a piece"
    ONE = "one piece"
    ANYWHERE = "cut anywhere"
    BYTES = "byte by byte"
    LINE_ENDS = "cut in the middle of each line end"
    CHARACTERS = "cut in the middle of each character"


class Piece(NamedTuple):
    """Bytes, and the silence before them."""

    pause_s: float
    data: bytes


@dataclass(slots=True)
class Response:
    """The response around the stream, which only a provider sees."""

    status: int = 200
    content_type: str | None = "text/event-stream"
    encoding: str = ""
    headers: tuple[str, ...] = ()
    body: bytes | None = None
    """A body that replaces the stream."""
    breaks: str = ""
    """How the encoded bytes are broken."""
    doubt: Doubt | None = None
    question: Doubt | None = None
    is_final: bool | None = None
    """Whether a retry must not be made, if that is certain."""
    code: str = ""
    """The code of the error, if that is certain."""


@dataclass(slots=True)
class Stream:
    """A whole stream."""

    dialect: Dialect
    frames: list[Frame]
    seed_name: str
    end: End = End.CLEAN
    line_end: bytes = b"\n"
    has_last_line: bool = True
    """Whether the last event has its empty line."""
    starts_with: bytes = b""
    cuts: Cuts = Cuts.FRAMES
    cuts_seed: int = 0
    labels: list[str] = field(default_factory=list)
    """Labels of mutations of the whole stream."""
    response: Response | None = None
    """None: the response is not mutated."""

    @property
    def all_labels(self) -> frozenset[str]:
        """All labels, except those of pieces."""
        return frozenset(self.labels) | {label for frame in self.frames for label in frame.labels}

    def body(self) -> bytes:
        """All bytes, before any encoding."""
        blocks = [frame.wire(self.line_end) for frame in self.frames]
        if blocks and not self.has_last_line:
            blocks[-1] = blocks[-1].removesuffix(self.line_end * 2)
        return self.starts_with + b"".join(blocks)

    def pieces(self) -> list[Piece]:
        """The pieces that a reader gets. A silence is always between two pieces."""
        runs: list[tuple[float, list[bytes]]] = [(0.0, [self.starts_with] if self.starts_with else [])]
        for frame in self.frames:
            if frame.pause_s:
                runs.append((frame.pause_s, []))
            runs[-1][1].append(frame.wire(self.line_end))
        if not self.has_last_line and self.frames:
            runs[-1][1][-1] = runs[-1][1][-1].removesuffix(self.line_end * 2)
        rng = random.Random(self.cuts_seed)
        found: list[Piece] = []
        for pause_s, blocks in runs:
            parts = [part for part in cut(blocks, self.cuts, rng) if part]
            found += [Piece(pause_s if number == 0 else 0.0, part) for number, part in enumerate(parts)]
        return found


def cut(blocks: list[bytes], cuts: Cuts, rng: random.Random) -> list[bytes]:
    """The same bytes in other pieces."""
    whole = b"".join(blocks)
    places: list[int] = []
    match cuts:
        case Cuts.FRAMES:
            return blocks
        case Cuts.ONE:
            return [whole]
        case Cuts.BYTES:
            return [whole[at : at + 1] for at in range(len(whole))]
        case Cuts.ANYWHERE:
            places = [rng.randint(0, len(whole)) for _ in range(rng.randint(1, 8))]
        case Cuts.LINE_ENDS:
            places = [at + 1 for at in range(len(whole)) if whole[at] in b"\r\n"]
        case Cuts.CHARACTERS:
            places = [at for at in range(len(whole)) if whole[at] & 0xC0 == 0x80]
    ends = [0, *sorted(places), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(ends)]


def encoded(body: bytes, encoding: str, breaks: str) -> bytes:
    """The body in this ``content-encoding``; ``breaks`` says how it is broken."""
    match encoding.lower():
        case "gzip" | "x-gzip":
            packed = gzip.compress(body, 1)
        case "deflate":
            packed = zlib.compress(body, 1)
        case "" | "identity":
            packed = body
        case _:
            packed = bytes(byte ^ 0x55 for byte in body)  # so that it cannot be decoded
    return packed[: len(packed) // 2] if breaks == "short" else packed
