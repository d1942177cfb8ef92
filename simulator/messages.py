"""How the Messages API says things: its error envelope, its models, its answers whole and as frames of a stream.

A frame is one server-sent event; `event:` and the data's `type` are always equal, because the SDKs drop frames where they
are not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simulator.answer import Answer, Block
from simulator.request import Refused, Request
from simulator.wire import GARBAGE, Json, bearer, json_bytes

SIGNATURE = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="
"""Of a thinking block: "simulated signature", in base64."""

CITATION: Json = {
    "type": "char_location",
    "cited_text": "A simulated source.",
    "document_index": 0,
    "document_title": "Simulated document",
    "start_char_index": 0,
    "end_char_index": 19,
    "file_id": None,
}

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

ERROR_STATUSES = {error_type: status for status, error_type in ERROR_TYPES.items()}


def frame(event: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), json_bytes(event))


PING = frame({"type": "ping"})

MESSAGE_STOP = frame({"type": "message_stop"})

# By kind of block: the delta's type, and the name of the text in it.
DELTAS = {
    "text": ("text_delta", "text"),
    "citations": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool": ("input_json_delta", "partial_json"),
}

STRAYS = {
    "bad-json": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"ty\n\n',
    "garbage": GARBAGE,
    "no-index": frame({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "no index "}}),
    "unknown-event": b": a comment\nid: 7\nretry: 10\n" + frame({"type": "simulated_event", "index": 0}),
    "unknown-delta": frame({"type": "content_block_delta", "index": 0, "delta": {"type": "simulated_delta", "x": 1}}),
}


def delta_frame(kind: str, index: int, text: str) -> bytes:
    """One token. Written by hand, because under load nearly all frames are these."""
    delta_type, name = DELTAS[kind]
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
        % (index, delta_type.encode(), name.encode(), json_bytes(text))
    )


@dataclass(frozen=True, slots=True)
class MessagesSpeech:
    answer: Answer

    token = staticmethod(delta_frame)

    def whole(self) -> Json:
        content = [self._content(block, index) for index, block in enumerate(self.answer.blocks)]
        return self._message(content, self.answer.stop_reason, self.answer.output_tokens)

    def start(self) -> bytes:
        # Like the real API: one output token is counted here, before any; message_delta has the true, cumulative number.
        return frame({"type": "message_start", "message": self._message([], None, 1)})

    def restart(self) -> bytes:
        return self.start()

    def block_start(self, index: int) -> Iterator[bytes]:
        content = self._empty_content(self.answer.blocks[index], index)
        yield frame({"type": "content_block_start", "index": index, "content_block": content})
        if index == 0:
            yield PING

    def block_end(self, index: int) -> Iterator[bytes]:
        delta: Json | None = None
        match self.answer.blocks[index].kind:
            case "thinking":
                delta = {"type": "signature_delta", "signature": SIGNATURE}
            case "citations":
                delta = {"type": "citations_delta", "citation": CITATION}
        if delta is not None:
            yield frame({"type": "content_block_delta", "index": index, "delta": delta})
        yield frame({"type": "content_block_stop", "index": index})

    def stop_reason(self) -> bytes:
        delta: Json = {"stop_reason": self.answer.stop_reason, "stop_sequence": None}
        return frame({"type": "message_delta", "delta": delta, "usage": self._usage(self.answer.output_tokens)})

    def end(self) -> Iterator[bytes]:
        yield MESSAGE_STOP

    def stray(self, name: str) -> bytes | None:
        return STRAYS.get(name)

    def _message(self, content: list[Json], stop_reason: str | None, output_tokens: int) -> Json:
        return {
            "id": f"msg_{self.answer.name}",
            "type": "message",
            "role": "assistant",
            "model": self.answer.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": self._usage(output_tokens),
        }

    def _usage(self, output_tokens: int) -> Json:
        return {
            "input_tokens": self.answer.input_tokens,
            "cache_creation_input_tokens": self.answer.cache_write_tokens,
            "cache_read_input_tokens": self.answer.cached_tokens,
            "output_tokens": output_tokens,
        }

    def _content(self, block: Block, index: int) -> Json:
        said = "".join(block.tokens)
        filled: dict[str, Json] = {
            "text": {"text": said},
            "citations": {"text": said, "citations": [CITATION]},
            "thinking": {"thinking": said, "signature": SIGNATURE},
            "tool": {"input": _tool_input(said) if block.kind == "tool" else {}},
        }
        return self._empty_content(block, index) | filled[block.kind]

    def _empty_content(self, block: Block, index: int) -> Json:
        match block.kind:
            case "thinking":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case "tool":
                tool_id = f"toolu_{self.answer.name}_{index}"
                return {"type": "tool_use", "id": tool_id, "name": self.answer.tool, "input": {}}
            case "citations":
                return {"type": "text", "text": "", "citations": []}
            case _:
                return {"type": "text", "text": ""}


def _tool_input(said: str) -> object:
    try:
        return json.loads(said)
    except ValueError:  # cut by max_tokens
        return {}


@dataclass(frozen=True, slots=True)
class MessagesDialect:
    request_id_header: str = "request-id"
    ping: bytes = PING

    def check_key(self, headers: Mapping[str, str]) -> None:
        if not headers.get("x-api-key") and not bearer(headers):
            raise Refused("Authorization or x-api-key header is required", 401)

    def not_found(self, _method: str, _path: str) -> Refused:
        return Refused("Not found", 404)

    def unknown_model(self, name: str) -> Refused:
        return Refused(f"model: {name}", 404)

    def refusal(self, refused: Refused, request_id: str) -> Json:
        return self.failure(refused.status, None, None, refused.message, request_id)

    def failure(self, status: int, error_type: str | None, _code: str | None, message: str, request_id: str) -> Json:
        if error_type is None:
            error_type = ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": error_type, "message": message}, "request_id": request_id}

    def status_of(self, error_type: str | None) -> int:
        return ERROR_STATUSES.get(error_type or "", 500)

    def error_frame(self, envelope: Json) -> bytes:
        return frame(envelope)

    def models(self, names: Sequence[str], query: Mapping[str, list[str]]) -> Json:
        limit = _limit(query)
        if (after := _one_of(names, query, "after_id")) is not None:
            left = names[names.index(after) + 1 :]
            page, has_more = left[:limit], len(left) > limit
        elif (before := _one_of(names, query, "before_id")) is not None:
            left = names[: names.index(before)]
            page, has_more = left[-limit:], len(left) > limit
        else:
            page, has_more = names[:limit], len(names) > limit
        return {
            "data": [self.model(name) for name in page],
            "has_more": has_more,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def model(self, name: str) -> Json:
        return {
            "type": "model",
            "id": name,
            "display_name": f"{name} (simulated)",
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 200_000,
        }

    def speech(self, _request: Request, answer: Answer) -> MessagesSpeech:
        return MessagesSpeech(answer)


def _limit(query: Mapping[str, list[str]]) -> int:
    text = query.get("limit", ["20"])[0]
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1_000):
        raise Refused("limit: Input should be an integer from 1 to 1000")
    return int(text)


def _one_of(names: Sequence[str], query: Mapping[str, list[str]], cursor: str) -> str | None:
    name = query.get(cursor, [None])[0]
    if name is not None and name not in names:
        raise Refused(f"{cursor}: there is no such model")
    return name


MESSAGES = MessagesDialect()
