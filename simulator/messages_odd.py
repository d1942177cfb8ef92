"""A Messages answer in the shapes of other servers: the output of `messages_speech`, changed as words.ODD says.

Each frame is parsed and written again. That is slow, and no benchmark uses it.
"""

import json
from collections.abc import Iterator

from simulator.answer import Answer
from simulator.messages_speech import DELTAS, MessagesSpeech, frame
from simulator.wire import Json, numbers_as

DONE = b"data: [DONE]\n\n"

_USAGE_AT = {"usage-start": "message_start", "usage-stop": "message_delta", "usage-end": "message_stop"}
"""By name of the oddity, the only event that has the usage."""


class OddMessagesSpeech:
    def __init__(self, answer: Answer, odd: frozenset[str]) -> None:
        self._answer = answer
        self._odd = odd
        self._plain = MessagesSpeech(answer)
        self._tokens = 0
        self._begun_texts: set[int] = set()
        """The text blocks whose first token is in their content_block_start."""

    def whole(self) -> Json:
        return numbers_as(self._message(self._plain.whole(), has_usage="usage-never" not in self._odd), self._odd)

    def start(self) -> bytes:
        return self._changed(self._plain.start())

    def restart(self) -> bytes:
        return self._changed(self._plain.restart())

    def block_start(self, index: int) -> Iterator[bytes]:
        for data in self._plain.block_start(index):
            yield self._changed(data)

    def token(self, kind: str, index: int, text: str) -> bytes:
        self._tokens += 1
        if index in self._begun_texts:
            self._begun_texts.remove(index)
            return b""
        said = self._changed(self._plain.token(kind, index, text))
        if "nulls" in self._odd:
            delta_type, name = DELTAS[kind]
            nothing = {"type": "content_block_delta", "index": index, "delta": {"type": delta_type, name: None}}
            said = self._changed(frame(nothing)) + said
        if "usage-every" in self._odd:
            said += self._changed(frame(self._usage_so_far()))
        return said

    def block_end(self, index: int) -> Iterator[bytes]:
        for data in self._plain.block_end(index):
            yield self._changed(data)

    def stop_reason(self) -> bytes:
        return self._changed(self._plain.stop_reason())

    def end(self) -> Iterator[bytes]:
        for data in self._plain.end():
            yield self._changed(data) + (DONE if "done" in self._odd else b"")

    def stray(self, name: str) -> bytes | None:
        return self._plain.stray(name)

    def _changed(self, data: bytes) -> bytes:
        event: Json = json.loads(data.partition(b"\ndata: ")[2])
        usage_at = next((at for name, at in _USAGE_AT.items() if name in self._odd), None)
        usage = self._whole_usage()
        match event:
            case {"type": "message_start", "message": dict(message)}:
                message = self._message(message, has_usage=not self._odd & _NO_USAGE_AT_START)
                if usage_at == "message_start":
                    message["usage"] = usage
                if "no-content" in self._odd:
                    del message["content"]
                event["message"] = message
            case {"type": "message_delta", "delta": {"stop_reason": str()}} if self._odd & _NO_USAGE_AT_STOP:
                del event["usage"]
            case {"type": "message_stop"} if usage_at == "message_stop":
                event["usage"] = usage
            case {"type": "content_block_start", "index": int(index), "content_block": {"type": "text"}}:
                self._begin_text(event, index)
        if "index" in event and "index-gaps" in self._odd:
            event["index"] = 2 * int(str(event["index"])) + 1
        if "wrong-members" in self._odd:
            event |= {"odd": {"unknown": [None]}, "usage_metadata": 7}
        return frame(numbers_as(event, self._odd))

    def _begin_text(self, event: Json, index: int) -> None:
        tokens = self._answer.blocks[index].tokens
        if "text-in-start" in self._odd and tokens:
            self._begun_texts.add(index)
            event["content_block"] = {"type": "text", "text": tokens[0]}

    def _message(self, message: Json, *, has_usage: bool) -> Json:
        if not has_usage:
            message = {name: value for name, value in message.items() if name != "usage"}
        if "wrong-members" in self._odd:
            message = {**message, "stop_sequence": 5, "container": "none", "odd": [1]}
        return message

    def _usage_so_far(self) -> Json:
        usage = {**self._whole_usage(), "output_tokens": self._tokens}
        return {"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}, "usage": usage}

    def _whole_usage(self) -> Json:
        usage = self._plain.whole()["usage"]
        assert isinstance(usage, dict)
        return usage


_NO_USAGE_AT_START = frozenset(("usage-stop", "usage-end", "usage-never"))
_NO_USAGE_AT_STOP = frozenset(("usage-start", "usage-end", "usage-never"))
