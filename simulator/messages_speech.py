"""A Messages answer, whole or as the frames of a stream.

A frame is one server-sent event. Its `event:` always equals the data's `type`, because the SDKs drop other frames.
"""

import json
from collections.abc import Iterator

from simulator.answer import Answer, Block
from simulator.wire import GARBAGE, Json, json_bytes

SIGNATURE = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="
"""A thinking block's signature: "simulated signature" in base64."""

CITATION: Json = {
    "type": "char_location",
    "cited_text": "A simulated source.",
    "document_index": 0,
    "document_title": "Simulated document",
    "start_char_index": 0,
    "end_char_index": 19,
    "file_id": None,
}


def frame(event: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), json_bytes(event))


PING: Json = {"type": "ping"}

"""By kind of block: the delta's type, and the member that holds its text."""
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


class MessagesSpeech:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def whole(self) -> Json:
        content = [self._content(block, index) for index, block in enumerate(self._answer.blocks)]
        return self._message(content, self._answer.stop_reason, self._answer.output_tokens)

    def start(self) -> bytes:
        # Like the real API: message_start reports one output token before any is sent; message_delta has the total.
        return self._frame({"type": "message_start", "message": self._message([], None, 1)})

    def restart(self) -> bytes:
        return self.start()

    def block_start(self, index: int) -> Iterator[bytes]:
        content = self._empty_content(self._answer.blocks[index], index)
        yield self._frame({"type": "content_block_start", "index": index, "content_block": content})
        if index == 0:
            yield self._frame(PING)

    def token(self, kind: str, index: int, text: str) -> bytes:
        # Written by hand, because under load nearly all frames are these.
        delta_type, name = DELTAS[kind]
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
            % (index, delta_type.encode(), name.encode(), json_bytes(text))
        )

    def block_end(self, index: int) -> Iterator[bytes]:
        delta: Json | None = None
        match self._answer.blocks[index].kind:
            case "thinking":
                delta = {"type": "signature_delta", "signature": SIGNATURE}
            case "citations":
                delta = {"type": "citations_delta", "citation": CITATION}
        if delta is not None:
            yield self._frame({"type": "content_block_delta", "index": index, "delta": delta})
        yield self._frame({"type": "content_block_stop", "index": index})

    def stop_reason(self) -> bytes:
        delta: Json = {"stop_reason": self._answer.stop_reason, "stop_sequence": None}
        return self._frame({"type": "message_delta", "delta": delta, "usage": self._usage(self._answer.output_tokens)})

    def end(self) -> Iterator[bytes]:
        yield self._frame({"type": "message_stop"})

    def stray(self, name: str) -> bytes | None:
        return STRAYS.get(name)

    def _frame(self, event: Json) -> bytes:
        return frame(event)

    def _message(self, content: list[Json], stop_reason: str | None, output_tokens: int) -> Json:
        return {
            "id": f"msg_{self._answer.name}",
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": self._usage(output_tokens),
        }

    def _usage(self, output_tokens: int) -> Json:
        return {
            "input_tokens": self._answer.input_tokens,
            "cache_creation_input_tokens": self._answer.cache_write_tokens,
            "cache_read_input_tokens": self._answer.cached_tokens,
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
                tool_id = f"toolu_{self._answer.name}_{index}"
                return {"type": "tool_use", "id": tool_id, "name": self._answer.tool, "input": {}}
            case "citations":
                return {"type": "text", "text": "", "citations": []}
            case _:
                return {"type": "text", "text": ""}


def _tool_input(said: str) -> object:
    try:
        return json.loads(said)
    except ValueError:  # cut by max_tokens
        return {}
