"""A completion: what the events of one attempt add up to, and what is not an answer."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.completion import Completion, GarbledStream
from shared.job import Usage
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


def _completed(events: list[tuple[str, bytes]]) -> Completion:
    completion = Completion()
    for name, data in events:
        completion.add(name, data)
    return completion


def _with_blocks(*events: tuple[str, Any], stop_reason: str = "end_turn") -> list[tuple[str, bytes]]:
    """A whole stream that contains these events."""
    return wired([message_start(input_tokens=1), *events, message_delta(stop_reason, output_tokens=2), MESSAGE_STOP])


def _blocks(events: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    completion = _completed(events)
    assert completion.is_whole
    blocks: list[dict[str, Any]] = msgspec.json.decode(completion.result())["message"]["content"]
    return blocks


def test_text_adds_up_and_each_delta_is_passed_on() -> None:
    """Followers get each delta as it comes; the result has the whole text."""
    completion = Completion()
    given_on = [completion.add(name, data) for name, data in an_answer("Hel", "lo", ", \n", "ünï \U0001f600")]
    assert [text for text in given_on if text is not None] == [
        (0, "Hel"),
        (0, "lo"),
        (0, ", \n"),
        (0, "ünï \U0001f600"),
    ]
    result = msgspec.json.decode(completion.result())
    assert completion.is_whole
    assert (result["text"], result["stop_reason"]) == ("Hello, \nünï \U0001f600", "end_turn")
    assert result["message"]["content"] == [{"type": "text", "text": "Hello, \nünï \U0001f600"}]


def test_the_message_is_the_upstreams_own() -> None:
    """Unknown members are kept, each with its last value."""
    events = wired(
        [
            (
                "message_start",
                {"message": {"id": "msg_1", "model": "m", "container": {"id": "c"}, "usage": {"input_tokens": 3}}},
            ),
            (
                "message_delta",
                {"delta": {"stop_reason": "refusal", "stop_details": {"why": "x"}}, "usage": {"output_tokens": 4}},
            ),
            MESSAGE_STOP,
        ]
    )
    message = msgspec.json.decode(_completed(events).result())["message"]
    assert message == {
        "id": "msg_1",
        "model": "m",
        "container": {"id": "c"},
        "usage": {"input_tokens": 3, "output_tokens": 4},
        "stop_reason": "refusal",
        "stop_details": {"why": "x"},
        "content": [],
    }


def test_usage_is_the_last_that_was_reported() -> None:
    """A later null does not reset a count; a count that was never reported is 0."""
    completion = _completed(
        wired(
            [
                message_start(input_tokens=10, cache_read_input_tokens=3, output_tokens=1),
                message_delta(None, output_tokens=5, input_tokens=None),
                message_delta("end_turn", output_tokens=9),
                MESSAGE_STOP,
            ]
        )
    )
    assert completion.usage == Usage(
        input_tokens=10, output_tokens=9, cache_creation_input_tokens=0, cache_read_input_tokens=3
    )
    assert Completion().usage == Usage()


def test_impossible_counts_do_not_reach_the_ledger() -> None:
    """Redis would fail in the middle of adding them, and the worker would repeat the command without end."""
    completion = _completed(wired([message_start(input_tokens=-5), message_delta("end_turn", output_tokens=10**30)]))
    assert completion.usage == Usage(input_tokens=0, output_tokens=1 << 31)


def test_a_tools_input_is_joined_from_its_pieces() -> None:
    """Cut anywhere; numbers and nesting are unchanged."""
    pieces = ['{"city": "Mü', 'nchen", "days"', ": [1, 2.5, null", "]}", ""]
    (block,) = _blocks(
        _with_blocks(
            block_start(0, {"type": "tool_use", "id": "tool_1", "name": "weather", "input": {}}),
            *(block_delta(0, type="input_json_delta", partial_json=piece) for piece in pieces),
            block_stop(0),
            stop_reason="tool_use",
        )
    )
    assert block == {
        "type": "tool_use",
        "id": "tool_1",
        "name": "weather",
        "input": {"city": "München", "days": [1, 2.5, None]},
    }


def test_a_tool_without_input_keeps_its_empty_one() -> None:
    """Empty pieces do not count as input."""
    (block,) = _blocks(
        _with_blocks(
            block_start(0, {"type": "tool_use", "id": "t", "name": "now", "input": {}}),
            block_delta(0, type="input_json_delta", partial_json=""),
            block_stop(0),
        )
    )
    assert block["input"] == {}


def test_a_tools_input_that_is_cut_off_is_no_answer() -> None:
    """Whether or not its block was closed: otherwise a call with half an input would look like a success."""
    start = block_start(0, {"type": "tool_use", "id": "t", "name": "pay", "input": {}})
    half = block_delta(0, type="input_json_delta", partial_json='{"amount": 1')
    for end in ([block_stop(0)], []):
        with pytest.raises(GarbledStream):
            _completed(_with_blocks(start, half, *end))


@pytest.mark.parametrize("stop_reason", ["max_tokens", "model_context_window_exceeded", "refusal"])
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ('{"city": "Paris", "days": [1, 2.', {"city": "Paris", "days": [1]}),
        ('{"city": "Par', {}),
        ('{"city": NaN', None),
        ('{"city": oops', None),
        ('null,"city":', None),
        ("[1", None),
        ("{", {}),
        ("  ", {}),
        ("", {}),
    ],
)
def test_input_cut_by_max_tokens_equals_that_of_the_official_sdk(
    stop_reason: str, sent: str, expected: dict[str, Any] | None
) -> None:
    """None: the text is not the beginning of JSON."""
    events = _with_blocks(
        block_start(0, {"type": "tool_use", "id": "t", "name": "weather", "input": {}}),
        block_delta(0, type="input_json_delta", partial_json=sent),
        block_stop(0),
        stop_reason=stop_reason,
    )
    if expected is None:
        with pytest.raises(GarbledStream):
            _completed(events)
    else:
        assert _completed(events).is_whole
        assert _blocks(events)[0]["input"] == expected


@pytest.mark.parametrize(("sent", "is_input"), [("[1]", False), ("5", False), ("null", True), ('{"a": 1}', True)])
def test_a_tools_input_is_an_object(sent: str, is_input: bool) -> None:
    """Or null for no input. In a future kind of block, a list may be valid."""
    for kind in ("tool_use", "server_tool_use", "hologram"):
        events = _with_blocks(
            block_start(0, {"type": kind, "id": "t", "name": "weather", "input": {}}),
            block_delta(0, type="input_json_delta", partial_json=sent),
            block_stop(0),
        )
        if is_input or kind == "hologram":
            assert _blocks(events)[0]["input"] == msgspec.json.decode(sent)
        else:
            with pytest.raises(GarbledStream):
                _completed(events)


def test_only_the_last_block_can_have_been_cut_by_max_tokens() -> None:
    with pytest.raises(GarbledStream):
        _completed(
            _with_blocks(
                block_start(0, {"type": "tool_use", "id": "t", "name": "pay", "input": {}}),
                block_delta(0, type="input_json_delta", partial_json='{"amount": 1'),
                block_stop(0),
                block_start(1, {"type": "text", "text": ""}),
                block_stop(1),
                stop_reason="max_tokens",
            )
        )


def test_a_tools_input_in_a_block_that_was_not_closed_is_not_lost() -> None:
    """The end of the message closes open blocks."""
    (block,) = _blocks(
        _with_blocks(
            block_start(0, {"type": "tool_use", "id": "t", "name": "pay", "input": {}}),
            block_delta(0, type="input_json_delta", partial_json='{"amount": 1}'),
        )
    )
    assert block["input"] == {"amount": 1}


def test_thinking_keeps_its_signature() -> None:
    """Without it the block cannot be sent back to the model. The last of several signatures counts, as in the SDKs."""
    thinking, redacted = _blocks(
        _with_blocks(
            block_start(0, {"type": "thinking", "thinking": "", "signature": ""}),
            block_delta(0, type="thinking_delta", thinking="Let me "),
            block_delta(0, type="thinking_delta", thinking="see."),
            block_delta(0, type="signature_delta", signature="EqQB"),
            block_delta(0, type="signature_delta", signature="EqQBCgIY"),
            block_stop(0),
            block_start(1, {"type": "redacted_thinking", "data": "EmwK"}),
            block_stop(1),
        )
    )
    assert thinking == {"type": "thinking", "thinking": "Let me see.", "signature": "EqQBCgIY"}
    assert redacted == {"type": "redacted_thinking", "data": "EmwK"}


def test_citations_are_in_the_block_of_their_text() -> None:
    """First those of the block's start, then the others in order."""
    first, second = {"type": "char_location", "cited_text": "a"}, {"type": "page_location", "cited_text": "b"}
    (block,) = _blocks(
        _with_blocks(
            block_start(0, {"type": "text", "text": "", "citations": [first]}),
            block_delta(0, type="text_delta", text="As it says"),
            block_delta(0, type="citations_delta", citation=second),
            block_stop(0),
        )
    )
    assert block == {"type": "text", "text": "As it says", "citations": [first, second]}


