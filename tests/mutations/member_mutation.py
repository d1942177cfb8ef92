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
    list: ("list", "array", "number", "integer", "int"),  # or what is odd in it
    dict: ("object", "dict"),
    bool: ("boolean", "bool", "true", "false"),
}
_DROP: Final = object()
_SKIPPED_QUESTIONS: Final = 0.7
"""What the rule leaves open is tried less often: a stream with a question in it can show little else."""


@dataclass(frozen=True)
class Change:
    """What is done to one member."""

    stream: Stream
    frame: Frame
    path: Path
    old: Any
    new: Any
    """``_DROP``: it is not there any more."""

    @property
    def is_gone(self) -> bool:
        """Null is "not there"."""
        return self.new is _DROP or self.new is None

    @property
    def member(self) -> str:
        """Its name."""
        return str([part for part in self.path if isinstance(part, str)][-1])

    def doubt(self, *others: str) -> Doubt:
        """The error has to name it, or one of the others, and what it is."""
        how = (*ABSENT_WORDS, "empty") if self.is_gone or self.new == "" else _TYPE_WORDS[type(self.new)]
        if self.new in ([], {}) or (isinstance(self.new, dict) and isinstance(self.old, list)):
            how += ABSENT_WORDS  # an empty one lacks everything, one in place of a list what each of the list has
        return Doubt((self.member, *others), how)

    def fails(self, *others: str) -> None:
        """It makes something doubtful."""
        self.frame.doubts = (*self.frame.doubts, self.doubt(*others))

    def asks(self, *others: str) -> None:
        """Whether it does is open."""
        self.frame.questions = (*self.frame.questions, self.doubt(*others))

    def loses(self, *kinds: type) -> None:
        """The frame does not mean this any more."""
        self.frame.means = tuple(meaning for meaning in self.frame.means if not isinstance(meaning, kinds))

    def means(self, meaning: Meaning) -> None:
        """It does mean this in the end."""
        self.frame.means = (*self.frame.means, meaning)

    def loosens(self, *members: str) -> None:
        """They are not compared any more."""
        self.frame.loose |= frozenset(members)

    @property
    def said(self) -> bool:
        """Whether the frame says anything of the answer."""
        return any(not isinstance(meaning, Uses) for meaning in self.frame.means)


Role = Callable[[Change], bool]
"""Changes what the frame means. False: the change is not made, as it says something else instead of something odd."""


# --- roles of both formats --------------------------------------------------------------------------------------------


def nobody(change: Change) -> bool:
    """Text, inputs, usage and ending do without it."""
    change.loosens(change.member)
    return True


def usage_box(change: Change) -> bool:
    """What was used is not known then; that fails nothing."""
    change.loses(Uses)
    change.loosens("usage")
    return True


def usage_number(change: Change) -> bool:
    """As text or float its value is clear."""
    if not _is_clear(change):
        change.loosens("usage")
    return True


def _is_clear(change: Change) -> bool:
    return change.new == str(change.old) or (isinstance(change.new, float) and change.new == change.old)


def said_text(change: Change) -> bool:
    """A text that is none is doubtful, whatever it was before."""
    if change.is_gone:
        change.loses(Says)
    elif isinstance(change.new, str) or change.new in ([], {}):
        return False
    else:
        change.fails()
    return True


def chat_content(change: Change) -> bool:
    """May be a list of parts: an empty one says nothing."""
    if change.old is None and (change.is_gone or change.new == []):
        return True
    if change.new == []:
        change.loses(Says)
        return True
    return said_text(change)


def said_thinking(change: Change) -> bool:
    """Open: the rule names the text and inputs; whether thinking is text, it does not say. A success is without it."""
    if isinstance(change.new, str):
        return False
    change.loses(Says)
    if not change.is_gone:
        change.asks()
    return True


def index(change: Change) -> bool:
    """Open where no number can be read: one block is open at a time, so that a reader may know which it is, or refuse."""
    if isinstance(change.new, int) and not isinstance(change.new, bool):
        return False
    if not _is_clear(change):
        # A reader that takes the next number for it may be wrong, and finds no block of the number that it took.
        change.frame.questions = (*change.frame.questions, Doubt(("block", "index"), (*change.doubt().how, "no")))
    return True


def box(*loses: type, others: tuple[str, ...] = ()) -> Role:
    """An object, or a list, around what is said. Of the wrong type it may have held what we need; null holds nothing."""

    def role(change: Change) -> bool:
        if isinstance(change.new, type(change.old)) and change.old is not None:
            return False
        if change.frame.kind == "message" and change.member == "delta":
            # Open: the message stands where a delta is looked for first.
            change.asks(*others)
        elif change.is_gone:
            change.loses(*loses)
        elif change.new in ([], "", {}):
            return not change.said  # nothing is in it
        elif change.said:
            change.fails(*others)
        else:
            # Open: it stood where nothing was said, which a reader cannot know.
            change.asks(*others)
        return True

    return role


# --- roles of Messages ------------------------------------------------------------------------------------------------


def event_type(change: Change) -> bool:
    """The ``event:`` line says it too; without one the frame is nobody's. Open where the two differ."""
    if change.frame.name is None:
        return False
    if isinstance(change.new, str):
        change.asks("event")
    return True


def message(change: Change) -> bool:
    """Who answers, and what was used so far."""
    if isinstance(change.new, dict):
        return False
    change.loses(Uses)
    change.loosens("usage", "id", "model")
    return True


