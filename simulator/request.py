"""A Messages request as the real API checks it: what it refuses with a 400, in words like its own.

Only what the simulator needs is kept. Members that the API does not have are refused too, so that a client which lets
its own members through to the upstream is found out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

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

OTHER_BLOCK_TOKENS = 100
"""What an image, a document or any other block that is not text counts."""


class RequestError(Exception):
    """The request is refused; the message is for the `invalid_request_error`."""


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    model: str
    max_tokens: int
    stream: bool
    prompt: str
    """The text of the last user message."""
    input_tokens: int
    tool: str
    """The name of the first tool that was offered, for an answer that calls one."""


def parse_messages_request(body: bytes, *, counting: bool = False) -> MessagesRequest:
    """The request, or RequestError. `counting` is for count_tokens, which needs no max_tokens."""
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("The request body is not valid JSON") from None
    if not isinstance(members, dict):
        raise RequestError("The request body must be a JSON object")
    for name in members:
        if name not in MEMBERS:
            raise RequestError(f"{name}: Extra inputs are not permitted")
    model = members.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("model: Field required" if model is None else "model: Input should be a valid string")
    messages = _messages(members.get("messages"))
    system = _texts(members.get("system", ""), "system")
    return MessagesRequest(
        model=model,
        max_tokens=0 if counting else _max_tokens(members.get("max_tokens")),
        stream=_stream(members.get("stream", False)),
        prompt=next((" ".join(texts) for role, texts, _ in reversed(messages) if role == "user"), ""),
        input_tokens=_input_tokens(messages, system, members.get("tools")),
        tool=_first_tool(members.get("tools")),
    )


def _max_tokens(value: object) -> int:
    if value is None:
        raise RequestError("max_tokens: Field required")
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError("max_tokens: Input should be a valid integer")
    if value < 1:
        raise RequestError("max_tokens: must be greater than or equal to 1")
    return value


def _stream(value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError("stream: Input should be a valid boolean")
    return value


ROLES = ("user", "assistant")

Message = tuple[str, list[str], int]
"""Role, texts, and how many blocks were something else."""


def _messages(value: object) -> list[Message]:
    if value is None:
        raise RequestError("messages: Field required")
    if not isinstance(value, list):
        raise RequestError("messages: Input should be a valid list")
    if not value:
        raise RequestError("messages: at least one message is required")
    return [_message(message, f"messages.{index}", last=index == len(value) - 1) for index, message in enumerate(value)]


def _message(value: object, where: str, *, last: bool) -> Message:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: Input should be a valid dictionary")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise RequestError(f"{where}.role: Input should be 'user' or 'assistant'")
    if content is None:
        raise RequestError(f"{where}.content: Field required")
    texts = _texts(content, f"{where}.content")
    others = len(content) - len(texts) if isinstance(content, list) else 0
    if not others and not any(texts) and not (last and role == "assistant"):
        raise RequestError(
            f"{where}: all messages must have non-empty content except for the optional final assistant message"
        )
    return role, texts, others


def _texts(content: object, where: str) -> list[str]:
    """The texts of a string or of a list of blocks."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise RequestError(f"{where}: Input should be a valid string or a valid list")
    return list(_block_texts(content, where))


def _block_texts(blocks: list[object], where: str) -> Iterator[str]:
    for index, block in enumerate(blocks):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise RequestError(f"{where}.{index}.type: Field required")
        if block["type"] == "text":
            text = block.get("text")
            if not isinstance(text, str):
                raise RequestError(f"{where}.{index}.text: Field required")
            yield text


def _input_tokens(messages: list[Message], system: list[str], tools: object) -> int:
    """One a word, as in the answer; the same for messages and count_tokens."""
    words = sum(len(text.split()) for _, texts, _ in messages for text in texts)
    words += sum(len(text.split()) for text in system)
    words += sum(others for _, _, others in messages) * OTHER_BLOCK_TOKENS
    return max(1, words + (len(json.dumps(tools).split()) if tools else 0))


def _first_tool(tools: object) -> str:
    first = tools[0] if isinstance(tools, list) and tools else None
    name = first.get("name") if isinstance(first, dict) else None
    return name if isinstance(name, str) else "simulated_tool"