def test_blocks_of_unknown_kinds_are_kept() -> None:
    """As in their start; unknown deltas change nothing."""
    unknown = {"type": "hologram", "shape": {"x": [1, None, "ü"]}, "text": 7, "citations": None}
    kept, text = _blocks(
        _with_blocks(
            block_start(0, unknown),
            block_delta(0, type="hologram_delta", shape={"x": []}),
            block_stop(0),
            block_start(1, {"type": "text", "text": "pre"}),
            block_delta(1, type="text_delta", text="fix"),
            block_stop(1),
        )
    )
    assert kept == unknown
    assert text == {"type": "text", "text": "prefix"}


def test_blocks_are_ordered_by_index_and_only_text_blocks_are_text() -> None:
    """However their events are interleaved."""
    events = _with_blocks(
        block_start(1, {"type": "text", "text": ""}),
        block_start(0, {"type": "text", "text": ""}),
        block_start(2, {"type": "thinking", "thinking": ""}),
        block_delta(1, type="text_delta", text="second"),
        block_delta(0, type="text_delta", text="first "),
        block_delta(2, type="thinking_delta", thinking="no text"),
        *(block_stop(index) for index in range(3)),
    )
    assert [block["type"] for block in _blocks(events)] == ["text", "text", "thinking"]
    assert msgspec.json.decode(_completed(events).result())["text"] == "first second"


