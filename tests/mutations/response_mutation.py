"""Mutations of the response around a stream (content types, encodings), and what may replace a stream."""

import random
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tests.mutations.frame import (
    Begins,
    Closes,
    Dialect,
    Doubt,
    End,
    Frame,
    Meaning,
    Reasons,
    Refuses,
    Response,
    Says,
    Starts,
    Stops,
    Stream,
    Uses,
)
from tests.mutations.oracle import ABSENT_WORDS, Verdict, expected_of

_SAID: Final = Doubt(("The engine is on fire",), ("engine",), is_habit=False)


def content_type(stream: Stream, rng: random.Random) -> bool:
    """An event stream with another content type: it is whole all the same."""
    name = rng.choice(
        [
            None,
            "text/plain",
            "text/event-stream; charset=utf-8",
            "TEXT/EVENT-STREAM",
            "application/octet-stream",
            "application/json",
            "application/x-ndjson",
        ]
    )
    stream.response = Response(content_type=name)
    stream.labels.append(f"content-type: {name}")
    return True


def encoding(stream: Stream, rng: random.Random) -> bool:
    """Compressed, although the request asks for identity."""
    name = rng.choice(["gzip", "gzip", "deflate", "x-gzip", "GZIP", "identity"])
    stream.response = Response(encoding=name)
    stream.labels.append(f"content-encoding: {name}")
    return True


def broken_encoding(stream: Stream, rng: random.Random) -> bool:
    """An unknown encoding, one that ends too early, or one that is only in the header."""
    what = rng.choice(["unknown", "short", "only said"])
    names = ("content-encoding", "encoding", "encoded", "gzip", "compressed", "message_stop", "finish_reason")
    match what:
        case "unknown":
            name = rng.choice(["zstd", "compress", "novel"])
            doubt = Doubt(("content-encoding", "encoding", "encoded", "compressed"), (name,))
            stream.response = Response(encoding=name, doubt=doubt)
        case "short":
            doubt = Doubt(names, ("broken", "corrupt", "invalid", "truncated", "ended", "incomplete", "cannot", "cut"))
            stream.response = Response(encoding="gzip", breaks="short", doubt=doubt)
        case _:
            # Open: the bytes are valid without the header, and may be read so.
            question = Doubt(names[:5], ("gzip", "not", "cannot", "broken", "corrupt", "invalid"))
            stream.response = Response(encoding="gzip", breaks="only said", question=question)
    stream.labels.append(f"encoding {what}")
    return True


_JSON_TYPES: Final = (
    "application/json",
    "application/json; charset=utf-8",
    "Application/JSON",
    "application/vnd.x+json",
)


def whole_answer(stream: Stream, rng: random.Random) -> bool:
    """JSON instead of a stream: the server ignores ``stream``."""
    expected = expected_of(stream)
    if expected.verdict is not Verdict.CERTAIN or expected.usage is None or expected.stop_reason is None:
        return False
    if any(frame.labels for frame in stream.frames) or any(
        block.get("input") is None for block in _tools(expected.blocks)
    ):
        return False
    is_chat = stream.dialect is Dialect.CHAT
    reason = next(m.reason for f in stream.frames for m in f.means if isinstance(m, Reasons))
    if any(isinstance(m, Says) and m.kind == "refusal" for f in stream.frames for m in f.means):
        return False
    body = (_chat_answer if is_chat else _messages_answer)(expected.blocks, reason, expected.usage)
    response = Response(content_type=rng.choice(_JSON_TYPES))
    means = _meaning_of(expected.blocks, reason, expected.usage)
    label = "a whole answer"
    match rng.choice(["", "", "", "space", "pretty", "no type", "event stream", "gzip", *_SPOILS]):
        case "space":
            response.body = b" \n\t" + msgspec.json.encode(body)
        case "pretty":
            response.body = msgspec.json.format(msgspec.json.encode(body), indent=2)
        case "no type" | "event stream" as what:
            # Open: with a stream's content type, or none, only its first character shows that it is not a stream.
            response.content_type = None if what == "no type" else "text/event-stream"
            response.question = Doubt(("content-type", "JSON", "stream", "message_stop", "finish_reason"), ABSENT_WORDS)
            label += f", {what}"
        case "gzip":
            response.encoding = "gzip"
        case "" as plain:
            label += plain
        case what:
            spoilt = _SPOILS[what](body, is_chat)
            if spoilt is None:
                return False
            response.doubt, response.body = spoilt
            label += f", {what}"
    if response.body is None:
        response.body = msgspec.json.encode(body)
    stream.frames[:] = [Frame("whole", block=b"", means=(*means, Stops()))]
    stream.response = response
    stream.labels.append(label)
    return True


