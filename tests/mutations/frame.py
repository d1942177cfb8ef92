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
"""No JSON at all."""


class Dialect(StrEnum):
    """The two wire formats."""

    MESSAGES = "messages"
    CHAT = "chat"


# --- what a frame means -----------------------------------------------------------------------------------------------


class Starts(NamedTuple):
    """The message; a chat stream has no beginning of its own."""


class Begins(NamedTuple):
    """A block, or a call of a tool."""

    block: int
    kind: str
    name: str = ""


class Says(NamedTuple):
    """A piece of a block: ``text``, ``thinking`` or ``input``, which is JSON."""

    block: int
    kind: str
    piece: str


class Closes(NamedTuple):
    """The block is whole."""

    block: int


class Reasons(NamedTuple):
    """Why the answer ended."""

    reason: str


class Uses(NamedTuple):
    """Tokens as Usage counts them."""

    tokens: dict[str, int]


class Stops(NamedTuple):
    """``message_stop``, ``[DONE]``: nothing that follows matters."""


class Refuses(NamedTuple):
    """An error of the upstream's own."""

    code: str


Meaning = Starts | Begins | Says | Closes | Reasons | Uses | Stops | Refuses


class Doubt(NamedTuple):
    """Something odd that an error has to name: a word of each of the two."""

    members: tuple[str, ...]
    how: tuple[str, ...]
    is_habit: bool = True
    """The server's way of writing, which opens no circuit; else the stream broke."""


@dataclass(slots=True)
class Frame:
    """One event of the stream."""

    kind: str
    """What it is, for labels."""
    name: str | None = None
    """Of the ``event:`` line; None: there is none."""
    json: Any = ABSENT
    data: bytes | None = None
    """In place of JSON."""
    block: bytes | None = None
    """In place of everything: lines, without the empty one."""
    means: tuple[Meaning, ...] = ()
    pause_s: float = 0.0
    """Silence before it."""
    is_pretty: bool = False
    has_space: bool = True
    doubts: tuple[Doubt, ...] = ()
    questions: tuple[Doubt, ...] = ()
    """Where the rule leaves open whether it fails."""
    loose: frozenset[str] = frozenset()
    """Members of the answer that are not compared any more."""
    labels: tuple[str, ...] = ()
    original: "Frame | None" = None
    can_undo: bool = True
    """Whether the frame alone can be what it was; False: others were changed together with it."""

    def touched(self, label: str) -> Self:
        """Remembers what it was."""
        if self.original is None:
            self.original = copy.copy(self)
            self.json = copy.deepcopy(self.json)
        self.labels = (*self.labels, label)
        return self

    def wire(self, line_end: bytes) -> bytes:
        """With its empty line."""
        if self.block is not None:
            lines = self.block.split(b"\n")
        else:
            lines = [] if self.name is None else [b"event: " + self.name.encode()]
            mark = b"data: " if self.has_space else b"data:"
            lines += [mark + line for line in self.payload().split(b"\n")]
        return line_end.join([*lines, b"", b""])

    def payload(self) -> bytes:
        """The data."""
        if self.data is not None:
            return self.data
        if self.json is ABSENT:
            return b""
        encoded = msgspec.json.encode(self.json)
        return msgspec.json.format(encoded, indent=2) if self.is_pretty else encoded


# --- the stream -------------------------------------------------------------------------------------------------------


class End(Enum):
    """What comes behind the last byte."""

    CLEAN = "a clean end"
    CUT = "a cut"
    HELD = "silence"


class Cuts(Enum):
    """How the network cuts it into pieces."""

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
    """What is around the stream: only a provider sees it."""

    status: int = 200
    content_type: str | None = "text/event-stream"
    encoding: str = ""
    headers: tuple[str, ...] = ()
    body: bytes | None = None
    """In place of the stream."""
    breaks: str = ""
    """How the encoded bytes are broken."""
    doubt: Doubt | None = None
    question: Doubt | None = None
    is_final: bool | None = None
    """Whether another attempt must not be made, where that is certain."""
    code: str = ""
    """The code of the error, where that is certain."""


@dataclass(slots=True)
class Stream:
    """All of it."""

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
    """What was done to it as a whole."""
    response: Response | None = None
    """None: the stream's own bytes are enough."""

    @property
    def all_labels(self) -> frozenset[str]:
        """Everything that was done to it, pieces apart."""
        return frozenset(self.labels) | {label for frame in self.frames for label in frame.labels}

    def body(self) -> bytes:
        """In one, before any encoding."""
        blocks = [frame.wire(self.line_end) for frame in self.frames]
        if blocks and not self.has_last_line:
            blocks[-1] = blocks[-1].removesuffix(self.line_end * 2)
        return self.starts_with + b"".join(blocks)

    def pieces(self) -> list[Piece]:
        """As a reader gets them. Silence falls on the border of a piece."""
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
    """As ``content-encoding`` says it; ``breaks`` spoils it."""
    match encoding.lower():
        case "gzip" | "x-gzip":
            packed = gzip.compress(body, 1)
        case "deflate":
            packed = zlib.compress(body, 1)
        case "" | "identity":
            packed = body
        case _:
            packed = bytes(byte ^ 0x55 for byte in body)  # whatever it is, it is not readable
    return packed[: len(packed) // 2] if breaks == "short" else packed
