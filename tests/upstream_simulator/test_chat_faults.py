"""Each fault of a chat completion, as the official openai SDK sees it and as the record has it.

The expectations are facts about the SDK (those on the wire differ by its transport), not wishes: our worker is judged
by how it handles them.
"""

import asyncio
import json

import aiohttp
import httpx2
import openai
import pytest
from openai import APIConnectionError, APIError, APITimeoutError
from openai.types.chat import ChatCompletionChunk

from simulator.app import Simulator
from tests.upstream_simulator.asking import ChatAsking, chat_text_of, chat_user

pytestmark = pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])


def _finish_reasons(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]


async def test_a_clean_end_without_finish_reason_looks_like_an_answer(
    chat_asking: ChatAsking, simulator: Simulator
) -> None:
    """Our worker must notice this itself: the SDK raises nothing."""
    chunks = await chat_asking.chunks("nonce=c end=3")
    assert chat_text_of(chunks) == "c.1.0 c.1.1 c.1.2 "
    assert _finish_reasons(chunks) == []
    (call,) = simulator.calls
    assert (call.ended, call.faults, call.tokens_sent, call.output_tokens) == ("fault", ("end",), 3, 6)


@pytest.mark.parametrize("place", [0, 1, 5, 6, 999])
async def test_a_stream_can_end_after_any_number_of_tokens(chat_asking: ChatAsking, place: int) -> None:
    chunks = await chat_asking.chunks(f"nonce=c end={place}")
    assert len(chunks) == 1 + min(place, 6)
    assert _finish_reasons(chunks) == []


async def test_a_stream_can_end_after_its_finish_reason_without_usage_and_done(chat_asking: ChatAsking) -> None:
    """The place `stop`: the reason was sent, but not the end."""
    chunks = await chat_asking.chunks("end=stop")
    assert _finish_reasons(chunks) == ["stop"]
    assert chunks[-1].usage is None
    async with chat_asking.client.chat.completions.with_streaming_response.create(
        model="sim-t2-g0-f0", messages=chat_user("end=stop"), stream=True
    ) as response:
        assert "[DONE]" not in "".join([line async for line in response.iter_lines()])


@pytest.mark.parametrize("fault", ["fin=3", "rst=3"])
async def test_a_cut_connection_is_a_connection_error(
    chat_asking: ChatAsking, simulator: Simulator, fault: str
) -> None:
    """Unlike the anthropic SDK, this one converts its transport's exceptions to its own."""
    received: list[str] = []
    with pytest.raises(APIConnectionError):
        await _follow(chat_asking, f"nonce=cut {fault}", received)
    assert received == ["", "cut.1.0 ", "cut.1.1 ", "cut.1.2 "]
    (call,) = simulator.calls
    assert (call.ended, call.tokens_sent, call.client_closed_s) == ("fault", 3, None)


async def test_bytes_that_are_not_http_raise_or_hang(chat_asking: ChatAsking, simulator: Simulator) -> None:
    """With aiohttp it depends on how bytes arrive: its C parser waits without end, or raises a foreign exception."""
    with pytest.raises((APIConnectionError, aiohttp.ClientError, TimeoutError)):
        async with asyncio.timeout(0.3):
            await _follow(chat_asking, "nonce=cut bad-chunk=3", [])
    assert simulator.calls[0].ended == "fault"


async def _follow(asking: ChatAsking, prompt: str, received: list[str]) -> None:
    """Like ChatAsking.chunks, but keeps the chunks that came before an exception."""
    stream = await asking.client.chat.completions.create(model="sim-t6-g5-f5", messages=chat_user(prompt), stream=True)
    async with stream:
        async for chunk in stream:
            received.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - a comprehension would keep nothing


@pytest.mark.parametrize("fault", ["end=head", "fin=head", "rst=head"])
async def test_a_connection_can_be_cut_before_the_response(
    chat_asking: ChatAsking, simulator: Simulator, fault: str
) -> None:
    """With aiohttp the SDK raises a timeout for a closed connection: APITimeoutError is an APIConnectionError."""
    for ask in (chat_asking.whole, chat_asking.streamed):
        with pytest.raises(APIConnectionError):
            await ask(fault)
    assert [(call.ended, call.status) for call in simulator.calls] == [("fault", None)] * 2


@pytest.mark.parametrize("fault", ["end=1", "fin=1", "rst=1", "bad-chunk=1"])
async def test_a_whole_completion_can_be_cut_too(chat_asking: ChatAsking, fault: str) -> None:
    with pytest.raises((APIConnectionError, httpx2.TransportError)):
        await chat_asking.whole(fault)


async def test_a_stalled_stream_lasts_until_the_client_goes(chat_asking: ChatAsking, simulator: Simulator) -> None:
    with pytest.raises(APITimeoutError):
        await chat_asking.chunks("stall=3", timeout=0.1)
    await simulator.until(lambda: not simulator.record.open_streams)
    (call,) = simulator.calls
    assert (call.ended, call.faults, call.tokens_sent) == ("client_closed", ("stall",), 3)


