"""Mutations of whole frames: noise between them, repeats, drops, other ways to say the same, and every kind of end."""

import copy
import random
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tests.mutations.chat_seed import TEXT, THINKING, chunk
from tests.mutations.frame import (
    Begins,
    Closes,
    Cuts,
    Dialect,
    Doubt,
    End,
    Frame,
    Reasons,
    Refuses,
    Says,
    Stops,
    Stream,
    Uses,
)
from tests.mutations.oracle import SILENCE

Mutation = Callable[[Stream, random.Random], bool]
"""Changes a stream and its meaning. False: the mutation does not apply to this stream."""


def _insert(stream: Stream, at: int, frame: Frame, label: str) -> None:
    frame.labels = (*frame.labels, label)
    while at < len(stream.frames) and stream.frames[at].pause_s:
        at += 1  # a frame inside a silence would end it
    if not stream.has_last_line:
        at = min(at, len(stream.frames) - 1)  # nothing can follow an incomplete frame
    stream.frames.insert(at, frame)


def _anywhere(stream: Stream, rng: random.Random) -> int:
    return rng.randint(0, len(stream.frames))


def _is_chat(stream: Stream) -> bool:
    return stream.dialect is Dialect.CHAT


# --- noise ------------------------------------------------------------------------------------------------------------

_NOISE: Final[dict[str, Callable[[], Frame]]] = {
    "a comment": lambda: Frame("noise", block=b": OPENROUTER PROCESSING"),
    "a bare comment": lambda: Frame("noise", block=b":"),
    "a retry field": lambda: Frame("noise", block=b"retry: 1000"),
    "an id": lambda: Frame("noise", block=b"id: 7"),
    "an unknown field": lambda: Frame("noise", block=b"novelty: c4n4ry"),
    "more empty lines": lambda: Frame("noise", block=b""),
    "a ping": lambda: Frame("noise", "ping", {"type": "ping"}),
    "a ping with empty data": lambda: Frame("noise", "ping", data=b""),
    "a ping of null": lambda: Frame("noise", "ping", data=b"null"),
    "a ping that is no JSON": lambda: Frame("noise", "ping", data=b"c4n4ry"),
    "a ping without data": lambda: Frame("noise", block=b"event: ping"),
    "an empty data frame": lambda: Frame("noise", data=b""),
    "an empty data frame without a space": lambda: Frame("noise", data=b"", has_space=False),
    "a data frame of spaces": lambda: Frame("noise", data=b"  "),
    "a data frame of null": lambda: Frame("noise", data=b"null"),
    "an empty object": lambda: Frame("noise", data=b"{}"),
    "an unknown object": lambda: Frame("noise", data=b'{"c4n4ry":4711}'),
    "an unknown event": lambda: Frame("noise", "novelty", {"type": "novelty", "c4n4ry": [1]}),
    "an unknown event of its type": lambda: Frame("noise", None, {"type": "novelty.of-tomorrow", "text": "c4n4ry"}),
    "an unknown event with an odd name": lambda: Frame("noise", "novel ty!", {"a": 1}),
    "an unknown event with a long name": lambda: Frame("noise", "x" * 300, {"a": 1}),
    "an unknown event with a name that is not ASCII": lambda: Frame("noise", "größe", {"a": 1}),
    "an event with a name of ours": lambda: Frame("noise", "succeeded", {"id": "c4n4ry"}),
    "another event with a name of ours": lambda: Frame("noise", "reset", {"attempt": 4711}),
}
_MESSAGES_NOISE: Final[dict[str, Callable[[], Frame]]] = {
    # Not for chat: its chunks may have any event name, so this one might have been a chunk.
    "an unknown event that is no JSON": lambda: Frame("noise", "novelty", data=b"c4n4ry {"),
    "an unknown event that is a list": lambda: Frame("noise", "novelty", data=b"[4711]"),
    "an unknown event that is a number": lambda: Frame("noise", "novelty", data=b"4711"),
    "an unknown event that is not UTF-8": lambda: Frame("noise", "novelty", data=b'"\xff\xfe"'),
    "[DONE]": lambda: Frame("noise", data=b"[DONE]"),
    "[DONE] without a space": lambda: Frame("noise", data=b"[DONE]", has_space=False),
    "a delta of an unknown kind": lambda: Frame(
        "noise", "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": {"type": "novelty_delta"}}
    ),
    "a delta of null": lambda: Frame(
        "noise", "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": None}
    ),
    "a text of null": lambda: Frame(
        "noise",
        "content_block_delta",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": None}},
    ),
    "a partial_json of null": lambda: Frame(
        "noise",
        "content_block_delta",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": None}},
    ),
    "a message_delta of null": lambda: Frame("noise", "message_delta", {"type": "message_delta", "delta": None}),
    "a message_delta without a reason": lambda: Frame(
        "noise", "message_delta", {"type": "message_delta", "delta": {}, "usage": None}
    ),
    "a message_delta with null for a reason": lambda: Frame(
        "noise", "message_delta", {"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}}
    ),
}
_CHAT_NOISE: Final[dict[str, Callable[[], Frame]]] = {
    "no choices": lambda: Frame("noise", None, {"id": "x", "choices": []}),
    "choices of null": lambda: Frame("noise", None, {"id": "x", "choices": None}),
    "a choice of null": lambda: Frame("noise", None, {"id": "x", "choices": [None]}),
    "a delta of null": lambda: chunk(None, kind="noise"),
    "an empty delta": lambda: chunk({}, kind="noise"),
    "everything null": lambda: chunk(
        {"role": None, "content": None, "refusal": None, "tool_calls": None, "reasoning": None, "function_call": None},
        kind="noise",
        usage=None,
        error=None,
    ),
    "no calls": lambda: chunk({"tool_calls": []}, kind="noise"),
    "a call of null": lambda: chunk({"tool_calls": [None]}, kind="noise"),
    "no parts": lambda: chunk({"content": []}, kind="noise"),
    "a part of null": lambda: chunk({"content": [{"type": "text", "text": None}]}, kind="noise"),
    "a part that refers": lambda: chunk({"content": [{"type": "reference", "reference_ids": [4711]}]}, kind="noise"),
    "another choice": lambda: chunk({"content": "c4n4ry"}, kind="noise", index=1),
    "another choice's end": lambda: chunk({}, reason="length", kind="noise", index=2),
    "the role again": lambda: chunk({"role": "assistant", "content": ""}, kind="noise"),
    "an error of null": lambda: Frame("noise", None, {"error": None, "choices": []}),
}


