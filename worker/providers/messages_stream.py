"""Turns what an upstream sends into a valid Messages stream. Pure.

Valid events pass byte for byte. Odd events with a clear meaning are made valid, so that the log, every follower and the
official SDKs get the same answer: blocks are numbered in the order in which they begin, content at the beginning of a block
becomes its first delta, and missing members that nobody needs are filled in. If the text, a tool's input or the ending is in
doubt, the call fails (docs/decisions/0012).
"""

import re
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from shared.completion import GarbledStream
from shared.event_stream import lines_of
from shared.events import DELTA_TYPES, delta_head, encode_delta
from worker.outcome import UpstreamError, classify
from worker.providers.base import UpstreamEvent
from worker.providers.members import (
    MISFITS,
    Members,
    any_json,
    encode,
    exact_json,
    is_empty,
    kind_of,
    number_of,
    object_in,
    odd,
    text_in,
    value_and_json,
    with_members,
)
from worker.providers.refusal import is_refusal, page_refusal, refusal_of
from worker.providers.stream_decoder import StreamDecoder


class _TextDelta(msgspec.Struct, tag_field="type", tag="text_delta", forbid_unknown_fields=True, gc=False):
    text: str


class _ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta", forbid_unknown_fields=True, gc=False):
    thinking: str


class _InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta", forbid_unknown_fields=True, gc=False):
    partial_json: str


class _ContentBlockDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The form of nearly every event. An event that does not fit is read member by member. So is one with other members:
    they are passed on, and only what was decoded is known to be JSON.
    """

    type: Literal["content_block_delta"]
    index: int
    delta: _TextDelta | _ThinkingDelta | _InputJsonDelta


_decode_delta: Final = msgspec.json.Decoder(_ContentBlockDelta).decode
_DELTA: Final = b"event: content_block_delta\ndata: "

_MEMBERS: Final = {"text": "text", "thinking": "thinking"}
"""Block type → the member of its deltas that extends it. Of all other types, only tool uses grow."""
_INPUT: Final = "partial_json"
_ADDED: Final = {"signature": ("signature_delta", "thinking"), "citation": ("citations_delta", "text")}
"""What else is added to a block: member → delta type, block type."""
_KNOWN_DELTAS: Final = frozenset((*DELTA_TYPES.values(), *(kind for kind, _ in _ADDED.values())))
_COUNTS: Final = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_END: Final = ("stop_reason", "stop_sequence", "stop_details", "container")
"""The members that the end of a message has."""
_KINDS: Final = frozenset({*_MEMBERS, "tool_use", "server_tool_use", "mcp_tool_use", "redacted_thinking"})
"""Types of blocks that a message may name."""
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class _Block:
    """A block that is open."""

    __slots__ = ("delta", "has_grown", "head", "initial", "kind", "member", "number")

    def __init__(self, number: int, kind: str) -> None:
        self.number = number
        """Its index in the stream that we make."""
        self.kind = kind
        self.member = _MEMBERS.get(kind, _INPUT)
        self.delta: type[object] = {"text": _TextDelta, "thinking": _ThinkingDelta}.get(self.member, _InputJsonDelta)
        self.head = delta_head(number, self.member)
        self.initial: Members | None = None
        """A tool's input that came with the block's beginning. It is added at the block's end, unless it comes in pieces."""
        self.has_grown = False


