"""An answer in the shapes of the Messages API: whole, and as the frames of its stream, in the order of the file."""

import json
from collections.abc import Iterator

from simulator.answer import Answer, Block
from simulator.wire import Json, frame

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


def message_json(answer: Answer) -> Json:
    content = [_content(answer, block, index) for index, block in enumerate(answer.blocks)]
    return _message(answer, content, answer.stop_reason, answer.output_tokens)


def message_start(answer: Answer) -> bytes:
    # Like the real API: one output token is counted here, before any; message_delta has the true, cumulative number.
    return frame({"type": "message_start", "message": _message(answer, [], None, 1)})


def block_start(answer: Answer, index: int) -> bytes:
    return frame(
        {
            "type": "content_block_start",
            "index": index,
            "content_block": _empty_content(answer, answer.blocks[index], index),
        }
    )


def block_end(block: Block, index: int) -> Iterator[bytes]:
    """What follows a block's last token."""
    delta: Json | None = None
    if block.kind == "thinking":
        delta = {"type": "signature_delta", "signature": SIGNATURE}
    elif block.kind == "citations":
        delta = {"type": "citations_delta", "citation": CITATION}
    if delta is not None:
        yield frame({"type": "content_block_delta", "index": index, "delta": delta})
    yield frame({"type": "content_block_stop", "index": index})


def message_delta(answer: Answer) -> bytes:
    delta: Json = {"stop_reason": answer.stop_reason, "stop_sequence": None}
    return frame({"type": "message_delta", "delta": delta, "usage": _usage(answer, answer.output_tokens)})


MESSAGE_STOP = frame({"type": "message_stop"})


def _message(answer: Answer, content: list[Json], stop_reason: str | None, output_tokens: int) -> Json:
    return {
        "id": answer.message_id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": _usage(answer, output_tokens),
    }


def _usage(answer: Answer, output_tokens: int) -> Json:
    return {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _content(answer: Answer, block: Block, index: int) -> Json:
    said = "".join(block.tokens)
    filled: dict[str, Json] = {
        "text": {"text": said},
        "citations": {"text": said, "citations": [CITATION]},
        "thinking": {"thinking": said, "signature": SIGNATURE},
        "tool": {"input": _tool_input(said) if block.kind == "tool" else {}},
    }
    return _empty_content(answer, block, index) | filled[block.kind]


def _empty_content(answer: Answer, block: Block, index: int) -> Json:
    match block.kind:
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "tool":
            tool_id = f"toolu_{answer.message_id.removeprefix('msg_')}_{index}"
            return {"type": "tool_use", "id": tool_id, "name": answer.tool, "input": {}}
        case "citations":
            return {"type": "text", "text": "", "citations": []}
        case _:
            return {"type": "text", "text": ""}


def _tool_input(said: str) -> object:
    try:
        return json.loads(said)
    except ValueError:  # cut by max_tokens
        return {}
