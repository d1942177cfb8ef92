"""Valid chat-completions streams, in the shapes of OpenAI and of the servers that copy it."""

import random
from typing import Any, Final

from tests.mutations.frame import Begins, Dialect, Frame, Meaning, Reasons, Says, Stops, Stream, Uses
from tests.mutations.words import an_input, bites, pieces

TEXT: Final = -1
THINKING: Final = -2
"""A chat stream has no blocks: all content of one kind counts as one block. Tool calls are 0 and up."""

SHAPES: Final = {
    "text": ("text",),
    "reasoning and text": ("thinking", "text"),
    "a refusal": ("refusal",),
    "a tool": ("tool",),
    "text and tools": ("text", "tool", "tool"),
    "tools mixed": ("mixed",),
    "reasoning and a tool": ("thinking", "tool"),
    "tools of one name": ("same", "same"),
    "nothing": (),
}


def chat_stream(rng: random.Random) -> Stream:
    """A random stream."""
    name = rng.choice(list(SHAPES))
    shape = SHAPES[name]
    usage = rng.choice(["none", "late", "late", "in every chunk", "with the reason", "early"])
    counts = _counts(rng)
    frames = (
        [] if rng.random() < 0.2 else [chunk({"role": "assistant", "content": rng.choice(["", None])}, kind="role")]
    )
    if rng.random() < 0.1:  # Azure's first chunk
        azure = {"choices": [], "id": "", "model": "", "prompt_filter_results": [{"prompt_index": 0}]}
        frames.insert(0, Frame("filter", None, azure))
    said, has_tools = _said(shape, rng)
    reason = _reason(has_tools, rng)
    if reason == "length" and has_tools and shape[-1] == "tool":
        said = _cut_short(said, rng)
    frames += said
    joins = bool(said) and rng.random() < 0.2
    if joins:
        frames[-1].json["choices"][0]["finish_reason"] = reason
        frames[-1].means = (*frames[-1].means, Reasons(reason))
        frames[-1].kind += "+reason"
    else:
        frames.append(chunk({}, reason=reason, kind="reason"))
    _add_usage(frames, usage, counts)
    frames.append(Frame("[DONE]", None, data=b"[DONE]", means=(Stops(),)))
    return Stream(Dialect.CHAT, frames, f"{name}, {reason}, usage {usage}")


def chunk(
    delta: object, *means: Meaning, reason: str | None = None, kind: str, index: int = 0, **members: object
) -> Frame:
    """A chunk in OpenAI's form."""
    choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
    head = {
        "id": "chatcmpl-quokka",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "that-answered",
        "system_fingerprint": "fp_1",
    }
    said = (*means, Reasons(reason)) if reason else means
    return Frame(kind, None, {**head, "choices": [choice], **members}, means=said)


def _reason(has_tools: bool, rng: random.Random) -> str:
    if has_tools:
        return rng.choice(["tool_calls", "tool_calls", "stop", "length"])
    return rng.choice(["stop", "stop", "stop", "length", "content_filter"])


def _said(shape: tuple[str, ...], rng: random.Random) -> tuple[list[Frame], bool]:
    frames: list[Frame] = []
    calls = 0
    reasoning = rng.choice([("reasoning_content",), ("reasoning",), ("reasoning", "reasoning_content")])
    for kind in shape:
        match kind:
            case "text":
                frames += [
                    chunk({"content": piece}, Says(TEXT, "text", piece), kind="content") for piece in pieces(rng)
                ]
            case "refusal":
                frames += [
                    chunk({"content": None, "refusal": piece}, Says(TEXT, "refusal", piece), kind="refusal")
                    for piece in pieces(rng)
                ]
            case "thinking":
                frames += [
                    chunk(
                        dict.fromkeys(reasoning, piece),
                        Says(THINKING, "thinking", piece),
                        kind="+".join(reasoning),
                    )
                    for piece in pieces(rng, 2)
                ]
            case "mixed":
                one, two = _call(0, "weather", rng), _call(1, "pay", rng)
                frames += [frame for pair in zip(one, two, strict=False) for frame in pair]
                frames += one[len(two) :] + two[len(one) :]
                calls += 2
            case _:
                frames += _call(calls, "pay" if kind == "same" else rng.choice(["weather", "pay"]), rng)
                calls += 1
    return frames, calls > 0


def _call(index: int, name: str, rng: random.Random) -> list[Frame]:
    first, *others = ["", *bites(rng, an_input(rng), 3)] if rng.random() < 0.7 else bites(rng, an_input(rng), 2)
    begin = {
        "index": index,
        "id": f"call_{index}",
        "type": "function",
        "function": {"name": name, "arguments": first},
    }
    means = (Begins(index, "tool_use", name), Says(index, "input", first))
    frames = [chunk({"tool_calls": [begin]}, *means, kind="call")]
    for piece in others:
        more = {"index": index, "function": {"arguments": piece}}
        frames.append(chunk({"tool_calls": [more]}, Says(index, "input", piece), kind="call goes on"))
    return frames


def _cut_short(frames: list[Frame], rng: random.Random) -> list[Frame]:
    last = frames[-1]
    function = last.json["choices"][0]["delta"]["tool_calls"][0]["function"]
    kept = function["arguments"][: rng.randint(0, max(0, len(function["arguments"]) - 1))]
    function["arguments"] = kept
    said = last.means[-1]
    assert isinstance(said, Says)
    last.means = (*last.means[:-1], said._replace(piece=kept))
    return frames


def _counts(rng: random.Random) -> dict[str, Any]:
    prompt, completion = rng.randint(1, 900), rng.randint(1, 900)
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if rng.random() < 0.4:
        counts["prompt_tokens_details"] = {"cached_tokens": rng.randint(0, prompt), "audio_tokens": 0}
    return counts


def used(counts: dict[str, Any]) -> Uses:
    """The usage in our form: cached tokens are not counted twice."""
    cached = counts.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return Uses(
        {
            "input_tokens": counts["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "output_tokens": counts["completion_tokens"],
        }
    )


def _add_usage(frames: list[Frame], habit: str, counts: dict[str, Any]) -> None:
    def put(frame: Frame, counts: dict[str, Any]) -> None:
        frame.json["usage"] = {**counts}
        frame.means = (*frame.means, used(counts))

    match habit:
        case "late":
            head = {"id": "chatcmpl-quokka", "object": "chat.completion.chunk", "choices": []}
            for frame in frames:
                frame.json["usage"] = None
            frames.append(Frame("usage", None, head))
            put(frames[-1], counts)
        case "in every chunk":
            for number, frame in enumerate(frames, 1):
                put(frame, {**counts, "completion_tokens": counts["completion_tokens"] + number})
        case "with the reason":
            put(frames[-1], counts)
        case "early":
            put(frames[0], counts)
        case _:
            pass
