"""Chat chunks become the events that the Anthropic API would send, whatever the server's habits and the network's cuts."""

import itertools
from typing import Any

import msgspec
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from pydantic import TypeAdapter

from shared.completion import Completion, GarbledStream
from worker.outcome import UpstreamError
from worker.providers.base import UpstreamEvent
from worker.providers.chat_stream import ChatDecoder

DONE = b"data: [DONE]\n\n"
_messages_event: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def frame(chunk: object) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def chunk(delta: object = None, finish_reason: str | None = None, **members: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "that-answered"}
    return frame({**head, "choices": [choice], **members})


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached is not None else {}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **details}


def tool(arguments: str | None = None, *, index: int | None = 0, **members: Any) -> dict[str, Any]:
    """A delta with one piece of one tool call."""
    name = members.pop("name", None)
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{**({} if index is None else {"index": index}), "function": function, **members}]}


def events_of(*pieces: bytes, model: str = "asked") -> list[UpstreamEvent]:
    """The events of these pieces and a clean end. The official SDK can parse each event."""
    decoder = ChatDecoder(model)
    events = [event for piece in pieces for event in decoder.feed(piece)] + decoder.end()
    assert decoder.end() == []
    for event in events:
        said = msgspec.json.decode(event.data)
        assert event.name == said["type"]
        assert event.text == ((said["index"], said["delta"]["text"]) if "text" in said.get("delta", ()) else None)
        _messages_event.validate_json(event.data)
    return events


def events_from(*pieces: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.data) for event in events_of(*pieces)]


def answer(*pieces: bytes) -> dict[str, Any]:
    """The message that the events add up to."""
    completion = Completion()
    for event in events_of(*pieces):
        completion.add(event.name, event.data, event.text)
    assert completion.is_whole
    message: dict[str, Any] = msgspec.json.decode(completion.result())["message"]
    return message


def content(*pieces: bytes) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = answer(*pieces)["content"]
    return blocks


def text(of: str) -> dict[str, Any]:
    return {"type": "text", "text": of}


def use(name: str, of: object, tool_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool_id, "name": name, "input": of}


def test_an_answer_is_told_as_the_anthropic_api_would_tell_it() -> None:
    assert events_from(
        chunk({"role": "assistant", "content": "", "refusal": None}, usage=None),
        chunk({"content": "Hel"}),
        b": ping\n\n",
        chunk({"content": "lo"}),
        chunk({}, "stop"),
        frame({"id": "chatcmpl-1", "choices": [], "usage": usage(12, 2, cached=5)}),
        DONE,
    ) == [
        {
            "type": "message_start",
            "message": {
                "id": "chatcmpl-1",
                "type": "message",
                "role": "assistant",
                "model": "that-answered",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 2},
        },
        {"type": "message_stop"},
    ]


def test_a_tools_use_is_told_as_the_anthropic_api_would_tell_it() -> None:
    pieces = [
        chunk(tool("", id="call_1", type="function", name="weather")),
        chunk(tool('{"city":')),
        chunk(tool('"Köln"}')),
        chunk({}, "tool_calls"),
    ]
    assert [
        (event["type"], event.get("delta", event.get("content_block"))) for event in events_from(*pieces)[1:-1]
    ] == [
        ("content_block_start", use("weather", {}, "call_1")),
        ("content_block_delta", {"type": "input_json_delta", "partial_json": ""}),
        ("content_block_delta", {"type": "input_json_delta", "partial_json": '{"city":'}),
        ("content_block_delta", {"type": "input_json_delta", "partial_json": '"Köln"}'}),
        ("content_block_stop", None),
        ("message_delta", {"stop_reason": "tool_use", "stop_sequence": None}),
    ]


A, B = use("a", {"x": 1}, "1"), use("b", {"y": [2]}, "2")
WHOLE_A, WHOLE_B = tool('{"x":1}', id="1", name="a"), tool('{"y":[2]}', id="2", name="b")

