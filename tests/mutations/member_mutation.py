"""Mutations of members: dropped, nulled, of another type, or unknown, at each place of both formats.

A place has a role, and the role decides what becomes of the answer. Where a *question* is open (Verdict.EITHER), the
reason is given there.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.mutations.frame import Begins, Dialect, Doubt, Frame, Meaning, Reasons, Says, Stream, Uses
from tests.mutations.oracle import ABSENT_WORDS

Path = tuple[str | int, ...]

_TYPE_WORDS: Final[dict[type, tuple[str, ...]]] = {
    int: ("number", "integer", "int"),
    float: ("number", "float"),
    str: ("string", "str", "text"),
    list: ("list", "array", "number", "integer", "int"),  # or the odd element
    dict: ("object", "dict"),
    bool: ("boolean", "bool", "true", "false"),
}
_DROP: Final = object()
_SKIPPED_QUESTIONS: Final = 0.7
"""Open questions are tried less often: a stream with one can prove little else."""


@dataclass(frozen=True)
class Change:
    """A change of one member."""

    stream: Stream
    frame: Frame
    path: Path
    old: Any
    new: Any
    """The new value; ``_DROP``: the member is removed."""

    @property
    def is_gone(self) -> bool:
        """Whether it is removed; null counts as removed."""
        return self.new is _DROP or self.new is None

    @property
    def member(self) -> str:
        """The member's name."""
        return str([part for part in self.path if isinstance(part, str)][-1])

    def doubt(self, *others: str) -> Doubt:
        """The error must name this member, or one of ``others``, and what is odd about it."""
        how = (*ABSENT_WORDS, "empty") if self.is_gone or self.new == "" else _TYPE_WORDS[type(self.new)]
        if self.new in ([], {}) or (isinstance(self.new, dict) and isinstance(self.old, list)):
            how += ABSENT_WORDS  # an empty object lacks everything; one instead of a list lacks what each element has
        return Doubt((self.member, *others), how)

    def fails(self, *others: str) -> None:
        """The change makes the answer doubtful."""
        self.frame.doubts = (*self.frame.doubts, self.doubt(*others))

    def asks(self, *others: str) -> None:
        """It is open whether the change makes the answer doubtful."""
        self.frame.questions = (*self.frame.questions, self.doubt(*others))

    def loses(self, *kinds: type) -> None:
        """The frame loses these meanings."""
        self.frame.means = tuple(meaning for meaning in self.frame.means if not isinstance(meaning, kinds))

    def means(self, meaning: Meaning) -> None:
        """The frame gets this meaning."""
        self.frame.means = (*self.frame.means, meaning)

    def loosens(self, *members: str) -> None:
        """These members of the answer are not compared."""
        self.frame.loose |= frozenset(members)

    @property
    def said(self) -> bool:
        """Whether the frame has content of the answer."""
        return any(not isinstance(meaning, Uses) for meaning in self.frame.means)


Role = Callable[[Change], bool]
"""Changes the frame's meaning. False: the change is not made, because the result would be valid but different."""


# --- roles of both formats --------------------------------------------------------------------------------------------


def nobody(change: Change) -> bool:
    """The text, inputs, usage and ending do not need it."""
    change.loosens(change.member)
    return True


def usage_box(change: Change) -> bool:
    """The usage is then unknown, which is no failure."""
    change.loses(Uses)
    change.loosens("usage")
    return True


def usage_number(change: Change) -> bool:
    """As a text or float its value is clear."""
    if not _is_clear(change):
        change.loosens("usage")
    return True


def _is_clear(change: Change) -> bool:
    return change.new == str(change.old) or (isinstance(change.new, float) and change.new == change.old)


def said_text(change: Change) -> bool:
    """A text of another type is doubtful."""
    if change.is_gone:
        change.loses(Says)
    elif isinstance(change.new, str) or change.new in ([], {}):
        return False
    else:
        change.fails()
    return True


