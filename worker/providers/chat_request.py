"""Turns a Messages request into a chat-completions request. Pure.

Members that both APIs have are renamed, members that only Messages has are left out, and all others pass unchanged: a
server's own sampling parameters, ``response_format``, ``seed``. What would change the answer if it were left out (a
document, a tool that Anthropic runs) is refused before any call. docs/decisions has the reasons.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from worker.outcome import Refusal, UpstreamError, classify

_LEFT_OUT: Final = (
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "service_tier",  # the two APIs mean different tiers by it
    "speed",
    "stream",
    "stream_options",
    "thinking",
    "top_k",
)
"""Members that have no counterpart, or that we set ourselves."""

_RENAMED: Final = {"temperature": "temperature", "top_p": "top_p", "stop_sequences": "stop"}

_NOT_SAID: Final = ("thinking", "redacted_thinking")
"""Blocks of an earlier answer that are left out: chat messages have no place for them, and another model cannot use them."""

_NULL: Final = msgspec.Raw(b"null")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def chat_request(request: bytes, *, model: str, takes_max_completion_tokens: bool) -> bytes:
    """The body of a streaming request. For what chat completions cannot express, raises a final UpstreamError without content."""
    members = _decoded("the request", msgspec.Raw(request), dict[str, msgspec.Raw])
    for name in _LEFT_OUT:
        members.pop(name, None)
    taken = _Members(members)
    body: dict[str, Any] = {"model": model, "messages": [*_system(taken), *_messages(taken)]}
    body |= _max_tokens(taken, takes_max_completion_tokens=takes_max_completion_tokens)
    body |= {
        theirs: value for ours, theirs in _RENAMED.items() if (value := taken.pop(ours, msgspec.Raw, _NULL)) != _NULL
    }
    body |= _tools(taken)
    body |= _user(taken)
    body |= _response_format(taken)
    if taken.pop("mcp_servers", list[msgspec.Raw], []):
        raise _cannot_say("mcp_servers", "MCP servers", "")
    members.pop("model", None)
    return msgspec.json.encode({**body, **members, "stream": True, "stream_options": {"include_usage": True}})


_T = TypeVar("_T")


class _Members:
    """The request's members. Those that are popped are not passed on."""

    def __init__(self, members: dict[str, msgspec.Raw]) -> None:
        self._members = members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def pop(self, name: str, kind: type[_T], default: _T) -> _T:
        """Removes a member and decodes it; ``default`` if it is absent or null."""
        value = self._members.pop(name, _NULL)
        return default if value == _NULL else _decoded(name, value, kind)


def _decoded(name: str, value: msgspec.Raw, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _refused(f"{name}: {error}") from None  # msgspec names types and places, never values


def _refused(message: str) -> UpstreamError:
    return UpstreamError(classify(Refusal(400, "invalid_request_error", message)), was_asked=False)


def _cannot_say(where: str, what: str, kind: str) -> UpstreamError:
    name = f" {kind}" if _NAME.fullmatch(kind) else ""
    return _refused(f"{where}: chat completions have no {what}{name}")


# --- messages --------------------------------------------------------------------------------------------------------


class _Source(msgspec.Struct):
    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""


class _Block(msgspec.Struct):
    """Any content block: those of its members that chat completions can express."""

    type: str
    text: str = ""
    source: _Source | None = None
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")
    tool_use_id: str = ""
    content: msgspec.Raw = _NULL
    is_error: bool | None = False


_Content = str | list[_Block]


class _Message(msgspec.Struct):
    role: str
    content: _Content


_ChatMessage = dict[str, Any]
_Part = dict[str, Any]


def _system(members: _Members) -> Iterator[_ChatMessage]:
    system: _Content = members.pop("system", _Content, "")  # type: ignore[arg-type]
    if system:
        yield {"role": "system", "content": _said("system", system)}


def _messages(members: _Members) -> Iterator[_ChatMessage]:
    for message in members.pop("messages", list[_Message], []):
        match message:
            case _Message("user" | "assistant" | "system", str(text)):
                yield {"role": message.role, "content": text}
            case _Message("user", list(blocks)):
                yield from _user_messages(blocks)
            case _Message("assistant", list(blocks)):
                yield from _assistant_messages(blocks)
            case _Message("system", content):
                yield {"role": "system", "content": _said("messages", content)}
            case _:
                raise _cannot_say("messages", "role", message.role)


def _user_messages(blocks: list[_Block]) -> Iterator[_ChatMessage]:
    """Tool results come first, since they must directly follow the calls. The images in them follow after all results."""
    pictures: list[_Part] = []
    for block in blocks:
        if block.type == "tool_result":
            content: _Content = _decoded("messages", block.content, str | list[_Block] | None) or ""  # type: ignore[arg-type]
            inner = [_Block("text", content)] if isinstance(content, str) else content
            text = "\n".join(part.text for part in inner if part.type == "text")
            images = [_part("messages", part) for part in inner if part.type != "text"]
            if images:
                pictures += [{"type": "text", "text": f"From the tool call {block.tool_use_id}:"}, *images]
                text = text or "The result is an image. It follows."
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "content": f"Error: {text}" if block.is_error else text,  # there is no member for an error
            }
    rest = [block for block in blocks if block.type != "tool_result"]
    if pictures:
        yield {"role": "user", "content": [*pictures, *(_part("messages", block) for block in rest)]}
    elif rest:
        yield {"role": "user", "content": _said("messages", rest)}