TOOL_STREAMS = {
    "one after the other": [
        tool("", id="1", name="a"),
        tool('{"x":1}'),
        tool("", index=1, id="2", name="b"),
        tool('{"y":[2]}', index=1),
    ],
    "their pieces mixed": [
        tool("", id="1", name="a"),
        tool("", index=1, id="2", name="b"),
        tool('{"x"'),
        tool('{"y":', index=1),
        tool(":1}"),
        tool("[2]}", index=1),
    ],
    "both in one chunk": [
        {"tool_calls": [*WHOLE_A["tool_calls"], *tool('{"y":[2]}', index=1, id="2", name="b")["tool_calls"]]}
    ],
    "both of index 0": [WHOLE_A, WHOLE_B],
    "without index": [
        tool('{"x":', index=None, id="1", name="a"),
        tool("1}", index=None),
        tool('{"y":', index=None, id="2", name="b"),
        tool("[2]}", index=None),
    ],
    "an index that comes later": [
        tool("", id="1", name="a"),
        tool("", index=None, id="2", name="b"),
        tool('{"x":1}'),
        tool('{"y":[2]}', index=1),
    ],
    "id and name in each piece": [tool('{"x":', id="1", name="a"), tool("1}", id="1", name="a"), WHOLE_B],
    "another id in each piece": [tool('{"x":', id="1", name="a"), tool("1}", id="7"), WHOLE_B],
    "two pieces of one in a chunk, with its id and name": [
        {"tool_calls": [tool(piece, id="1", name="a")["tool_calls"][0] for piece in ('{"x":', "1}")]},
        WHOLE_B,
    ],
    "the name comes later": [
        tool(None, id="1"),
        tool("", name="a"),
        tool('{"x":1}'),
        tool('{"y":', index=1, id="2"),
        tool("[2]}", index=1, name="b"),
    ],
    "the input as an object": [
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "a", "arguments": {"x": 1}}}]},
        {"tool_calls": [{"index": 1, "id": "2", "function": {"name": "b", "arguments": {"y": [2]}}}]},
    ],
}


@pytest.mark.parametrize("deltas", TOOL_STREAMS.values(), ids=TOOL_STREAMS)
def test_each_habit_of_calling_two_tools(deltas: list[dict[str, Any]]) -> None:
    """A block begins only after the previous block has ended."""
    pieces = [*[chunk(delta) for delta in deltas], chunk({}, "tool_calls"), DONE]
    assert content(*pieces) == [A, B]
    order = [
        event["type"]
        for event in events_from(*pieces)
        if event["type"] in {"content_block_start", "content_block_stop"}
    ]
    assert order == ["content_block_start", "content_block_stop"] * 2


def test_a_call_is_told_while_it_comes() -> None:
    decoder = ChatDecoder("asked")
    decoder.feed(chunk(tool('{"x":1}', id="1", name="a")))
    assert [event.name for event in decoder.feed(chunk(tool('{"y"', index=1, id="2", name="b")))] == [
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
    ]


@pytest.mark.parametrize("arguments", [None, "", "{}"])
def test_a_call_without_input_has_an_empty_one(arguments: str | None) -> None:
    assert content(chunk(tool(arguments, id="1", name="a")), chunk({}, "tool_calls")) == [use("a", {}, "1")]


def test_calls_without_ids_have_ids_of_their_own() -> None:
    deltas = [tool("{}", index=0, name="a"), tool("{}", index=1, name="a"), tool("{}", index=None, name="a")]
    blocks = content(*map(chunk, deltas), chunk({}, "stop"))
    assert len({block["id"] for block in blocks}) == 3
    assert all(block["id"] for block in blocks)


def test_the_one_call_of_before_there_were_tools() -> None:
    pieces = [
        chunk({"function_call": {"name": "a", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"x":1}'}}),
    ]
    (block,) = content(*pieces, chunk({}, "function_call"))
    assert (block["name"], block["input"]) == ("a", {"x": 1})


@pytest.mark.parametrize("member", ["reasoning_content", "reasoning"])
def test_reasoning_is_thinking(member: str) -> None:
    pieces = [chunk({member: "Hm", "content": ""}), chunk({member: "."}), chunk({"content": "Yes."}), chunk({}, "stop")]
    assert content(*pieces) == [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text("Yes.")]


def test_everything_in_one_chunk() -> None:
    delta = {"reasoning_content": "Hm", "reasoning": "Hm", "content": "Yes.", **WHOLE_A}
    kinds = [block["type"] for block in content(chunk(delta, "tool_calls"), DONE)]
    assert kinds == ["thinking", "text", "tool_use"]


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("function_call", "tool_use"),
        ("content_filter", "refusal"),
        ("a_reason_of_tomorrow", "a_reason_of_tomorrow"),
    ],
)
def test_why_it_stopped(finish_reason: str, stop_reason: str) -> None:
    completion = Completion()
    decoder = ChatDecoder("asked")
    for event in decoder.feed(chunk({"content": "x"}, finish_reason) + DONE):
        completion.add(event.name, event.data)
    assert completion.stop_reason == stop_reason