def noise(stream: Stream, rng: random.Random) -> bool:
    """A frame without content: passed on or ignored, wherever it is."""
    own = _CHAT_NOISE if _is_chat(stream) else _MESSAGES_NOISE
    kinds = _NOISE | own
    name = rng.choice(list(kinds))
    frame = kinds[name]()
    frame.means = ()
    at = _anywhere(stream, rng)
    if name in _MESSAGES_NOISE and frame.json is not None and frame.name == "content_block_delta":
        at = _inside_a_block(stream, frame, name, rng)
    elif frame.name == "message_delta":
        first = next((at for at, f in enumerate(stream.frames) if f.kind == "message_start"), len(stream.frames))
        at = rng.randint(min(first + 1, len(stream.frames)), len(stream.frames))
    if at < 0:
        return False
    _insert(stream, at, frame, name)
    return True


def _inside_a_block(stream: Stream, frame: Frame, name: str, rng: random.Random) -> int:
    """A place before the stop of a block of a suitable kind."""
    wanted = {"a text of null": ("text",), "a partial_json of null": ("tool_use", "server_tool_use")}.get(name)
    kinds = {m.block: m.kind for f in stream.frames for m in f.means if isinstance(m, Begins)}
    stops = [
        (at, meaning.block)
        for at, other in enumerate(stream.frames)
        for meaning in other.means
        if isinstance(meaning, Closes) and (wanted is None or kinds.get(meaning.block) in wanted)
    ]
    if not stops:
        return -1
    at, block = rng.choice(stops)
    frame.json["index"] = block
    return at


_VALUES: Final = (b"1", b"[]", b'"c4n4ry"', b"true", b"4711.5")


def an_odd_value(stream: Stream, rng: random.Random) -> bool:
    """Open: JSON that is not an object, in a frame without a name, may be a heartbeat or the rest of a chunk."""
    data = rng.choice(_VALUES)
    doubt = Doubt(
        ("data", "frame", "event", "chunk"), ("number", "list", "array", "text", "string", "boolean", "bool", "object")
    )
    _insert(stream, _anywhere(stream, rng), Frame("noise", data=data, questions=(doubt,)), f"data: {data.decode()}")
    return True