def early_reason(change: Change) -> bool:
    """A place that is empty until the ending is told where it belongs."""
    return not isinstance(change.new, str)


def message_content(change: Change) -> bool:
    """Open: of another type it may be content. Not there, it is none: many gateways leave it out. A text is one."""
    if isinstance(change.new, str):
        return False
    if not change.is_gone:
        change.asks()
    return True


def block(change: Change) -> bool:
    """Open for text and thinking: their deltas say what they are. A tool's name is only here."""
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
    """Open: the deltas, or the other members, may tell; a block of an unknown kind with text would hide the text."""
    if change.old not in ("text", "thinking", "tool_use"):
        return False
    change.asks("content_block", "block")
    if isinstance(change.new, str):
        change.loosens("kinds")  # then that is what was sent
    return True


def tool_input(change: Change) -> bool:
    """The deltas say it, and null is an empty one. Open where a wrong one stands beside good deltas."""
    if change.is_gone:
        return True
    if isinstance(change.new, dict):
        return False
    change.frame.questions = (*change.frame.questions, Doubt(("input",), (*change.doubt().how, "JSON")))
    return True


def name(change: Change) -> bool:
    """A call of nothing is no call. One that Anthropic runs is nobody's to make: what its name is worth is not tried."""
    if (isinstance(change.new, str) and change.new) or ":server_tool_use" in change.frame.kind:
        return False
    change.loses(Begins)
    change.fails("tool", "tool_calls", "function")
    return True


def partial_json(change: Change) -> bool:
    """As ``arguments``: an object may be the input itself."""
    return not isinstance(change.new, dict) and said_text(change)


def delta_type(change: Change) -> bool:
    """Open for what says something: another member tells what it is."""
    if change.old in ("citations_delta", "signature_delta"):
        change.loosens("citations", "signature")
    else:
        change.asks("delta")
    return True


def reason(change: Change) -> bool:
    """Without it, nobody knows why the answer ended. A new word is told as it is. Open where another frame says it well."""
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
    """None is the first; open what no number can be read from. Another choice's stays what it is: it may become the first."""
    if change.old != 0 or (isinstance(change.new, int) and not isinstance(change.new, bool)):
        return False
    if not _is_clear(change) and not change.is_gone:
        change.asks("choice", "choices")
    return True


def call_index(change: Change) -> bool:
    """Open: with several calls a reader may go by the ids and the order, or refuse. The only call needs none."""
    if isinstance(change.new, int) and not isinstance(change.new, bool):
        return False
    calls = {m.block for frame in change.stream.frames for m in frame.means if isinstance(m, Begins)}
    if not _is_clear(change) and not (change.is_gone and len(calls) == 1):
        change.asks("tool_calls")
    return True


def finish_reason(change: Change) -> bool:
    """Open where it is odd before the end and the true one comes later."""
    if any(isinstance(meaning, Reasons) for meaning in change.frame.means):
        return reason(change)
    if isinstance(change.new, str):
        return False
    if not change.is_gone:
        change.asks()
    return True


def refusal(change: Change) -> bool:
    """It is told as text. Open where none was said."""
    if isinstance(change.new, str):
        return False
    if change.old:
        return said_text(change)
    if not change.is_gone:
        change.asks()
    return True


def reasoning(change: Change) -> bool:
    """Where a server says it by two names, the other is enough."""
    delta = change.frame.json["choices"][0]["delta"]
    if "reasoning" in delta and "reasoning_content" in delta:
        if isinstance(change.new, str):
            return False
        if not change.is_gone:
            change.asks()
        return True
    return said_thinking(change)


def function(change: Change) -> bool:
    """Holds the name and the arguments. Without it, a call that began has no name."""
    begins = any(isinstance(meaning, Begins) for meaning in change.frame.means)
    if change.is_gone and begins:
        change.fails("name", "tool_calls")
    return box(Begins, Says)(change)


def arguments(change: Change) -> bool:
    """A whole object is another mutation; what is neither text nor object is doubtful."""
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
                # Open: it held no text, which a reader cannot know.
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
    """As labels write it."""
    return ".".join(str(part) for part in path)


_INPUTS: Final = ("input", "arguments")
"""What is in a tool's input is the input."""


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
    """Changes one of them. False: this draw says nothing odd."""
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
    """A piece of an input that is gone where the answer was cut: the bytes are those of a stream that never had it, and JSON that
    breaks off is what a cut leaves. No reader can know; so it is not tried.
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
        return old, how  # an empty one in the place of a number is another wrong type: the others are enough
    if how == "empty" and isinstance(new, str):
        how = "empty text"
    elif how == "empty":
        how = "empty list" if isinstance(new, list) else "empty object"
    return new, how


def an_unknown_member(stream: Stream, rng: random.Random) -> bool:
    """Somewhere in an object; nobody has to know it."""
    frames = [frame for frame in stream.frames if isinstance(frame.json, dict)]
    if not frames:
        return False
    frame = rng.choice(frames)
    value = rng.choice([None, 4711, 0.5, "c4n4ry", [], {}, [{"c4n4ry": None}], {"content": "c4n4ry"}, True])
    frame.touched("an unknown member")
    inner = [value for path, value in _walk(frame.json) if isinstance(value, dict) and path[-1] not in _INPUTS]
    rng.choice([frame.json, *inner])["novelty_of_tomorrow"] = value
    return True
