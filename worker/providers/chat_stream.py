"""Turns chat-completion chunks into the Messages events that Anthropic's API would send for the same answer. Pure.

A chat stream has no blocks and no order: text, reasoning and tool calls come as members of deltas. Here they become blocks,
one after the other. A block begins with its first piece and ends when the next block begins. ``[DONE]`` or the clean end of
the stream ends the answer, if a ``finish_reason`` came before; otherwise there is no ``message_stop``.
"""

from typing import Any, Final

import msgspec

from shared.completion import GarbledStream
from shared.event_stream import lines_of
from shared.events import delta_head, encode_delta
from worker.outcome import Refusal, UpstreamError, classify
from worker.providers.base import UpstreamEvent
from worker.providers.chat_chunk import (
    Choice,
    Chunk,
    Delta,
    MessageChoice,
    ToolCall,
    Usage,
    arguments_of,
    decode_chunk,
    has_stand_in,
    odd_chunk,
)
from worker.providers.members import MISFITS, Members, any_json, encode, is_empty
from worker.providers.refusal import page_refusal, refusal_of
from worker.providers.stream_decoder import StreamDecoder

_STOP_REASONS: Final = {
    "stop": "end_turn",  # also for a stop sequence: no chunk says which of the two it was
    "eos": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""finish_reason → stop_reason. Any other passes unchanged."""

_FAILED: Final = frozenset(("error", "abort", "insufficient_system_resource"))
"""The finish_reasons of answers that OpenRouter, SGLang, vLLM and DeepSeek gave up."""


class ChatDecoder(StreamDecoder):
    """See StreamDecoder. ``model`` is used where no chunk names one."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model
        self._has_begun = False
        self._id = ""
        self._count = 0
        """Blocks begun."""
        self._open = ""
        """The type of the open block."""
        self._delta_head = b""
        """The beginning of the open block's deltas, up to their text."""
        self._tools = _Tools()
        self._has_refused = False
        self._texts: list[str] = []
        self._is_by_message = False
        """Whether the answer began with a ``message``, not with deltas. Else a ``message`` can only repeat earlier deltas."""
        self._message = ""
        """The text of the last ``message``."""
        self._is_cumulative: bool | None = None
        """Whether each ``message`` began with the text of the one before; None before the second."""
        self._finish_reason = ""
        self._usage = Usage()

    @property
    def missing(self) -> str:
        """See StreamDecoder."""
        return "finish_reason"

    def _take(self, block: bytes) -> None:
        if block.startswith(b"data: ") and b"\n" not in block:
            self._take_line(block[6:])  # the form of nearly every chunk
            return
        if lines_of(block, b"event:")[-1:] == [b"ping"]:  # a sign of life, whatever its data
            return
        if error := lines_of(block, b"error:"):  # llama.cpp before 2025-08
            raise UpstreamError(classify(page_refusal(error[0])))
        if lines := lines_of(block):
            line = b"\n".join(lines)
            if lines_of(block, b"event:")[-1:] == [b"error"]:  # from a gateway, whose JSON may have no error member
                raise UpstreamError(classify(page_refusal(line)))
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        try:
            chunk = decode_chunk(line)
        except MISFITS:
            self._take_odd(line)
            return
        if chunk.error:
            raise UpstreamError(classify(refusal_of(chunk.error)))
        if chunk.usage:
            self._usage = chunk.usage  # each counts the whole answer so far
        if not chunk.choices:
            self._look_for_error(chunk, line)
            return
        for choice in chunk.choices:
            if not choice.index:  # of several answers, only the first
                self._take_choice(choice, line)

    def _take_odd(self, line: bytes) -> None:
        """A line that is not a valid chunk."""
        if line.strip() == b"[DONE]":
            self._finish()
            self.is_over = True
            return
        value = any_json(line, "a chunk") if line.strip() else None
        if value is not None:
            self._take_members(value)

    def _take_members(self, value: object) -> None:
        chunk = odd_chunk(value)
        if not is_empty(chunk.error):
            raise UpstreamError(classify(refusal_of(chunk.error)))
        self._usage = chunk.usage or self._usage
        choices = [choice for choice in chunk.choices or () if not choice.index]
        if choices and not self._has_begun:
            self._start(value)
        message = [choice.delta for choice in choices if isinstance(choice, MessageChoice) and choice.delta is not None]
        is_new = bool(message) and self._is_new(message)
        for choice in choices:
            if choice.delta is not None and (is_new or not isinstance(choice, MessageChoice)):
                self._take_delta(choice.delta)
            if choice.finish_reason:
                self._take_finish_reason(choice.finish_reason)

    def _is_new(self, message: list[Delta]) -> bool:
        """Whether a message adds to the answer. Raises GarbledStream if it neither does nor repeats earlier deltas."""
        text = "".join([part.content for part in message if part.content])
        if self._count and not self._is_by_message:
            has_calls = any(part.tool_calls or part.function_call for part in message)
            if (text and text.strip() != "".join(self._texts).strip()) or (has_calls and not self._tools.has_any):
                raise GarbledStream("message differs from the deltas before it")
            return False
        self._is_by_message = True
        if text:
            if self._message:
                self._is_cumulative = self._is_cumulative is not False and text.startswith(self._message)
            self._message = text
        return True

    def _take_whole(self, body: Members) -> None:
        if is_empty(body.get("choices")):
            raise GarbledStream("its JSON is no chat completion")
        self._take_members(body)

    def _look_for_error(self, chunk: Chunk, line: bytes) -> None:
        """Raises for an error in the form of older vLLM: ``{"object": "error", "message": …}``."""
        if chunk.choices is None and b'"error"' in line:
            members = any_json(line, "a chunk")
            if members.get("object") == "error":
                raise UpstreamError(classify(refusal_of(members)))

    def _take_choice(self, choice: Choice, line: bytes) -> None:
        if not self._has_begun:
            self._start(any_json(line, "a chunk"))
        if (choice.delta is None or not self._take_delta(choice.delta)) and has_stand_in(line):
            self._take_odd(line)
        if choice.finish_reason:
            self._take_finish_reason(choice.finish_reason)

    def _take_delta(self, delta: Delta) -> bool:
        """Adds a delta to the answer. Returns whether it had any content."""
        if reasoning := delta.reasoning_content or delta.reasoning:
            self._say("thinking", reasoning)
        if content := delta.content:
            self._texts.append(content)
            self._say("text", content)
        if refusal := delta.refusal:
            self._has_refused = True
            self._say("text", refusal)
        if calls := delta.tool_calls or delta.function_call:
            self._take_tool_calls(delta)
        return bool(content or reasoning or calls or refusal)

    def _take_finish_reason(self, reason: str) -> None:
        if reason in _FAILED:
            raise UpstreamError(classify(Refusal(None, "server_error", f"finish_reason {reason}")))
        self._finish_reason = self._finish_reason or reason
        self.is_answered = True

    def _start(self, chunk: Any) -> None:
        """Begins the message. All chunks repeat its id and model, which are read from the first."""
        self._has_begun = True
        chunk_id, model = chunk.get("id"), chunk.get("model")
        self._id = chunk_id if isinstance(chunk_id, str) else ""
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": model if model and isinstance(model, str) else self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage_members(),
        }
        self._add("message_start", message=message)

    def _say(self, kind: str, text: str) -> None:
        if self._open != kind:
            self._end_block()
            empty = {"type": "text", "text": ""} if kind == "text" else _EMPTY_THINKING
            self._begin_block(kind, empty, kind)
        said = (self._count - 1, text) if kind == "text" else None
        self._events.append(UpstreamEvent("content_block_delta", encode_delta(self._delta_head, text), said))

    def _begin_block(self, kind: str, empty: dict[str, Any], member: str) -> None:
        index = self._count
        self._count += 1
        self._open = kind
        self._delta_head = delta_head(index, member)
        self._add("content_block_start", index=index, content_block=empty)

    def _end_block(self) -> None:
        """Ends the open block. If it is a tool call, the calls that wait for its end come first."""
        if self._open == "tool_use":
            while self._tools.waiting:
                self._next_tool()
        self._stop_block()

    def _stop_block(self) -> None:
        if self._open:
            self._add("content_block_stop", index=self._count - 1)
            self._open = ""

    def _add(self, name: str, **members: Any) -> None:
        self._events.append(UpstreamEvent(name, encode({"type": name, **members})))

    # --- tools ---

    def _take_tool_calls(self, delta: Delta) -> None:
        if delta.function_call:
            self._take_tool_call(ToolCall(0, None, delta.function_call), [])
        named: list[_Tool] = []
        for piece in delta.tool_calls or ():
            self._take_tool_call(piece, named)

    def _take_tool_call(self, piece: ToolCall, named: list["_Tool"]) -> None:
        """``named``: the calls that this chunk has named already. A chunk names no call twice."""
        if piece.function is None and not piece.id:
            return
        if piece.index is None and (piece.odd_index or self._tools.has_several):
            self.oddity = f"tool_calls.index is {piece.odd_index or 'missing'}"
        tool = self._tools.of(piece, named)
        if piece.function and (arguments := arguments_of(piece.function)):
            self._take_arguments(tool, arguments)
        while self._tools.may_go_on(is_open=self._open == "tool_use"):
            self._next_tool()

    def _take_arguments(self, tool: "_Tool", arguments: str) -> None:
        if tool is self._tools.current and self._open == "tool_use":
            self._add_arguments(arguments)
        elif tool not in self._tools.waiting:
            raise GarbledStream("a tool call goes on after its end")
        tool.arguments.append(arguments)

    def _next_tool(self) -> None:
        self._stop_block()
        tool = self._tools.next()
        if not tool.name:
            raise GarbledStream("tool_calls.function.name is missing")
        block = {
            "type": "tool_use",
            "id": tool.id or f"call_{self._count}_{self._id}",
            "name": tool.name,
            "input": {},
        }
        self._begin_block("tool_use", block, "partial_json")
        self._add_arguments("")  # Anthropic's API begins with an empty delta
        if arguments := "".join(tool.arguments):
            self._add_arguments(arguments)

    def _add_arguments(self, arguments: str) -> None:
        self._events.append(UpstreamEvent("content_block_delta", encode_delta(self._delta_head, arguments)))

    # --- the end ---

    def _finish(self) -> None:
        if not self._finish_reason:
            return
        if self._is_cumulative:
            raise GarbledStream("each message repeats the one before it")
        self.is_over = True
        while self._tools.waiting:
            self._next_tool()
        self._stop_block()
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        self._add("message_delta", delta=delta, usage=self._usage_members())
        self._add("message_stop")
        self.has_stopped = True

    def _stop_reason(self) -> str:
        """If ``tool_choice`` names a function, OpenAI itself sends ``stop`` after a call; some servers always do."""
        reason = _STOP_REASONS.get(self._finish_reason.lower(), self._finish_reason)
        if reason == "end_turn" and self._has_refused:
            return "refusal"
        return "tool_use" if reason == "end_turn" and self._tools.current else reason

    def _usage_members(self) -> dict[str, int]:
        details = self._usage.prompt_tokens_details
        prompt_tokens = max(0, self._usage.prompt_tokens or 0)
        cached_tokens = min(prompt_tokens, max(0, (details and details.cached_tokens) or 0))
        return {
            "input_tokens": prompt_tokens - cached_tokens,
            "cache_read_input_tokens": cached_tokens,
            "output_tokens": max(0, self._usage.completion_tokens or 0),
        }


