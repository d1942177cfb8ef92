"""A chat completion, whole or as the chunks of a stream.

A chunk is one `data:` line without an event name; `data: [DONE]` ends the stream. Thinking is `reasoning_content`, as
vLLM and DeepSeek send it; OpenAI's own models do not send theirs.
"""

from collections.abc import Iterable, Iterator

from simulator.answer import Answer
from simulator.wire import GARBAGE, Json, json_bytes

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
"""By the stop_reason that `stop=` asks for."""

DONE = b"data: [DONE]\n\n"

FINGERPRINT = "fp_simulated"

"""The member that holds a block's text, in a delta and in a whole message; by kind of block, tool calls excepted."""
NAMES = {"text": "content", "citations": "content", "thinking": "reasoning_content"}


def frame(chunk: Json) -> bytes:
    return b"data: %b\n\n" % json_bytes(chunk)


class ChatSpeech:
    def __init__(self, answer: Answer, *, usage_wanted: bool) -> None:
        self._answer = answer
        self._usage_wanted = usage_wanted
        tools = [index for index, block in enumerate(answer.blocks) if block.kind == "tool"]
        self._tool_numbers = {index: number for number, index in enumerate(tools)}
        """By the block's index: tool calls have numbers of their own."""
        before, _, after = self._chunk({}).rpartition(b"{}")
        self._before_delta, self._after_delta = before, after
        self._openings = {kind: before + b'{"%b":' % name.encode() for kind, name in NAMES.items()}
        self._closing = b"}" + after

    def whole(self) -> Json:
        answer = self._answer
        said: dict[str, str] = {}
        for block in answer.blocks:
            if block.kind != "tool":
                name = NAMES[block.kind]
                said[name] = said.get(name, "") + "".join(block.tokens)
        message: Json = {"role": "assistant", "content": None, "refusal": None, **said}
        if self._tool_numbers:
            message["tool_calls"] = [
                self._tool_call(index, "".join(answer.blocks[index].tokens)) for index in self._tool_numbers
            ]
        choice: Json = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()}

    def start(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def restart(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}, id=f"chatcmpl-{self._answer.name}-again")

    def block_start(self, index: int) -> Iterator[bytes]:
        if index in self._tool_numbers:
            yield self._chunk({"tool_calls": [{"index": self._tool_numbers[index], **self._tool_call(index, "")}]})

    def token(self, kind: str, index: int, text: str) -> bytes:
        # Written by hand, as in MessagesSpeech.token: under load nearly all frames are these.
        if kind != "tool":
            return self._openings[kind] + json_bytes(text) + self._closing
        return b'%b{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}%b' % (
            self._before_delta,
            self._tool_numbers[index],
            json_bytes(text),
            self._after_delta,
        )

    def block_end(self, _index: int) -> Iterable[bytes]:
        return ()

    def stop_reason(self) -> bytes:
        return self._chunk({}, choice={"finish_reason": self._finish_reason})

    def end(self) -> Iterator[bytes]:
        if self._usage_wanted:
            yield frame({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield DONE

    def stray(self, name: str) -> bytes | None:
        match name:
            case "bad-json":
                return self._before_delta + b'{"cont\n\n'
            case "garbage":
                return GARBAGE
            case "no-index" if self._tool_numbers:
                return self._chunk({"tool_calls": [{"function": {"arguments": "no index "}}]})
            case "no-index":
                choice: Json = {"delta": {"content": "no index "}, "logprobs": None, "finish_reason": None}
                return frame({**self._head("chat.completion.chunk"), "choices": [choice]})
            case "unknown-event":
                return b": a comment\nid: 7\nretry: 10\nevent: simulated_event\n" + frame({"object": "simulated.event"})
            case "unknown-delta":
                return self._chunk({"simulated": {"x": 1}})
            case _:
                return None

    @property
    def _finish_reason(self) -> str:
        return FINISH_REASONS[self._answer.stop_reason]

    def _chunk(self, delta: Json, *, choice: Json | None = None, **head: str) -> bytes:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **(choice or {})}]
        # Like the real API: if the client asked for the usage, each chunk before the usage has a null one.
        usage: Json = {"usage": None} if self._usage_wanted else {}
        return frame({**self._head("chat.completion.chunk"), **head, "choices": choices, **usage})

    def _head(self, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{self._answer.name}",
            "object": kind,
            "created": self._answer.created_s,
            "model": self._answer.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _tool_call(self, index: int, arguments: str) -> Json:
        return {
            "id": f"call_{self._answer.name}_{index}",
            "type": "function",
            "function": {"name": self._answer.tool, "arguments": arguments},
        }

    def _usage(self) -> Json:
        answer = self._answer
        prompt_tokens = answer.input_tokens + answer.cached_tokens + answer.cache_write_tokens
        reasoning_tokens = sum(len(block.tokens) for block in answer.blocks if block.kind == "thinking")
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer.output_tokens,
            "total_tokens": prompt_tokens + answer.output_tokens,
            "prompt_tokens_details": {
                "cached_tokens": answer.cached_tokens,
                "cache_write_tokens": answer.cache_write_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        }
