"""How a Messages request becomes a chat-completions request, and what is refused before any call."""

from typing import Any

import msgspec
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from worker.outcome import Failure, UpstreamError
from worker.providers.chat_request import chat_request

MESSAGES = [{"role": "user", "content": "Hello."}]
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}

_known_to_the_sdk = TypeAdapter(CompletionCreateParamsStreaming)


def said(*, is_openai: bool = False, **members: Any) -> dict[str, Any]:
    """The request that is sent, without its constant members; checked against the official SDK's types."""
    request = {"model": "asked", "messages": MESSAGES, **members}
    body = chat_request(msgspec.json.encode(request), model="a-model", takes_max_completion_tokens=is_openai)
    chat: dict[str, Any] = msgspec.json.decode(body)
    known = _known_to_the_sdk.validate_python(chat)
    assert [*known["messages"], *known.get("tools", ())], "what is iterated is checked only then"
    assert chat.pop("model") == "a-model"
    assert {name: chat.pop(name) for name in STREAMED} == STREAMED
    return chat


def messages(*given: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = said(messages=list(given), **members)["messages"]
    return chat


def others(**members: Any) -> dict[str, Any]:
    """The members of the request other than its messages."""
    chat = said(**members)
    assert chat.pop("messages") == MESSAGES
    return chat


def refusal(**members: Any) -> Failure:
    request = msgspec.json.encode({"model": "a-model", "messages": MESSAGES, **members})
    with pytest.raises(UpstreamError) as raised:
        chat_request(request, model="a-model", takes_max_completion_tokens=False)
    assert not raised.value.was_asked
    failure = raised.value.failure
    assert (failure.error.code, failure.is_retryable) == ("upstream_rejected", False)
    assert "secret" not in failure.error.message
    return failure


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(of: str) -> dict[str, Any]:
    return {"type": "text", "text": of}


@pytest.mark.parametrize("system", ["Be brief.", [{**text("Be brief."), "cache_control": {"type": "ephemeral"}}]])
def test_a_system_prompt_is_the_first_message(system: object) -> None:
    assert said(system=system)["messages"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]


def test_texts_are_joined_into_one() -> None:
    """Some servers do not accept lists, but coding agents send several texts, also in the system prompt."""
    assert messages(user(text("a")))[0]["content"] == "a"
    assert messages(user(text("a"), text("b")))[0]["content"] == "a\nb"
    assert messages(user(text("a"), PNG, text("b")))[0]["content"] == [text("a"), PNG_PART, text("b")]
    assert messages({"role": "system", "content": [text("a"), text("b")]})[0]["content"] == "a\nb"
    assert said(system=[text("a"), text("b")])["messages"][0] == {"role": "system", "content": "a\nb"}


def test_images_are_data_urls_or_urls() -> None:
    by_url = {"type": "image", "source": {"type": "url", "url": "https://a.test/b.png"}}
    (message,) = messages(user(text("What?"), PNG, by_url))
    assert message["content"] == [
        text("What?"),
        PNG_PART,
        {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}},
    ]


def test_a_tools_use_and_its_result() -> None:
    """The arguments are the submitted JSON, unchanged; thinking is another model's and is not sent."""
    assert messages(
        {"role": "user", "content": "Weather?"},
        assistant(
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            text("I shall "),
            text("look."),
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln", "n": 1.0}},
            {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
        ),
        user(
            {"type": "tool_result", "tool_use_id": "call_1", "content": "Rain."},
            {"type": "tool_result", "tool_use_id": "call_2", "content": [text("No"), text("clock.")], "is_error": True},
            text("So?"),
        ),
    ) == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "I shall look.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Köln","n":1.0}'},
                },
                {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
        {"role": "tool", "tool_call_id": "call_2", "content": "Error: No\nclock."},
        {"role": "user", "content": "So?"},
    ]


def test_results_come_before_the_users_other_texts_and_their_images_after_all_results() -> None:
    """A chat server accepts results only directly after the calls, and only as text."""
    chat = messages(
        user(
            text("And now?"),
            {"type": "tool_result", "tool_use_id": "call_1", "content": [PNG]},
            {"type": "tool_result", "tool_use_id": "call_2"},
        )
    )
    assert [message["role"] for message in chat] == ["tool", "tool", "user"]
    assert chat[1]["content"] == ""
    assert chat[2]["content"] == [text("From the tool call call_1:"), PNG_PART, text("And now?")]


