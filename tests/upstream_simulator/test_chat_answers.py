"""What the official openai SDK gets from chat completions for a request without faults."""

import json
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionFunctionToolParam
from pydantic import TypeAdapter

from simulator.app import Simulator
from simulator.words import SAMPLES, STOP_REASONS
from tests.upstream_simulator.asking import MODEL, ChatAsking, chat_text_of, chat_user

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


async def test_a_whole_completion_has_text_usage_and_finish_reason(chat_asking: ChatAsking) -> None:
    completion = await chat_asking.whole("Why is the sky blue?")
    (choice,) = completion.choices
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert choice.message.content.split() == ["This", "is", "a", "simulated", "answer", "(number"]
    assert completion.model == MODEL
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        5,
        6,
        11,
    )
    assert completion._request_id is not None
    assert completion._request_id.startswith("req_simulated_")


async def test_a_stream_has_the_chunks_of_the_real_api_in_its_order(chat_asking: ChatAsking) -> None:
    role, *tokens, finish, usage = await chat_asking.chunks("nonce=a", model="sim-t3-g1-f1")
    assert role.choices[0].delta.to_dict() == {"role": "assistant", "content": ""}
    assert [chunk.choices[0].delta.to_dict() for chunk in tokens] == [
        {"content": "a.1.0 "},
        {"content": "a.1.1 "},
        {"content": "a.1.2 "},
    ]
    assert finish.choices[0].delta.to_dict() == {}
    assert finish.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens, usage.usage.total_tokens) == (1, 3, 4)
    assert len({(chunk.id, chunk.created) for chunk in (role, *tokens, finish, usage)}) == 1


@pytest.mark.parametrize("more", [{}, {"stream_options": {"include_usage": False}}], ids=["no options", "not wanted"])
async def test_a_stream_tells_its_usage_only_if_it_was_asked_to(chat_asking: ChatAsking, more: dict[str, Any]) -> None:
    stream = await chat_asking.client.chat.completions.create(
        model=MODEL, messages=chat_user("hello"), stream=True, **more
    )
    async for chunk in stream:
        assert chunk.choices
        assert "usage" not in chunk.to_dict()


async def test_every_line_is_valid_by_the_sdks_types_and_the_last_is_done(chat_asking: ChatAsking) -> None:
    """The SDK itself validates nothing, so this test validates the bytes strictly by the SDK's types."""
    schema = TypeAdapter(ChatCompletionChunk)
    async with chat_asking.client.chat.completions.with_streaming_response.create(
        model=MODEL,
        messages=chat_user("blocks=thinking+text+citations+tool"),
        stream=True,
        stream_options={"include_usage": True},
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done = [line async for line in response.iter_lines() if line]
    assert done == "data: [DONE]"
    for line in chunks:
        schema.validate_json(line.removeprefix("data: "))


async def test_a_whole_completion_is_valid_by_the_sdks_types(chat_asking: ChatAsking) -> None:
    response = await chat_asking.client.chat.completions.with_raw_response.create(
        model=MODEL, messages=chat_user("blocks=thinking+text+tool+tool")
    )
    TypeAdapter(ChatCompletion).validate_json(response.text)


async def test_a_streamed_answer_is_the_whole_answer(chat_asking: ChatAsking) -> None:
    whole = await chat_asking.whole("nonce=same text=emoji cached=3")
    streamed = await chat_asking.streamed("nonce=same text=emoji cached=3")
    assert whole.choices[0].message.content == streamed.choices[0].message.content == "".join(SAMPLES["emoji"])
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.to_dict() == streamed.usage.to_dict()


async def test_tools_are_called_each_by_its_own_number(chat_asking: ChatAsking) -> None:
    prompt = "nonce=t blocks=text+tool+tool"
    chunks = await chat_asking.chunks(prompt, tools=[WEATHER])
    pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or []]
    first, argument, *_ = [piece.to_dict() for piece in pieces]
    assert first == {
        "index": 0,
        "id": "call_simulated_00000001_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": ""},
    }
    assert argument == {"index": 0, "function": {"arguments": '{"simulated": '}}
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)

    for completion in (await chat_asking.streamed(prompt, tools=[WEATHER]), await chat_asking.whole(prompt)):
        (choice,) = completion.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls is not None
        one, two = choice.message.tool_calls
        assert one.type == two.type == "function"
        assert one.id != two.id
        assert json.loads(two.function.arguments)["nonce"] == "t"


async def test_thinking_is_reasoning_content_and_is_counted(chat_asking: ChatAsking) -> None:
    """As vLLM and DeepSeek send it; the SDK does not know the member and passes it on."""
    chunks = await chat_asking.chunks("nonce=r blocks=thinking+text tokens=1")
    deltas = [choice.delta.to_dict() for chunk in chunks for choice in chunk.choices]
    assert "".join(str(delta.get("reasoning_content", "")) for delta in deltas).startswith("This is simulated thinking")
    assert chat_text_of(chunks) == "r.1.0 "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details is not None
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 7
    (choice,) = (await chat_asking.whole("blocks=thinking+text")).choices
    assert choice.message.to_dict()["reasoning_content"] == "This is simulated thinking before the answer. "


