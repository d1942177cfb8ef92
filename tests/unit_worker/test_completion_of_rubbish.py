"""An upstream may send any JSON at all: it becomes an answer or GarbledStream, and never another exception.

Another exception would end the run without an outcome, and after three workers the job as ``worker_lost``.
"""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.completion import Completion, GarbledStream

MEMBERS = (
    "type",
    "index",
    "message",
    "content_block",
    "delta",
    "usage",
    "text",
    "stop_reason",
    "input_tokens",
    "input",
)
TYPES = ("text", "text_delta", "input_json_delta", "citations_delta", "thinking_delta", "citation", "partial_json")
NAMES = (
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "an_event_of_tomorrow",
)

scalars = st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False) | st.sampled_from(TYPES)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=8,
)
events = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(MEMBERS), values, max_size=4))

A_START: tuple[str, Any] = ("message_start", {"message": {"usage": {}}})
A_BLOCK: tuple[str, Any] = ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
A_STOP: tuple[str, Any] = ("message_delta", {"delta": {"stop_reason": "end_turn"}})


@given(middle=st.lists(events, max_size=6))
def test_any_events_are_an_answer_or_garbled(middle: list[tuple[str, Any]]) -> None:
    completion = Completion()
    try:
        for name, event in (A_START, A_BLOCK, *middle, A_STOP):
            completion.add(name, msgspec.json.encode(event))
        result = completion.result()
        assert completion.usage is not None
    except GarbledStream:
        return
    assert isinstance(msgspec.json.decode(result)["text"], str)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("an_event", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("an_event", b'{"a":"\xff"}'),
        ("an_event", b"[]"),
        ("an_event", b""),
        ("content_block_delta", b'{"index":0,"delta":{"type":"text_delta","text":"\\ud83d"}}'),
        ("content_block_start", b'{"index":"x","content_block":{}}'),
        ("content_block_start", b'{"index":1e999,"content_block":{}}'),
    ],
    ids=["deep", "not UTF-8", "a list", "nothing", "half a pair", "odd index", "endless index"],
)
def test_rubbish_in_one_event_is_garbled(name: str, data: bytes) -> None:
    completion = Completion()
    for known, event in (A_START, A_BLOCK):
        completion.add(known, msgspec.json.encode(event))
    with pytest.raises(GarbledStream):
        completion.add(name, data)