def test_an_answer_of_which_nothing_is_told_is_no_message() -> None:
    assert messages(user(text("a")), assistant({"type": "redacted_thinking", "data": "x"})) == messages(user(text("a")))


def test_a_call_without_a_word_has_no_content() -> None:
    (message,) = messages(assistant({"type": "tool_use", "id": "call_1", "name": "time", "input": {}}))
    assert message["content"] is None


@pytest.mark.parametrize(("is_openai", "name"), [(True, "max_completion_tokens"), (False, "max_tokens")])
def test_the_limit_goes_by_the_name_that_the_server_knows(is_openai: bool, name: str) -> None:
    assert others(max_tokens=7, is_openai=is_openai) == {name: 7}
    assert others(max_tokens=7, max_completion_tokens=8, is_openai=is_openai) == {"max_completion_tokens": 8}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"stop_sequences": ["END"]}, {"stop": ["END"]}),
        ({"metadata": {"user_id": "u1"}}, {"user": "u1"}),
        ({"metadata": {}}, {}),
        ({"metadata": None, "system": None, "tools": None}, {}),
        ({"top_k": 5, "thinking": {"type": "adaptive"}, "service_tier": "auto", "cache_control": {"type": "x"}}, {}),
        ({"stream": False, "stream_options": {"include_usage": False}}, {}),
        ({"output_config": {"effort": "low"}}, {}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        (
            {"seed": 1, "reasoning_effort": "low", "response_format": {"type": "json_object"}, "output_config": None},
            {"seed": 1, "reasoning_effort": "low", "response_format": {"type": "json_object"}},
        ),
        ({"min_p": 0.1, "guided_json": {"a": [1.50]}}, {"min_p": 0.1, "guided_json": {"a": [1.50]}}),
    ],
)
def test_a_member_is_renamed_left_out_or_passes_untouched(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert others(**ours) == theirs


TOOL = {"name": "weather", "description": "Of a city.", "input_schema": {"type": "object"}}
FUNCTION = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}},
}


@pytest.mark.parametrize(
    ("choice", "said_of_it"),
    [
        (None, {}),
        ({"type": "auto"}, {}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "weather"},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel_tool_calls": False}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
    ],
)
def test_a_choice_of_tools(choice: object, said_of_it: dict[str, Any]) -> None:
    assert others(tools=[{**TOOL, "type": "custom"}], tool_choice=choice) == {"tools": [FUNCTION], **said_of_it}
    assert others(tools=[], tool_choice=choice) == {}


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"messages": [user({"type": "document", "source": {"type": "text", "data": "secret"}})]}, "document"),
        ({"messages": [assistant({"type": "server_tool_use", "id": "x", "input": {}})]}, "server_tool_use"),
        ({"messages": [assistant({"type": "web_search_tool_result", "content": {}})]}, "web_search_tool_result"),
        ({"messages": [user({"type": "image", "source": {"type": "file", "file_id": "secret"}})]}, "file"),
        (
            {"messages": [user({"type": "tool_result", "tool_use_id": "x", "content": [{"type": "search_result"}]})]},
            "search_result",
        ),
        ({"messages": [{"role": "secret role", "content": "x"}]}, "role"),
        ({"messages": [user({"type": "a secret type"})]}, "block"),
        ({"messages": [{"role": "user", "content": [{"text": "secret"}]}]}, "messages"),
        ({"messages": "secret"}, "messages"),
        ({"system": [{"type": "document"}]}, "document"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "secret"}]}, "mcp_toolset"),
        ({"tools": [TOOL], "tool_choice": {"type": "tomorrow"}}, "tomorrow"),
        ({"tools": [TOOL], "tool_choice": "secret"}, "tool_choice"),
        ({"mcp_servers": [{"url": "https://secret.test"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "xml"}}}, "xml"),
        ({"metadata": ["secret"]}, "metadata"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name_and_never_by_content(members: dict[str, Any], named: str) -> None:
    assert named in refusal(**members).error.message


@pytest.mark.parametrize("request_bytes", [b"", b"[]", b"null", b"{", b'{"messages":' + b"[" * 100_000, b"\xff"])
def test_what_is_no_request_is_refused(request_bytes: bytes) -> None:
    with pytest.raises(UpstreamError):
        chat_request(request_bytes, model="a-model", takes_max_completion_tokens=False)