def a_word(stream: Stream, rng: random.Random) -> bool:
    """Open, as above: a word that is not JSON, in a frame without a name."""
    doubt = Doubt(("data", "frame", "event", "chunk"), ("JSON",))
    frame = Frame("noise", data=rng.choice([b"c4n4ry", b"keepalive", b"OK"]), questions=(doubt,))
    _insert(stream, _anywhere(stream, rng), frame, "data: a word")
    return True


def after_the_end(stream: Stream, rng: random.Random) -> bool:
    """Frames after ``message_stop`` or ``[DONE]`` do not matter."""
    if not stream.frames or not any(isinstance(meaning, Stops) for meaning in stream.frames[-1].means):
        return False
    again = copy.deepcopy(rng.choice(stream.frames))
    choices: dict[str, Frame] = {
        "the end again": copy.deepcopy(stream.frames[-1]),
        "[DONE] at the end": Frame("[DONE]", data=b"[DONE]"),
        "rubbish after the end": Frame("rubbish", data=b"c4n4ry {"),
        "bytes after the end": Frame("rubbish", block=b"\xff\xfe\x00c4n4ry"),
        "a frame again after the end": again,
        "an error after the end": _error(stream, rng),
    }
    name = rng.choice(list(choices))
    frame = choices[name]
    frame.labels, frame.original = (), None
    _insert(stream, len(stream.frames), frame, name)
    return True


# --- the same in other words ------------------------------------------------------------------------------------------


def layout(stream: Stream, rng: random.Random) -> bool:
    """Line ends, spaces, many lines of data, a byte order mark, a missing last line end."""
    what = rng.choice(["CRLF", "CR", "pretty", "no space", "BOM", "no last line end"])
    match what:
        case "CRLF" | "CR":
            stream.line_end = {"CRLF": b"\r\n", "CR": b"\r"}[what]
        case "BOM":
            stream.starts_with = b"\xef\xbb\xbf"
        case "no last line end":
            if not stream.frames or stream.frames[-1].name == "error" or stream.end is not End.CLEAN:
                return False
            last = stream.frames[-1]
            if any(not isinstance(meaning, Stops) for meaning in last.means):
                return False  # by the SSE standard it is then no event, and whether its content counts is unclear
            last.touched(what)
            last.means = last.doubts = last.questions = ()
            stream.has_last_line = False
            return True
        case _:
            frame = rng.choice(stream.frames)
            if frame.block is not None:
                return False
            frame.touched(what)
            frame.is_pretty, frame.has_space = what == "pretty", what != "no space"
            return True
    stream.labels.append(what)
    return True


def event_line(stream: Stream, rng: random.Random) -> bool:
    """The line is omitted if the type has the name, or is SSE's default name, or is added to a chat stream."""
    frame = rng.choice(stream.frames)
    if frame.block is not None or frame.original is not None or frame.kind in ("noise", "error", "rubbish"):
        return False
    if _is_chat(stream):
        frame.touched("event: a name").name = rng.choice(["message", "chunk", "completion"])
        return True
    if frame.name is None:
        return False
    name = rng.choice([None, "message"])  # WHATWG: an event without a name is of the type "message"
    frame.touched(f"event: {name or 'missing'}").name = name
    return True


def repeat(stream: Stream, rng: random.Random) -> bool:
    """The same frame a second time, directly after the first."""
    at = rng.randrange(len(stream.frames))
    frame = stream.frames[at]
    if frame.original is not None or frame.kind in ("noise", "error", "message"):
        return False
    if any(following.pause_s for following in stream.frames[at + 1 : at + 2]):
        return False  # a frame inside a silence would end it
    again = copy.deepcopy(frame)
    if frame.kind == "message_start" or frame.kind.startswith("content_block_start"):
        # Open: a repeated beginning adds nothing, but may be that of another answer or block.
        doubt = Doubt(
            (frame.kind.partition(":")[0], "index", "block"), ("second", "twice", "again", "two", "repeated", "already")
        )
        again.questions = (*again.questions, doubt)
    if frame.kind.startswith("call"):  # with another mutation, the two might be different calls
        for one in (frame, again):
            one.original, one.can_undo = copy.copy(one), False
    _insert(stream, at + 1, again, f"{frame.kind} twice")
    return True