def test_the_finish_reason_stop_after_a_tool_call_means_tool_use() -> None:
    """OpenAI sends `stop` if tool_choice names a function; other servers always do."""
    assert answer(chunk(WHOLE_A), chunk({}, "stop"))["stop_reason"] == "tool_use"
    assert answer(chunk(WHOLE_A), chunk({}, "length"))["stop_reason"] == "max_tokens"


def test_a_refusal_in_words_is_a_refusal() -> None:
    message = answer(chunk({"content": None, "refusal": "No"}), chunk({"refusal": "."}), chunk({}, "stop"))
    assert (message["content"], message["stop_reason"]) == ([text("No.")], "refusal")


HI = [text("Hi")]
HABITS = {
    "no usage": ([chunk({"content": "Hi"}), chunk({}, "stop"), DONE], (0, 0, 0)),
    "usage in every chunk": (
        [
            chunk({"content": "H"}, usage=usage(3, 1)),
            chunk({"content": "i"}, usage=usage(3, 2)),
            chunk({}, "stop", usage=usage(3, 2)),
            DONE,
        ],
        (3, 0, 2),
    ),
    "the reason with the last content": ([chunk({"content": "Hi"}, "stop", usage=usage(3, 2)), DONE], (3, 0, 2)),
    "the usage before the reason": (
        [chunk({"content": "Hi"}), frame({"choices": [], "usage": usage(3, 2)}), chunk({}, "stop"), DONE],
        (3, 0, 2),
    ),
    "no [DONE]": ([chunk({"content": "Hi"}), chunk({}, "stop")], (0, 0, 0)),
    "content behind the reason": ([chunk({"content": "H"}, "stop"), chunk({"content": "i"}, "stop"), DONE], (0, 0, 0)),
    "two reasons": ([chunk({"content": "Hi"}, "stop"), chunk({}, "length"), DONE], (0, 0, 0)),
    "delta null": ([chunk(None), chunk({"content": "Hi"}), chunk(None, "stop"), DONE], (0, 0, 0)),
    "content null": ([chunk({"role": "assistant", "content": None}), chunk({"content": "Hi"}, "stop")], (0, 0, 0)),
    "Azure's first chunk": (
        [
            frame({"choices": [], "id": "", "model": "", "object": "", "prompt_filter_results": [{"prompt_index": 0}]}),
            chunk({"content": "Hi"}),
            chunk({}, "stop"),
            DONE,
        ],
        (0, 0, 0),
    ),
    "an empty reason": ([chunk({"content": "Hi"}, ""), chunk({}, "stop"), DONE], (0, 0, 0)),
    "no choices at all": ([frame({"x_server": 1}), chunk({"content": "Hi"}), chunk({}, "stop"), frame({})], (0, 0, 0)),
    "several answers": (
        [
            chunk({"content": "Hi"}),
            frame({"choices": [{"index": 1, "delta": {"content": "Ho"}, "finish_reason": "length"}]}),
            chunk({}, "stop"),
            DONE,
        ],
        (0, 0, 0),
    ),
    "no space behind data:": (
        [chunk({"content": "Hi"}, "stop").replace(b"data: ", b"data:"), b"data:[DONE]\n\n"],
        (0, 0, 0),
    ),
    "a name and an id": ([b"event: message\nid: 1\n" + chunk({"content": "Hi"}, "stop"), DONE], (0, 0, 0)),
    "more cached than there was": ([chunk({"content": "Hi"}, "stop", usage=usage(3, -1, cached=9)), DONE], (0, 3, 0)),
    "details null": (
        [chunk({"content": "Hi"}, "stop", usage={**usage(3, 2), "prompt_tokens_details": None}), DONE],
        (3, 0, 2),
    ),
    "an error that is none": ([chunk({"content": "Hi"}, "stop", error=None), DONE], (0, 0, 0)),
    "talk behind the end": ([chunk({"content": "Hi"}, "stop"), DONE, b"data: rubbish\n\n", DONE], (0, 0, 0)),
}