def chat_content(change: Change) -> bool:
    """It may be a list of parts; an empty list has no content."""
    if change.old is None and (change.is_gone or change.new == []):
        return True
    if change.new == []:
        change.loses(Says)
        return True
    return said_text(change)


def said_thinking(change: Change) -> bool:
    """Open: the rule is about text and inputs, and does not say whether thinking is text. A success lacks it."""
    if isinstance(change.new, str):
        return False
    change.loses(Says)
    if not change.is_gone:
        change.asks()
    return True


def index(change: Change) -> bool:
    """Open if no number can be read: only one block is open at a time, so a reader may know which, or refuse."""
    if isinstance(change.new, int) and not isinstance(change.new, bool):
        return False
    if not _is_clear(change):
        # A reader that assumes the next number may be wrong, and then finds no block with that number.
        change.frame.questions = (*change.frame.questions, Doubt(("block", "index"), (*change.doubt().how, "no")))
    return True


def box(*loses: type, others: tuple[str, ...] = ()) -> Role:
    """An object or list around content. With a wrong type it may have held needed content; null holds nothing."""

    def role(change: Change) -> bool:
        if isinstance(change.new, type(change.old)) and change.old is not None:
            return False
        if change.frame.kind == "message" and change.member == "delta":
            # Open: the message is where readers look for a delta first.
            change.asks(*others)
        elif change.is_gone:
            change.loses(*loses)
        elif change.new in ([], "", {}):
            return not change.said  # it has no content
        elif change.said:
            change.fails(*others)
        else:
            # Open: it had no content, which a reader cannot know.
            change.asks(*others)
        return True

    return role


# --- roles of Messages ------------------------------------------------------------------------------------------------


def event_type(change: Change) -> bool:
    """The ``event:`` line has it too; without both the frame is ignored. Open if the two differ."""
    if change.frame.name is None:
        return False
    if isinstance(change.new, str):
        change.asks("event")
    return True


def message(change: Change) -> bool:
    """The model, and the usage so far."""
    if isinstance(change.new, dict):
        return False
    change.loses(Uses)
    change.loosens("usage", "id", "model")
    return True


def early_reason(change: Change) -> bool:
    """Always null here; message_delta has the stop reason."""
    return not isinstance(change.new, str)


def message_content(change: Change) -> bool:
    """Open: with another type it may be content. Many gateways omit it, which means no content. A text is content."""
    if isinstance(change.new, str):
        return False
    if not change.is_gone:
        change.asks()
    return True


def block(change: Change) -> bool:
    """Open for text and thinking, whose deltas show the kind. A tool's name is only here."""
    if isinstance(change.new, dict):
        return False
    kind = change.old["type"]
    if kind in ("text", "thinking"):
        change.asks("type")
        change.loosens("citations", "signature")
    elif kind in ("tool_use", "server_tool_use"):
        change.fails("name", "type")
    else:
        return False
    return True


def block_type(change: Change) -> bool:
    """Open: the deltas or other members may show the kind; a block of an unknown kind would hide its text."""
    if change.old not in ("text", "thinking", "tool_use"):
        return False
    change.asks("content_block", "block")
    if isinstance(change.new, str):
        change.loosens("kinds")  # the block then has the sent kind
    return True


def tool_input(change: Change) -> bool:
    """The deltas have the input, and null means an empty one. Open for a wrong type with valid deltas."""
    if change.is_gone:
        return True
    if isinstance(change.new, dict):
        return False
    change.frame.questions = (*change.frame.questions, Doubt(("input",), (*change.doubt().how, "JSON")))
    return True


def name(change: Change) -> bool:
    """A call needs a name. Calls that Anthropic runs itself are not tried."""
    if (isinstance(change.new, str) and change.new) or ":server_tool_use" in change.frame.kind:
        return False
    change.loses(Begins)
    change.fails("tool", "tool_calls", "function")
    return True