_EMPTY_THINKING: Final = {"type": "thinking", "thinking": "", "signature": ""}


class _Tool:
    def __init__(self, tool_id: str, name: str) -> None:
        self.id = tool_id
        self.name = name
        self.arguments: list[str] = []


class _Tools:
    """Finds the call of each piece. Calls wait in turn, because a block cannot begin before the one before it is whole."""

    def __init__(self) -> None:
        self.current: _Tool | None = None
        """The call whose block was begun last."""
        self.waiting: list[_Tool] = []
        self._by_index: dict[int, _Tool] = {}
        self._last: _Tool | None = None
        self._all: list[_Tool] = []
        self._repeats_names = False
        """Whether the server repeats the name with each piece: then a name begins another call only if some input comes too."""

    def of(self, piece: ToolCall, named: list[_Tool]) -> _Tool:
        """The call to which a piece belongs. A new call waits."""
        name = (piece.function and piece.function.name) or ""
        known = self._last if piece.index is None else self._by_index.get(piece.index)
        if not name and not piece.id:
            known = self._continued(known, piece.index, piece.odd_index)
        if known is None or self._is_another(known, piece, name, is_named=known in named):
            if piece.odd_index and not name:
                raise GarbledStream(f"tool_calls.index is {piece.odd_index}")
            known = _Tool(piece.id or "", name)
            self.waiting.append(known)
            self._all.append(known)
        known.id = known.id or piece.id or ""
        known.name = known.name or name
        self._last = known
        if name:
            named.append(known)
        if piece.index is not None:
            self._by_index[piece.index] = known
        return known

    def _continued(self, known: _Tool | None, index: int | None, odd_index: str) -> _Tool | None:
        """The call that a piece without a name and an id continues. Such a piece begins no call."""
        if known is None:
            begun_without = [tool for tool in self._all if tool not in self._by_index.values()]
            if len(begun_without) == 1:
                return begun_without[0]
        if index is None and sum(not _is_whole(tool.arguments) for tool in self._all) > 1:
            raise GarbledStream(f"tool_calls.index is {odd_index or 'missing'}, and more than one call is unfinished")
        return known

    def _is_another(self, known: _Tool, piece: ToolCall, name: str, *, is_named: bool) -> bool:
        """Whether a piece begins another call than ``known``. A name begins a call. But some servers give every call the
        index 0 or none, and some give each piece its own id or none: then the next call begins when the input of this one is
        whole.
        """
        if not name or not known.name:
            return bool(name and piece.index is None and piece.id and known.id and piece.id != known.id)
        if piece.id and known.id:
            return piece.id != known.id
        if name != known.name or is_named:
            return True
        if not _is_whole(known.arguments):
            self._repeats_names = True
            return False
        return not self._repeats_names or bool(piece.function and arguments_of(piece.function))

    @property
    def has_several(self) -> bool:
        """Whether more than one call began: a piece without an index may be of any."""
        return len(self._all) > 1

    @property
    def has_any(self) -> bool:
        """Whether there is any call."""
        return self._last is not None

    def may_go_on(self, *, is_open: bool) -> bool:
        """Whether the next waiting call can begin: it has a name, and the open one is whole."""
        if not self.waiting or not self.waiting[0].name:
            return False
        return not is_open or self.current is None or _is_whole(self.current.arguments)

    def next(self) -> _Tool:
        """Takes the next waiting call, which begins now."""
        self.current = self.waiting.pop(0)
        return self.current


def _is_whole(pieces: list[str]) -> bool:
    if not pieces or not pieces[-1].rstrip().endswith("}"):
        return False  # without this check, each piece would cost a decoding of all of them
    try:
        msgspec.json.decode("".join(pieces), type=dict[str, msgspec.Raw])
    except MISFITS:
        return False
    return True