_NEEDLESS: Final = {
    Dialect.MESSAGES: ("message_stop", "content_block_stop", "ping"),
    Dialect.CHAT: ("[DONE]", "usage", "role", "filter"),
}


def drop(stream: Stream, rng: random.Random) -> bool:
    """A frame that a gateway drops."""
    places = [
        at
        for at, frame in enumerate(stream.frames)
        if frame.kind in (*_NEEDLESS[stream.dialect], "message_start", "message_delta", "reason")
        and frame.original is None
        and not frame.labels
    ]
    if not places:
        return False
    at = rng.choice(places)
    frame = stream.frames[at]
    hole = Frame(frame.kind, block=b": " + frame.kind.encode() + b" was here", labels=(f"no {frame.kind}",))
    hole.original = frame
    if any(isinstance(meaning, Uses) for meaning in frame.means):
        hole.loose = frozenset({"usage"})
    stream.frames[at] = hole
    return True


def broken_json(stream: Stream, rng: random.Random) -> bool:
    """A frame whose JSON ends too early, or has an invalid byte or half a character of UTF-8."""
    frames = [f for f in stream.frames if isinstance(f.json, dict) and f.original is None and not f.labels]
    if not frames:
        return False
    frame = rng.choice(frames)
    data = msgspec.json.encode(frame.json)
    what = rng.choice(["cut", "no UTF-8", "half a surrogate pair"])
    if what == "cut":
        data = data[: rng.randint(1, len(data) - 1)]
    else:  # in its content: other members need not be read
        piece = next((m.piece for m in frame.means if isinstance(m, Says)), "")
        quoted = msgspec.json.encode(piece)
        if not piece or data.count(quoted) != 1:
            return False
        data = data.replace(quoted, quoted[:-1] + (b'\xff"' if what == "no UTF-8" else b'\\ud83d"'))
    frame.touched(f"{frame.kind.partition('+')[0]}: {what}")
    frame.json, frame.data = None, data
    names = (frame.kind.partition(":")[0], "data", "frame", "event", "chunk", "content", "text", "partial_json")
    said = ("thinking", "reasoning_content", "reasoning", "refusal", "arguments", "delta")
    doubt = Doubt((*names, *said), ("JSON", "UTF-8", "Unicode", "surrogate", "encoded", "character"))
    carries = bool(frame.means) or not _is_chat(stream)
    frame.means = ()
    if frame.kind == "ping" and frame.name is not None:
        return True  # the frame is not needed
    if carries:
        frame.doubts = (doubt,)
    else:
        frame.questions = (doubt,)  # open: it had no content, which a reader cannot know
    frame.loose = frozenset({"usage"})
    return True


_LOOSE_JSON: Final = {
    "NaN": b"NaN",
    "-Infinity": b"-Infinity",
    "half a surrogate pair": b'"\\ud83d"',
    "a control character": b'"a\x01b"',
    "no UTF-8": b'"\xff"',
}
"""Values of servers in Python, or of servers that cut a text at a byte."""
_MARK: Final = "the odd value comes here"


def loose_json(stream: Stream, rng: random.Random) -> bool:
    """A value outside strict JSON, in an unneeded member; the needed members are valid.

    Open for bytes that JSON cannot contain: such a frame may be broken elsewhere too. The other values are written by
    Python's ``json.dumps``; a lone surrogate is valid by JSON's grammar.
    """
    frames = [f for f in stream.frames if isinstance(f.json, dict) and f.original is None and not f.labels]
    if not frames:
        return False
    frame = rng.choice(frames)
    if frame.is_pretty:
        return False
    what = rng.choice(list(_LOOSE_JSON))
    frame.touched(f"{what} where nobody needs it")
    if _is_chat(stream) and frame.json.get("choices") and rng.random() < 0.5:
        frame.json["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": _MARK}]}
    else:
        frame.json["novelty_of_tomorrow"] = _MARK
    frame.data = msgspec.json.encode(frame.json).replace(msgspec.json.encode(_MARK), _LOOSE_JSON[what])
    frame.json = None
    if what in ("a control character", "no UTF-8"):
        frame.questions = (Doubt((frame.kind.partition(":")[0], "data", "event", "chunk"), ("JSON", "UTF-8")),)
    return True


# --- other ways of Messages -------------------------------------------------------------------------------------------


