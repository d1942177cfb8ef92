"""Text with a meaning in SSE: no word of a model can break out of its frame, end a stream or forge an event."""

import asyncio
import json

import pytest
from anthropic._streaming import SSEDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

from api.native.complete import TextFrames
from api.streams.job_stream import _as_messages, _as_text
from cli.event_stream import EventReader
from shared.event_stream import BlockDecoder, lines_of
from shared.events import Event, EventId
from shared.store.runtime import Runtime
from simulator.words import SAMPLES
from tests.stream.conftest import Follow
from tests.support.author import Author
from tests.support.builders import a_text_delta
from tests.support.follower import ask, asking
from tests.support.served import Served
from tests.support.sse_frames import SseFrames
from tests.support.story import assert_saw

_TEXTS = [
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "\r\r",
    "a\rb\nc\r\nd",
    "\u2028",
    "\u2029",
    "\u0085",
    "\x0b\x0c\x1c\x1d\x1e",
    "\x00",
    "\\u0000",
    "\ufeff",
    "data: x\n\nevent: succeeded\ndata: {}\n\n",
    "id: 9999999999999-0\n\n",
    "retry: 1\n\n",
    ": ping\n\n",
    "[DONE]",
    "data: [DONE]\n\n",
    '"}}\n\ndata: {"delta":{"type":"text_delta","text":"',
    "\\",
    "\\\\n",
    "</script>",
    "👩‍🚀 cafe\u0301 𝄞",
    " leading and trailing ",
    "x" * 100_000,
    *("".join(pieces) for name, pieces in SAMPLES.items() if name != "surrogate"),
]


def _by_our_parser(stream: bytes) -> list[tuple[str, str]]:
    return [(frame.event, frame.data) for frame in SseFrames().feed(stream)]


def _by_the_command(stream: bytes) -> list[tuple[str, str]]:
    return [(event.name, event.data) for event in EventReader().feed(stream)]


def _by_the_worker(stream: bytes) -> list[tuple[str, str]]:
    return [
        (lines_of(block, b"event:")[0].decode(), lines_of(block)[0].decode()) for block in BlockDecoder().feed(stream)
    ]


def _by_the_sdk(stream: bytes) -> list[tuple[str, str]]:
    return [(event.event or "message", event.data) for event in SSEDecoder().iter_bytes(iter([stream]))]


_PARSERS = [_by_our_parser, _by_the_command, _by_the_worker, _by_the_sdk]


def _stream_of(texts: list[str], form: str) -> bytes:
    encode = {"text": _as_text, "messages": _as_messages}[form]
    events = [Event(EventId(1, number), *a_text_delta(text)) for number, text in enumerate(texts)]
    return b"".join(encode(event) for event in events)


def _text_in(data: str) -> str:
    decoded = json.loads(data)
    text: str = decoded["text"] if "text" in decoded else decoded["delta"]["text"]
    return text


@settings(max_examples=300, deadline=None)
@given(
    texts=st.lists(st.text(st.one_of(st.sampled_from('\r\n\u2028\x00 :datevni{}\\"'), st.characters(codec="utf-8"))))
)
@pytest.mark.parametrize("form", ["text", "messages"])
def test_any_text_survives_four_parsers(texts: list[str], form: str) -> None:
    """Each returns the same events with the exact text."""
    stream = _stream_of(texts, form)
    name = {"text": "delta", "messages": "content_block_delta"}[form]
    for parse in _PARSERS:
        found = parse(stream)
        assert [event for event, _ in found] == [name] * len(texts), parse.__name__
        assert [_text_in(data) for _, data in found] == texts, parse.__name__


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=50))
def test_any_cut_of_the_bytes_gives_the_same_frames(text: str, cuts: list[int]) -> None:
    """Frames arrive in pieces, cut inside a character, an id or a line end."""
    stream = _stream_of([text, "next"], "text")
    parsers: list[SseFrames | EventReader] = [SseFrames(), EventReader()]
    blocks = BlockDecoder()
    found: list[list[str]] = [[], [], []]
    place = 0
    while place < len(stream):
        for cut in cuts:
            piece, place = stream[place : place + cut], place + cut
            for number, parser in enumerate(parsers):
                found[number] += [_text_in(event.data) for event in parser.feed(piece)]
            found[2] += [_text_in(lines_of(block)[0].decode()) for block in blocks.feed(piece)]
    assert found == [[text, "next"]] * 3


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_such_text_arrives_whole(author: Author, served: Served, follower_of: Follow, form: str) -> None:
    """It passes the log, pub/sub, the relay and a real connection, live and late, and is in the result."""
    live = follower_of(author.job_id, form=form)
    task = asyncio.create_task(live.follow())
    for text in _TEXTS:
        await author.say(text)
    await author.succeed()
    await task
    late = await follower_of(author.job_id, form=form).follow()
    log = await author.log()
    for follower in (live, late):
        assert_saw(follower, log)
        assert follower.text == "".join(_TEXTS)
    _, job, _ = await ask(served.url, f"/v1/jobs/{author.job_id}")
    assert job["result"]["text"] == "".join(_TEXTS)


async def test_such_text_arrives_whole_by_complete_stream(served: Served, runtime: Runtime) -> None:
    r"""Bare ``data:`` frames: SSE has one line end, so `\r` and `\r\n` arrive as `\n`; nothing else changes."""
    body = {"prompt": "Why?"}
    async with asking(served.url, "/complete/stream", method="POST", body=body) as response:
        author = await Author.claim_next(runtime)
        for text in _TEXTS:
            await author.say(text)
        await author.succeed()
        stream = await response.read()
    expected = "".join(_TEXTS).replace("\r\n", "\n").replace("\r", "\n")
    for parse in (_by_our_parser, _by_the_command, _by_the_sdk):
        frames = [data for event, data in parse(stream) if event == "message"]
        assert frames[-1] == "[DONE]"
        assert "[DONE]" not in frames[:-1]
        assert "".join(frames[:-1]) == expected, parse.__name__


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.one_of(st.sampled_from("\r\n[DONE] "), st.characters(codec="utf-8")))))
def test_any_text_survives_as_bare_frames(texts: list[str]) -> None:
    """As pieces of one text, cut anywhere, also between the two characters of a line end and around `[DONE]`."""
    frames = TextFrames()
    stream = b"".join(frames.encode(text) for text in texts)
    expected = "".join(texts).replace("\r\n", "\n").replace("\r", "\n")
    for parse in (_by_our_parser, _by_the_command):
        found = [data for _, data in parse(stream)]
        assert "".join(found) == expected
        assert "[DONE]" not in found
