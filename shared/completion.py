"""A completion: the answer that one attempt's Messages events add up to.

Pure. The worker adds each event that the upstream sends. An answer is whole only if its stream ended with ``message_stop``
and gave a stop reason: the official SDK reports a stream that broke off as a success (measured on 0.75 and 2.12).
"""

import contextlib
from typing import Any, Final, TypeVar

import msgspec
from pydantic_core import from_json

from shared.job import Usage


class GarbledStream(Exception):
    """The upstream sent what no Messages stream contains: a retryable failure."""


_T = TypeVar("_T")

_MISFITS: Final = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What decoding an event, or reading a member that it lacks, can raise. Every DecodeError is a ValueError."""


class _Delta(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    citation: Any = None


class _ContentBlockDelta(msgspec.Struct, gc=False):
    index: int
    delta: _Delta


_content_block_delta: Final = msgspec.json.Decoder(_ContentBlockDelta)
_any_object: Final = msgspec.json.Decoder(dict[str, Any])

_CUTS: Final = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})
"""Stop reasons that can cut an answer anywhere, even in the middle of a tool's input."""

_MOST_TOKENS: Final = 1 << 31
"""Larger counts are cut to this. Redis fails at a sum beyond 64 bits, and then its script has added only some of the counts."""


class Completion:
    """The answer so far, which grows event by event."""

    def __init__(self) -> None:
        self.has_content = False
        self.is_stopped = False
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, _Block] = {}

    @property
    def stop_reason(self) -> str | None:
        """Why the model stopped, once it said so."""
        return self._message.get("stop_reason") if self._message else None

    @property
    def is_whole(self) -> bool:
        """Whether this may be called a success: ``message_stop`` was seen, and a stop reason before it."""
        return self.is_stopped and self.stop_reason is not None

    def add(self, name: str, data: bytes, text: tuple[int, str] | None = None) -> tuple[int, str] | None:
        """Adds one event. Returns (block index, text) for a text delta, else None.

        A caller that has decoded the text delta already passes that pair as ``text``. Raises GarbledStream for an event
        that cannot follow those before it.
        """
        try:
            if text is not None:
                self._blocks[text[0]].text.append(text[1])
                self.has_content = True
                return text
            if name == "content_block_delta":
                return self._add_delta(data)
            self._add_other(name, data)
        except _MISFITS as error:
            raise GarbledStream(f"a {name if name.isidentifier() else 'nameless'} event does not fit") from error
        return None

    def _add_delta(self, data: bytes) -> tuple[int, str] | None:
        event = _content_block_delta.decode(data)
        block = self._blocks[event.index]
        self.has_content = True
        if event.delta.type == "text_delta":
            text = _needed(event.delta.text)
            block.text.append(text)
            return event.index, text
        block.add(event.delta)
        return None

    def _add_other(self, name: str, data: bytes) -> None:
        event = _any_object.decode(data)
        if name == "message_start":
            if self._message is not None:
                raise GarbledStream("a second message_start")  # followers would see both beginnings, the result one
            message = dict(event["message"])
            message["usage"] = dict(message.get("usage") or {})
            self._message = message
        elif name == "content_block_start":
            self._started()
            index = int(event["index"])
            if index in self._blocks:
                raise GarbledStream("a second content_block_start")
            self._blocks[index] = _Block(dict(event["content_block"]))
        elif name == "content_block_stop":
            self._blocks[int(event["index"])].close()
        elif name == "message_delta":
            message = self._started()
            message.update(event["delta"])
            message["usage"].update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})
        elif name == "message_stop":
            self._started()
            last = max(self._blocks, default=None)
            for index, block in self._blocks.items():  # without its stop event a block would lose its input
                try:
                    block.end(may_be_cut=index == last and self.stop_reason in _CUTS)
                except ValueError as error:
                    raise GarbledStream(
                        "a tool's input (partial_json, function.arguments) is not a JSON object"
                    ) from error
            self.is_stopped = True

    def _started(self) -> dict[str, Any]:
        if self._message is None:
            raise KeyError("message_start")
        return self._message

    @property
    def usage(self) -> Usage:
        """Tokens as the upstream has reported them so far, each from 0 to _MOST_TOKENS. Raises GarbledStream."""
        reported = self._message["usage"] if self._message else {}
        try:
            counts = {name: int(reported.get(name) or 0) for name in Usage.__struct_fields__}
            return Usage(**{name: min(max(0, count), _MOST_TOKENS) for name, count in counts.items()})
        except _MISFITS as error:
            raise GarbledStream("the usage does not fit") from error

    @property
    def pieces(self) -> int:
        """How many deltas have come: about one for each token. Costs the same however many they are."""
        return sum([block.pieces for block in self._blocks.values()])

    @property
    def tokens_heard(self) -> int:
        """Estimated tokens of the answer so far, where the upstream has reported none.

        One per delta, or one per four characters, whichever is more.
        """
        parts = [part for block in self._blocks.values() for part in block.parts()]
        return max(len(parts), sum(map(len, parts)) // 4)

    def result(self) -> bytes:
        """The job's ``result`` as JSON: ``{"text", "stop_reason", "message"}``. Raises GarbledStream."""
        try:
            content = [block.whole() for _, block in sorted(self._blocks.items())]
            message = {**self._started(), "content": content}
            text = "".join(block.get("text") or "" for block in content if block.get("type") == "text")
            return msgspec.json.encode({"text": text, "stop_reason": message["stop_reason"], "message": message})
        except _MISFITS as error:
            raise GarbledStream("the message does not fit") from error

    def partial(self) -> bytes | None:
        """The content blocks so far, as JSON. None if there is no content.

        Input of a tool that is not complete is the text ``partial_json`` of its block, in place of ``input``.
        """
        if not self.has_content:
            return None
        with contextlib.suppress(*_MISFITS):
            return msgspec.json.encode([block.so_far() for _, block in sorted(self._blocks.items())])
        return None


class _Block:
    """One content block. A block of an unknown type is kept as its start event gave it."""

    def __init__(self, start: dict[str, Any]) -> None:
        self.start = start
        self.text: list[str] = []
        self._thinking: list[str] = []
        self._partial_json: list[str] = []
        self._citations: list[Any] = []
        self._is_read = False
        """Whether ``start["input"]`` contains all pieces of ``_partial_json``."""

    def add(self, delta: _Delta) -> None:
        match delta.type:
            case "thinking_delta":
                self._thinking.append(_needed(delta.thinking))
            case "input_json_delta":
                self._partial_json.append(_needed(delta.partial_json))
                self._is_read = False
            case "signature_delta":
                self.start["signature"] = _needed(delta.signature)  # replaces the one before, as in the official SDKs
            case "citations_delta":
                self._citations.append(_needed(delta.citation))

    @property
    def pieces(self) -> int:
        return len(self.text) + len(self._partial_json) + len(self._thinking)

    def parts(self) -> list[str]:
        """The text of every delta, of whatever kind."""
        return [*self.text, *self._partial_json, *self._thinking]

    def close(self) -> None:
        """Its stop event arrived. Input that is not JSON is no failure yet: that depends on the stop reason."""
        with contextlib.suppress(ValueError):
            self.end(may_be_cut=False)

    def end(self, *, may_be_cut: bool) -> None:
        """Parses the input: no more of it will arrive. If it was cut, its whole members are kept, as in the official SDK.

        Raises ValueError if a tool's input is not a JSON object or null; if it was cut, not the beginning of an object.
        """
        if self._is_read:
            return
        joined = "".join(self._partial_json)
        if joined.strip():
            value = (
                from_json(joined, allow_inf_nan=False, allow_partial=True)
                if may_be_cut
                else msgspec.json.decode(joined)
            )
            is_object = isinstance(value, dict) or (value is None and not may_be_cut)
            if not is_object and str(self.start.get("type")).endswith("tool_use"):
                raise ValueError("no object")
            self.start["input"] = value
        self._is_read = True

    def whole(self) -> dict[str, Any]:
        block = dict(self.start)
        if self.text:
            block["text"] = str(block.get("text") or "") + "".join(self.text)
        if self._thinking:
            block["thinking"] = str(block.get("thinking") or "") + "".join(self._thinking)
        if self._citations:
            block["citations"] = [*(block.get("citations") or []), *self._citations]
        return block

    def so_far(self) -> dict[str, Any]:
        """As ``whole``, but input that is not complete is given as it came."""
        block = self.whole()
        if not self._is_read and ("input" in block or self._partial_json):
            block.pop("input", None)
            block["partial_json"] = "".join(self._partial_json)
        return block


def _needed(value: _T | None) -> _T:
    if value is None:
        raise KeyError("a member of a delta")
    return value