@pytest.mark.parametrize(("pieces", "tokens"), HABITS.values(), ids=HABITS)
def test_each_habit_of_a_server(pieces: list[bytes], tokens: tuple[int, int, int]) -> None:
    message = answer(*pieces)
    assert (message["content"], message["stop_reason"]) == (HI, "end_turn")
    assert tuple(message["usage"].values()) == tokens


def test_who_answered_is_who_was_asked_where_no_chunk_says() -> None:
    (start, *_) = events_from(frame({"choices": [{"delta": {"content": "Hi"}}]}))
    assert (start["message"]["model"], start["message"]["id"]) == ("asked", "")


@pytest.mark.parametrize(
    "pieces",
    [[], [DONE], [chunk({"content": "Hi"})], [chunk({"content": "Hi"}), DONE], [chunk({"content": "Hi"}, "stop")[:-1]]],
)
def test_an_answer_without_a_reason_is_not_whole(pieces: list[bytes]) -> None:
    assert "message_stop" not in [event.name for event in events_of(*pieces)]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"error": {"type": "server_error", "message": "broke"}}, "upstream_error"),
        ({"error": {"message": "slow down", "code": 429}}, "upstream_rate_limited"),
        ({"error": "out of memory"}, "upstream_error"),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "upstream_rejected"),
        ({"choices": [{"delta": {}, "finish_reason": "error"}], "error": {"code": 502}}, "upstream_error"),
        ({"choices": [{"delta": {}, "finish_reason": "abort"}]}, "upstream_error"),
    ],
)
def test_an_error_inside_the_stream_is_a_failure(line: object, code: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        events_of(chunk({"content": "Hi"}), frame(line))
    assert raised.value.failure.error.code == code


@pytest.mark.parametrize("data", [b"{}", b'{"message":"broke"}', b'{"error":{"type":"server_error"}}'])
def test_an_event_that_is_called_an_error_is_one(data: bytes) -> None:
    with pytest.raises(UpstreamError) as raised:
        events_of(chunk({"content": "Hi"}), b"event: error\ndata: " + data + b"\n\n")
    assert raised.value.failure.error.code == "upstream_error"


def test_an_error_in_a_field_of_its_own_is_one_too() -> None:
    """As llama.cpp before August 2025 sends it."""
    with pytest.raises(UpstreamError) as raised:
        events_of(chunk({"content": "Hi"}), b'error: {"code":503,"type":"unavailable_error","message":"Loading"}\n\n')
    assert raised.value.failure.error.code == "upstream_overloaded"


SAYS_NOTHING = {
    "an empty frame": b"data:\n\n",
    "an empty frame with a space": b"data: \n\n",
    "null": b"data: null\n\n",
    "choices null": frame({"choices": None}),
    "choices an object": frame({"choices": {}}),
    "a choice null": frame({"choices": [None]}),
    "an empty error": chunk({}, error=""),
    "an error of no member": chunk({}, error={}),
    "an error that is false": chunk({}, error=False),
    "a model of a number": chunk({}, model=7),
    "an id of a list": chunk({}, id=["a"]),
    "a usage of a text": chunk({}, usage="many"),
    "counts of nothing": chunk({}, usage={"prompt_tokens": "many", "completion_tokens": [1]}),
    "an index of a text": frame({"choices": [{"index": "first", "delta": {}}]}),
    "empty in every type": chunk(
        {"content": [], "reasoning": {}, "reasoning_content": "", "refusal": [], "tool_calls": {}, "function_call": ""}
    ),
    "a reason that is false": frame({"choices": [{"delta": {}, "finish_reason": False}]}),
    "a tool call null": chunk({"tool_calls": [None]}),
    "an unread member": chunk({"audio": 7, "annotations": "x", "role": ["assistant"]}, logprobs=7),
    "a part without text": chunk({"content": [{"type": "reference", "reference_ids": [1]}]}),
    "a piece of a call without anything": chunk({"tool_calls": [{"index": 0, "function": None}]}),
}


SAYS_NOTHING |= {
    f"logprobs {value!r}": b'data: {"choices":[{"delta":{},"logprobs":%b}]}\n\n' % value
    for value in (b"NaN", b"-Infinity", b"1e999", b'"\\ud83d"', b'"\xff"', b'"a\tb"')
}


@pytest.mark.parametrize("piece", SAYS_NOTHING.values(), ids=SAYS_NOTHING)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_odd_member_that_nobody_needs_changes_nothing(piece: bytes, place: int) -> None:
    pieces = [chunk({"content": "Hi"}), chunk({}, "stop", usage=usage(3, 2)), DONE]
    message = answer(*pieces[:place], piece, *pieces[place:])
    assert (message["content"], message["stop_reason"]) == (HI, "end_turn")
    assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == (3, 2)


def part(kind: str, said: object) -> dict[str, Any]:
    return {"type": kind, ("thinking" if kind == "thinking" else "text"): said}


CLEAR = {
    "a message in the place of the delta": frame({"choices": [{"delta": None, "message": {"content": "Hi"}}]}),
    "a message beside an empty delta": frame(
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "message": {"content": "Hi"}}]}
    ),
    "a text in the place of the delta": frame({"choices": [{"index": 0, "text": "Hi"}]}),
    "messages piece by piece": frame({"choices": [{"message": {"content": "H"}}]})
    + frame({"choices": [{"message": {"content": "i"}}]}),
    "a message that repeats the deltas": chunk({"content": "Hi"})
    + frame({"choices": [{"delta": None, "message": {"content": "Hi"}}]}),
    "a list of texts": chunk({"content": ["H", {"type": "text", "text": "i"}]}),
    "one part": chunk({"content": {"type": "output_text", "text": "Hi"}}),
    "a part of tomorrow with a text": chunk({"content": [{"type": "of_tomorrow", "text": "Hi"}]}),
    "an index that is a text": frame({"choices": [{"index": "0", "delta": {"content": "Hi"}}]}),
    "an index that is a float": frame({"choices": [{"index": 0.0, "delta": {"content": "Hi"}}]}),
    "beside odd members": chunk({"content": "Hi", "reasoning": [], "tool_calls": {}, "role": 7}, usage=7),
    "an error event that is no error": chunk({"content": "Hi"}, error={}),
}