def said_in_the_start(stream: Stream, rng: random.Random) -> bool:
    """The first words or the whole input are in ``content_block_start``."""
    starts = [
        frame
        for frame in stream.frames
        if frame.kind.startswith("content_block_start") and frame.original is None and not frame.labels
    ]
    if _is_chat(stream) or not starts:
        return False
    frame = rng.choice(starts)
    kind = frame.kind.partition(":")[2]
    number = frame.json["index"]
    deltas = [
        other
        for other in stream.frames
        if any(isinstance(m, Says) and m.block == number and m.kind != "signature" for m in other.means)
    ]
    if not deltas or any(delta.labels for delta in deltas):
        return False
    begun, block = frame.means, copy.deepcopy(frame.json)
    if kind in ("text", "thinking"):
        (said,) = deltas[0].means
        frame.touched(f"{kind} in content_block_start")
        block["content_block"][kind] = said.piece  # type: ignore[union-attr]
        frame.json, frame.means = block, (*begun, said)
        stream.frames.remove(deltas[0])
        return True
    if kind != "tool_use":
        return False
    whole = "".join(m.piece for delta in deltas for m in delta.means if isinstance(m, Says))
    try:
        value = msgspec.json.decode(whole)
    except ValueError:
        return False
    frame.touched("input in content_block_start")
    block["content_block"]["input"] = value
    frame.json, frame.means = block, (*begun, Says(number, "input", whole))
    for delta in deltas:
        stream.frames.remove(delta)
    return True


def gaps(stream: Stream, rng: random.Random) -> bool:
    """Block numbers with gaps, as from gateways that filter blocks."""
    if _is_chat(stream) or stream.labels or not any(isinstance(m, Begins) for f in stream.frames for m in f.means):
        return False
    by = rng.choice([(1, 1), (2, 0), (3, 5)])
    for frame in stream.frames:
        if isinstance(frame.json, dict) and isinstance(frame.json.get("index"), int) and frame.original is None:
            frame.json = {**frame.json, "index": frame.json["index"] * by[0] + by[1]}
            frame.means = tuple(
                m._replace(block=m.block * by[0] + by[1]) if isinstance(m, (Begins, Says, Closes)) else m
                for m in frame.means
            )
    stream.labels.append("gaps in the indices")
    return True


# --- other ways of chat -----------------------------------------------------------------------------------------------


def message_for_delta(stream: Stream, rng: random.Random) -> bool:
    """One chunk has the whole answer in ``message``, from a server that only pretends to stream."""
    if not _is_chat(stream) or any(frame.labels for frame in stream.frames):
        return False
    text = _all(stream, "text")
    calls = _calls(stream)
    reason = _reason(stream)
    if any(m.kind == "refusal" for f in stream.frames for m in f.means if isinstance(m, Says)) or reason == "length":
        return False
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if thinking := _all(stream, "thinking"):
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(calls)
        ]
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
    if rng.random() < 0.5:
        choice["delta"] = None
    means: list[Any] = [Says(THINKING, "thinking", thinking), Says(TEXT, "text", text)]
    for number, (name, arguments) in enumerate(calls):
        means += [Begins(number, "tool_use", name), Says(number, "input", arguments)]
    usage = [m for f in stream.frames for m in f.means if isinstance(m, Uses)]
    frame = Frame("message", None, {"id": "x", "choices": [choice]}, means=(*means, Reasons(reason)))
    frame.labels = ("message for delta",)
    if usage:
        last = next(f for f in reversed(stream.frames) if any(isinstance(m, Uses) for m in f.means))
        frame.json["usage"] = last.json["usage"]
        frame.means = (*frame.means, usage[-1])
    stream.frames[:] = [frame] if rng.random() < 0.3 else [frame, stream.frames[-1]]
    return True


def _all(stream: Stream, kind: str) -> str:
    return "".join(m.piece for f in stream.frames for m in f.means if isinstance(m, Says) and m.kind == kind)


def _calls(stream: Stream) -> list[tuple[str, str]]:
    names = {m.block: m.name for f in stream.frames for m in f.means if isinstance(m, Begins)}
    return [
        (
            name,
            "".join(
                m.piece
                for f in stream.frames
                for m in f.means
                if isinstance(m, Says) and m.kind == "input" and m.block == number
            ),
        )
        for number, name in names.items()
    ]


def _reason(stream: Stream) -> str:
    return next((m.reason for f in stream.frames for m in f.means if isinstance(m, Reasons)), "stop")