def _tools(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [block for block in blocks if "name" in block]


def _messages_answer(blocks: list[dict[str, Any]], reason: str, usage: dict[str, int]) -> dict[str, Any]:
    content = [
        {**block, "id": f"toolu_{n}"}
        if "name" in block
        else {**block, "signature": "EqQB"}
        if "thinking" in block
        else block
        for n, block in enumerate(blocks)
    ]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "a-model-20260101",
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _chat_answer(blocks: list[dict[str, Any]], reason: str, usage: dict[str, int]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for block in blocks:
        match block["type"]:
            case "text":
                message["content"] = block["text"]
            case "thinking":
                message["reasoning_content"] = block["thinking"]
            case _:
                arguments = msgspec.json.encode(block["input"]).decode()
                call = {"type": "function", "function": {"name": block["name"], "arguments": arguments}}
                calls = message.setdefault("tool_calls", [])
                calls.append({"id": f"call_{len(calls)}", **call})
    counts: dict[str, Any] = {}
    if usage:
        cached = usage["cache_read_input_tokens"]
        counts = {
            "prompt_tokens": usage["input_tokens"] + cached,
            "completion_tokens": usage["output_tokens"],
            "prompt_tokens_details": {"cached_tokens": cached},
        }
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": counts or None}


def _meaning_of(blocks: list[dict[str, Any]], reason: str, usage: dict[str, int]) -> list[Meaning]:
    means: list[Meaning] = [Starts()]
    for number, block in enumerate(blocks):
        means.append(Begins(number, block["type"], block.get("name", "")))
        if "name" in block:
            means.append(Says(number, "input", msgspec.json.encode(block["input"]).decode()))
        elif block["type"] in ("text", "thinking"):
            means.append(Says(number, block["type"], block[block["type"]]))
        means.append(Closes(number))
    return [*means, Reasons(reason), *([Uses(usage)] if usage else [])]


def _without_reason(body: dict[str, Any], is_chat: bool) -> tuple[Doubt, bytes]:
    if is_chat:
        body["choices"][0]["finish_reason"] = None
    else:
        body["stop_reason"] = None
    return Doubt(("finish_reason" if is_chat else "stop_reason",), ABSENT_WORDS), msgspec.json.encode(body)


def _cut_json(body: dict[str, Any], is_chat: bool) -> tuple[Doubt, bytes]:
    del is_chat
    return Doubt(("JSON", "application/json"), ("JSON", "cut", "ended")), msgspec.json.encode(body)[:-3]


def _odd_text(body: dict[str, Any], is_chat: bool) -> tuple[Doubt, bytes] | None:
    if is_chat:
        body["choices"][0]["message"]["content"] = 4711
        return Doubt(("content",), ("number", "integer", "int")), msgspec.json.encode(body)
    if not body["content"]:
        return None
    body["content"][0] = {"type": "text", "text": 4711}
    return Doubt(("text",), ("number", "integer", "int")), msgspec.json.encode(body)


def _without_content(body: dict[str, Any], is_chat: bool) -> tuple[Doubt, bytes]:
    body["choices" if is_chat else "content"] = 4711
    return Doubt(("choices" if is_chat else "content",), ("number", "integer", "int")), msgspec.json.encode(body)


_SPOILS: Final[dict[str, Callable[[dict[str, Any], bool], tuple[Doubt, bytes] | None]]] = {
    "no reason": _without_reason,
    "cut": _cut_json,
    "a number for text": _odd_text,
    "a number for content": _without_content,
}


def error_object(stream: Stream, rng: random.Random) -> bool:
    """A JSON error with status 200: it counts as an error."""
    said = "The engine is on fire."
    type_, code = rng.choice(
        [
            ("invalid_request_error", "upstream_rejected"),
            ("authentication_error", "upstream_auth"),
            ("overloaded_error", "upstream_overloaded"),
            ("rate_limit_error", "upstream_rate_limited"),
        ]
    )
    bodies: list[tuple[str, Any, str]] = [
        ("as Anthropic", {"type": "error", "error": {"type": type_, "message": said}}, code),
        ("as OpenAI", {"error": {"type": type_, "message": said, "param": None, "code": None}}, code),
        ("a text", {"error": said}, ""),
        ("a detail", {"detail": said}, ""),
        ("a message", {"message": said}, ""),
    ]
    label, body, code = rng.choice(bodies)
    _replace(
        stream,
        Response(content_type=rng.choice(_JSON_TYPES), body=msgspec.json.encode(body), doubt=_SAID, code=code),
        f"200, an error object: {label}",
    )
    return True


def refusal(stream: Stream, rng: random.Random) -> bool:
    """An error status, with the reason in any form that servers use."""
    said = "The engine is on fire."
    bodies: dict[str, bytes] = {
        "detail": msgspec.json.encode({"detail": said}),
        "FastAPI's list": msgspec.json.encode({"detail": [{"loc": ["body", "x"], "msg": said, "type": "missing"}]}),
        "plain text": said.encode(),
        "an error of text": msgspec.json.encode({"error": said}),
        "a message": msgspec.json.encode({"message": said}),
        "an error object": msgspec.json.encode({"error": {"message": said}}),
        "a page": f"<html><head><title>{said}</title></head><body><h1>{said}</h1></body></html>".encode(),
        "a page without a title": f"<html><body><h1>{said}</h1></body></html>".encode(),
    }
    label = rng.choice(list(bodies))
    status = rng.choice([400, 404, 422, 500, 503])
    kind = "text/html" if "page" in label else "text/plain" if label == "plain text" else "application/json"
    _replace(stream, Response(status=status, content_type=kind, body=bodies[label], doubt=_SAID), f"refused: {label}")
    return True


def page(stream: Stream, rng: random.Random) -> bool:
    """A login page or a gateway's start page: the base URL is wrong."""
    body = b"<!doctype html><html><body>wombat</body></html>"
    kind = rng.choice(["text/html", "text/html; charset=utf-8"])
    doubt = Doubt(("text/html", "HTML", "content-type"), ("text/html", "HTML"))
    _replace(stream, Response(content_type=kind, body=body, doubt=doubt), "200, a page")
    return True


def redirect(stream: Stream, rng: random.Random) -> bool:
    """Not followed, since the key would be sent with it; not retried, since it would be the same."""
    status = rng.choice([301, 302, 303, 307, 308])
    doubt = Doubt(("redirect", "redirects", "redirected"), ("URL", "BASE_URL", "location", "to"))
    headers = ("location: https://elsewhere.invalid/v1/",)
    kind = rng.choice([None, "text/html"])
    _replace(
        stream,
        Response(status=status, content_type=kind, headers=headers, body=b"", doubt=doubt, is_final=True),
        "a redirect",
    )
    return True


def _replace(stream: Stream, response: Response, label: str) -> None:
    stream.frames[:] = [Frame("error", block=b"", means=(Refuses(response.code),))]
    stream.labels[:] = [label]
    stream.response = response
    stream.end = End.CLEAN