@pytest.mark.parametrize("pieces", CLEAR.values(), ids=CLEAR)
@pytest.mark.parametrize("end", [chunk({}, "stop") + DONE, chunk(None, "stop"), chunk({}, "STOP")])
def test_what_is_odd_and_clear_is_taken(pieces: bytes, end: bytes) -> None:
    message = answer(pieces, end)
    assert (message["content"], message["stop_reason"]) == (HI, "end_turn")


def test_the_whole_answer_in_the_place_of_a_delta() -> None:
    """If it were ignored, the job would succeed without any text."""
    line = {"choices": [{"index": 0, "delta": None, "message": {"content": "Hello"}, "finish_reason": "stop"}]}
    assert answer(frame(line))["content"] == [text("Hello")]


def test_thinking_and_text_in_parts() -> None:
    """The form of Mistral's reasoning models."""
    pieces = [
        chunk({"content": [part("thinking", [part("text", "Hm")])]}),
        chunk({"content": [part("thinking", "."), part("text", "Y")]}),
        chunk({"content": "es"}, "stop"),
    ]
    assert content(*pieces) == [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text("Yes")]


def test_of_two_spellings_of_thinking_one_must_be_clear() -> None:
    assert content(chunk({"reasoning": 7, "reasoning_content": "Hm"}), chunk({}, "stop"))[0]["thinking"] == "Hm"


def test_counts_that_are_texts_or_floats() -> None:
    said = {"prompt_tokens": "3", "completion_tokens": 2.0, "prompt_tokens_details": {"cached_tokens": "1"}}
    message = answer(chunk({"content": "Hi"}), chunk({}, "stop", usage=said))
    assert message["usage"] == {"input_tokens": 2, "cache_read_input_tokens": 1, "output_tokens": 2}


