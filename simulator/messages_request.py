"""Parses a Messages request and checks it as the real API does, with error messages like the real ones.

Only what the simulator needs is kept. Unknown members are refused too: this shows when a client passes its own members
to the upstream.
"""

import json
from collections.abc import Iterator

from simulator.request import Refused, Request, input_tokens, name_or_default

MEMBERS = frozenset(
    (
        "model",
        "max_tokens",
        "messages",
        "stream",
        "system",
        "metadata",
        "stop_sequences",
        "temperature",
        "top_k",
        "top_p",
        "thinking",
        "tools",
        "tool_choice",
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "inference_geo",
        "mcp_servers",
        "output_config",
        "service_tier",
        "speed",
        "prefill",
        "billing_policy",
        "compaction",
        "fallbacks",
        "fallback_credit_token",
        "thread",
    )
)


VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")
"""The API's versions, oldest first. A request names one and is checked by its rules."""

WITHOUT_SAMPLING = "2026-10-21"
"""This version removed temperature, top_p and top_k (even at their defaults), citations in a user's text, and documents
in an assistant's message."""

SAMPLING = ("temperature", "top_p", "top_k")


def parse_messages_request(body: bytes, version: str, *, counting: bool = False) -> Request:
    """Raises Refused. `version` is the header's; `counting` is for count_tokens, which needs no max_tokens."""
    if not version:
        raise Refused("anthropic-version: header is required")
    if version not in VERSIONS:
        raise Refused(f'anthropic-version: "{version}" is not a valid version')
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("The request body is not valid JSON") from None
    if not isinstance(members, dict):
        raise Refused("The request body must be a JSON object")
    for name in members:
        if name not in MEMBERS or (version >= WITHOUT_SAMPLING and name in SAMPLING):
            raise Refused(f"{name}: Extra inputs are not permitted")
    model = members.get("model")
    if not isinstance(model, str) or not model:
        raise Refused("model: Field required" if model is None else "model: Input should be a valid string")
    messages = _messages(members.get("messages"))
    if version >= WITHOUT_SAMPLING:
        _check_blocks(members["messages"])
    system = _texts(members.get("system", ""), "system")
    return Request(
        model=model,
        max_tokens=0 if counting else _max_tokens(members.get("max_tokens")),
        stream=_stream(members.get("stream", False)),
        usage_wanted=True,
        prompt=next((" ".join(texts) for role, texts, _ in reversed(messages) if role == "user"), ""),
        input_tokens=input_tokens(
            [*(text for _, texts, _ in messages for text in texts), *system],
            sum(others for _, _, others in messages),
            members.get("tools"),
        ),
        tool=_first_tool(members.get("tools")),
    )


def _check_blocks(messages: list[dict[str, object]]) -> None:
    """Expects well-formed messages."""
    for number, message in enumerate(messages):
        content = message["content"]
        for index, block in enumerate(content if isinstance(content, list) else ()):
            where = f"messages.{number}.content.{index}"
            match message["role"], block["type"]:
                case "assistant", "document":
                    raise Refused(f"{where}: document blocks are not permitted in assistant messages")
                case "user", "text" if block.get("citations"):
                    raise Refused(f"{where}.citations: Extra inputs are not permitted")


def _max_tokens(value: object) -> int:
    if value is None:
        raise Refused("max_tokens: Field required")
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused("max_tokens: Input should be a valid integer")
    if value < 1:
        raise Refused("max_tokens: must be greater than or equal to 1")
    return value


def _stream(value: object) -> bool:
    if not isinstance(value, bool):
        raise Refused("stream: Input should be a valid boolean")
    return value


ROLES = ("user", "assistant")

Message = tuple[str, list[str], int]
"""Role, texts, and the number of other blocks."""


def _messages(value: object) -> list[Message]:
    if value is None:
        raise Refused("messages: Field required")
    if not isinstance(value, list):
        raise Refused("messages: Input should be a valid list")
    if not value:
        raise Refused("messages: at least one message is required")
    return [_message(message, f"messages.{index}", last=index == len(value) - 1) for index, message in enumerate(value)]


def _message(value: object, where: str, *, last: bool) -> Message:
    if not isinstance(value, dict):
        raise Refused(f"{where}: Input should be a valid dictionary")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise Refused(f"{where}.role: Input should be 'user' or 'assistant'")
    if content is None:
        raise Refused(f"{where}.content: Field required")
    texts = _texts(content, f"{where}.content")
    others = len(content) - len(texts) if isinstance(content, list) else 0
    if not others and not any(texts) and not (last and role == "assistant"):
        raise Refused(
            f"{where}: all messages must have non-empty content except for the optional final assistant message"
        )
    return role, texts, others


def _texts(content: object, where: str) -> list[str]:
    """The texts of a string or of a list of blocks."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise Refused(f"{where}: Input should be a valid string or a valid list")
    return list(_block_texts(content, where))


def _block_texts(blocks: list[object], where: str) -> Iterator[str]:
    for index, block in enumerate(blocks):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise Refused(f"{where}.{index}.type: Field required")
        if block["type"] == "text":
            text = block.get("text")
            if not isinstance(text, str):
                raise Refused(f"{where}.{index}.text: Field required")
            yield text


def _first_tool(tools: object) -> str:
    first = tools[0] if isinstance(tools, list) and tools else None
    name = first.get("name") if isinstance(first, dict) else None
    return name_or_default(name)
