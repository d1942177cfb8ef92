"""Decodes the needed members of a chunk of a chat stream. Pure.

Nearly every chunk is valid and decoded by its type; any other is read member by member, as docs/decisions/0012 says.
"""

from typing import Any, Final

import msgspec

from shared.completion import GarbledStream
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
)


class Function(msgspec.Struct, gc=False):
    """The function that a tool call calls."""

    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"null")
    """A piece of a text with JSON; some servers send the object itself."""


class ToolCall(msgspec.Struct, gc=False):
    """A piece of a tool call."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    odd_index: str = ""
    """The JSON type of an invalid index."""


class Delta(msgspec.Struct, gc=False):
    """A piece of the answer."""

    content: str | None = None
    reasoning_content: str | None = None
    """The name used by DeepSeek, llama.cpp and older vLLM."""
    reasoning: str | None = None
    """The name used by Ollama, OpenRouter and vLLM. Some servers send both, with the same text."""
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    """The older form of a call, from before tools."""


class Choice(msgspec.Struct, gc=False):
    """A piece of one of several answers."""

    index: int | None = 0
    delta: Delta | None = None
    finish_reason: str | None = None


class MessageChoice(Choice, gc=False):
    """A choice with a message or a text instead of a delta."""


class InputDetails(msgspec.Struct, gc=False):
    """Details of the input's tokens."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """The usage of the whole answer so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: InputDetails | None = None


class Chunk(msgspec.Struct, gc=False):
    """Only the needed members, because one is decoded for every token."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


decode_chunk: Final = msgspec.json.Decoder(Chunk).decode
"""Decodes a valid chunk. Raises MISFITS."""


def has_stand_in(line: bytes) -> bool:
    """Whether the chunk may have content outside of a delta."""
    return b'"message"' in line or b'"text"' in line


def odd_chunk(value: object) -> Chunk:
    """Reads an invalid chunk. Raises GarbledStream if a needed member is unclear."""
    if not isinstance(value, dict):
        raise odd("a chunk", value)
    choices = value.get("choices")
    if is_empty(choices):
        choices = []
    elif not isinstance(choices, list):
        raise odd("choices", choices)
    return Chunk(
        [part for choice in choices if not is_empty(choice) for part in _choices(choice)],
        _usage(value.get("usage")),
        value.get("error"),
    )


def arguments_of(function: Function) -> str:
    """A piece of a call's input, as JSON. Raises GarbledStream."""
    raw = bytes(function.arguments)
    try:
        if raw.startswith(b'"'):
            return msgspec.json.decode(raw, type=str)
        if raw.startswith(b"{"):
            return raw.decode()
    except MISFITS as error:
        raise GarbledStream("tool_calls.function.arguments is not JSON") from error
    if is_empty(value := any_json(raw, "tool_calls.function.arguments")):
        return ""
    raise odd("tool_calls.function.arguments", value)


def _choices(choice: object) -> list[Choice]:
    """One choice for each part of its content, in order."""
    if not isinstance(choice, dict):
        raise odd("choices[]", choice)
    index = number_of(choice.get("index")) or 0
    kind = Choice
    deltas = _deltas(object_in(choice, "delta", "delta"))
    if not deltas:  # a server that sends messages in chunks, or the older completions API
        kind = MessageChoice
        deltas = _deltas(object_in(choice, "message", "message")) or _deltas({"content": choice.get("text")})
    reason = None if choice.get("finish_reason") is False else text_in(choice, "finish_reason", "finish_reason")
    return [*[kind(index, delta) for delta in deltas], Choice(index, None, reason or None)]


def _deltas(delta: Members) -> list[Delta]:
    """The content of a delta, part by part."""
    reasoning = _reasoning(delta)
    calls = Delta(tool_calls=_tool_calls(delta.get("tool_calls")), function_call=_function(delta, "function_call"))
    return [
        *([Delta(reasoning=reasoning)] if reasoning else []),
        *_parts(delta.get("content"), "content", is_thinking=False),
        *[Delta(refusal=part.content) for part in _parts(delta.get("refusal"), "refusal", is_thinking=False)],
        *([calls] if calls.tool_calls or calls.function_call else []),
    ]


def _reasoning(delta: Members) -> str:
    """The first valid one of two members with the same meaning."""
    failure: GarbledStream | None = None
    for member in ("reasoning_content", "reasoning"):
        try:
            said = "".join(part.reasoning or "" for part in _parts(delta.get(member), member, is_thinking=True))
        except GarbledStream as error:
            failure = failure or error
        else:
            if said:
                return said
    if failure is not None:
        raise failure
    return ""


def _parts(value: object, name: str, *, is_thinking: bool) -> list[Delta]:
    """A text, or Mistral's list of parts with text or thinking. A part without a text has no content."""
    if is_empty(value):
        return []
    match value:
        case str():
            return [Delta(reasoning=value) if is_thinking else Delta(content=value)]
        case list():
            return [delta for part in value for delta in _parts(part, f"{name}[]", is_thinking=is_thinking)]
        case dict():
            kind = value.get("type")
            is_thinking = is_thinking or (isinstance(kind, str) and kind.startswith(("thinking", "reasoning")))
            inner = [value.get(member) for member in ("thinking", "reasoning", "text", "content", "value")]
            said = next((member for member in inner if not is_empty(member)), None)
            if said is None and kind is None and value:
                raise odd(name, value)
            return _parts(said, name, is_thinking=is_thinking)
        case _:
            raise odd(name, value)


_CALL_MEMBERS: Final = frozenset({"index", "id", "type", "function"})


def _tool_calls(value: object) -> list[ToolCall] | None:
    if is_empty(value):
        return None
    pieces = value if isinstance(value, list) else [value]
    if isinstance(value, dict) and not value.keys() & _CALL_MEMBERS:
        raise odd("tool_calls", value)
    return [_tool_call(piece) for piece in pieces if not is_empty(piece)]


def _tool_call(piece: object) -> ToolCall:
    if not isinstance(piece, dict):
        raise odd("tool_calls[]", piece)
    tool_id, index = piece.get("id"), piece.get("index")
    number = number_of(index)
    return ToolCall(
        number,
        tool_id if isinstance(tool_id, str) else str(tool_id) if type(tool_id) is int else None,
        _function(piece, "function"),
        "" if number is not None or is_empty(index) else kind_of(index),
    )


def _function(members: Members, member: str) -> Function | None:
    function = object_in(members, member, f"tool_calls.{member}")
    if not function:
        return None
    name = text_in(function, "name", "tool_calls.function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = exact_json(arguments, "tool_calls.function.arguments")
    elif not isinstance(arguments, str) and not is_empty(arguments):
        raise odd("tool_calls.function.arguments", arguments)
    return Function(name, msgspec.Raw(encode(arguments or "")))


def _usage(value: object) -> Usage | None:
    """Invalid counts are left out."""
    if not isinstance(value, dict):
        return None
    prompt, completion = number_of(value.get("prompt_tokens")), number_of(value.get("completion_tokens"))
    details = value.get("prompt_tokens_details")
    cached = number_of(details.get("cached_tokens")) if isinstance(details, dict) else None
    return None if prompt is completion is None else Usage(prompt, completion, InputDetails(cached))