PARALLEL = {
    "all in one chunk": [
        {"tool_calls": [c["tool_calls"][0] for c in (tool('{"x":1}', name="a"), tool('{"x":2}', name="a"))]}
    ],
    "without input, in one chunk": [{"tool_calls": [tool(name="a")["tool_calls"][0]] * 2}],
    "one after the other": [tool('{"x":1}', name="a"), tool('{"x":2}', name="a")],
    "with empty ids": [tool('{"x":1}', name="a", id=""), tool('{"x":2}', name="a", id="")],
    "in pieces": [tool('{"x"', name="a"), tool(":1}"), tool("", name="a"), tool('{"x"'), tool(":2}")],
    "with the name in each piece": [tool('{"x"', name="a"), tool(":1}", name="a"), tool('{"x":2}', name="a")],
    "with the name in each piece, an empty last one too": [
        tool('{"x"', name="a"),
        tool(":1}", name="a"),
        tool("", name="a"),
        tool('{"x":2}', name="a"),
        tool("", name="a"),
    ],
    "an id once": [tool('{"x":1}', name="a", id="1"), tool('{"x":2}', name="a")],
    "input as objects": [
        {"tool_calls": [{"index": 0, "function": {"name": "a", "arguments": {"x": number}}}]} for number in (1, 2)
    ],
}


@pytest.mark.parametrize("index", [0, None, "0"])
@pytest.mark.parametrize("deltas", PARALLEL.values(), ids=PARALLEL)
def test_calls_of_one_tool_without_ids_or_indices_of_their_own(deltas: list[dict[str, Any]], index: object) -> None:
    """A name after complete input begins a new call; inside one chunk each name does."""
    pieces = [chunk({"tool_calls": [{**call, "index": index} for call in delta["tool_calls"]]}) for delta in deltas]
    blocks = content(*pieces, chunk({}, "tool_calls"))
    assert [block["input"] for block in blocks] in ([{"x": 1}, {"x": 2}], [{}, {}])
    assert [block["name"] for block in blocks] == ["a", "a"]
    assert len({block["id"] for block in blocks} - {""}) == 2


def test_an_answer_in_one_piece_becomes_events() -> None:
    """From a server that does not stream although the request asks for it."""
    calls = [{"id": "1", "type": "function", "function": {"name": "a", "arguments": '{"x":1}'}}]
    message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm", "tool_calls": calls, "refusal": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "that-answered",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}],
        "usage": usage(5, 3),
    }
    completion = Completion()
    for event in ChatDecoder("asked").feed_whole(body):
        _messages_event.validate_json(event.data)
        completion.add(event.name, event.data, event.text)
    whole = msgspec.json.decode(completion.result())["message"]
    assert whole["content"] == [{"type": "thinking", "thinking": "Hm", "signature": ""}, text("Yes."), A]
    assert (whole["stop_reason"], whole["model"], whole["id"]) == ("tool_use", "that-answered", "chatcmpl-1")
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (5, 3)