def partial_json(change: Change) -> bool:
    """Like ``arguments``: an object may be the input itself."""
    return not isinstance(change.new, dict) and said_text(change)


def delta_type(change: Change) -> bool:
    """Open for deltas with content: another member shows the type."""
    if change.old in ("citations_delta", "signature_delta"):
        change.loosens("citations", "signature")
    else:
        change.asks("delta")
    return True


def reason(change: Change) -> bool:
    """Without it the stop reason is unknown. An unknown reason is passed on. Open if another frame has a valid one."""
    if change.new == "" and change.stream.dialect is Dialect.MESSAGES:
        return False
    change.loses(Reasons)
    if isinstance(change.new, str):
        if change.new:
            change.means(Reasons(change.new))
    elif not change.is_gone:
        others = [frame for frame in change.stream.frames if frame is not change.frame]
        is_said = any(isinstance(meaning, Reasons) for frame in others for meaning in frame.means)
        (change.asks if is_said else change.fails)("delta")
    return True


# --- roles of chat ----------------------------------------------------------------------------------------------------


def choice_index(change: Change) -> bool:
    """Missing means the first choice; open if no number can be read. Other choices' indices are not changed."""
    if change.old != 0 or (isinstance(change.new, int) and not isinstance(change.new, bool)):
        return False
    if not _is_clear(change) and not change.is_gone:
        change.asks("choice", "choices")
    return True


def call_index(change: Change) -> bool:
    """Open: with several calls a reader may use ids and order, or refuse. A single call needs no index."""
    if isinstance(change.new, int) and not isinstance(change.new, bool):
        return False
    calls = {m.block for frame in change.stream.frames for m in frame.means if isinstance(m, Begins)}
    if not _is_clear(change) and not (change.is_gone and len(calls) == 1):
        change.asks("tool_calls")
    return True


def finish_reason(change: Change) -> bool:
    """Open if it is odd before the end and a valid one comes later."""
    if any(isinstance(meaning, Reasons) for meaning in change.frame.means):
        return reason(change)
    if isinstance(change.new, str):
        return False
    if not change.is_gone:
        change.asks()
    return True


def refusal(change: Change) -> bool:
    """It becomes text. Open if there was no refusal."""
    if isinstance(change.new, str):
        return False
    if change.old:
        return said_text(change)
    if not change.is_gone:
        change.asks()
    return True


def reasoning(change: Change) -> bool:
    """If a server sends it under two names, the other one is enough."""
    delta = change.frame.json["choices"][0]["delta"]
    if "reasoning" in delta and "reasoning_content" in delta:
        if isinstance(change.new, str):
            return False
        if not change.is_gone:
            change.asks()
        return True
    return said_thinking(change)


def function(change: Change) -> bool:
    """It holds the name and the arguments. Without it, a call has no name."""
    begins = any(isinstance(meaning, Begins) for meaning in change.frame.means)
    if change.is_gone and begins:
        change.fails("name", "tool_calls")
    return box(Begins, Says)(change)


def arguments(change: Change) -> bool:
    """An object is another mutation; other types than text and object are doubtful."""
    if isinstance(change.new, (str, dict)):
        return False
    return said_text(change)


# --- places -----------------------------------------------------------------------------------------------------------