async def test_cached_input_is_part_of_the_prompts_tokens(chat_asking: ChatAsking, simulator: Simulator) -> None:
    prompt = "cached=30 cache-write=20"
    for usage in ((await chat_asking.whole(prompt)).usage, (await chat_asking.chunks(prompt))[-1].usage):
        assert usage is not None
        assert usage.prompt_tokens == 52
        assert usage.total_tokens == 58
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 30
        assert usage.prompt_tokens_details.cache_write_tokens == 20
    assert [call.input_tokens for call in simulator.calls] == [2, 2]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("blocks", ["text", "tool", "thinking+text"])
async def test_both_limits_cut_the_answer_and_it_says_so(chat_asking: ChatAsking, limit: str, blocks: str) -> None:
    prompt = f"nonce=short blocks={blocks}"
    limits: dict[str, Any] = {limit: 2}
    whole = await chat_asking.whole(prompt, **limits)
    *_, finish, usage = await chat_asking.chunks(prompt, **limits)
    assert whole.choices[0].finish_reason == finish.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert usage.usage is not None
    assert whole.usage.completion_tokens == usage.usage.completion_tokens == 2


FINISH_REASONS = {
    "end_turn": "stop",
    "max_tokens": "length",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "pause_turn": "stop",
    "refusal": "content_filter",
    "model_context_window_exceeded": "length",
}


@pytest.mark.parametrize("stop_reason", STOP_REASONS)
async def test_every_stop_reason_has_its_finish_reason(chat_asking: ChatAsking, stop_reason: str) -> None:
    *_, finish, _ = await chat_asking.chunks(f"stop={stop_reason}")
    assert finish.choices[0].finish_reason == FINISH_REASONS[stop_reason]


@pytest.mark.parametrize("sample", list(SAMPLES))
async def test_a_text_that_breaks_things_arrives_whole(chat_asking: ChatAsking, sample: str) -> None:
    assert chat_text_of(await chat_asking.chunks(f"text={sample}")) == "".join(SAMPLES[sample])


async def test_an_echo_comes_back_letter_by_letter(chat_asking: ChatAsking) -> None:
    text = "  two  spaces\n\nfail=529 is a word here\r\ndata: [DONE]\n\n\u2028 \x85 end \U0001f9f5\t"
    assert chat_text_of(await chat_asking.chunks(f"nonce=e echo: {text}")) == text
    assert (await chat_asking.whole(f"nonce=e echo: {text}")).choices[0].message.content == text


async def test_a_conversation_of_all_roles_is_read_and_its_last_user_message_is_the_prompt(
    chat_asking: ChatAsking, simulator: Simulator
) -> None:
    completion = await chat_asking.client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "one"},
            {"role": "developer", "content": [{"type": "text", "text": "two"}]},
            {"role": "user", "content": "fail=529"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "fail=500"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "nonce=parts"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "text", "text": "tokens=2"},
                ],
            },
            {"role": "assistant", "content": "so far"},
        ],
        tools=[WEATHER],
    )
    assert completion.choices[0].message.content == "parts.1.0 parts.1.1 "
    (call,) = simulator.calls
    assert (call.endpoint, call.nonce, call.status, call.ended) == ("chat_completions", "parts", 200, "completed")


async def test_every_member_of_the_real_api_is_accepted(chat_asking: ChatAsking) -> None:
    completion = await chat_asking.whole(
        "hello",
        temperature=0.5,
        top_p=1,
        n=1,
        stop=["x"],
        seed=1,
        user="u",
        logprobs=False,
        response_format={"type": "text"},
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning_effort="low",
        metadata={},
        store=False,
        service_tier="auto",
    )
    assert completion.choices[0].finish_reason == "stop"


async def test_calls_of_a_nonce_are_counted_over_both_apis(chat_asking: ChatAsking, simulator: Simulator) -> None:
    """So that a fallback from one API to the other is the second call."""
    headers = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"}
    async with httpx2.AsyncClient(base_url=simulator.url, verify=False, headers=headers) as http:
        body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "nonce=both fail=529x1"}]}
        assert (await http.post("/v1/messages", json=body)).status_code == 529
    assert chat_text_of(await chat_asking.chunks("nonce=both fail=529x1")).startswith("both.2.0 ")


async def test_models_are_listed_and_read_in_the_form_of_whoever_asks(
    chat_asking: ChatAsking, simulator: Simulator
) -> None:
    models = [model async for model in chat_asking.client.models.list()]
    assert "simulated" in [model.id for model in models]
    assert {(model.object, model.owned_by) for model in models} == {("model", "simulator")}
    assert (await chat_asking.client.models.retrieve("sim-t5")).id == "sim-t5"
    with pytest.raises(openai.NotFoundError) as refused:
        await chat_asking.client.models.retrieve("sim-5")
    assert refused.value.code == "model_not_found"
    headers = {"authorization": "Bearer k"}
    async with httpx2.AsyncClient(base_url=simulator.url, verify=False, headers=headers) as http:
        assert (await http.get("/v1/models")).json()["object"] == "list"
        anthropic_page = await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert anthropic_page.json()["has_more"] is False