@pytest.mark.parametrize(
    "body", [{"choices": []}, {"choices": [{"message": {"content": "Hi"}, "finish_reason": None}]}]
)
def test_an_answer_in_one_piece_must_say_why_it_ended(body: dict[str, Any]) -> None:
    with pytest.raises(GarbledStream):
        ChatDecoder("asked").feed_whole(body)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (b"data: rubbish\n\n", "a chunk is not JSON"),
        (b"data: [1]\n\n", "a chunk is a list"),
        (b"data: 1\n\n", "a chunk is a number"),
        (b'data: {"choices":"text"}\n\n', "choices is a text"),
        (frame({"choices": ["text"]}), "choices[] is a text"),
        (frame({"choices": [{"delta": "Hi"}]}), "delta is a text"),
        (chunk({"content": 7}), "content is a number"),
        (chunk({"content": [True]}), "content[] is a boolean"),
        (chunk({"content": [{"type": "text", "text": 7}]}), "content[] is a number"),
        (chunk({"content": {"a": 1}}), "content is an object"),
        (chunk({"content": [{"a": 1}]}), "content[] is an object"),
        (chunk({"reasoning": 7}), "reasoning is a number"),
        (chunk({"refusal": 7}), "refusal is a number"),
        (frame({"choices": [{"delta": {}, "finish_reason": 7}]}), "finish_reason is a number"),
        (chunk({"tool_calls": "a"}), "tool_calls[] is a text"),
        (chunk({"tool_calls": [{"function": "a"}]}), "tool_calls.function is a text"),
        (chunk({"tool_calls": [{"function": {"name": 7}}]}), "tool_calls.function.name is a number"),
        (
            chunk({"tool_calls": [{"function": {"name": "a", "arguments": 7}}]}),
            "tool_calls.function.arguments is a number",
        ),
        (
            chunk({"tool_calls": [{"function": {"name": "a", "arguments": [7]}}]}),
            "tool_calls.function.arguments is a list",
        ),
        (b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n', "content is no Unicode text"),
        (b"data: \xff\n\n", "a chunk is not JSON"),
        (
            chunk(tool("{}", id="1", name="a")) + chunk(tool("", index=1)) + chunk({}, "tool_calls") + DONE,
            "tool_calls.function.name is missing",
        ),
        (
            chunk(tool("", id="1")) + chunk(tool("{}", index=None, id="2", name="b")) + chunk({}, "tool_calls") + DONE,
            "tool_calls.function.name is missing",
        ),
        (b"data: " + b"[" * 100_000 + b"\n\n", "a chunk is not JSON"),
        (chunk(tool("{}", id="1")) + chunk({}, "tool_calls") + DONE, "tool_calls.function.name is missing"),
        (
            chunk(tool("{}", id="1", name="a")) + chunk({"content": "x"}) + chunk(tool("{}")),
            "a tool call goes on after its end",
        ),
        (
            b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"a","arguments":"\\ud83d"}}]}}]}\n\n',
            "tool_calls.function.arguments is no Unicode text",
        ),
        (
            b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"a","arguments":\xff}}]}}]}\n\n',
            "a chunk is not JSON",
        ),
    ],
)
def test_what_makes_the_answer_doubtful_is_named(piece: bytes, message: str) -> None:
    """The error names the member and its type, and does not quote its content."""
    with pytest.raises(GarbledStream) as raised:
        events_of(piece)
    assert str(raised.value) == message


def test_what_came_before_an_odd_chunk_is_told() -> None:
    decoder = ChatDecoder("asked")
    events = decoder.feed(chunk({"content": "Hi"}) + chunk({"content": 7}) + chunk({"content": "Ho"}))
    assert [event.text for event in events if event.text] == [(0, "Hi")]
    for _ in range(2):
        with pytest.raises(GarbledStream):
            decoder.feed(chunk({"content": "Ho"}))


REPETITIONS = {
    "a message that says more than the deltas": (chunk({"content": "H"}), "message differs from the deltas"),
    "a message where the deltas said no text": (chunk({"reasoning": "Hm"}), "message differs from the deltas"),
    "messages that each hold all so far": (
        frame({"choices": [{"message": {"content": "H"}}]}),
        "each message repeats the one before",
    ),
    "the same message twice": (
        frame({"choices": [{"message": {"content": "Hi"}}]}),
        "each message repeats the one before",
    ),
}


@pytest.mark.parametrize(("before", "message"), REPETITIONS.values(), ids=REPETITIONS)
def test_a_message_that_is_neither_new_nor_a_repetition_is_doubtful(before: bytes, message: str) -> None:
    """Appended it would be doubled, ignored it would be lost; in both cases the job would succeed."""
    last = frame({"choices": [{"delta": None, "message": {"content": "Hi"}, "finish_reason": "stop"}]})
    with pytest.raises(GarbledStream, match=message):
        events_of(before + last, DONE)


def test_a_message_that_calls_what_no_delta_called_is_doubtful() -> None:
    calls = tool("{}", name="a", id="1")
    last = frame({"choices": [{"delta": None, "message": {"content": "Hi", **calls}, "finish_reason": "tool_calls"}]})
    with pytest.raises(GarbledStream, match="message differs from the deltas"):
        events_of(chunk({"content": "Hi"}) + last, DONE)
    assert len(content(chunk({"content": "Hi"}), chunk(calls), last, DONE)) == 2


