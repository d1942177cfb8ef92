"""Every row of the grammar, played to both official SDKs: the documentation is true."""

import asyncio
import contextlib

import anthropic
import httpx2
import openai
import pytest

from simulator.app import Simulator
from simulator.words import ODD, ROWS, Kind, Row
from tests.upstream_simulator.asking import Asking, ChatAsking

RAISED_BY_FAULTS = (
    httpx2.TransportError,
    TimeoutError,
    anthropic.AnthropicError,
    openai.OpenAIError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    UserWarning,  # from pydantic, when an SDK gets another type than its own
)


SHAPES = [Row(name, Kind.ODDITY, "", f"odd={name}", meaning) for name, meaning in ODD.items()]
EVERY = [*(row for row in ROWS if row.name != "odd"), *SHAPES]


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.name)
async def test_every_example_of_the_grammar_is_played(asking: Asking, simulator: Simulator, row: Row) -> None:
    """The record has its outcome, and the next call of the same client succeeds."""
    await _play(asking, simulator, row)
    assert (await asking.streamed("nonce=after")).stop_reason == "end_turn"


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.name)
async def test_every_example_is_played_in_chat_completions_too(
    chat_asking: ChatAsking, simulator: Simulator, row: Row
) -> None:
    await _play(chat_asking, simulator, row)
    assert (await chat_asking.streamed("nonce=after")).choices[0].finish_reason == "stop"


async def _play(asking: Asking | ChatAsking, simulator: Simulator, row: Row) -> None:
    for ask in (asking.whole, asking.streamed):
        with contextlib.suppress(*RAISED_BY_FAULTS):
            async with asyncio.timeout(0.1):
                await ask(f"nonce=row text=emoji {row.example}")
    await simulator.until(lambda: not simulator.record.open_streams)
    assert {call.ended for call in simulator.calls} <= {"completed", "fault", "client_closed"}
    if row.kind in (Kind.ENDING, Kind.ODDITY) and row.name != "ok":
        assert row.name in simulator.calls[-1].faults
