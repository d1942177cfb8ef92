"""Parses a Chat Completions request and checks it as OpenAI does, with error messages like OpenAI's.

Only what the simulator needs is kept. Unknown members are refused too: this shows when a client passes members to the
upstream that are its own or another server's.
"""

import json
from dataclasses import dataclass

from simulator.request import Refused, Request, input_tokens, name_or_default

MEMBERS = frozenset(
    (
        "model",
        "messages",
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    )
)

PARTS = {
    "system": ("text",),
    "developer": ("text",),
    "user": ("text", "image_url", "input_audio", "file"),
    "assistant": ("text", "refusal"),
    "tool": ("text",),
}
"""By role, the types that a content part may have."""

NO_LIMIT_TOKENS = 1_000_000_000
"""The limit of a request that names no limit."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    texts: tuple[str, ...]
    others: int
    """The number of parts that are not text."""
    calls: tuple[str, ...] = ()
    """The ids of its tool calls."""
    tool_call_id: str | None = None
    """Of a tool's message: the call whose result it is."""


def parse_chat_request(body: bytes) -> Request:
    """Raises Refused."""
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise Refused(
            "We could not parse the JSON body of your request. The OpenAI API expects a JSON payload, but what was "
            "sent was not valid JSON."
        )
    unknown = [name for name in members if name not in MEMBERS]
    if unknown:
        raise Refused(f"Unrecognized request argument{'s' * (len(unknown) > 1)} supplied: {', '.join(unknown)}")
    if not members.get("model"):
        raise Refused("you must provide a model parameter")
    stream = _flag(members.get("stream"), "stream")
    messages = _messages(members.get("messages"))
    return Request(
        model=_string(members["model"], "model"),
        max_tokens=_max_tokens(members),
        stream=stream,
        usage_wanted=_usage_wanted(members.get("stream_options"), stream=stream),
        prompt=next((" ".join(message.texts) for message in reversed(messages) if message.role == "user"), ""),
        input_tokens=input_tokens(
            [text for message in messages for text in message.texts],
            sum(message.others for message in messages),
            members.get("tools"),
        ),
        tool=_first_tool(members.get("tools")),
        has_parts=any(isinstance(message.get("content"), list) for message in members["messages"]),
    )


