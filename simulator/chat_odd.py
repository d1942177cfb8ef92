"""A chat completion in the shapes of other servers: the output of `chat_speech`, changed as words.ODD says.

Each chunk is parsed and written again. That is slow, and no benchmark uses it.
"""

import json
from collections.abc import Iterator

from simulator.answer import Answer
from simulator.chat_speech import DONE, ChatSpeech, frame
from simulator.wire import Json, numbers_as

_OWN_USAGE = frozenset(("usage-start", "usage-every", "usage-stop", "usage-end", "usage-never"))
"""Each of these decides where the usage is, whatever the request asks for."""


class OddChatSpeech(ChatSpeech):
    def __init__(self, answer: Answer, odd: frozenset[str], *, usage_wanted: bool) -> None:
        super().__init__(answer, usage_wanted=usage_wanted and not odd & _OWN_USAGE)
        self._odd = odd
        self._tokens = 0

    def whole(self) -> Json:
        whole = super().whole()
        if "usage-never" in self._odd:
            del whole["usage"]
        if "wrong-members" in self._odd:
            whole |= _WRONG
        for choice in _choices(whole):
            self._change(choice, "message")
        return numbers_as(whole, self._odd)

    def start(self) -> bytes:
        return self._changed(super().start(), usage=self._usage() if "usage-start" in self._odd else None)

    def restart(self) -> bytes:
        return self._changed(super().restart())

    def block_start(self, index: int) -> Iterator[bytes]:
        for data in super().block_start(index):
            yield self._changed(data)

    def token(self, kind: str, index: int, text: str) -> bytes:
        self._tokens += 1
        plain = super().token(kind, index, text)
        usage = {**self._usage(), "completion_tokens": self._tokens} if "usage-every" in self._odd else None
        said = self._changed(plain, usage=usage)
        return self._changed(_without_text(plain)) + said if "nulls" in self._odd else said

    def stop_reason(self) -> bytes:
        usage = self._usage() if "usage-stop" in self._odd else None
        return self._changed(super().stop_reason(), usage=usage, is_last=True)

    def end(self) -> Iterator[bytes]:
        if "usage-end" in self._odd:
            choice: Json = {"index": 0, "delta": {}, "finish_reason": None}
            yield self._changed(frame({"object": "chat.completion.chunk", "choices": [choice]}), usage=self._usage())
        for data in super().end():
            yield data if data == DONE else self._changed(data, is_last=True)

    def _changed(self, data: bytes, *, usage: object = None, is_last: bool = False) -> bytes:
        """With `message`, empty for every chunk but the last one."""
        if "message" in self._odd and not is_last:
            return b""
        chunk: Json = json.loads(data.removeprefix(b"data: "))
        for choice in _choices(chunk):
            if "message" in self._odd:
                choice |= {"delta": None, "message": _choices(super().whole())[0]["message"]}
            self._change(choice, "message" if "message" in self._odd else "delta")
        if usage is not None:
            chunk["usage"] = usage
        if "wrong-members" in self._odd:
            chunk |= _WRONG
        return frame(numbers_as(chunk, self._odd))

    def _change(self, choice: Json, name: str) -> None:
        """`name` is the choice's member to change: `delta` or `message`."""
        said = choice[name]
        assert isinstance(said, dict)
        if "parts" in self._odd:
            _make_parts(said)
        for number, call in enumerate(said.get("tool_calls", ())):
            if "no-ids" in self._odd:
                call.pop("id", None)
            if "empty-ids" in self._odd and "id" in call:
                call["id"] = ""
            if "index-gaps" in self._odd:
                call["index"] = 2 * call.get("index", number) + 1
            if "one-index" in self._odd:
                call["index"] = 0
        if "wrong-members" in self._odd:
            choice |= {"logprobs": "none", "odd": [1]}
            said |= {"role": 5, "annotations": 7, "audio": "none"}


_WRONG: Json = {
    "created": "yesterday",
    "system_fingerprint": 7,
    "service_tier": {},
    "odd": {"unknown": [None]},
}


def _choices(completion: Json) -> list[Json]:
    choices = completion["choices"]
    assert isinstance(choices, list)
    return choices


def _make_parts(said: Json) -> None:
    """The form of Mistral's reasoning models."""
    parts: list[Json] = []
    if thinking := said.pop("reasoning_content", None):
        parts.append({"type": "thinking", "thinking": [{"type": "text", "text": thinking}]})
    if text := said.pop("content", None):
        parts.append({"type": "text", "text": text})
    if parts:
        said["content"] = parts


def _without_text(data: bytes) -> bytes:
    """The same chunk with null as its text, or as its tool call's arguments."""
    chunk: Json = json.loads(data.removeprefix(b"data: "))
    for choice in _choices(chunk):
        delta = choice["delta"]
        assert isinstance(delta, dict)
        for call in delta.get("tool_calls", ()):
            call["function"] = {"arguments": None}
        choice["delta"] = {name: value if name == "tool_calls" else None for name, value in delta.items()}
    return frame(chunk)
