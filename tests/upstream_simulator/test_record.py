"""The record of calls: what another process can read, and how soon it shows a client's close."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx2
import pytest

from simulator.app import Simulator, running
from simulator.record import Record
from simulator.words import WordError
from tests.upstream_simulator.asking import MODEL, Asking, user


async def _get(simulator: Simulator, path: str) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=simulator.url, verify=False) as client:
        return await client.get(path)


async def _calls(simulator: Simulator, query: str = "") -> list[dict[str, Any]]:
    response = await _get(simulator, f"/_simulator/calls{query}")
    assert response.headers["content-type"] == "application/jsonl"
    return [json.loads(line) for line in response.text.splitlines()]


async def test_calls_are_read_as_json_lines(asking: Asking, simulator: Simulator) -> None:
    before_s = time.monotonic()
    await asking.streamed("nonce=one hello", model="sim-t4-g1-f20")
    await asking.whole("nonce=two hello", model="sim-t4-g1-f1")
    await asking.client.messages.count_tokens(model=MODEL, messages=user("hello"))
    one, two, counted = await _calls(simulator)
    assert (one["number"], one["nonce"], one["nonce_call"], one["stream"]) == (1, "one", 1, True)
    assert (one["endpoint"], one["model"], one["status"], one["ended"]) == (
        "messages",
        "sim-t4-g1-f20",
        200,
        "completed",
    )
    assert (one["tokens_sent"], one["output_tokens"], one["input_tokens"]) == (4, 4, 2)
    assert before_s <= one["started_s"] < one["first_token_s"] <= one["ended_s"] <= time.monotonic()
    assert one["first_token_s"] - one["started_s"] >= 0.019
    assert one["client_closed_s"] is None
    assert one["bytes_sent"] > 500
    assert (two["nonce"], two["stream"], two["tokens_sent"]) == ("two", False, 4)
    assert (counted["endpoint"], counted["nonce"], counted["ended"]) == ("count_tokens", None, "completed")
    assert await _calls(simulator, "?nonce=two") == [two]


async def test_nothing_of_a_prompt_is_in_the_record(asking: Asking, simulator: Simulator) -> None:
    await asking.whole("a secret prompt")
    assert "secret" not in (await _get(simulator, "/_simulator/calls")).text


async def test_the_record_can_be_emptied(asking: Asking, simulator: Simulator) -> None:
    await asking.whole("nonce=a")
    async with httpx2.AsyncClient(base_url=simulator.url, verify=False) as client:
        assert (await client.delete("/_simulator/calls")).json() == {"deleted": 1}
    assert await _calls(simulator) == []
    await asking.whole("nonce=a")
    (call,) = await _calls(simulator)
    assert call["nonce_call"] == 1


@pytest.mark.parametrize("prompt", ["stall=2", "first-ms=60000", "stall=head", "gap-ms=60000", "pings=2"])
async def test_a_clients_close_is_in_the_record_at_once(asking: Asking, simulator: Simulator, prompt: str) -> None:
    """While the upstream waits for its first token, between tokens, or is stalled."""
    asked = asyncio.ensure_future(asking.events(f"nonce=close {prompt}"))
    await simulator.until(lambda: bool(simulator.calls))
    if "first" not in prompt and "head" not in prompt:
        await simulator.until(lambda: simulator.calls[0].tokens_sent > 0)
    (call,) = await _calls(simulator)
    assert (call["ended"], call["ended_s"]) == (None, None)
    assert (await _get(simulator, "/_simulator/counts")).json()["open_streams"] == 1
    closed_s = time.monotonic()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await simulator.until(lambda: simulator.calls[0].ended is not None)
    (call,) = await _calls(simulator)
    assert call["ended"] == "client_closed"
    assert call["client_closed_s"] == call["ended_s"]
    assert 0 <= call["client_closed_s"] - closed_s < 1
    assert (await _get(simulator, "/_simulator/counts")).json()["open_streams"] == 0


async def test_a_close_after_the_answer_is_not_a_close_of_the_call(simulator: Simulator) -> None:
    async with anthropic.AsyncAnthropic(base_url=simulator.url, api_key="k") as client:
        await Asking(client).streamed("nonce=done")
    (call,) = await _calls(simulator)
    assert (call["ended"], call["client_closed_s"]) == ("completed", None)


async def test_counts_are_kept_by_ending(asking: Asking, simulator: Simulator) -> None:
    await asking.whole("nonce=a")
    with pytest.raises(anthropic.APIStatusError):
        await asking.whole("fail=529")
    with pytest.raises(anthropic.BadRequestError):
        await asking.whole("", model=MODEL)
    counts = (await _get(simulator, "/_simulator/counts")).json()
    assert counts["calls"] == 3
    assert counts["ended"] == {"completed": 1, "fault": 1, "refused": 1}
    assert counts["peak_open_streams"] == 1
    assert counts["now_s"] <= time.monotonic()


async def test_another_process_can_set_words_for_all_calls(asking: Asking, simulator: Simulator) -> None:
    async with httpx2.AsyncClient(base_url=simulator.url, verify=False) as client:
        assert (await client.put("/_simulator/words", content="fail=529")).status_code == 200
        assert (await client.get("/_simulator/words")).text == "fail=529"
        assert (await client.put("/_simulator/words", content="fail=5x")).status_code == 400
        with pytest.raises(anthropic.OverloadedError):
            await asking.whole("hello")
        assert (await client.put("/_simulator/words", content="")).status_code == 200
    assert (await asking.whole("hello")).stop_reason == "end_turn"


async def test_mistyped_words_for_all_calls_are_an_error(simulator: Simulator) -> None:
    with pytest.raises(WordError, match="fail"):
        simulator.words = "fail=5x"
    assert simulator.words == ""


async def test_the_grammar_can_be_read(simulator: Simulator) -> None:
    assert "fail=529x2,retry-after=3" in (await _get(simulator, "/_simulator")).text
    assert (await _get(simulator, "/_simulator/nothing")).status_code == 404


async def test_waiting_for_what_never_comes_ends(simulator: Simulator) -> None:
    with pytest.raises(TimeoutError):
        await simulator.until(lambda: False, timeout_s=0.01)


async def test_leaving_the_simulator_ends_its_calls() -> None:
    async with AsyncExitStack() as stack:
        async with running() as simulator:
            client = anthropic.AsyncAnthropic(base_url=simulator.url, api_key="k", max_retries=0)
            await stack.enter_async_context(client)
            asked = asyncio.ensure_future(Asking(client).events("stall=0"))
            await simulator.until(lambda: bool(simulator.calls))
        assert [call.ended for call in simulator.calls] == ["shutdown"]
        with pytest.raises((httpx2.TransportError, anthropic.APIConnectionError)):
            await asked


def test_the_record_is_bounded() -> None:
    record = Record(kept_calls=3)
    for number in range(5):
        assert record.next_call_of(f"nonce {number}") == 1
        record.end(record.begin("messages", None), "completed")
    assert [call.number for call in record.calls] == [3, 4, 5]
    assert record.ended == {"completed": 5}
    assert record.next_call_of("nonce 4") == 2
    assert record.next_call_of("nonce 0") == 1


async def test_a_long_record_is_read_whole(simulator: Simulator) -> None:
    for _ in range(2_500):
        simulator.record.end(simulator.record.begin("messages", None), "completed")
    numbers = [call["number"] for call in await _calls(simulator)]
    assert numbers == list(range(1, 2_501))