def parts(stream: Stream, rng: random.Random) -> bool:
    """``content`` as a list of parts with thinking and text, as from Mistral's reasoning models."""
    if not _is_chat(stream):
        return False
    found = False
    for frame in stream.frames:
        delta = _delta_of(frame)
        if delta is None or frame.labels or rng.random() < 0.4:
            continue
        if isinstance(delta.get("content"), str) and any(isinstance(m, Says) for m in frame.means):
            text = {"type": "text", "text": delta["content"]}
            frame.touched("content of parts")
            members = _delta_of(frame)
            assert members is not None
            members["content"] = rng.choice([[text], [text, {"type": "text", "text": ""}]])
            found = True
        elif frame.kind.startswith("reasoning"):
            text = {"type": "text", "text": delta.get("reasoning", delta.get("reasoning_content"))}
            frame.touched("thinking in parts")
            thinking = {"type": "thinking", "thinking": [text]}
            frame.json["choices"][0]["delta"] = {"content": [thinking]}
            found = True
    return found


def _delta_of(frame: Frame) -> dict[str, Any] | None:
    if not isinstance(frame.json, dict) or not frame.json.get("choices"):
        return None
    delta = frame.json["choices"][0].get("delta")
    return delta if isinstance(delta, dict) else None


def calls_without_ids(stream: Stream, rng: random.Random) -> bool:
    """Several calls without ids, with one index or none: a name after complete arguments begins the next call."""
    calls = _calls(stream) if _is_chat(stream) else []
    if not calls or any(frame.labels for frame in stream.frames) or "mixed" in stream.seed_name:
        return False
    if any(not arguments.startswith("{") or not arguments.endswith("}") for _, arguments in calls):
        return False
    if _reason(stream) == "length" and len(calls) > 1:
        return False
    index, call_id = rng.choice(["0", "missing"]), rng.choice(["missing", "", "null"])
    for frame in stream.frames:
        delta = _delta_of(frame)
        if delta is None or "tool_calls" not in delta:
            continue
        label = f"index {index}, id {call_id or 'empty'}"
        (call,) = _delta_of(frame.touched(label))["tool_calls"]  # type: ignore[index]
        frame.can_undo = False
        call.pop("index")
        if index == "0":
            call["index"] = 0
        if "id" in call:
            call.pop("id")
            if call_id != "missing":
                call["id"] = None if call_id == "null" else ""
    return True


def arguments_as_object(stream: Stream, rng: random.Random) -> bool:
    """The object itself instead of a text with JSON."""
    if not _is_chat(stream) or any(frame.labels for frame in stream.frames) or _reason(stream) == "length":
        return False
    calls = _calls(stream)
    if not calls:
        return False
    frames = [frame for frame in stream.frames if not frame.kind.startswith("call")]
    at = next(n for n, frame in enumerate(stream.frames) if frame.kind.startswith("call"))
    made = []
    for number, (name, arguments) in enumerate(calls):
        call = {
            "index": number,
            "id": f"call_{number}",
            "function": {"name": name, "arguments": msgspec.json.decode(arguments or "{}")},
        }
        means = (Begins(number, "tool_use", name), Says(number, "input", arguments))
        made.append(chunk({"tool_calls": [call]}, *means, kind="call"))
        made[-1].labels = ("arguments as an object",)
    if any(frame.kind.startswith("call") and frame.kind.endswith("+reason") for frame in stream.frames):
        made[-1].json["choices"][0]["finish_reason"] = _reason(stream)
        made[-1].means = (*made[-1].means, Reasons(_reason(stream)))
    stream.frames[:] = [*frames[:at], *made, *frames[at:]]
    for frame in made:
        frame.loose = frozenset({"usage"})
    return True


# --- errors and ends --------------------------------------------------------------------------------------------------


def _error(stream: Stream, rng: random.Random) -> Frame:
    del rng
    if _is_chat(stream):
        body = {"error": {"type": "server_error", "code": 503, "message": "The engine is on fire."}}
        return Frame("error", None, body, means=(Refuses("upstream_error"),))
    members = {"type": "error", "error": {"type": "overloaded_error", "message": "The engine is on fire."}}
    return Frame("error", "error", members, means=(Refuses("upstream_overloaded"),))