def test_unknown_events_and_pings_change_nothing() -> None:
    """The API's documentation says that new events may be added."""
    plain = an_answer("Hello")
    mixed = [
        pair for event in plain for pair in (("ping", b'{"type":"ping"}'), event, ("novelty", b'{"type":"novelty"}'))
    ]
    assert _completed(mixed).result() == _completed(plain).result()


# What is no answer


def test_only_a_stream_with_a_stop_reason_and_an_end_is_whole() -> None:
    """The official SDK treats a cut stream as a success; we do not."""
    whole = an_answer("Hello")
    assert _completed(whole).is_whole
    for end in range(len(whole)):
        assert not _completed(whole[:end]).is_whole
    assert not _completed(an_answer("Hello", stop_reason=None)).is_whole
    assert not _completed(an_answer("Hello", stops=False)).is_whole


def test_content_begins_with_the_first_delta() -> None:
    """Neither message_start nor a ping is content; timers count from the first delta."""
    completion = Completion()
    for name, data in [*an_answer("Hello")[:2], ("ping", b"{}")]:
        completion.add(name, data)
    assert not completion.has_content
    completion.add(*an_answer("Hello")[2])
    assert completion.has_content


MISFITS: dict[str, tuple[str, bytes]] = {
    "not JSON": ("message_delta", b"{"),
    "empty": ("message_stop", b""),
    "an array": ("ping", b"[]"),
    "a number": ("message_delta", b"5"),
    "not UTF-8": ("content_block_delta", b'{"index":0,"delta":{"type":"text_delta","text":"\xff"}}'),
    "half a surrogate": ("content_block_delta", b'{"index":0,"delta":{"type":"text_delta","text":"\\ud800"}}'),
    "brackets without end": ("message_delta", b"[" * 100_000),
    "a depth without end": ("message_delta", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a delta of no block": ("content_block_delta", encoded({"index": 7, "delta": {"type": "text_delta", "text": "x"}})),
    "a delta without index": ("content_block_delta", encoded({"delta": {"type": "text_delta", "text": "x"}})),
    "a delta with a worded index": ("content_block_delta", encoded({"index": "0", "delta": {"type": "text_delta"}})),
    "a delta without type": ("content_block_delta", encoded({"index": 0, "delta": {"text": "x"}})),
    "a delta that is none": ("content_block_delta", encoded({"index": 0, "delta": None})),
    "a text delta without text": ("content_block_delta", encoded({"index": 0, "delta": {"type": "text_delta"}})),
    "a text of numbers": ("content_block_delta", encoded({"index": 0, "delta": {"type": "text_delta", "text": 5}})),
    "a tool delta without json": ("content_block_delta", encoded({"index": 0, "delta": {"type": "input_json_delta"}})),
    "a citation without one": ("content_block_delta", encoded({"index": 0, "delta": {"type": "citations_delta"}})),
    "a start without block": ("content_block_start", encoded({"index": 1})),
    "a start with a worded block": ("content_block_start", encoded({"index": 1, "content_block": "ab"})),
    "a start with a list": ("content_block_start", encoded({"index": 1, "content_block": [1]})),
    "a start without index": ("content_block_start", encoded({"content_block": {"type": "text"}})),
    "a start with a worded index": ("content_block_start", encoded({"index": "first", "content_block": {}})),
    "a stop of no block": ("content_block_stop", encoded({"index": 7})),
    "a stop without index": ("content_block_stop", b"{}"),
    "a message delta without delta": ("message_delta", b"{}"),
    "a worded message delta": ("message_delta", encoded({"delta": "ab"})),
    "a numbered message delta": ("message_delta", encoded({"delta": 5})),
    "a worded usage": ("message_delta", encoded({"delta": {}, "usage": "many"})),
    "a listed usage": ("message_delta", encoded({"delta": {}, "usage": [1]})),
    "a second start": ("message_start", encoded({"message": {}})),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_invalid_event_makes_a_garbled_stream(misfit: str) -> None:
    """Each one in the middle of a valid stream; the message does not quote it."""
    completion = _completed(an_answer("Hello")[:3])
    with pytest.raises(GarbledStream) as caught:
        completion.add(*MISFITS[misfit])
    assert len(str(caught.value)) < 80


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "x"}}),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": "end_turn"}}),
        ("message_stop", {}),
        ("message_start", {}),
        ("message_start", {"message": None}),
        ("message_start", {"message": "ab"}),
        ("message_start", {"message": {"usage": "many"}}),
    ],
)
def test_a_stream_must_begin_with_a_valid_message_start(name: str, data: dict[str, Any]) -> None:
    """The first event creates the message."""
    with pytest.raises(GarbledStream):
        Completion().add(name, encoded(data))


