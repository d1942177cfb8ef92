"""Decides what must become of a stream from the meaning of its frames, without our decoder.

The rule: an odd member that nobody needs never fails a whole answer. An attempt fails only if the text, a tool's input
or the ending is doubtful; the error then names what was odd, but not its content. A success holds all that followers
saw.
"""

import contextlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import jiter
import msgspec

from tests.mutations.frame import (
    Begins,
    Closes,
    Dialect,
    Doubt,
    End,
    Frame,
    Reasons,
    Refuses,
    Says,
    Starts,
    Stops,
    Stream,
    Uses,
)


class Verdict(StrEnum):
    """The rule's verdict on a stream."""

    CERTAIN = "certain"
    """Text, inputs and ending are certain: the job succeeds, with one call and exactly what was sent."""
    DOUBTFUL = "doubtful"
    """The attempt fails, and the error names what is odd."""
    EITHER = "either"
    """The rule leaves it open, each time with a reason in the code. A success still has exactly what was sent."""


@dataclass
class Expected:
    """The expected outcome of one stream."""

    verdict: Verdict
    blocks: list[dict[str, Any]]
    """The blocks in order, without empty ones."""
    stop_reason: str | None
    usage: dict[str, int] | None
    """None: the usage is unclear."""
    doubts: list[Doubt]
    """A failure must name one of them."""
    loose: frozenset[str]
    longest_s: float | None = None
    """The longest time from the last needed byte to the end, if the connection is held open."""


CUT_REASONS: Final = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})
_CHAT_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_TOOLS: Final = frozenset({"tool_use", "server_tool_use"})

_NO_JSON: Final = ("JSON", "whole", "malformed", "invalid", "truncated", "cut", "broken", "incomplete", "parse")
ABSENT_WORDS: Final = ("missing", "without", "no", "absent", "lacks", "never", "null", "none", "before", "not")


@dataclass
class _Block:
    kind: str
    name: str
    pieces: list[str] = field(default_factory=list)
    is_closed: bool = False
    is_begun: bool = True


@dataclass
class _Reading:
    """The state after the frames so far."""

    blocks: dict[int, _Block] = field(default_factory=dict)
    reason: str | None = None
    has_refused: bool = False
    has_started: bool = False
    is_over: bool = False
    refused: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)
    questions: list[Doubt] = field(default_factory=list)
    loose: set[str] = field(default_factory=set)


def expected_of(stream: Stream) -> Expected:
    """Reads the frames' meanings in order, up to the end of the answer."""
    reading = _Reading()
    for frame in stream.frames:
        _take(frame, reading, stream.dialect)
        if reading.is_over or reading.refused is not None:
            break
    if (response := stream.response) is not None:
        reading.doubts += [response.doubt] if response.doubt else []
        reading.questions += [response.question] if response.question else []
    if stream.dialect is Dialect.MESSAGES and not reading.has_started:
        reading.questions.append(_NO_START)
    longest_s = None
    if not reading.is_over and reading.refused is None:
        longest_s = _judge_end(stream, reading)
    blocks = _blocks_of(reading, stream.dialect)
    if reading.is_over and reading.reason is None:
        reading.doubts.append(_no_reason(stream.dialect))
    return Expected(
        verdict=_verdict_of(reading),
        blocks=blocks,
        stop_reason=_stop_reason(reading, stream.dialect),
        usage=None if "usage" in reading.loose else reading.usage,
        doubts=reading.doubts + reading.questions,
        loose=frozenset(reading.loose),
        longest_s=longest_s,
    )


def _verdict_of(reading: _Reading) -> Verdict:
    if reading.doubts or reading.refused is not None:
        return Verdict.DOUBTFUL
    return Verdict.EITHER if reading.questions else Verdict.CERTAIN


def _take(frame: Frame, reading: _Reading, dialect: Dialect) -> None:
    has_content = any(piece for block in reading.blocks.values() for piece in block.pieces)
    # Before the first content a silence may be longer.
    reading.doubts += [doubt for doubt in frame.doubts if doubt is not SILENCE or has_content]
    reading.questions += frame.questions
    reading.loose |= frame.loose
    if frame.pause_s > 2.5 and reading.reason and dialect is Dialect.CHAT:
        reading.loose.add("usage")  # readers do not wait that long for it after the stop reason
    for meaning in frame.means:
        if dialect is Dialect.MESSAGES and not (reading.has_started or isinstance(meaning, (Starts, Refuses))):
            # Open: the first event has no content, but if it is lost, later ones may be lost too.
            reading.has_started = True
            reading.questions.append(_NO_START)
            reading.loose.add("usage")
        match meaning:
            case Starts():
                reading.has_started = True
            case Begins(number, kind, name):
                block = reading.blocks.setdefault(number, _Block(kind, name))
                block.is_begun, block.name = True, block.name or name
            case Says(number, kind, piece):
                block = _said_in(reading, number, kind, dialect)
                block.pieces.append(piece)
                reading.has_refused |= kind == "refusal" and bool(piece)
            case Closes(number):
                if number in reading.blocks:
                    reading.blocks[number].is_closed = True
            case Reasons(reason):
                # Of two reasons in a chat stream, the first is the model's and the second the server's.
                keeps = dialect is Dialect.CHAT and reading.reason
                reading.reason = reading.reason if keeps else reason
            case Uses(tokens):
                reading.usage |= tokens
            case Stops():
                reading.is_over = True
            case Refuses(code):
                reading.refused = code
                return