_MESSAGES: Final[dict[str, Role]] = {
    "type": event_type,
    "message": message,
    "message.id": nobody,
    "message.type": nobody,
    "message.role": nobody,
    "message.model": nobody,
    "message.content": message_content,
    "message.stop_reason": early_reason,
    "message.stop_sequence": nobody,
    "message.usage": usage_box,
    "message.usage.input_tokens": usage_number,
    "message.usage.output_tokens": usage_number,
    "message.usage.cache_creation_input_tokens": usage_number,
    "message.usage.cache_read_input_tokens": usage_number,
    "message.usage.service_tier": nobody,
    "index": index,
    "content_block": block,
    "content_block.type": block_type,
    "content_block.text": said_text,
    "content_block.citations": nobody,
    "content_block.thinking": said_thinking,
    "content_block.signature": nobody,
    "content_block.id": nobody,
    "content_block.name": name,
    "content_block.input": tool_input,
    "delta.type": delta_type,
    "delta.text": said_text,
    "delta.thinking": said_thinking,
    "delta.partial_json": partial_json,
    "delta.signature": nobody,
    "delta.citation": nobody,
    "delta.stop_reason": reason,
    "delta.stop_sequence": nobody,
    "usage": usage_box,
    "usage.input_tokens": usage_number,
    "usage.output_tokens": usage_number,
    "usage.cache_creation_input_tokens": usage_number,
    "usage.cache_read_input_tokens": usage_number,
}


def _messages_delta(change: Change) -> bool:
    match change.frame.kind:
        case "content_block_delta:citations_delta" | "content_block_delta:signature_delta":
            change.loosens("citations", "signature")
            if not change.is_gone:
                # Open: it had no text, which a reader cannot know.
                change.asks("content_block_delta")
            return True
        case "content_block_delta:thinking_delta" if not change.is_gone:
            return False
        case "message_delta":
            return box(Reasons, others=("stop_reason",))(change)
        case _:
            return box(Says, others=("content_block_delta",))(change)


_MESSAGES["delta"] = _messages_delta

_CHAT: Final[dict[str, Role]] = {
    "id": nobody,
    "object": nobody,
    "created": nobody,
    "model": nobody,
    "system_fingerprint": nobody,
    "choices": box(Says, Begins, Reasons),
    "choices.0": box(Says, Begins, Reasons, others=("choice",)),
    "choices.0.index": choice_index,
    "choices.0.logprobs": nobody,
    "choices.0.finish_reason": finish_reason,
    "choices.0.delta": box(Says, Begins),
    "choices.0.delta.role": nobody,
    "choices.0.delta.content": chat_content,
    "choices.0.delta.refusal": refusal,
    "choices.0.delta.reasoning": reasoning,
    "choices.0.delta.reasoning_content": reasoning,
    "choices.0.delta.tool_calls": box(Says, Begins),
    "choices.0.delta.tool_calls.0": box(Says, Begins, others=("tool_call", "call")),
    "choices.0.delta.tool_calls.0.index": call_index,
    "choices.0.delta.tool_calls.0.id": nobody,
    "choices.0.delta.tool_calls.0.type": nobody,
    "choices.0.delta.tool_calls.0.function": function,
    "choices.0.delta.tool_calls.0.function.name": name,
    "choices.0.delta.tool_calls.0.function.arguments": arguments,
    "usage": usage_box,
    "usage.prompt_tokens": usage_number,
    "usage.completion_tokens": usage_number,
    "usage.total_tokens": nobody,
    "usage.prompt_tokens_details": usage_box,
    "usage.prompt_tokens_details.cached_tokens": usage_number,
    "usage.prompt_tokens_details.audio_tokens": nobody,
}

PLACES: Final = {Dialect.MESSAGES: _MESSAGES, Dialect.CHAT: _CHAT}


def dotted(path: Path) -> str:
    """The path in the form of labels."""
    return ".".join(str(part) for part in path)


_INPUTS: Final = ("input", "arguments")
"""Members inside a tool's input are not mutated: they are the input."""


