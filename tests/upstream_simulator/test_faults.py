"""Each fault, as the official SDK sees it and as the record has it.

The expectations are facts about the SDK (those on the wire differ by its transport), not wishes: our worker is judged
by how it handles them.
"""

import asyncio
import json

import anthropic
import httpx2
import pytest
from anthropic import APIConnectionError, APIStatusError, APITimeoutError
from anthropic.types import Message

from simulator.app import Simulator
from tests.upstream_simulator.asking import Asking, text_of, user

pytestmark = pytest.mark.parametrize("transport", ["aiohttp", "httpx2"])

CUT = (httpx2.RemoteProtocolError, httpx2.ReadError)


async def test_a_clean_end_without_message_stop_looks_like_an_answer(asking: Asking, simulator: Simulator) -> None:
    """Our worker must notice this itself: the SDK raises nothing."""
    message = await asking.streamed("nonce=c end=3")
    assert text_of(message) == "c.1.0 c.1.1 c.1.2 "
    assert message.stop_reason is None
    (call,) = simulator.calls
    assert (call.ended, call.faults, call.tokens_sent, call.output_tokens) == ("fault", ("end",), 3, 6)


@pytest.mark.parametrize("place", [0, 1, 5, 6, 999])
async def test_a_stream_can_end_after_any_number_of_tokens(asking: Asking, place: int) -> None:
    events = await asking.events(f"end={place}")
    assert [event.type for event in events].count("content_block_delta") == min(place, 6)
    assert events[-1].type == ("content_block_delta" if place else "content_block_start")


async def test_a_stream_can_end_right_before_message_stop(asking: Asking) -> None:
    events = await asking.events("end=stop")
    assert events[-1].type == "message_delta"


@pytest.mark.parametrize("fault", ["fin=3", "rst=3"])
async def test_a_cut_connection_raises_what_is_no_anthropic_error(
    asking: Asking, simulator: Simulator, fault: str
) -> None:
    received: list[str] = []
    with pytest.raises(CUT):
        await _follow(asking, f"nonce=cut {fault}", received)
    assert received == ["cut.1.0 ", "cut.1.1 ", "cut.1.2 "]
    (call,) = simulator.calls
    assert (call.ended, call.tokens_sent, call.client_closed_s) == ("fault", 3, None)


async def test_bytes_that_are_not_http_raise_or_hang(asking: Asking, simulator: Simulator) -> None:
    """aiohttp 3.14.5's C parser waits without end, past its read timeout and the close; only an own timer helps."""
    received: list[str] = []
    with pytest.raises((*CUT, TimeoutError)):
        async with asyncio.timeout(0.3):
            await _follow(asking, "nonce=cut bad-chunk=3", received)
    assert received == ["cut.1.0 ", "cut.1.1 ", "cut.1.2 "]
    assert simulator.calls[0].ended == "fault"


async def _follow(asking: Asking, prompt: str, received: list[str]) -> None:
    """Like Asking.events, but keeps the events that came before an exception."""
    stream = await asking.client.messages.create(model="sim-t6-g5-f5", max_tokens=9, messages=user(prompt), stream=True)
    async with stream:
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                received.append(event.delta.text)  # noqa: PERF401 - a comprehension would keep nothing


@pytest.mark.parametrize("fault", ["end=head", "fin=head", "rst=head"])
async def test_a_connection_can_be_cut_before_the_response(asking: Asking, simulator: Simulator, fault: str) -> None:
    for ask in (asking.whole, asking.streamed):
        with pytest.raises(APIConnectionError):
            await ask(fault)
    assert [(call.ended, call.status) for call in simulator.calls] == [("fault", None)] * 2


@pytest.mark.parametrize("fault", ["end=1", "fin=1", "rst=1", "bad-chunk=1"])
async def test_a_whole_message_can_be_cut_too(asking: Asking, fault: str) -> None:
    with pytest.raises((APIConnectionError, *CUT)):
        await asking.whole(fault)


async def test_a_stalled_stream_lasts_until_the_client_goes(asking: Asking, simulator: Simulator) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        await asking.events("stall=3", timeout=0.1)
    await simulator.until(lambda: not simulator.record.open_streams)
    (call,) = simulator.calls
    assert (call.ended, call.faults, call.tokens_sent) == ("client_closed", ("stall",), 3)


async def test_a_stall_before_the_response_is_a_timeout(asking: Asking, simulator: Simulator) -> None:
    for ask in (asking.whole, asking.streamed):
        with pytest.raises(APITimeoutError):
            await ask("stall=head", timeout=0.1)
    await simulator.until(lambda: not simulator.record.open_streams)
    assert [call.ended for call in simulator.calls] == ["client_closed"] * 2