def _max_tokens(members: dict[str, object]) -> int:
    given = {name: members[name] for name in ("max_tokens", "max_completion_tokens") if members.get(name) is not None}
    if len(given) == 2:
        raise Refused(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            param="max_tokens",
            code="invalid_parameter_combination",
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise _invalid_type(value, name, "an integer")
        if value < 1:
            raise Refused(
                f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {value} instead.",
                param=name,
                code="integer_below_min_value",
            )
        return value
    return NO_LIMIT_TOKENS


def _usage_wanted(options: object, *, stream: bool) -> bool:
    if options is None:
        return False
    members = _object(options, "stream_options")
    if not stream:
        raise Refused(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    for name in members:
        if name not in ("include_usage", "include_obfuscation"):
            raise Refused(
                f"Unknown parameter: 'stream_options.{name}'.", param=f"stream_options.{name}", code="unknown_parameter"
            )
    return _flag(members.get("include_usage"), "stream_options.include_usage")


def _messages(value: object) -> list[Message]:
    if value is None:
        raise _missing("messages")
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(_array(value, "messages"))]
    _check_tool_results(messages)
    return messages


def _message(value: object, where: str) -> Message:
    message = _object(value, where)
    role = _required(message, "role", where)
    if not isinstance(role, str) or role not in PARTS:
        raise _invalid_value(role, f"{where}.role", tuple(PARTS))
    texts, others = _contents(message.get("content"), f"{where}.content", role)
    match role:
        case "tool":
            call_id = _string(_required(message, "tool_call_id", where), f"{where}.tool_call_id")
            return Message(role, texts, others, tool_call_id=call_id)
        case "assistant" if message.get("tool_calls") is not None:
            calls = _tool_calls(message["tool_calls"], f"{where}.tool_calls")
            return Message(role, (*texts, *calls.values()), others, calls=tuple(calls))
        case "assistant" if message.get("refusal") is not None:
            return Message(role, texts, others)
        case _ if message.get("content") is None:
            raise Refused("Invalid value for 'content': expected a string, got null.", param=f"{where}.content")
        case _:
            return Message(role, texts, others)


def _contents(content: object, where: str, role: str) -> tuple[tuple[str, ...], int]:
    """The texts, and the number of other parts."""
    if content is None:
        return (), 0
    if isinstance(content, str):
        return (content,), 0
    if not isinstance(content, list):
        raise _invalid_type(content, where, "one of a string or array of objects")
    parts = _array(content, where)
    texts = [text for index, part in enumerate(parts) if (text := _text(part, f"{where}[{index}]", role)) is not None]
    return tuple(texts), len(parts) - len(texts)


def _text(value: object, where: str, role: str) -> str | None:
    """The part's text; None if it has no text."""
    part = _object(value, where)
    kind = _required(part, "type", where)
    if not isinstance(kind, str) or kind not in PARTS[role]:
        raise _invalid_value(kind, f"{where}.type", PARTS[role])
    content = _required(part, kind, where)
    if kind == "image_url":
        _string(_object(content, f"{where}.{kind}").get("url"), f"{where}.{kind}.url")
    return _string(content, f"{where}.{kind}") if kind in ("text", "refusal") else None


def _tool_calls(value: object, where: str) -> dict[str, str]:
    """The arguments, by the tool call's id."""
    calls: dict[str, str] = {}
    for index, element in enumerate(_array(value, where)):
        call = _object(element, f"{where}[{index}]")
        for name in ("id", "type", "function"):
            _required(call, name, f"{where}[{index}]")
        if call["type"] != "function":
            raise _invalid_value(call["type"], f"{where}[{index}].type", ("function",))
        function = _object(call["function"], f"{where}[{index}].function")
        for name in ("name", "arguments"):
            _string(_required(function, name, f"{where}[{index}].function"), f"{where}[{index}].function.{name}")
        calls[_string(call["id"], f"{where}[{index}].id")] = str(function["arguments"])
    return calls


def _check_tool_results(messages: list[Message]) -> None:
    """Each tool call needs its result directly after the message with the call, and each result needs its call."""
    waiting: dict[str, None] = {}
    for index, message in enumerate(messages):
        if message.tool_call_id is None:
            _check_none_waits(waiting, index)
            waiting = dict.fromkeys(message.calls)
        elif message.tool_call_id in waiting:
            del waiting[message.tool_call_id]
        else:
            raise Refused(
                "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                "'tool_calls'.",
                param=f"messages.[{index}].role",
            )
    _check_none_waits(waiting, len(messages))


def _check_none_waits(waiting: dict[str, None], index: int) -> None:
    if waiting:
        raise Refused(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(waiting)}",
            param=f"messages.[{index}].role",
        )


def _first_tool(value: object) -> str:
    """Its name. Raises Refused for tools in another API's form."""
    names: list[str] = []
    for index, element in enumerate([] if value is None else _array(value, "tools")):
        tool = _object(element, f"tools[{index}]")
        kind = _required(tool, "type", f"tools[{index}]")
        if not isinstance(kind, str) or kind not in ("function", "custom"):
            raise _invalid_value(kind, f"tools[{index}].type", ("function", "custom"))
        where = f"tools[{index}].{kind}"
        offered = _object(_required(tool, kind, f"tools[{index}]"), where)
        names.append(_string(_required(offered, "name", where), f"{where}.name"))
    return name_or_default(names[0] if names else None)


# Values that are missing or of the wrong type


def _required(members: dict[str, object], name: str, where: str) -> object:
    """The member's value. Raises Refused if there is none; null is none."""
    value = members.get(name)
    if value is None:
        raise _missing(f"{where}.{name}")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _invalid_type(value, where, "a string")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool | None):
        raise _invalid_type(value, where, "a boolean")
    return bool(value)


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _invalid_type(value, where, "an object")
    return value


def _array(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _invalid_type(value, where, "an array of objects")
    if not value:
        raise Refused(
            f"Invalid '{where}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param=where,
            code="empty_array",
        )
    return value


def _missing(where: str) -> Refused:
    return Refused(f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")


def _invalid_type(value: object, where: str, expected: str) -> Refused:
    got = _TYPES.get(type(value), "null")
    message = f"Invalid type for '{where}': expected {expected}, but got {got} instead."
    return Refused(message, param=where, code="invalid_type")


_TYPES: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def _invalid_value(value: object, where: str, supported: tuple[str, ...]) -> Refused:
    values = ", ".join(f"'{name}'" for name in supported)
    return Refused(f"Invalid value: '{value}'. Supported values are: {values}.", param=where, code="invalid_value")