def _walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), inner
            if key not in _INPUTS:
                yield from _walk(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield (*path, number), inner
            yield from _walk(inner, (*path, number))


def a_member(stream: Stream, rng: random.Random) -> bool:
    """Changes one member. False: this draw changes nothing odd."""
    frames = [frame for frame in stream.frames if isinstance(frame.json, dict) and frame.original is None]
    if not frames:
        return False
    frame = rng.choice(frames)
    places = PLACES[stream.dialect]
    known = [(path, value) for path, value in _walk(frame.json) if dotted(path) in places]
    if not known:
        return False
    path, old = rng.choice(known)
    new, how = _new_value(old, rng)
    if new is old:
        return False
    if new is _DROP and isinstance(path[-1], int):
        new, how = None, "null"
    before = (frame.means, frame.doubts, frame.questions, frame.loose, frame.labels)
    if new in (None, _DROP) and _is_a_cut_input(stream, frame):
        return False
    frame.touched(_label(stream, frame, path, how))
    is_taken = places[dotted(path)](Change(stream, frame, path, old, new))
    is_open = frame.questions != before[2]
    if not is_taken or (is_open and rng.random() < _SKIPPED_QUESTIONS):
        frame.means, frame.doubts, frame.questions, frame.loose, frame.labels = before
        frame.original = None
        return False
    _put(frame.json, path, new)
    return True


def _is_a_cut_input(stream: Stream, frame: Frame) -> bool:
    """Whether a piece is lost from an input that max_tokens cut: the bytes equal a stream that never had it, and cut
    JSON is normal there. No reader can notice, so it is not tried.
    """
    reasons = {meaning.reason for each in stream.frames for meaning in each.means if isinstance(meaning, Reasons)}
    says_input = any(isinstance(meaning, Says) and meaning.kind == "input" for meaning in frame.means)
    return says_input and bool(reasons & {"length", "max_tokens", "model_context_window_exceeded"})


def _label(stream: Stream, frame: Frame, path: Path, how: str) -> str:
    kind = f"{frame.kind.partition(':')[0]} " if stream.dialect is Dialect.MESSAGES else ""
    return f"{kind}{dotted(path)}: {'another type' if how in ('number', 'text', 'list', 'object', 'true') else how}"


def _put(of: Any, path: Path, new: Any) -> None:
    for part in path[:-1]:
        of = of[part]
    if new is _DROP:
        del of[path[-1]]
    else:
        of[path[-1]] = new


def _new_value(old: Any, rng: random.Random) -> tuple[Any, str]:
    is_number = isinstance(old, int) and not isinstance(old, bool)
    hows = ["missing", "null", "number", "text", "list", "object", "true", "empty"]
    if is_number:
        hows += ["number as text", "number as float"] * 2
    how = rng.choice(hows)
    found: dict[str, Callable[[], Any]] = {
        "missing": lambda: _DROP,
        "null": lambda: None,
        "number": lambda: rng.choice([4711, 0.4711]),
        "text": lambda: "c4n4ry",
        "list": lambda: [4711],
        "object": lambda: {"c4n4ry": 4711},
        "true": lambda: True,
        "empty": lambda: rng.choice([[], "", {}]),
        "number as text": lambda: str(old),
        "number as float": lambda: float(old),
    }
    new = found[how]()
    if how == "null" and old is None:
        return old, how
    if how == "empty" and (new == old or not isinstance(old, (dict, list, str))):
        return old, how  # empty values instead of a number are not tried: other wrong types are
    if how == "empty" and isinstance(new, str):
        how = "empty text"
    elif how == "empty":
        how = "empty list" if isinstance(new, list) else "empty object"
    return new, how


def an_unknown_member(stream: Stream, rng: random.Random) -> bool:
    """Adds an unknown member somewhere in an object; readers ignore it."""
    frames = [frame for frame in stream.frames if isinstance(frame.json, dict)]
    if not frames:
        return False
    frame = rng.choice(frames)
    value = rng.choice([None, 4711, 0.5, "c4n4ry", [], {}, [{"c4n4ry": None}], {"content": "c4n4ry"}, True])
    frame.touched("an unknown member")
    inner = [
        value
        for path, value in _walk(frame.json)
        # An empty object may stand where a list was: with a member it would no longer be empty.
        if isinstance(value, dict) and path[-1] not in _INPUTS and (value or path[-1] == "delta")
    ]
    rng.choice([frame.json, *inner])["novelty_of_tomorrow"] = value
    return True