def test_the_name_of_an_event_is_not_quoted_if_it_could_be_content() -> None:
    """The message goes into the record and the log."""
    with pytest.raises(GarbledStream) as caught:
        Completion().add("my secret prompt!", b"{")
    assert "secret" not in str(caught.value)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=3,
)
_NAMES = st.sampled_from(
    [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
    ]
)
_KINDS = st.sampled_from(
    [
        "text",
        "tool_use",
        "thinking",
        "text_delta",
        "input_json_delta",
        "thinking_delta",
        "signature_delta",
        "citations_delta",
    ]
)


def _maybe(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return right | right | right | _JSON


_BLOCKS = st.dictionaries(st.sampled_from(["text", "input", "thinking", "citations", "id"]), _JSON, max_size=3).flatmap(
    lambda block: _maybe(_KINDS).map(lambda kind: {**block, "type": kind})
)
_DELTAS = st.fixed_dictionaries(
    {"type": _maybe(_KINDS)},
    optional={
        name: _maybe(st.text(max_size=5)) for name in ("text", "thinking", "signature", "partial_json", "citation")
    },
)
_DATA = st.fixed_dictionaries(
    {},
    optional={
        "index": _maybe(st.integers(0, 2)),
        "message": _maybe(st.fixed_dictionaries({}, optional={"usage": _JSON, "stop_reason": _JSON, "content": _JSON})),
        "content_block": _maybe(_BLOCKS),
        "delta": _maybe(_DELTAS | st.fixed_dictionaries({}, optional={"stop_reason": _JSON, "usage": _JSON})),
        "usage": _maybe(st.dictionaries(st.sampled_from(list(Usage.__struct_fields__)), _JSON)),
    },
)


def _as_sent(data: Any) -> bytes:
    try:
        return encoded(data)
    except (OverflowError, UnicodeEncodeError):  # msgspec cannot write it, but an upstream may send it
        import json

        return json.dumps(data).encode()


@settings(max_examples=30)
@given(st.lists(st.tuples(_NAMES, _DATA | _JSON), max_size=6), st.booleans(), st.booleans())
def test_any_stream_is_a_completion_or_a_garbled_stream(
    events: list[tuple[str, Any]], begins_well: bool, ends_well: bool
) -> None:
    """An attempt that raised anything but GarbledStream would end without an outcome."""
    completion = Completion()
    with contextlib.suppress(GarbledStream):
        if begins_well:
            for name, data in an_answer("Hello")[:3]:
                completion.add(name, data)
        for name, data in events:
            completion.add(name, _as_sent(data))
        if ends_well:
            for name, data in an_answer("Hello")[-2:]:
                completion.add(name, data)
        if completion.is_whole:
            assert isinstance(completion.usage, Usage)
            result = msgspec.json.decode(completion.result())
            assert set(result) == {"text", "stop_reason", "message"}
            assert isinstance(result["text"], str)


@given(_NAMES, st.binary(max_size=60))
def test_any_bytes_are_an_event_or_a_garbled_stream(name: str, data: bytes) -> None:
    """Whatever an upstream sends."""
    completion = _completed(an_answer("Hello")[:3])
    try:
        completion.add(name, data)
    except GarbledStream:
        return
    assert isinstance(msgspec.json.decode(data), dict)


@given(st.lists(st.text(max_size=8), max_size=6), st.randoms(use_true_random=False))
def test_any_text_arrives_unchanged_however_it_is_cut(texts: list[str], chance: Any) -> None:
    """Every character of every delta arrives once and in order."""
    completion = Completion()
    given_on = [completion.add(name, data) for name, data in an_answer(*texts)]
    assert "".join(text for found in given_on if found for text in found[1:]) == "".join(texts)
    assert msgspec.json.decode(completion.result())["text"] == "".join(texts)