def error(stream: Stream, rng: random.Random) -> bool:
    """The upstream reports its failure; ours must have its message."""
    if any(isinstance(m, Refuses) for f in stream.frames for m in f.means):
        return False
    frame = _error(stream, rng)
    frame.doubts = (Doubt(("The engine is on fire",), ("engine",), is_habit=False),)
    _insert(stream, _anywhere(stream, rng), frame, "an error")
    return True


def end(stream: Stream, rng: random.Random) -> bool:
    """Cut or held open after the end; or ended, cut or held open anywhere, also inside a frame."""
    if stream.end is not End.CLEAN or not stream.has_last_line or not stream.frames:
        return False
    stream.end = rng.choices(list(End), weights=[4, 1, 4])[0]
    where = rng.choice(["behind all", "behind a frame", "in a frame"])
    if where == "behind all":
        if stream.end is End.CLEAN:
            return False
        stream.labels.append(f"{stream.end.value} behind all")
        return True
    last = max((at for at, f in enumerate(stream.frames) if any(isinstance(m, Reasons) for m in f.means)), default=0)
    at = rng.choice([rng.randrange(len(stream.frames)), min(last + 1, len(stream.frames) - 1)])
    frame = stream.frames[at]
    del stream.frames[at:]
    if where == "in a frame" and frame.block is None and len(frame.payload()) > 2 and not frame.is_pretty:
        block = frame.wire(b"\n")[: rng.randint(1, len(frame.wire(b"\n")) - 4)]
        if block.endswith(b"\n"):
            block = block.rstrip(b"\n") or b":"
        stream.frames.append(Frame("rest", block=block, labels=(f"half a {frame.kind.partition('+')[0]}",)))
        stream.has_last_line = False
    stream.labels.append(f"{stream.end.value} early")
    return True


def silence(stream: Stream, rng: random.Random) -> bool:
    """A pause, short or too long, with or without heartbeats in it."""
    if any(frame.pause_s for frame in stream.frames):
        return False
    said = [
        at
        for at, frame in enumerate(stream.frames[:-1])
        if any(isinstance(m, Says) and m.piece for m in frame.means)
        and not frame.doubts
        and not frame.kind.startswith("content_block_start")  # it is unclear whether that is content
    ]
    if not said:
        return False
    at = rng.choice(said) + 1
    is_last = any(isinstance(m, Reasons) for f in stream.frames[:at] for m in f.means)
    what = rng.choice(["50 s", "70 s", "pings", "pings", "heartbeats", "pings for 700 s"])
    match what:
        case "50 s":
            stream.frames[at].touched("silence of 50 s").pause_s = 50.0
        case "70 s" if not is_last:
            frame = Frame("noise", block=b": too late", pause_s=75.0, doubts=(SILENCE,), labels=("silence of 75 s",))
            stream.frames.insert(at, frame)
        case "pings for 700 s" if not is_last and not _is_chat(stream):
            made = [_heartbeat(stream, "a ping", what) for _ in range(71)]
            for beat in made[60:]:  # the bound of 600 s comes before any later end
                beat.doubts = (SILENCE,)
            stream.frames[at:at] = made
        case "pings" | "heartbeats" if not is_last:
            beats = ["a comment", "an empty data frame", "a ping"]
            name = "a ping" if what == "pings" and not _is_chat(stream) else rng.choice(beats[:2])
            stream.frames[at:at] = [_heartbeat(stream, name, f"70 s of {name}") for _ in range(7)]
        case _:
            return False
    return True


def _heartbeat(stream: Stream, name: str, label: str) -> Frame:
    frame = _NOISE[name]()
    frame.pause_s = 10.0
    frame.labels = (label,)
    return frame


def late(stream: Stream, rng: random.Random) -> bool:
    """The usage and the end come a moment after the stop reason."""
    at = next((n for n, f in enumerate(stream.frames) if any(isinstance(m, Reasons) for m in f.means)), None)
    if at is None or at + 1 >= len(stream.frames):
        return False
    frame = stream.frames[at + 1]
    if frame.pause_s:
        return False
    frame.touched("a moment after the reason").pause_s = rng.choice([0.2, 0.7])
    return True


def pieces(stream: Stream, rng: random.Random) -> None:
    """How the network cuts the stream, which changes nothing."""
    stream.cuts = rng.choices(list(Cuts), weights=[4, 3, 6, 1, 1, 1])[0]
    stream.cuts_seed = rng.getrandbits(32)