def _said_in(reading: _Reading, number: int, kind: str, dialect: Dialect) -> _Block:
    kind = {"refusal": "text", "input": "tool_use"}.get(kind, kind)
    if number not in reading.blocks:
        is_begun = dialect is Dialect.CHAT and kind != "tool_use"
        reading.blocks[number] = _Block(kind, "", is_begun=is_begun)
    return reading.blocks[number]


# --- the ending -------------------------------------------------------------------------------------------------------


def _judge_end(stream: Stream, reading: _Reading) -> float | None:
    """Judges the end of a stream without its last event."""
    is_chat = stream.dialect is Dialect.CHAT
    is_whole = reading.reason is not None and (is_chat or all(block.is_closed for block in reading.blocks.values()))
    match stream.end:
        case End.CLEAN if not is_whole:
            reading.doubts.append(_ended_early(stream.dialect))
        case End.CUT if is_whole:
            # The answer is complete but the connection broke: the rule covers only a clean end.
            reading.questions.append(_CUT)
        case End.CUT:
            reading.doubts.append(_CUT)
        case End.HELD if not is_whole:
            reading.doubts.append(SILENCE)
        case End.HELD:
            return 2.5 if is_chat else None
        case _:
            pass
    return None


_NO_START: Final = Doubt(("message_start",), (*ABSENT_WORDS, "first"))
_CUT: Final = Doubt(
    ("connection", "message_stop", "finish_reason", "[DONE]", "stream"),
    ("cut", "closed", "broke", "broken", "lost", "reset"),
    is_habit=False,
)
SILENCE: Final = Doubt(
    ("content", "pings", "ping", "silent", "nothing", "silence"), ("s", "seconds", "stopped"), is_habit=False
)


def _ended_early(dialect: Dialect) -> Doubt:
    """A chat stream has no ``message_stop``, so the error must not name it."""
    members = ("finish_reason",) if dialect is Dialect.CHAT else ("message_stop", "stop_reason", "content_block_stop")
    return Doubt(members, (*ABSENT_WORDS, "ended", "open"), is_habit=False)


def _no_reason(dialect: Dialect) -> Doubt:
    return Doubt(("finish_reason" if dialect is Dialect.CHAT else "stop_reason", "delta"), ABSENT_WORDS, is_habit=False)


def _stop_reason(reading: _Reading, dialect: Dialect) -> str | None:
    if dialect is Dialect.MESSAGES or reading.reason is None:
        return reading.reason
    reason = _CHAT_REASONS.get(reading.reason, reading.reason)
    if reason == "end_turn" and reading.has_refused:
        return "refusal"
    has_tools = any(block.kind in _TOOLS for block in reading.blocks.values())
    return "tool_use" if reason == "end_turn" and has_tools else reason


# --- the content ------------------------------------------------------------------------------------------------------


def _blocks_of(reading: _Reading, dialect: Dialect) -> list[dict[str, Any]]:
    numbers = sorted(reading.blocks) if dialect is Dialect.MESSAGES else list(reading.blocks)
    found = []
    reason = _CHAT_REASONS.get(reading.reason or "", reading.reason)
    for number in numbers:
        block = reading.blocks[number]
        joined = "".join(block.pieces)
        if block.kind in _TOOLS:
            may_be_cut = reason in CUT_REASONS and number == numbers[-1]
            found.append(_tool_of(block, joined, reading, dialect, may_be_cut=may_be_cut))
        elif block.kind in ("text", "thinking"):
            if joined:
                found.append({"type": block.kind, block.kind: joined})
            if not block.is_begun and joined:
                # A text for a block that never began: its content is clear, but not its place.
                reading.questions.append(Doubt(("content_block_start", "index", "block"), ABSENT_WORDS))
        else:
            found.append({"type": block.kind})
    return found


def _tool_of(block: _Block, joined: str, reading: _Reading, dialect: Dialect, *, may_be_cut: bool) -> dict[str, Any]:
    if not block.is_begun or not block.name:
        reading.doubts.append(Doubt(("name", "content_block_start", "function", "tool_calls"), ABSENT_WORDS))
    tool_input: object = {}
    if joined.strip():
        try:
            tool_input = msgspec.json.decode(joined)
        except ValueError:
            tool_input = None
            if may_be_cut:
                with contextlib.suppress(ValueError):
                    tool_input = jiter.from_json(joined.encode(), partial_mode=True, allow_inf_nan=False)
            if tool_input is None:
                members = ("arguments", "call", "tool_calls") if dialect is Dialect.CHAT else ("partial_json",)
                reading.doubts.append(Doubt((*members, "input"), (*_NO_JSON, "after")))
    if tool_input is not None and not isinstance(tool_input, dict):
        # JSON that is not an object: the API's schema requires an object, but the rule does not say.
        reading.questions.append(Doubt(("arguments", "partial_json", "input"), ("object", "JSON")))
    return {"type": block.kind, "name": block.name, "input": tool_input}
