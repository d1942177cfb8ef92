"""Any Messages server's habits: a clear answer becomes the events of Anthropic's API, any other one fails by name.

Our own Completion and the official SDK both add up the events, and must get the same message.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given
from hypothesis import strategies as st

from shared.completion import Completion, GarbledStream
from tests.support.builders import (
    MESSAGE_STOP,
    an_answer,
    block_delta,
    block_start,
    block_stop,
    encoded,
    message_delta,
    message_start,
    wired,
)
from worker.outcome import UpstreamError
from worker.providers.base import UpstreamEvent
from worker.providers.messages_stream import MessagesDecoder

Sent = tuple[str, Any]

START = message_start(input_tokens=3, output_tokens=1)
TEXT = block_start(0, {"type": "text", "text": ""})
HI = block_delta(0, type="text_delta", text="Hi")
STOP = block_stop(0)
END = message_delta("end_turn", output_tokens=2)
ANSWER: list[Sent] = [START, TEXT, HI, STOP, END, MESSAGE_STOP]
THINKING = block_start(0, {"type": "thinking", "thinking": "", "signature": ""})
TOOL = block_start(0, {"type": "tool_use", "id": "t", "name": "pay", "input": {}})
INPUT = block_delta(0, type="input_json_delta", partial_json='{"x":1}')


def framed(*events: Sent) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (name.encode(), data) for name, data in wired(events))


def raw(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def events_from(stream: bytes) -> list[UpstreamEvent]:
    """The events of a stream with a clean end; the same whether it arrives whole or byte by byte."""
    decoder = MessagesDecoder("asked")
    events = decoder.feed(stream) + decoder.end()
    assert decoder.end() == []
    again = MessagesDecoder("asked")
    assert [event for at in range(len(stream)) for event in again.feed(stream[at : at + 1])] + again.end() == events
    return events


def added_up(events: Iterable[UpstreamEvent]) -> dict[str, Any]:
    """The message; followers of the text and readers with the official SDK must get the same."""
    completion, snapshot = Completion(), None
    buffers: dict[int, bytes] = {}
    followed = ""
    for event in events:
        said = msgspec.json.decode(event.data)
        text = completion.add(event.name, event.data, event.text)
        assert text == text_in(said)
        followed += text[1] if text else ""
        if event.name != "ping":
            assert said["type"] == event.name
            snapshot = accumulate_event(event=said, current_snapshot=snapshot, json_bufs=buffers)
    assert completion.is_whole
    assert isinstance(completion.usage.output_tokens, int)
    result = msgspec.json.decode(completion.result())
    assert result["text"] == followed
    assert snapshot is not None
    seen = snapshot.to_dict(warnings=False)  # about members that the SDK does not know
    message: dict[str, Any] = result["message"]
    assert seen["content"] == message["content"]
    assert (seen["stop_reason"], seen["id"], seen["model"]) == (message["stop_reason"], message["id"], message["model"])
    return message


def text_in(said: dict[str, Any]) -> tuple[int, str] | None:
    delta = said.get("delta") or {}
    if said["type"] != "content_block_delta" or delta["type"] != "text_delta":
        return None
    return said["index"], delta["text"]


def message_of(stream: bytes) -> dict[str, Any]:
    return added_up(events_from(stream))


def content_of(*events: Sent) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = message_of(framed(*events))["content"]
    return blocks


def refused(stream: bytes) -> str:
    with pytest.raises(GarbledStream) as raised:
        events_from(stream)
    return str(raised.value)


def text(of: str) -> dict[str, Any]:
    return {"type": "text", "text": of}


def test_what_fits_passes_byte_for_byte() -> None:
    events = [
        START,
        ("ping", {}),
        TEXT,
        HI,
        STOP,
        block_start(1, {"type": "thinking", "thinking": "", "signature": ""}),
        block_delta(1, type="thinking_delta", thinking="Hm"),
        block_delta(1, type="signature_delta", signature="EqQB"),
        block_stop(1),
        block_start(2, {"type": "tool_use", "id": "t", "name": "pay", "input": {}}),
        block_delta(2, type="input_json_delta", partial_json='{"x":1}'),
        block_stop(2),
        block_start(3, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}),
        block_delta(3, type="input_json_delta", partial_json='{"query":"x"}'),
        block_stop(3),
        block_start(4, {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "of_tomorrow"}]}),
        block_stop(4),
        block_start(5, {"type": "text", "text": "", "citations": []}),
        block_delta(5, type="text_delta", text="As it says"),
        block_delta(5, type="citations_delta", citation={"type": "char_location", "cited_text": "a"}),
        block_stop(5),
        ("an_event_of_tomorrow", {"x": 1}),
        (
            "message_delta",
            {
                "delta": {"stop_reason": "refusal", "stop_sequence": None, "stop_details": {"why": "x"}},
                "usage": {"output_tokens": 9, "server_tool_use": {"web_search_requests": 1}},
            },
        ),
        MESSAGE_STOP,
    ]
    assert [event[:2] for event in events_from(framed(*events))] == wired(events)


def test_the_text_of_each_delta_is_told_beside_it() -> None:
    assert [event.text for event in events_from(framed(*ANSWER))] == [None, None, (0, "Hi"), None, None, None]


# --- frames ------------------------------------------------------------------------------------------------------------

PASSED_OVER = {
    "[DONE]": b"data: [DONE]\n\n",
    "[DONE] with a name": b"event: message\ndata: [DONE]\n\n",
    "an empty frame": b"data:\n\n",
    "an empty frame with a space": b"data: \n\n",
    "a comment": b": OPENROUTER PROCESSING\n\n",
    "fields of the reader": b"id: 7\nretry: 10\n\n",
    "null": b"data: null\n\n",
    "an empty event": b"event: ping\ndata:\n\n",
    "an event of no JSON": b"event: heartbeat\ndata: alive\n\n",
    "an event without a type": b'data: {"alive":true}\n\n',
    "a delta null": framed(("content_block_delta", {"index": 0, "delta": None})),
    "a delta without a member": framed(("content_block_delta", {"index": 9, "delta": {"type": "text_delta"}})),
    "a text null": framed(block_delta(0, type="text_delta", text=None)),
    "a partial_json null": framed(block_delta(0, type="input_json_delta", partial_json=None)),
    "a signature of a number": framed(block_delta(9, type="signature_delta", signature=None)),
    "a stop of no block": framed(block_stop(9)),
}


@pytest.mark.parametrize("frame", PASSED_OVER.values(), ids=PASSED_OVER)
@pytest.mark.parametrize("place", range(len(ANSWER) + 1))
def test_what_says_nothing_is_passed_over_wherever_it_is(frame: bytes, place: int) -> None:
    stream = framed(*ANSWER[:place]) + frame + framed(*ANSWER[place:])
    assert events_from(stream) == events_from(framed(*ANSWER))


@pytest.mark.parametrize(
    "frame", [b"data: rubbish\n\n", framed(HI), framed(START), raw("error", b"{}"), b'data: {"error":{}}\n\n']
)
def test_nothing_is_read_after_the_end(frame: bytes) -> None:
    assert events_from(framed(*ANSWER) + frame) == events_from(framed(*ANSWER))


UNREADABLE = [b"NaN", b"-Infinity", b"1e999", b'"\\ud83d"', b'"\xff"', b'"a\tb"', b'{"x":[NaN]}']


@pytest.mark.parametrize("value", UNREADABLE)
def test_values_outside_strict_json_do_not_matter_in_unneeded_members(value: bytes) -> None:
    """Servers in Python write log probabilities of -Infinity. The passed-on event is strict JSON."""
    stream = b"".join(
        raw(name, b'{"logprobs":%b,%b' % (value, data[1:]))
        for name, data in [*wired(ANSWER), *wired([("novelty", {})])]
    )
    assert message_of(stream)["content"] == [text("Hi")]
    (novelty, *_) = events_from(b'event: novelty\ndata: {"x":%b}\n\n' % value)
    assert msgspec.json.decode(novelty.data)["type"] == "novelty"


@pytest.mark.parametrize("value", [b'"\\ud83d"', b'"\xff"', b"NaN"])
def test_a_text_that_is_no_unicode_is_doubtful(value: bytes) -> None:
    delta = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":%b}}' % value
    stream = framed(START, TEXT) + raw("content_block_delta", delta) + framed(STOP, END, MESSAGE_STOP)
    assert refused(stream).startswith("content_block_delta.delta.text is ")


@pytest.mark.parametrize("instead", [b"x: ", b"event: message\nx: ", b"event: data\nx: "])
def test_the_type_says_what_an_event_is_whatever_it_is_named(instead: bytes) -> None:
    assert message_of(framed(*ANSWER).replace(b"event: ", instead))["content"] == [text("Hi")]


def test_the_name_says_what_an_event_is_where_it_has_no_type() -> None:
    stream = b"".join(raw(name, encoded(members)) for name, members in ANSWER)
    assert message_of(stream)["content"] == [text("Hi")]


# --- the message -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [None, "text", [], {}, {"id": 7}, {"id": None, "model": 7, "role": "x", "usage": "many", "content": None}],
)
def test_missing_members_of_message_start_are_added(message: object) -> None:
    """Without ``content`` the official SDK crashes."""
    (start, *_) = events_from(framed(("message_start", {"message": message}), *ANSWER[1:]))
    said = msgspec.json.decode(start.data)["message"]
    usage = {"input_tokens": 0, "output_tokens": 0}
    assert {**said, "id": "", "model": "m"} == {
        "id": "",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    assert said["model"] in ("asked", "7")
    assert message_of(framed(("message_start", {"message": message}), *ANSWER[1:]))["content"] == [text("Hi")]


def test_a_missing_message_start_is_added() -> None:
    """It holds nothing that is needed, if the first block's start is there."""
    assert message_of(framed(*ANSWER[1:]))["content"] == [text("Hi")]


