"""The forms of events: on the pub/sub channel, as cursors, as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import (
    TERMINAL_EVENTS,
    Event,
    EventId,
    OurEvent,
    decode_published,
    delta_head,
    encode_delta,
    encode_text_delta,
    following_on,
    parse_cursor,
    text_as_json,
    text_of,
)
from shared.job import TERMINAL_STATES
from tests.support.builders import a_text_delta, encoded


def test_one_message_holds_contiguous_events() -> None:
    """The id of the first event, then the name and data of each."""
    assert decode_published(b'1795442531482-3\nping\n{}\nmessage_stop\n{"type":"message_stop"}') == [
        Event(EventId(1795442531482, 3), "ping", b"{}"),
        Event(EventId(1795442531482, 4), "message_stop", b'{"type":"message_stop"}'),
    ]


def test_a_message_without_events_is_only_an_id() -> None:
    """Reading it gives no events."""
    assert decode_published(b"5-0") == []


@given(
    st.integers(1, 10**14),
    st.integers(0, 10**9),
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z_]{1,20}", fullmatch=True),
            st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        ),
        max_size=3,
    ),
)
def test_any_published_events_are_read_unchanged(
    epoch: int, seq: int, events: list[tuple[str, dict[str, str]]]
) -> None:
    """JSON never contains a raw line feed, so no content can break the format."""
    parts = [f"{epoch}-{seq}".encode()]
    for name, data in events:
        parts += [name.encode(), encoded(data)]
    assert decode_published(b"\n".join(parts)) == [
        Event(EventId(epoch, seq + number), name, encoded(data)) for number, (name, data) in enumerate(events)
    ]


def test_ids_compare_as_redis_compares_them() -> None:
    """By epoch, then by seq; as numbers, not as text."""
    ids = [EventId(9, 10), EventId(10, 0), EventId(10, 2), EventId(10, 10), EventId(100, 1)]
    assert sorted({*ids}) == ids
    assert [str(each) for each in ids[:2]] == ["9-10", "10-0"]


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**10 - 1))
def test_every_id_of_ours_is_a_cursor(epoch: int, seq: int) -> None:
    """Every id that a client got can be parsed."""
    assert parse_cursor(str(EventId(epoch, seq))) == EventId(epoch, seq)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "+1-2",
        "1--2",
        " 1-2",
        "1-2 ",
        "1-2\n",
        "1_000-2",
        "0x1-2",
        "1.5-2",
        "１-２",
        "now",
        "$",
        "1-*",
        "9" * 16 + "-0",
        "1-" + "9" * 11,
        "1-2\x00",
    ],
)
def test_any_other_text_is_no_cursor(text: str) -> None:
    """It never raises, and Redis would not read these texts as ids either."""
    assert parse_cursor(text) is None


@given(st.text(max_size=40))
def test_no_text_makes_parsing_a_cursor_raise(text: str) -> None:
    """A header may contain anything."""
    found = parse_cursor(text)
    assert found is None or (found.epoch < 10**15 and found.seq < 10**10)


def test_terminal_events_are_named_after_the_states() -> None:
    """No other event ends a stream."""
    assert {state.value for state in TERMINAL_STATES} == TERMINAL_EVENTS
    for name in (*OurEvent, "message_stop", "error", "ping"):
        assert not Event(None, name, b"{}").is_terminal
    for name in TERMINAL_EVENTS:
        assert Event(None, name, b"{}").is_terminal


def test_a_text_delta_has_a_text() -> None:
    """Whatever the text is."""
    for text in ("Hello", "", "\n\n", "ünï \U0001f600"):
        assert text_of(Event(None, *a_text_delta(text))) == text


@given(st.integers(0, 999), st.text())
def test_the_text_that_a_delta_was_encoded_from_is_cut_out_of_it_again(index: int, text: str) -> None:
    """Whoever writes a delta and whoever reads its text agree on its bytes, and both on what any JSON reader finds."""
    event = Event(None, "content_block_delta", encode_delta(delta_head(index, "text"), text))
    assert event.data == encode_text_delta(index, text) == a_text_delta(text, index=index)[1]
    assert text_as_json(event) == encoded(text)
    assert text_of(event) == text


def test_the_text_of_a_delta_in_other_bytes_is_found_too() -> None:
    """An upstream's own spelling passes into the log as it came."""
    event = Event(None, "content_block_delta", b'{"index": 0, "delta": {"text": "a", "type": "text_delta"}}')
    assert text_as_json(event) == b'"a"'
    assert text_as_json(event._replace(data=encode_delta(delta_head(0, "thinking"), "Hm."))) is None


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("content_block_delta", {"delta": {"type": "thinking_delta", "thinking": "Hm."}}),
        ("content_block_delta", {"delta": {"type": "input_json_delta", "partial_json": "{"}}),
        ("content_block_delta", {"delta": {"type": "new_delta", "text": None}}),
        ("content_block_delta", {"delta": {"type": "new_delta", "text": "not an answer's"}}),
        ("content_block_start", {"content_block": {"type": "text", "text": "start"}}),
        ("started", {"attempt": 1}),
        ("succeeded", {"status": "succeeded"}),
    ],
)
def test_other_events_have_no_text(name: str, data: dict[str, object]) -> None:
    """Also unknown kinds of deltas: the relay can read every event that the completion accepts."""
    assert text_of(Event(None, name, encoded(data))) is None


def _events(*ids: tuple[int, int]) -> list[Event]:
    return [Event(EventId(*one), "ping", b"{}") for one in ids]


@pytest.mark.parametrize(
    ("ids", "position", "following", "is_whole"),
    [
        ([], None, 0, True),
        ([(5, 0), (5, 1)], None, 2, True),
        ([(5, 1)], None, 0, False),
        ([(5, 4), (5, 5)], EventId(5, 3), 2, True),
        ([(5, 2), (5, 3), (5, 4)], EventId(5, 3), 1, True),
        ([(5, 2), (5, 3)], EventId(5, 3), 0, True),
        ([(5, 4), (5, 6), (5, 7)], EventId(5, 3), 1, False),
        ([(6, 0)], EventId(5, 3), 0, False),
        ([(6, 4)], EventId(5, 3), 0, False),
        ([(4, 9)], EventId(5, 3), 0, True),
    ],
)
def test_live_events_follow_on_seq_by_seq_within_one_epoch(
    ids: list[tuple[int, int]], position: EventId | None, following: int, is_whole: bool
) -> None:
    """Those that the client has are left out; a hole, or another epoch, ends them, and the log is read."""
    events = _events(*ids)
    known = sum(position is not None and event.id is not None and event.id <= position for event in events)
    assert following_on(events, position) == (events[known : known + following], is_whole)