def _assistant_messages(blocks: list[_Block]) -> Iterator[_ChatMessage]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        match block.type:
            case "text":
                texts.append(block.text)
            case "tool_use":
                function = {"name": block.name, "arguments": bytes(block.input).decode()}
                calls.append({"id": block.id, "type": "function", "function": function})
            case kind if kind not in _NOT_SAID:
                raise _cannot_say("messages", "block of type", kind)
    text = "".join(texts)  # citations cut one sentence into many blocks
    if calls:
        yield {"role": "assistant", "content": text or None, "tool_calls": calls}
    elif text:
        yield {"role": "assistant", "content": text}


def _said(where: str, content: _Content) -> str | list[_Part]:
    """Joins texts into one, each on its own lines, because some servers do not know parts."""
    if isinstance(content, str):
        return content
    if all(block.type == "text" for block in content):
        return "\n".join(block.text for block in content)
    return [_part(where, block) for block in content]


def _part(where: str, block: _Block) -> _Part:
    match block:
        case _Block("text"):
            return {"type": "text", "text": block.text}
        case _Block("image", source=_Source("base64") as source):
            return {"type": "image_url", "image_url": {"url": f"data:{source.media_type};base64,{source.data}"}}
        case _Block("image", source=_Source("url") as source):
            return {"type": "image_url", "image_url": {"url": source.url}}
        case _Block("image", source=source):
            raise _cannot_say(where, "image with a source of type", source.type if source else "")
        case _:
            raise _cannot_say(where, "block of type", block.type)


# --- the other members -----------------------------------------------------------------------------------------------


def _max_tokens(members: _Members, *, takes_max_completion_tokens: bool) -> dict[str, Any]:
    """OpenAI's newer models refuse ``max_tokens``; some other servers know only that, and silently ignore
    ``max_completion_tokens`` (abetlen/llama-cpp-python#1907). A caller's own ``max_completion_tokens`` wins.
    """
    most = members.pop("max_tokens", msgspec.Raw, _NULL)
    if most == _NULL or "max_completion_tokens" in members:
        return {}
    return {"max_completion_tokens" if takes_max_completion_tokens else "max_tokens": most}


class _Tool(msgspec.Struct):
    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw(b'{"type":"object","properties":{}}')
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


_TOOL_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def _tools(members: _Members) -> dict[str, Any]:
    tools = [_chat_tool(tool) for tool in members.pop("tools", list[_Tool], [])]
    choice = members.pop("tool_choice", _ToolChoice, _ToolChoice("auto"))
    if not tools:
        return {}  # servers refuse a choice without tools
    said: dict[str, Any] = {"tools": tools}
    if choice.type == "tool":
        said["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.type not in _TOOL_CHOICES:
        raise _cannot_say("tool_choice", "choice", choice.type)
    elif choice.type != "auto":
        said["tool_choice"] = _TOOL_CHOICES[choice.type]
    if choice.disable_parallel_tool_use:
        said["parallel_tool_calls"] = False
    return said


def _chat_tool(tool: _Tool) -> dict[str, Any]:
    """Refuses a tool that Anthropic runs. If it were left out, no check would notice, and the model would make up an answer."""
    if tool.type not in {None, "custom"}:
        raise _cannot_say("tools", "tool of type", tool.type or "")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    function |= {name: value for name in ("description", "strict") if (value := getattr(tool, name)) is not None}
    return {"type": "function", "function": function}


class _Metadata(msgspec.Struct):
    user_id: str | None = None


def _user(members: _Members) -> dict[str, Any]:
    user_id = members.pop("metadata", _Metadata, _Metadata()).user_id
    return {} if user_id is None else {"user": user_id}


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = msgspec.Raw(b"{}")


class _OutputConfig(msgspec.Struct):
    format: _Format | None = None


def _response_format(members: _Members) -> dict[str, Any]:
    """A caller's own ``response_format`` wins."""
    wanted = members.pop("output_config", _OutputConfig, _OutputConfig()).format
    if wanted is None or "response_format" in members:
        return {}
    if wanted.type != "json_schema":
        raise _cannot_say("output_config", "format", wanted.type)
    schema = {"name": "answer", "schema": wanted.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