def test_a_beginning_that_comes_twice_is_told_once() -> None:
    assert events_from(framed(START, START, *ANSWER[1:])) == events_from(framed(*ANSWER))


def test_a_beginning_after_content_is_another_answers() -> None:
    assert refused(framed(START, TEXT, HI, START, TEXT, HI)) == "a second message_start"


def test_blocks_in_the_beginning_are_told_as_blocks() -> None:
    said = {"message": {"content": [text("Oh. "), {"type": "text", "text": ""}]}}
    rest = [block_start(1, text("")), block_delta(1, type="text_delta", text="Hi"), block_stop(1), END, MESSAGE_STOP]
    assert content_of(("message_start", said), *rest) == [text("Oh. "), text("Hi")]
    assert content_of(("message_start", {"message": {"content": [text("")]}}), *ANSWER[1:]) == [text("Hi")]


def test_a_block_in_message_start_that_begins_again_is_doubtful() -> None:
    """Its text may be repeated or continued."""
    said = {"message": {"content": [text("Hi")]}}
    assert refused(framed(("message_start", said), *ANSWER[1:])) == "block 0 began twice"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        [1],
        {},
        {"output_tokens": None},
        {"output_tokens": "many", "input_tokens": [1], "cache_read_input_tokens": True},
    ],
)
def test_an_invalid_usage_is_ignored(usage: object) -> None:
    """SDKs need ``output_tokens`` in each message_delta."""
    events = events_from(
        framed(*ANSWER[:4], ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": usage}), MESSAGE_STOP)
    )
    assert msgspec.json.decode(events[-2].data)["usage"]["output_tokens"] == 1
    assert added_up(events)["usage"]["input_tokens"] == 3


@pytest.mark.parametrize("count", [12, 12.0, "12", "12.0"])
def test_a_count_may_be_a_text_or_a_float(count: object) -> None:
    message = message_of(framed(*ANSWER[:4], message_delta("end_turn", output_tokens=count), MESSAGE_STOP))  # type: ignore[arg-type]
    assert repr(message["usage"]["output_tokens"]) == "12"


# --- the ending --------------------------------------------------------------------------------------------------------


def test_a_reason_and_all_blocks_closed_are_an_end_without_message_stop() -> None:
    assert events_from(framed(*ANSWER[:-1])) == events_from(framed(*ANSWER))


@pytest.mark.parametrize("events", [ANSWER[:end] for end in range(5)] + [[START, TEXT, HI, END]])
def test_without_a_reason_or_with_an_open_block_it_is_no_end(events: list[Sent]) -> None:
    assert "message_stop" not in [event.name for event in events_from(framed(*events))]


def test_message_stop_closes_what_is_open() -> None:
    assert events_from(framed(START, TEXT, HI, END, MESSAGE_STOP))[-2].name == "content_block_stop"
    assert content_of(START, TOOL, INPUT, message_delta("tool_use", output_tokens=1), MESSAGE_STOP)[0]["input"] == {
        "x": 1
    }


@pytest.mark.parametrize("delta", [{}, None, [], {"stop_reason": None}, {"stop_reason": ""}])
def test_a_stop_reason_is_kept_whatever_follows(delta: object) -> None:
    """The official SDK would drop it."""
    assert (
        message_of(framed(*ANSWER[:5], ("message_delta", {"delta": delta}), MESSAGE_STOP))["stop_reason"] == "end_turn"
    )


def test_a_reason_in_the_beginning_counts_once_message_stop_confirms_it() -> None:
    start = ("message_start", {"message": {"stop_reason": "end_turn"}})
    assert message_of(framed(start, TEXT, HI, STOP, MESSAGE_STOP))["stop_reason"] == "end_turn"
    assert "message_stop" not in [event.name for event in events_from(framed(start, TEXT, HI, STOP))]


# --- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [(0, 1), (0, 2), (3, 7), (0, 0), (1, 0), (None, None), ("0", 1.0), ([], {})])
def test_blocks_are_numbered_as_they_begin(indices: tuple[Any, Any]) -> None:
    """Gaps crash the official SDK; a missing index is that of the open block."""
    first, second = indices
    events = events_from(
        framed(
            START,
            block_start(first, text("")),
            block_delta(first, type="text_delta", text="a"),
            block_stop(first),
            block_start(second, {"type": "tool_use", "id": "t", "name": "pay", "input": {}}),
            block_delta(second, type="input_json_delta", partial_json="{}"),
            block_stop(second),
            END,
            MESSAGE_STOP,
        )
    )
    numbers = [msgspec.json.decode(event.data).get("index") for event in events]
    assert numbers == [None, 0, 0, 0, 1, 1, 1, None, None]
    assert [block["type"] for block in added_up(events)["content"]] == ["text", "tool_use"]


def test_calls_whose_pieces_are_mixed_are_told_apart_by_their_index() -> None:
    second = block_start(1, {"type": "tool_use", "id": "u", "name": "pay", "input": {}})
    pieces = [(0, '{"x":'), (1, '{"y":'), (0, "1}"), (1, "2}")]
    mixed = [block_delta(index, type="input_json_delta", partial_json=piece) for index, piece in pieces]
    blocks = content_of(START, TOOL, second, *mixed, STOP, block_stop(1), END, MESSAGE_STOP)
    assert [block["input"] for block in blocks] == [{"x": 1}, {"y": 2}]


@pytest.mark.parametrize("kind", ["text", "thinking"])
def test_content_in_a_blocks_start_becomes_its_first_delta(kind: str) -> None:
    """Otherwise followers of the text would miss it, although the result has it."""
    start = block_start(0, {"type": kind, kind: "Oh. "})
    delta = block_delta(0, type=f"{kind}_delta", **{kind: "Hi"})
    events = events_from(framed(START, start, delta, STOP, END, MESSAGE_STOP))
    assert msgspec.json.decode(events[1].data)["content_block"][kind] == ""
    assert added_up(events)["content"][0][kind] == "Oh. Hi"


@pytest.mark.parametrize("first", [None, [], {}])
def test_an_empty_beginning_of_any_type_is_an_empty_text(first: object) -> None:
    assert content_of(START, block_start(0, {"type": "text", "text": first}), *ANSWER[2:]) == [text("Hi")]


@pytest.mark.parametrize("sent", [{"x": 1}, '{"x":1}'])
def test_input_that_came_whole_is_told_as_a_delta(sent: object) -> None:
    start = block_start(0, {"type": "tool_use", "id": "t", "name": "pay", "input": sent})
    events = events_from(framed(START, start, STOP, END, MESSAGE_STOP))
    assert [event.name for event in events[1:4]] == ["content_block_start", "content_block_delta", "content_block_stop"]
    assert added_up(events)["content"][0]["input"] == {"x": 1}
    # Input that comes in pieces replaces it.
    piece = block_delta(0, type="input_json_delta", partial_json='{"y":2}')
    assert content_of(START, start, piece, STOP, END, MESSAGE_STOP)[0]["input"] == {"y": 2}


@pytest.mark.parametrize("sent", [None, [], "", {}, "{}"])
def test_empty_input_of_any_type_is_an_empty_object(sent: object) -> None:
    """PHP writes an empty object as a list."""
    start = block_start(0, {"type": "tool_use", "id": "t", "name": "pay", "input": sent})
    assert content_of(START, start, STOP, END, MESSAGE_STOP)[0]["input"] == {}


def test_a_piece_of_input_may_be_the_object_itself() -> None:
    piece = block_delta(0, type="input_json_delta", partial_json={"x": 1})
    assert content_of(START, TOOL, piece, STOP, END, MESSAGE_STOP)[0]["input"] == {"x": 1}


@pytest.mark.parametrize("tool_id", [None, "", [], {"a": 1}])
def test_a_call_without_an_id_has_one_made(tool_id: object) -> None:
    starts = [block_start(index, {"type": "tool_use", "id": tool_id, "name": "pay"}) for index in (0, 1)]
    ids = {block["id"] for block in content_of(START, starts[0], STOP, starts[1], block_stop(1), END, MESSAGE_STOP)}
    assert len(ids - {""}) == 2


DELTAS = {
    "no type": block_delta(0, text="Hi"),
    "a type of tomorrow": block_delta(0, type="text_delta_2", text="Hi"),
    "a type of a number": block_delta(0, type=7, text="Hi"),
    "empty members of other kinds": block_delta(0, type="text_delta", text="Hi", partial_json="", thinking=None),
    "odd members beside it": block_delta(0, type="text_delta", text="Hi", signature=7, citation="x", more=[1]),
}


@pytest.mark.parametrize("delta", DELTAS.values(), ids=DELTAS)
def test_a_delta_is_what_its_block_grows_by(delta: Sent) -> None:
    assert content_of(START, TEXT, delta, STOP, END, MESSAGE_STOP) == [text("Hi")]


def test_thinking_and_its_signature_may_come_at_once() -> None:
    delta = block_delta(0, type="thinking_delta", thinking="Hm", signature="EqQB")
    assert content_of(START, THINKING, delta, STOP, END, MESSAGE_STOP) == [
        {"type": "thinking", "thinking": "Hm", "signature": "EqQB"}
    ]


def test_unknown_blocks_are_passed_on() -> None:
    """With their index corrected."""
    block = {"type": "hologram", "shape": [1]}
    delta = block_delta(5, type="hologram_delta", shape={"x": 1}, text="no text")
    events = events_from(framed(START, block_start(5, block), delta, block_stop(5), END, MESSAGE_STOP))
    assert msgspec.json.decode(events[2].data) == {
        "type": "content_block_delta",
        "index": 0,
        "delta": delta[1]["delta"],
    }
    assert added_up(events)["content"] == [block]


# --- whole answers -----------------------------------------------------------------------------------------------------


def test_an_answer_in_one_piece_is_told_in_events() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm", "signature": "EqQB"},
        text("Hi"),
        {"type": "tool_use", "id": "t", "name": "pay", "input": {"x": 1}},
        {"type": "redacted_thinking", "data": "EmwK"},
    ]
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": content,
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    events = MessagesDecoder("asked").feed_whole(body)
    message = added_up(events)
    assert message == body
    assert [event.text for event in events if event.text] == [(1, "Hi")]