async def test_pings_go_on_and_keep_the_read_timeout_away(asking: Asking, simulator: Simulator) -> None:
    """Pings end no read: a client without its own idle timer waits without end."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await asking.events("pings=3,every-ms=20", timeout=2)
    await simulator.until(lambda: not simulator.record.open_streams)
    (call,) = simulator.calls
    assert (call.ended, call.tokens_sent) == ("client_closed", 3)


async def test_an_error_event_has_status_200(asking: Asking, simulator: Simulator) -> None:
    with pytest.raises(APIStatusError) as failed:
        await asking.events("error=3,type=overloaded_error,message=too%20much")
    assert failed.value.status_code == 200
    assert failed.value.type == "overloaded_error"
    assert simulator.calls[0].tokens_sent == 3
    with pytest.raises(anthropic.OverloadedError):
        await asking.whole("error=3,type=overloaded_error")


async def test_an_event_that_is_not_json_raises_what_is_no_anthropic_error(asking: Asking) -> None:
    with pytest.raises(json.JSONDecodeError):
        await asking.events("bad-json=3")
    with pytest.raises(json.JSONDecodeError):
        await asking.whole("bad-json=3")


async def test_bytes_that_are_not_utf8_raise_what_is_no_anthropic_error(asking: Asking) -> None:
    with pytest.raises(UnicodeDecodeError):
        await asking.events("garbage=3")
    with pytest.raises(ValueError):
        await asking.whole("garbage=3")


async def test_a_delta_without_its_index_breaks_the_sdks_accumulator(asking: Asking) -> None:
    with pytest.raises(TypeError):
        await asking.streamed("no-index=3")


async def test_unknown_events_are_passed_on(asking: Asking) -> None:
    types = [str(event.type) for event in await asking.events("unknown-event=3 unknown-delta=stop")]
    assert types.index("simulated_event") == 5
    assert types[-2:] == ["content_block_delta", "message_stop"]
    assert (await asking.streamed("unknown-event=3 unknown-delta=2")).usage.output_tokens == 6


async def test_message_start_can_be_missing_or_come_twice(asking: Asking) -> None:
    assert (await asking.events("no-start=1"))[0].type == "content_block_start"
    types = [event.type for event in await asking.events("restart=3")]
    assert types.count("message_start") == 2


async def test_the_stop_reason_can_be_missing(asking: Asking) -> None:
    events = await asking.events("no-stop-reason=1")
    assert "message_delta" not in [event.type for event in events]
    assert events[-1].type == "message_stop"


@pytest.mark.parametrize("fault", ["crlf=1", "slice=1", "slice=7", "split-utf8=1", "crlf=1 slice=3", "slow-head=50"])
async def test_odd_line_ends_and_pieces_change_nothing(asking: Asking, simulator: Simulator, fault: str) -> None:
    plain = await asking.streamed("text=emoji")
    odd = await asking.streamed(f"text=emoji {fault}")
    assert text_of(odd) == text_of(plain)
    assert odd.usage.output_tokens == plain.usage.output_tokens
    assert simulator.calls[-1].faults


async def test_a_line_of_ten_megabytes_arrives(asking: Asking, simulator: Simulator) -> None:
    message = await asking.streamed("nonce=big big-line=3", timeout=20)
    text = text_of(message)
    assert len(text) > 10 * 1024 * 1024
    assert text.startswith("big.1.0 big.1.1 big.1.2 xxx")
    assert text.endswith("xxxbig.1.3 big.1.4 big.1.5 ")
    assert message.usage.output_tokens == 7
    assert simulator.calls[0].tokens_sent == 7


async def test_a_fault_can_be_for_the_first_calls_alone(asking: Asking, simulator: Simulator) -> None:
    """Endings are in the order in which they are played: two overloads, a cut, then the answer."""
    prompt = "nonce=first fail=529x2 end=1x3"
    for _ in range(2):
        with pytest.raises(anthropic.OverloadedError):
            await asking.streamed(prompt)
    assert (await asking.streamed(prompt)).stop_reason is None
    assert text_of(await asking.streamed(prompt)).startswith("first.4.0 ")
    assert [call.nonce_call for call in simulator.record.of_nonce("first")] == [1, 2, 3, 4]


async def test_calls_are_counted_by_prompt_where_there_is_no_nonce(asking: Asking) -> None:
    with pytest.raises(anthropic.OverloadedError):
        await asking.whole("first fail=529x1")
    with pytest.raises(anthropic.OverloadedError):
        await asking.whole("second fail=529x1")
    assert (await asking.whole("first fail=529x1")).stop_reason == "end_turn"


async def test_the_first_calls_can_be_spared(asking: Asking) -> None:
    assert (await asking.whole("nonce=ok ok=1x1 fail=500")).stop_reason == "end_turn"
    with pytest.raises(anthropic.InternalServerError):
        await asking.whole("nonce=ok ok=1x1 fail=500")


async def test_words_for_all_calls_stand_in_front_of_every_prompt(asking: Asking, simulator: Simulator) -> None:
    simulator.words = "fail=529,percent=50"
    outcomes: list[str | Message] = []
    for number in range(40):
        try:
            outcomes.append(await asking.whole(f"nonce=n{number}", model="sim-t1-g0-f0"))
        except anthropic.OverloadedError as error:
            outcomes.append(error.type or "")
    assert 10 <= outcomes.count("overloaded_error") <= 30
    simulator.words = ""
    assert (await asking.whole("nonce=n1")).stop_reason == "end_turn"