def test_a_message_repeats_the_deltas_but_for_space_around_them() -> None:
    last = frame({"choices": [{"delta": None, "message": {"content": "Hi"}, "finish_reason": "stop"}]})
    assert content(chunk({"content": " Hi"}), last, DONE) == [text(" Hi")]


# --- whatever is said, however it is cut ------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
inputs = st.dictionaries(words, st.none() | st.integers() | words | st.lists(words, max_size=2), max_size=3)
said = st.one_of(
    st.tuples(st.just("text"), st.lists(words, min_size=1, max_size=4)),
    st.tuples(st.just("thinking"), st.lists(words, min_size=1, max_size=3)),
    st.tuples(st.just("tool"), st.lists(inputs, min_size=1, max_size=3)),
)
cuts = st.lists(st.integers(0, 6_000), max_size=12)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


def deltas_of(parts: list[tuple[str, list[Any]]], bite: int) -> list[dict[str, Any]]:
    """The deltas of a server that numbers its tools and cuts their input into pieces."""
    deltas: list[dict[str, Any]] = []
    number = itertools.count()
    for kind, pieces in parts:
        for piece in pieces:
            if kind == "tool":
                index = next(number)
                arguments = msgspec.json.encode(piece).decode()
                deltas.append(tool("", index=index, id=f"call_{index}", type="function", name="a_tool"))
                deltas += [tool(arguments[at : at + bite], index=index) for at in range(0, len(arguments), bite)]
            else:
                deltas.append({"content" if kind == "text" else "reasoning_content": piece})
    return deltas


def blocks_of(parts: list[tuple[str, list[Any]]]) -> list[Any]:
    """The expected blocks: neighbouring texts are one block, each tool call is one."""
    blocks: list[Any] = []
    for kind, group in itertools.groupby(parts, key=lambda part: part[0]):
        pieces = [piece for _, some in group for piece in some]
        blocks += pieces if kind == "tool" else ["".join(pieces)]
    return blocks


@given(parts=st.lists(said, max_size=5), bite=st.integers(1, 30), places=cuts, line_end=line_ends)
def test_the_answer_is_what_the_chunks_say_and_its_events_the_same_however_they_are_cut(
    parts: list[tuple[str, list[Any]]], bite: int, places: list[int], line_end: bytes
) -> None:
    frames = [chunk(delta) for delta in deltas_of(parts, bite)]
    for data in frames:
        ChatCompletionChunk.model_validate_json(data.removeprefix(b"data: "))
    stream = b"".join([*frames, chunk({}, "stop"), DONE])

    blocks = content(stream)
    assert [block.get("input", block.get("text", block.get("thinking"))) for block in blocks] == blocks_of(parts)

    as_sent = stream.replace(b"\n", line_end)
    ends = [0, *sorted(min(place, len(as_sent)) for place in places), len(as_sent)]
    assert events_of(*[as_sent[start:end] for start, end in itertools.pairwise(ends)]) == events_of(stream)


names = st.sampled_from(
    ["content", "reasoning", "refusal", "tool_calls", "function", "arguments", "name", "id", "index"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.text(max_size=3) | st.just("{}"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.dictionaries(
                st.sampled_from(["name", "arguments"]), st.sampled_from(["", "a", "{", "}", "{}"])
            )
        },
        optional={"index": st.integers(0, 2), "id": st.sampled_from(["", "1", "2"])},
    ),
    max_size=3,
)
deltas = st.dictionaries(names, anything, max_size=3) | st.fixed_dictionaries(
    {"tool_calls": calls}, optional={"content": st.sampled_from(["", "x"])}
)


@given(said=st.lists(st.tuples(deltas, st.sampled_from([None, "stop"])), max_size=6))
def test_any_chunks_are_events_or_one_of_two_failures(said: list[tuple[dict[str, Any], str | None]]) -> None:
    completion = Completion()
    try:
        for event in events_of(*[chunk(delta, reason) for delta, reason in said], DONE):
            completion.add(event.name, event.data)
    except (GarbledStream, UpstreamError):
        return
    assert completion.is_whole == any(reason for _, reason in said)