def test_a_text_may_stand_for_its_block() -> None:
    body = {"type": "message", "content": "Hi", "stop_reason": "end_turn"}
    assert added_up(MessagesDecoder("asked").feed_whole(body))["content"] == [text("Hi")]


@pytest.mark.parametrize("body", [{"content": []}, {"type": "message", "content": [text("Hi")]}, {"choices": []}])
def test_an_answer_in_one_piece_must_say_why_it_ended(body: dict[str, Any]) -> None:
    with pytest.raises(GarbledStream):
        MessagesDecoder("asked").feed_whole(body)


# --- what is doubtful --------------------------------------------------------------------------------------------------

DOUBTFUL: dict[str, tuple[list[Sent], str]] = {
    "a text of a number": ([block_delta(0, type="text_delta", text=7)], "content_block_delta.delta.text is a number"),
    "a text of 0": ([block_delta(0, type="text_delta", text=0)], "content_block_delta.delta.text is a number"),
    "a text of a list": ([block_delta(0, type="text_delta", text=["a"])], "content_block_delta.delta.text is a list"),
    "a delta of a text": (
        [("content_block_delta", {"index": 0, "delta": "Hi"})],
        "content_block_delta.delta is a text",
    ),
    "another block's text": (
        [block_delta(1, type="text_delta", text="x")],
        "content_block_delta is of no block that is open",
    ),
    "text after its block": ([STOP, HI], "content_block_delta is of no block that is open"),
    "text of one of two": (
        [block_start(1, {"type": "thinking"}), ("content_block_delta", {"delta": {"text": "x"}})],
        "content_block_delta is of no block that is open",
    ),
    "input in a text": (
        [block_delta(0, type="input_json_delta", partial_json="{}")],
        "delta.partial_json came in a block whose type is text",
    ),
    "text in a call": (
        [block_start(1, {"type": "tool_use", "name": "pay"}), block_delta(1, type="text_delta", text="x")],
        "delta.text came in a block whose type is tool_use",
    ),
    "text in what nobody knows": (
        [block_start(1, {"type": "hologram"}), block_delta(1, type="text_delta", text="x")],
        "delta.text came in a block whose type is an unknown text",
    ),
    "text that goes back": (
        [block_start(1, text("")), block_delta(1, type="text_delta", text="x"), HI],
        "text goes on in an earlier block",
    ),
    "a block that begins twice": ([TEXT], "block 0 began twice"),
    "a block of a text": (
        [("content_block_start", {"index": 1, "content_block": "x"})],
        "content_block_start.content_block is a text",
    ),
    "a block without a type": ([block_start(1, {"text": ""})], "content_block.type is missing"),
    "a block of type 7": ([block_start(1, {"type": 7})], "content_block.type is a number"),
    "a block with a text of a number": (
        [block_start(1, {"type": "text", "text": 7})],
        "content_block.text is a number",
    ),
    "a call without a name": ([block_start(1, {"type": "tool_use", "id": "t"})], "content_block.name is missing"),
    "a call with input of a list": (
        [block_start(1, {"type": "tool_use", "name": "pay", "input": [1]})],
        "content_block.input is a list",
    ),
    "a call with input of no JSON": (
        [block_start(1, {"type": "tool_use", "name": "pay", "input": "oops"})],
        "content_block.input is not JSON",
    ),
    "a piece of input of a number": (
        [block_start(1, {"type": "tool_use", "name": "pay"}), block_delta(1, partial_json=7)],
        "content_block_delta.delta.partial_json is a number",
    ),
    "a reason of a number": (
        [("message_delta", {"delta": {"stop_reason": 7}})],
        "message_delta.delta.stop_reason is a number",
    ),
    "an end of a text": ([("message_delta", {"delta": "end_turn"})], "message_delta.delta is a text"),
    "no reason": ([MESSAGE_STOP], "message_stop came without a stop_reason"),
}


