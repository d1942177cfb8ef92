"""A Messages answer in the shapes of other servers: the events of `messages_speech`, changed as words.ODD says."""

from collections.abc import Iterator

from simulator.answer import Answer
from simulator.messages_speech import DELTAS, MessagesSpeech, frame
from simulator.wire import Json, numbers_as

DONE = b"data: [DONE]\n\n"

_USAGE_AT = {"usage-start": "message_start", "usage-stop": "message_delta", "usage-end": "message_stop"}
"""By name of the oddity, the only event that has the usage."""


class OddMessagesSpeech(MessagesSpeech):
    def __init__(self, answer: Answer, odd: frozenset[str]) -> None:
        super().__init__(answer)
        self._odd = odd
        self._tokens = 0
        self._begun_texts: set[int] = set()
        """The text blocks whose first token is in their content_block_start."""

    def whole(self) -> Json:
        whole = self._changed_message(super().whole(), has_usage="usage-never" not in self._odd)
        return numbers_as(whole, self._odd)

    def token(self, kind: str, index: int, text: str) -> bytes:
        self._tokens += 1
        if index in self._begun_texts:
            self._begun_texts.remove(index)
            return b""
        delta_type, name = DELTAS[kind]
        said = b""
        for member in (None, text) if "nulls" in self._odd else (text,):
            delta = {"type": delta_type, name: member}
            said += self._frame({"type": "content_block_delta", "index": index, "delta": delta})
        if "usage-every" in self._odd:
            delta = {"stop_reason": None, "stop_sequence": None}
            said += self._frame({"type": "message_delta", "delta": delta, "usage": self._usage(self._tokens)})
        return said

    def end(self) -> Iterator[bytes]:
        for data in super().end():
            yield data + (DONE if "done" in self._odd else b"")

    def _frame(self, event: Json) -> bytes:
        event = event.copy()
        usage_at = next((at for name, at in _USAGE_AT.items() if name in self._odd), None)
        usage = self._usage(self._answer.output_tokens)
        match event:
            case {"type": "message_start", "message": dict(message)}:
                message = self._changed_message(message, has_usage=not self._odd & _NO_USAGE_AT_START)
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

    def _changed_message(self, message: Json, *, has_usage: bool) -> Json:
        if not has_usage:
            message = {name: value for name, value in message.items() if name != "usage"}
        if "wrong-members" in self._odd:
            message = {**message, "stop_sequence": 5, "container": "none", "odd": [1]}
        return message


_NO_USAGE_AT_START = frozenset(("usage-stop", "usage-end", "usage-never"))
_NO_USAGE_AT_STOP = frozenset(("usage-start", "usage-end", "usage-never"))