class MessagesDecoder(StreamDecoder):
    """See StreamDecoder. ``model`` is used where the stream names none."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model
        self._has_begun = False
        self._id = ""
        self._open: dict[int, _Block] = {}
        """The open blocks by the upstream's index."""
        self._count = 0
        """Blocks begun."""
        self._came_whole: set[int] = set()
        """The indices of blocks that came inside ``message_start``."""
        self._texting = 0
        """The number of the block whose text came last."""
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None
        self._said_at_start: str | None = None
        """A stop reason in ``message_start``. It counts only if the stream ends with ``message_stop``."""
        self._output_tokens = 0
        self._readers: dict[str, Callable[[Members, bytes], None]] = {
            "message_start": self._message_start,
            "content_block_start": self._content_block_start,
            "content_block_delta": self._content_block_delta,
            "content_block_stop": self._content_block_stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
            "error": _refuse,
        }

    def _take(self, block: bytes) -> None:
        if block.startswith(_DELTA):
            data = block[33:]
            try:
                event = _decode_delta(data)
                own = self._open[event.index]
            except (*MISFITS, KeyError):
                self._take_odd(block)
                return
            delta = event.delta
            if type(delta) is not own.delta or own.number != event.index or b"\n" in data:
                self._take_odd(block)
            elif type(delta) is _TextDelta:
                if own.number != self._texting:
                    self._text_in(own)
                self._events.append(UpstreamEvent("content_block_delta", data, (own.number, delta.text)))
            else:
                own.has_grown = True
                self._events.append(UpstreamEvent("content_block_delta", data))
        else:
            self._take_odd(block)

    def _take_odd(self, block: bytes) -> None:
        """Any event, in any form. The ``type`` in its data says what it is; if that is unknown, the event's name does."""
        lines = lines_of(block)
        data = b"\n".join(lines)
        name = b"".join(lines_of(block, b"event:")[-1:]).strip().decode(errors="replace")
        if name == "error" and lines:
            raise UpstreamError(classify(page_refusal(data)))
        if data.strip() in (b"", b"[DONE]"):
            return
        try:
            event, data = value_and_json(data, f"the data of {name}" if name in self._readers else "an event")
        except GarbledStream:
            if name and name not in self._readers:
                return
            raise
        if event is None:
            return
        if not isinstance(event, dict):
            if name and name not in self._readers:
                return
            raise odd(name or "an event", event)
        said = event.get("type")
        if isinstance(said, str) and said in self._readers:
            name = said
        if reader := self._readers.get(name):
            reader(event, data)
        elif not isinstance(said, str) and is_refusal(event):
            _refuse(event, data)  # an error of a gateway
        else:
            self._pass(name or said, event, data)

    def _pass(self, name: object, event: Members, data: bytes) -> None:
        """Passes an unknown event on. Its name must be a plain word: the log, the channel and the SSE frames have it as it is."""
        if isinstance(name, str) and _WORD.fullmatch(name):
            is_typed = isinstance(event.get("type"), str)  # the official SDK crashes without a type
            self._emit(name, event if is_typed else {**event, "type": name}, event, data)

    def _emit(self, name: str, normal: Members, event: Members, data: bytes) -> None:
        """Adds an event: the bytes as they came, if nothing had to be changed."""
        self._events.append(UpstreamEvent(name, data if normal is event else encode(normal)))

    # --- the message ---

    def _message_start(self, event: Members, data: bytes) -> None:
        message = event.get("message")
        if not isinstance(message, dict):
            message = {}
        if self._count:
            raise GarbledStream("a second message_start")  # followers would see both beginnings, the result one
        if self._has_begun:
            return
        self._begin(message, event, data)
        self._take_blocks(message.get("content"))

    def _begin(self, message: Members, event: Members, data: bytes) -> None:
        self._has_begun = True
        self._id = _name_of(message.get("id"))
        usage = self._usage_of(message.get("usage"), "input_tokens", "output_tokens")
        if not is_empty(reason := message.get("stop_reason")):
            self._said_at_start = reason if isinstance(reason, str) else None
        normal = with_members(
            message,
            id=self._id,
            type="message",
            role="assistant",
            model=_name_of(message.get("model")) or self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
        )
        self._emit("message_start", with_members(event, type="message_start", message=normal), event, data)

    def _message_delta(self, event: Members, data: bytes) -> None:
        self._must_have_begun("message_delta")
        delta = object_in(event, "delta", "message_delta.delta")
        self._stop_reason = text_in(delta, "stop_reason", "message_delta.delta.stop_reason") or self._stop_reason
        sequence = delta.get("stop_sequence")
        self._stop_sequence = sequence if isinstance(sequence, str) else self._stop_sequence
        normal = with_members(
            event,
            type="message_delta",
            delta=with_members(delta, stop_reason=self._stop_reason, stop_sequence=self._stop_sequence),
            usage=self._usage_of(event.get("usage"), "output_tokens"),
        )
        self._emit("message_delta", normal, event, data)
        self._look_whether_answered()

    def _message_stop(self, event: Members, data: bytes) -> None:
        self._must_have_begun("message_stop")
        for block in [*self._open.values()]:
            self._stop(block)
        self._open.clear()
        if self._stop_reason is None:
            if self._said_at_start is None:
                raise GarbledStream("message_stop came without a stop_reason")
            end: Members = {"delta": {"stop_reason": self._said_at_start}}
            self._message_delta(end, b"")
        self.has_stopped = True
        self._emit("message_stop", with_members(event, type="message_stop"), event, data)
        self.is_over = True

    @property
    def missing(self) -> str:
        """See StreamDecoder."""
        return "content_block_stop" if self._open and self._stop_reason is not None else "stop_reason"

    def _finish(self) -> None:
        if self.is_answered:
            self._message_stop({}, b"")

    def _take_whole(self, body: Members) -> None:
        if body.get("type") != "message" and not isinstance(body.get("content"), list):
            raise GarbledStream("its JSON is no message")
        self._message_start({"message": {**body, "stop_reason": None}}, b"")
        end = {name: body[name] for name in _END if name in body}
        self._message_delta({"delta": end, "usage": body.get("usage")}, b"")

    def _must_have_begun(self, name: str) -> None:
        if not self._has_begun:
            raise GarbledStream(f"{name} came before message_start")

    def _look_whether_answered(self) -> None:
        self.is_answered = self._stop_reason is not None and not self._open

    def _usage_of(self, reported: object, *needed: str) -> Members:
        """The usage with its counts as numbers. A count that is no number is left out; those in ``needed`` are filled in."""
        usage: Members = reported if isinstance(reported, dict) else {}
        for name in _COUNTS:
            if (value := usage.get(name)) is not None and type(value) is not int:
                number = number_of(value)
                usage = {key: count for key, count in usage.items() if key != name}
                if number is not None:
                    usage[name] = number
        if isinstance(count := usage.get("output_tokens"), int):
            self._output_tokens = count
        known = {"output_tokens": self._output_tokens}
        return with_members(
            usage, **{name: known.get(name, 0) for name in needed if not isinstance(usage.get(name), int)}
        )

    # --- its blocks ---

    def _take_blocks(self, content: object) -> None:
        """Takes blocks that came whole, inside the message itself."""
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        elif is_empty(content):
            return
        elif not isinstance(content, list):
            raise odd("message.content", content)
        for place, block in enumerate(content):
            if isinstance(block, dict) and block.get("type") == "text" and is_empty(block.get("text")):
                continue  # a placeholder for a block that comes later
            if not isinstance(block, dict):
                raise odd("message.content[]", block)
            self._content_block_start({"index": place, "content_block": block}, b"")
            self._content_block_stop({"index": place}, b"")
            self._came_whole.add(place)

    def _content_block_start(self, event: Members, data: bytes) -> None:
        if not self._has_begun:
            self._begin({}, {}, b"")
        block = object_in(event, "content_block", "content_block_start.content_block")
        kind = text_in(block, "type", "content_block.type")
        if not kind:
            raise odd("content_block.type", None)
        index = number_of(event.get("index"))
        if index is None:
            self._note_odd_index(event)
            index = max(self._open, default=self._count - 1) + 1
        if index in self._open or index in self._came_whole:
            raise GarbledStream(f"block {index} began twice")
        own = _Block(self._count, kind)
        normal, first = self._started(own, block)
        self._open[index] = own
        self._count += 1
        self.is_answered = False
        normal = with_members(event, type="content_block_start", index=own.number, content_block=normal)
        self._emit("content_block_start", normal, event, data)
        if first:
            self._grow(own, first)

    def _started(self, own: _Block, block: Members) -> tuple[Members, str]:
        """The block's beginning without its content, and that content. A block of an unknown type is left as it is."""
        match own.kind:
            case "text" | "thinking":
                first = text_in(block, own.kind, f"content_block.{own.kind}")
                block = with_members(block, **{own.kind: ""})
                if own.kind == "thinking":
                    return with_members(block, signature=_name_of(block.get("signature"))), first
                citations = block.get("citations")
                return block if citations is None or isinstance(citations, list) else {
                    **block,
                    "citations": None,
                }, first
            case "tool_use":
                name = text_in(block, "name", "content_block.name")
                if not name:
                    raise odd("content_block.name", None)
                own.initial = _input_of(block.get("input"))
                made = f"toolu_{self._count}_{self._id}"
                return with_members(block, id=_name_of(block.get("id")) or made, name=name, input={}), ""
            case _:
                return block, ""

    def _content_block_delta(self, event: Members, data: bytes) -> None:
        delta = object_in(event, "delta", "content_block_delta.delta")
        if all(is_empty(value) for name, value in delta.items() if name != "type"):
            return
        _, own = self._block_of(event)
        if own is None:
            raise GarbledStream("content_block_delta is of no block that is open")
        said = delta.get("type")
        is_new = isinstance(said, str) and said not in _KNOWN_DELTAS
        if is_new and own.kind not in _MEMBERS and own.kind != "tool_use" and is_empty(delta.get(_INPUT)):
            self._emit_delta(own, delta, event, data)
            return
        is_emitted = False
        for member in DELTA_TYPES:
            value = delta.get(member)
            if is_empty(value):
                continue
            if member != own.member:
                raise GarbledStream(f"delta.{member} came in a block whose type is {_kind_named(own.kind)}")
            self._grow(own, _piece_of(member, value))
            is_emitted = True
        for member, (kind, block_kind) in _ADDED.items():
            value = delta.get(member)
            is_good = isinstance(value, str) if member == "signature" else isinstance(value, dict)
            if is_good and own.kind == block_kind:
                added = {"type": kind, member: value}
                self._emit_delta(own, delta if delta == added else added, event, data)
                is_emitted = True
        if not is_emitted and is_new:
            self._emit_delta(own, delta, event, data)

    def _emit_delta(self, own: _Block, delta: Members, event: Members, data: bytes) -> None:
        normal = with_members(event, type="content_block_delta", index=own.number, delta=delta)
        self._emit("content_block_delta", normal, event, data)

    def _block_of(self, event: Members) -> tuple[int | None, _Block | None]:
        """The index and the open block of an event. If it has no index, that is the only open block."""
        index = number_of(event.get("index"))
        if index is None and len(self._open) == 1:
            self._note_odd_index(event)
            (index,) = self._open
        return index, None if index is None else self._open.get(index)

    def _note_odd_index(self, event: Members) -> None:
        if not is_empty(index := event.get("index")):
            self.oddity = f"the index of a block is {kind_of(index)}"

    def _grow(self, own: _Block, piece: str) -> None:
        text = None
        if own.kind == "text":
            self._text_in(own)
            text = (own.number, piece)
        own.has_grown = True
        self._events.append(UpstreamEvent("content_block_delta", encode_delta(own.head, piece), text))

    def _text_in(self, own: _Block) -> None:
        """Text must come in the order of its blocks: some followers read only the text, and the result joins it by block."""
        if own.number < self._texting:
            raise GarbledStream("text goes on in an earlier block")
        self._texting = own.number

    def _content_block_stop(self, event: Members, data: bytes) -> None:
        index, own = self._block_of(event)
        if index is None or own is None:
            return
        del self._open[index]
        self._stop(own, event, data)
        self._look_whether_answered()

    def _stop(self, own: _Block, event: Members | None = None, data: bytes = b"") -> None:
        if own.initial and not own.has_grown:
            self._grow(own, exact_json(own.initial, "content_block.input"))
        event = {} if event is None else event
        self._emit("content_block_stop", with_members(event, type="content_block_stop", index=own.number), event, data)


def _refuse(event: Members, _: bytes) -> None:
    raise UpstreamError(classify(refusal_of(event)))


def _name_of(value: object) -> str:
    """An id or a name, as a text. A number is accepted too."""
    return value if isinstance(value, str) else str(value) if type(value) is int else ""


def _kind_named(kind: str) -> str:
    """The block's type for a message. An unknown type counts as content, which a message must not quote."""
    return kind if kind in _KINDS else "an unknown text"


def _piece_of(member: str, value: object) -> str:
    """A piece of text. An input may also come whole, as an object."""
    if isinstance(value, str):
        return value
    if member == _INPUT and isinstance(value, dict):
        return exact_json(value, "content_block_delta.delta.partial_json")
    raise odd(f"content_block_delta.delta.{member}", value)


def _input_of(value: Any) -> Members | None:
    """The input that a block begins with: an object, or a text that holds one."""
    if is_empty(value):
        return None
    if isinstance(value, str):
        value = any_json(value.encode(), "content_block.input")
    if not isinstance(value, dict):
        raise odd("content_block.input", value)
    return value
