"""Valid Messages streams, as the Anthropic API sends them, in every shape that an answer has."""

import random
from typing import Any, Final

from tests.mutations.frame import Begins, Closes, Dialect, Frame, Meaning, Reasons, Says, Starts, Stops, Stream, Uses
from tests.mutations.words import an_input, bites, pieces

SHAPES: Final = {
    "text": ("text",),
    "text in two blocks": ("text", "text"),
    "thinking and text": ("thinking", "text"),
    "hidden thinking": ("redacted_thinking", "text"),
    "citations": ("cited", "text"),
    "a tool": ("tool_use",),
    "tools in parallel": ("text", "tool_use", "tool_use"),
    "all of it": ("thinking", "text", "tool_use", "tool_use"),
    "a tool without input": ("idle_tool", "tool_use"),
    "a tool that Anthropic runs": ("server_tool_use", "found", "text"),
    "an empty text": ("empty",),
    "nothing": (),
}


def messages_stream(rng: random.Random) -> Stream:
    """A random stream."""
    name = rng.choice(list(SHAPES))
    shape = SHAPES[name]
    output = rng.randint(1, 4711)
    early = {"input_tokens": rng.randint(1, 900), "output_tokens": 1}
    if rng.random() < 0.4:
        early |= {"cache_creation_input_tokens": 3, "cache_read_input_tokens": rng.randint(0, 90)}
    frames = [_start(early, rng)]
    for index, kind in enumerate(shape):
        frames += _block(index, kind, rng)
        if rng.random() < 0.1:
            frames.append(ping())
    reason, sequence = _reason(shape, rng)
    if reason == "max_tokens" and shape and shape[-1] == "tool_use":
        frames = _cut_short(frames, rng)
    late = {**early, "output_tokens": output} if rng.random() < 0.3 else {"output_tokens": output}
    frames += [_delta(reason, sequence, late), _frame("message_stop", {}, Stops())]
    if rng.random() < 0.2:  # older gateways write no event lines
        for frame in frames:
            frame.name = None
    return Stream(Dialect.MESSAGES, frames, f"{name}, {reason}")


def ping() -> Frame:
    """The ping that the API sends while it thinks."""
    return _frame("ping", {})


def _frame(event: str, members: dict[str, Any], *means: Meaning, kind: str = "") -> Frame:
    return Frame(kind or event, event, {"type": event, **members}, means=means)


def _start(usage: dict[str, int], rng: random.Random) -> Frame:
    message: dict[str, Any] = {
        "id": "msg_01quokka",
        "type": "message",
        "role": "assistant",
        "model": "a-model-20260101",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "service_tier": "standard"} if rng.random() < 0.5 else dict(usage),
    }
    return _frame("message_start", {"message": message}, Starts(), Uses(usage))


def _reason(shape: tuple[str, ...], rng: random.Random) -> tuple[str, str | None]:
    if "tool_use" in shape:
        return rng.choice([("tool_use", None), ("tool_use", None), ("max_tokens", None)])
    return rng.choice(
        [("end_turn", None), ("end_turn", None), ("max_tokens", None), ("stop_sequence", "###"), ("refusal", None)]
    )


def _block(index: int, kind: str, rng: random.Random) -> list[Frame]:
    match kind:
        case "text" | "cited" | "empty":
            said = [] if kind == "empty" else pieces(rng)
            start: dict[str, Any] = {"type": "text", "text": ""}
            if kind == "cited":
                start["citations"] = []
            frames = [_delta_frame(index, "text_delta", "text", piece, "text") for piece in said]
            if kind == "cited":
                frames.insert(rng.randint(0, len(frames)), _citation(index))
            return [_open(index, "text", start), *frames, _close(index)]
        case "thinking":
            frames = [_delta_frame(index, "thinking_delta", "thinking", piece, "thinking") for piece in pieces(rng)]
            start = {"type": "thinking", "thinking": "", "signature": ""}
            return [_open(index, "thinking", start), *frames, _signature(index), _close(index)]
        case "redacted_thinking":
            return [_open(index, kind, {"type": kind, "data": "EmwKquokka"}), _close(index)]
        case "found":
            kind = "web_search_tool_result"
            found = {"type": "web_search_result", "url": "x", "title": "t", "encrypted_content": "e", "page_age": None}
            start = {"type": kind, "tool_use_id": "toolu_00", "content": [found]}
            return [_open(index, kind, start), _close(index)]
        case _:
            return _tool(index, "tool_use" if kind == "idle_tool" else kind, kind != "idle_tool", rng)


def _tool(index: int, kind: str, has_input: bool, rng: random.Random) -> list[Frame]:
    said = ["", *bites(rng, an_input(rng))] if has_input else [""]
    name = "web_search" if kind == "server_tool_use" else rng.choice(("weather", "pay"))
    start = {"type": kind, "id": f"toolu_0{index}", "name": name, "input": {}}
    deltas = [_delta_frame(index, "input_json_delta", "partial_json", piece, "input") for piece in said]
    return [_open(index, kind, start, name), *deltas, _close(index)]


def _cut_short(frames: list[Frame], rng: random.Random) -> list[Frame]:
    """Cuts the last tool's input, as max_tokens does."""
    last = max(number for number, frame in enumerate(frames) if frame.kind == "content_block_delta:input_json_delta")
    frame = frames[last]
    piece = frame.json["delta"]["partial_json"]
    kept = piece[: rng.randint(0, max(0, len(piece) - 1))]
    frame.json["delta"]["partial_json"] = kept
    frame.means = (Says(frame.json["index"], "input", kept),)
    return frames


def _open(index: int, kind: str, block: dict[str, Any], name: str = "") -> Frame:
    members = {"index": index, "content_block": block}
    return _frame(
        "content_block_start", members, Begins(index, kind, name), kind=f"content_block_start:{block['type']}"
    )


def _delta_frame(index: int, delta_type: str, member: str, piece: str, kind: str) -> Frame:
    members = {"index": index, "delta": {"type": delta_type, member: piece}}
    return _frame("content_block_delta", members, Says(index, kind, piece), kind=f"content_block_delta:{delta_type}")


def _citation(index: int) -> Frame:
    citation = {"type": "char_location", "cited_text": "wombat", "document_index": 0}
    members = {"index": index, "delta": {"type": "citations_delta", "citation": citation}}
    return _frame("content_block_delta", members, kind="content_block_delta:citations_delta")


def _signature(index: int) -> Frame:
    members = {"index": index, "delta": {"type": "signature_delta", "signature": "EqQBwombat"}}
    return _frame("content_block_delta", members, kind="content_block_delta:signature_delta")


def _close(index: int) -> Frame:
    return _frame("content_block_stop", {"index": index}, Closes(index))


def _delta(reason: str, sequence: str | None, usage: dict[str, int]) -> Frame:
    members = {"delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": usage}
    return _frame("message_delta", members, Reasons(reason), Uses(usage))