async def test_a_stall_before_the_response_is_a_timeout(chat_asking: ChatAsking, simulator: Simulator) -> None:
    for ask in (chat_asking.whole, chat_asking.streamed):
        with pytest.raises(APITimeoutError):
            await ask("stall=head", timeout=0.1)
    await simulator.until(lambda: not simulator.record.open_streams)
    assert [call.ended for call in simulator.calls] == ["client_closed"] * 2


async def test_comments_go_on_and_keep_the_read_timeout_away(chat_asking: ChatAsking, simulator: Simulator) -> None:
    """They end no read, and the SDK does not show them: a client without its own idle timer waits without end."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await chat_asking.chunks("pings=3,every-ms=20", timeout=0.1)
    await simulator.until(lambda: not simulator.record.open_streams)
    (call,) = simulator.calls
    assert (call.ended, call.tokens_sent) == ("client_closed", 3)


async def test_an_error_in_the_stream_has_type_and_code_and_no_status(
    chat_asking: ChatAsking, simulator: Simulator
) -> None:
    with pytest.raises(APIError) as failed:
        await chat_asking.chunks("error=3,type=tokens,message=too%20much")
    assert not isinstance(failed.value, openai.APIStatusError)
    assert (failed.value.type, failed.value.code, failed.value.message) == ("tokens", "rate_limit_exceeded", "too much")
    assert simulator.calls[0].tokens_sent == 3
    with pytest.raises(APIError) as failed:
        await chat_asking.chunks("error=stop")
    assert failed.value.type == "server_error"
    with pytest.raises(openai.RateLimitError):
        await chat_asking.whole("error=3,type=insufficient_quota")


async def test_a_chunk_that_is_not_json_raises_what_is_no_openai_error(chat_asking: ChatAsking) -> None:
    with pytest.raises(json.JSONDecodeError):
        await chat_asking.chunks("bad-json=3")
    with pytest.raises(json.JSONDecodeError):
        await chat_asking.whole("bad-json=3")


async def test_bytes_that_are_not_utf8_raise_what_is_no_openai_error(chat_asking: ChatAsking) -> None:
    with pytest.raises(UnicodeDecodeError):
        await chat_asking.chunks("garbage=3")
    with pytest.raises(ValueError):
        await chat_asking.whole("garbage=3")


async def test_a_choice_or_tool_call_without_its_index_breaks_the_sdks_accumulator(chat_asking: ChatAsking) -> None:
    with pytest.raises(TypeError):
        await chat_asking.streamed("no-index=3")
    with pytest.raises(RuntimeError, match="index"):
        await chat_asking.streamed("blocks=tool no-index=3")


async def test_unknown_chunks_are_passed_on(chat_asking: ChatAsking) -> None:
    chunks = await chat_asking.chunks("unknown-event=3 unknown-delta=stop")
    assert chunks[4].to_dict() == {"object": "simulated.event"}
    assert chunks[-2].choices[0].delta.to_dict() == {"simulated": {"x": 1}}
    assert (await chat_asking.streamed("unknown-event=3 unknown-delta=2")).choices[0].finish_reason == "stop"


async def test_the_chunk_with_the_role_can_be_missing_or_come_twice(chat_asking: ChatAsking) -> None:
    assert (await chat_asking.chunks("nonce=n no-start=1"))[0].choices[0].delta.to_dict() == {"content": "n.1.0 "}
    chunks = await chat_asking.chunks("restart=3")
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices].count("assistant") == 2
    assert len({chunk.id for chunk in chunks}) == 2


async def test_the_finish_reason_can_be_missing(chat_asking: ChatAsking) -> None:
    chunks = await chat_asking.chunks("no-stop-reason=1")
    assert _finish_reasons(chunks) == []
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("fault", ["crlf=1", "slice=1", "slice=7", "split-utf8=1", "crlf=1 slice=3", "slow-head=50"])
async def test_odd_line_ends_and_pieces_change_nothing(
    chat_asking: ChatAsking, simulator: Simulator, fault: str
) -> None:
    plain = await chat_asking.chunks("text=emoji")
    odd = await chat_asking.chunks(f"text=emoji {fault}")
    assert chat_text_of(odd) == chat_text_of(plain)
    assert _finish_reasons(odd) == ["stop"]
    assert simulator.calls[-1].faults


async def test_a_line_of_ten_megabytes_arrives(chat_asking: ChatAsking, simulator: Simulator) -> None:
    text = chat_text_of(await chat_asking.chunks("nonce=big big-line=3", timeout=20))
    assert len(text) > 10 * 1024 * 1024
    assert text.startswith("big.1.0 big.1.1 big.1.2 xxx")
    assert text.endswith("xxxbig.1.3 big.1.4 big.1.5 ")
    assert simulator.calls[0].tokens_sent == 7