@pytest.mark.parametrize("doubt", DOUBTFUL)
def test_what_makes_the_answer_doubtful_is_named(doubt: str) -> None:
    """The error names the member and its type, and does not quote its content."""
    events, message = DOUBTFUL[doubt]
    assert refused(framed(START, TEXT, HI, *events, STOP, END, MESSAGE_STOP)) == message


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([END, MESSAGE_STOP], "message_delta came before message_start"),
        ([MESSAGE_STOP], "message_stop came before message_start"),
        ([HI], "content_block_delta is of no block that is open"),
    ],
)
def test_an_answer_has_a_beginning(events: list[Sent], message: str) -> None:
    assert refused(framed(*events)) == message


def test_events_before_the_odd_one_are_told() -> None:
    decoder = MessagesDecoder("asked")
    odd = block_delta(0, type="text_delta", text=7)
    assert [event.text for event in decoder.feed(framed(START, TEXT, HI, odd, HI)) if event.text] == [(0, "Hi")]
    for _ in range(2):
        with pytest.raises(GarbledStream):
            decoder.feed(framed(HI))


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (raw("error", b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}'), "upstream_overloaded"),
        (b'data: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n', "upstream_overloaded"),
        (b'data: {"error":{"message":"slow down","code":429}}\n\n', "upstream_rate_limited"),
        (raw("message", b'{"error":"out of memory"}'), "upstream_error"),
        (raw("error", b"no JSON"), "upstream_error"),
        (raw("error", b""), "upstream_error"),
        (raw("error", b'{"detail":"broke"}'), "upstream_error"),
    ],
)
def test_an_error_inside_the_stream_is_a_failure(frame: bytes, code: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        MessagesDecoder("asked").feed(frame)
    assert raised.value.failure.error.code == code


# --- whatever is sent --------------------------------------------------------------------------------------------------

VALUES = st.sampled_from([None, True, 0, 1, 1.5, "", "x", "0", [], ["x"], {}, {"x": 1}])
PATHS = [
    (event, path)
    for event, (_, members) in enumerate(ANSWER)
    for path in [
        (),
        *[(name,) for name in members],
        *[(outer, inner) for outer, of in members.items() if isinstance(of, dict) for inner in of],
    ]
]


@given(where=st.sampled_from(PATHS), value=VALUES, is_removed=st.booleans())
def test_any_member_of_any_type_is_the_same_answer_or_a_failure(
    where: tuple[int, tuple[str, ...]], value: object, is_removed: bool
) -> None:
    """The events add up to the same message for every reader, and never to another text."""
    place, path = where
    events = msgspec.json.decode(encoded([list(event) for event in ANSWER]))
    of: Any = events[place][1]
    for name in path[:-1]:
        of = of[name]
    if path and is_removed:
        del of[path[-1]]
    elif path:
        of[path[-1]] = value
    decoder = MessagesDecoder("asked")
    try:
        told_events = decoder.feed(framed(*[tuple(event) for event in events])) + decoder.end()
        message = added_up(told_events)
    except (GarbledStream, UpstreamError):
        return
    allowed = {"".join(piece) for piece in ("Hi", "x", "0", "xHi", "0Hi", "")}
    assert "".join(block.get("text", "") for block in message["content"]) in allowed


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=6))
def test_any_text_arrives_as_it_was(texts: list[str]) -> None:
    stream = b"".join(raw(name, data) for name, data in an_answer(*texts))
    blocks = message_of(stream)["content"]
    assert "".join(block["text"] for block in blocks) == "".join(texts)
