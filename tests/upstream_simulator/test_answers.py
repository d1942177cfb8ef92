"""What the official SDK gets for a request without faults."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import anthropic
import pytest
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from simulator.app import Simulator
from simulator.words import SAMPLES
from tests.upstream_simulator.asking import MODEL, Asking, text_of, user


async def test_a_whole_message_has_text_usage_and_stop_reason(asking: Asking) -> None:
    message = await asking.whole("Why is the sky blue?")
    assert message.stop_reason == "end_turn"
    assert message.model == MODEL
    assert message.usage.input_tokens == 5
    assert message.usage.output_tokens == 6
    assert text_of(message).split() == ["This", "is", "a", "simulated", "answer", "(number"]
    assert message._request_id is not None
    assert message._request_id.startswith("req_simulated_")


async def test_a_stream_has_the_events_of_the_real_api_in_its_order(asking: Asking) -> None:
    events = await asking.events("nonce=a", model="sim-t3-g1-f1")
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_every_frame_is_valid_by_the_sdks_types_and_names_its_own_type(asking: Asking) -> None:
    """The SDK itself validates nothing, so this test validates the bytes strictly by the SDK's types."""
    schema: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    async with asking.client.messages.with_streaming_response.create(
        model=MODEL, max_tokens=100, messages=user("blocks=thinking+text+citations+tool"), stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = [frame async for frame in _frames(response)]
    assert [name for name, _ in frames if name == "ping"] == ["ping"]
    for name, data in frames:
        assert json.loads(data)["type"] == name
        if name != "ping":
            schema.validate_json(data)


async def _frames(response: anthropic.AsyncAPIResponse[Any]) -> AsyncIterator[tuple[str, str]]:
    lines = [line async for line in response.iter_lines() if line]
    for event, data in pairwise(lines):
        if event.startswith("event: "):
            yield event.removeprefix("event: "), data.removeprefix("data: ")


async def test_a_streamed_answer_is_the_whole_answer(asking: Asking) -> None:
    whole = await asking.whole("blocks=thinking+text+citations+tool")
    streamed = await asking.streamed("blocks=thinking+text+citations+tool")
    assert whole.to_dict()["usage"] == streamed.to_dict()["usage"]
    assert text_of(whole) == text_of(streamed)
    assert [block.type for block in streamed.content] == ["thinking", "text", "text", "tool_use"]
    thinking, _, cited, tool = streamed.content
    assert thinking.type == "thinking"
    assert thinking.signature
    assert cited.type == "text"
    assert cited.citations is not None
    assert tool.type == "tool_use"
    assert tool.input == {"simulated": True, "nonce": None, "call": 2}
    assert streamed.stop_reason == "tool_use"


@pytest.mark.parametrize("blocks", ["text", "tool", "thinking+text"])
async def test_max_tokens_cuts_the_answer_and_says_so(asking: Asking, blocks: str) -> None:
    prompt = f"nonce=short blocks={blocks}"
    for message in (await asking.whole(prompt, max_tokens=2), await asking.streamed(prompt, max_tokens=2)):
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 2
        assert len(message.content) == 1


async def test_an_answer_that_just_fits_ends_by_itself(asking: Asking) -> None:
    message = await asking.streamed("nonce=fits", max_tokens=6)
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 6


async def test_the_answer_depends_on_the_prompt_alone(asking: Asking) -> None:
    first = text_of(await asking.streamed("one prompt", model="sim-t60-g0-f0"))
    assert first == text_of(await asking.whole("one prompt", model="sim-t60-g0-f0"))
    assert first != text_of(await asking.whole("another prompt", model="sim-t60-g0-f0"))
    assert len(first.split()) == 60


async def test_tokens_with_a_nonce_carry_nonce_call_and_place(asking: Asking) -> None:
    assert text_of(await asking.streamed("nonce=j7", model="sim-t3-g0-f0")) == "j7.1.0 j7.1.1 j7.1.2 "
    assert text_of(await asking.whole("nonce=j7", model="sim-t3-g0-f0")) == "j7.2.0 j7.2.1 j7.2.2 "
    assert text_of(await asking.whole("nonce=j8", model="sim-t3-g0-f0")) == "j8.1.0 j8.1.1 j8.1.2 "


async def test_an_echo_comes_back_letter_by_letter(asking: Asking) -> None:
    text = "  two  spaces\n\nfail=529 is a word here\r\ndata: [DONE]\n\n\u2028 \x85 end \U0001f9f5\t"
    assert text_of(await asking.streamed(f"nonce=e echo: {text}")) == text
    assert text_of(await asking.whole(f"nonce=e echo: {text}")) == text


@pytest.mark.parametrize("sample", list(SAMPLES))
async def test_a_text_that_breaks_things_arrives_whole(asking: Asking, sample: str) -> None:
    message = await asking.streamed(f"text={sample}")
    assert text_of(message) == "".join(SAMPLES[sample])
    assert message.usage.output_tokens == len(SAMPLES[sample])
    assert message.stop_reason == "end_turn"


async def test_the_tool_that_was_offered_is_called(asking: Asking) -> None:
    tools = [{"name": "get_weather", "input_schema": {"type": "object"}}]
    message = await asking.streamed("blocks=tool", tools=tools)
    (block,) = message.content
    assert block.type == "tool_use"
    assert block.name == "get_weather"


async def test_a_stop_reason_can_be_asked_for(asking: Asking) -> None:
    assert (await asking.streamed("stop=refusal")).stop_reason == "refusal"


async def test_cached_input_is_counted_separately(asking: Asking) -> None:
    """In the stream's first and last events, as in the whole message."""
    prompt = "cached=30 cache-write=20"
    start, *_, delta, _ = await asking.events(prompt)
    assert start.type == "message_start"
    assert delta.type == "message_delta"
    for usage in ((await asking.whole(prompt)).usage, start.message.usage, delta.usage):
        assert usage.input_tokens == 2
        assert usage.cache_read_input_tokens == 30
        assert usage.cache_creation_input_tokens == 20


async def test_words_of_earlier_turns_are_not_acted_on(asking: Asking, simulator: Simulator) -> None:
    message = await asking.client.messages.create(
        model=MODEL,
        max_tokens=10,
        messages=[
            {"role": "user", "content": "fail=529"},
            {"role": "assistant", "content": "An answer"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "nonce=turn2"}, {"type": "text", "text": "tokens=2"}],
            },
        ],
    )
    assert text_of(message) == "turn2.1.0 turn2.1.1 "


async def test_tokens_are_counted_as_the_answer_reports_them(asking: Asking) -> None:
    prompt = "one two three four"
    counted = await asking.client.messages.count_tokens(model=MODEL, messages=user(prompt), system="five six")
    answered = await asking.whole(prompt, system="five six")
    assert counted.input_tokens == answered.usage.input_tokens == 6


async def test_models_are_listed_and_read(asking: Asking) -> None:
    names = [model.id async for model in asking.client.models.list()]
    assert "claude-sonnet-4-6" in names
    assert "simulated" in names
    assert (await asking.client.models.retrieve("sim-t5")).id == "sim-t5"
    with pytest.raises(anthropic.NotFoundError):
        await asking.client.models.retrieve("gpt-5")


async def test_many_streams_at_once_keep_to_themselves(asking: Asking, simulator: Simulator) -> None:
    async def one(number: int) -> None:
        text = text_of(await asking.streamed(f"nonce=many{number}", model="sim-t20-g2-f5"))
        assert text == "".join(f"many{number}.1.{index} " for index in range(20))

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(one(number))
    assert simulator.record.ended == {"completed": 50}
    assert simulator.record.peak_open_streams > 1
    assert not simulator.record.open_streams
