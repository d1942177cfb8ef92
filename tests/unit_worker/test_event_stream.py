"""The upstream's bytes become events, however the network cuts them."""

import itertools
import time

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.completion import GarbledStream
from worker.outcome import UpstreamError
from worker.providers.messages_stream import MessagesDecoder

FRAGMENTS = (
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\n\r\n",
    b"data: ",
    b"data:",
    b"data",
    b"event: ",
    b"event:ping",
    b"id: 7",
    b"retry: 10",
    b": a comment",
    b'{"type":"ping"}',
    b'{"a":',
    b"1}",
    b'"gr\xc3\xbc\xc3\x9fe \xf0\x9f\x91\xa9"',
    b"[1,",
    b"2]",
    b"\xff",
    b" ",
)
streams = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b"".join)
"""Pieces of event streams in every order; most are invalid."""

texts = st.text(st.characters(codec="utf-8"), max_size=20)
payloads = st.fixed_dictionaries(
    {"type": st.just("a_type"), "text": texts, "more": st.lists(st.integers(), max_size=3)}
)
line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
cuts = st.lists(st.integers(0, 400), max_size=12)


Event = tuple[str, bytes]


def decoded(*pieces: bytes) -> list[Event]:
    """Decodes the pieces. Unknown names are passed on, so the events show how the bytes were read."""
    decoder = MessagesDecoder("asked")
    return [(event.name, event.data) for piece in pieces for event in decoder.feed(piece)]


def cut_at(stream: bytes, places: list[int]) -> list[bytes]:
    """Cuts the stream into pieces, some of them empty."""
    ends = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


def outcome_of(*pieces: bytes) -> tuple[list[Event], str]:
    """The events, and the failure's message."""
    decoder = MessagesDecoder("asked")
    events: list[Event] = []
    try:
        for piece in pieces:
            events += [(event.name, event.data) for event in decoder.feed(piece)]
        events += [(event.name, event.data) for event in decoder.end()]
    except (GarbledStream, UpstreamError) as error:
        return events, str(error)
    return events, ""


def framed(payload: dict[str, object], line_end: bytes, *, name: bytes | None, pretty: bool, noise: bool) -> bytes:
    """One event in a form that servers use."""
    data = msgspec.json.encode(payload)
    lines = [b": a comment", b"id: 7", b"retry: 10"] if noise else []
    if name is not None:
        lines.append(b"event: " + name)
    lines += [b"data: " + line for line in (msgspec.json.format(data, indent=2) if pretty else data).split(b"\n")]
    return line_end.join([*lines, b"", b""])


@given(stream=streams, places=cuts)
@example(stream=b'data: {"type":"ping"}\r\n\r\n', places=[22, 22, 23, 24])
@example(stream=b"event: ping\r\ndata: 1\r\n\r\n", places=[12, 12])
def test_a_stream_says_the_same_however_it_is_cut(stream: bytes, places: list[int]) -> None:
    assert outcome_of(*cut_at(stream, places)) == outcome_of(stream)


@given(stream=streams)
def test_a_stream_says_the_same_byte_by_byte(stream: bytes) -> None:
    assert outcome_of(*[stream[at : at + 1] for at in range(len(stream))]) == outcome_of(stream)


@given(
    sent=st.lists(
        st.tuples(payloads, line_ends, st.sampled_from([b"a_name", None]), st.booleans(), st.booleans()), max_size=6
    ),
    places=cuts,
)
def test_every_event_arrives_once_in_order_and_on_one_line(
    sent: list[tuple[dict[str, object], bytes, bytes | None, bool, bool]], places: list[int]
) -> None:
    """With any line ends, comments and data lines; an event without a name gets its type as name."""
    stream = b"".join(
        framed(payload, line_end, name=name, pretty=pretty, noise=noise)
        for payload, line_end, name, pretty, noise in sent
    )

    events = decoded(*cut_at(stream, places))

    assert [name for name, _ in events] == [(name or b"a_type").decode() for _, _, name, _, _ in sent]
    assert [msgspec.json.decode(data) for _, data in events] == [payload for payload, *_ in sent]
    assert all(b"\n" not in data for _, data in events)


def test_what_comes_with_a_byte_order_mark_is_understood() -> None:
    assert decoded(b'\xef\xbb\xbfdata: {"type":"ping"}\n\n') == [("ping", b'{"type":"ping"}')]


def test_an_event_that_nobody_ended_is_not_given() -> None:
    assert decoded(b'data: {"type":"ping"}\n') == []


@pytest.mark.parametrize(
    "block",
    [
        b": only a comment",
        b"id: 7\nretry: 10",
        b"event: a_name",
        b"event: a_name\ndata:",
        b"<html>",
        b'data: {"no":"type"}',
        b'data: {"type":7}',
        b"data:",
        b"data: ",
        b"data: \ndata: ",
        b"data: [DONE]",
        b"data:[DONE] ",
        b"data: null",
        b"event: a_name\ndata: no JSON",
        b"event: a_name\ndata: {\ndata: no JSON",
        b"event: a_name\ndata: [1]",
        b"event: a_name\ndata: " + b"[\ndata: " * 100_000,
        b"event: \xff\ndata: {}",
        b'data: {"type":"two\\nlines"}',
        b"event: two words\ndata: {}",
        b"event: " + b"x" * 65 + b"\ndata: {}",
        b'data: {"type":"\\u0000"}',
    ],
)
def test_a_block_without_a_valid_event_name_is_skipped(block: bytes) -> None:
    """A name goes into the log, the channel and the SSE frame; one that could break their lines is not passed on."""
    assert decoded(block + b"\n\n", b'data: {"type":"next"}\n\n') == [("next", b'{"type":"next"}')]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"data: no JSON", "an event is not JSON"),
        (b"event: message_delta\ndata: {", "the data of message_delta is not JSON"),
        (b"event: content_block_delta\ndata: [1]", "content_block_delta is a list"),
        (b"data: [1]", "an event is a list"),
        (b'data: "text"', "an event is a text"),
        (b"data: 1", "an event is a number"),
        (b"data: true", "an event is a boolean"),
        (b"data: " + b"[" * 100_000, "an event is not JSON"),
        (b"data: \xff", "an event is not JSON"),
    ],
)
def test_what_may_have_been_a_part_of_the_answer_is_refused(block: bytes, message: str) -> None:
    with pytest.raises(GarbledStream, match=f"^{message}$"):
        decoded(block + b"\n\n")


def test_events_before_an_invalid_one_are_returned_however_the_bytes_are_cut() -> None:
    """After that every further call fails."""
    decoder = MessagesDecoder("asked")
    (event,) = decoder.feed(b"event: good\ndata: {}\n\ndata: rubbish\n\nevent: late\ndata: {}\n\n")
    assert event.name == "good"
    for _ in range(2):
        with pytest.raises(GarbledStream):
            decoder.feed(b"event: late\ndata: {}\n\n")
        with pytest.raises(GarbledStream):
            decoder.end()


def test_an_event_may_have_32_mib_and_no_more() -> None:
    decoder = MessagesDecoder("asked")
    mebibyte = b"x" * (1 << 20)
    decoder.feed(b"data: ")
    for _ in range(31):
        assert decoder.feed(mebibyte) == []
    with pytest.raises(GarbledStream):
        decoder.feed(mebibyte)


def test_the_bound_is_of_an_event_and_not_of_the_stream() -> None:
    decoder = MessagesDecoder("asked")
    event = b'event: big\ndata: {"type":"big","x":"' + b"x" * (9 << 20) + b'"}\n\n'
    for _ in range(5):
        ((name, data, _),) = decoder.feed(event)
        assert (name, len(data)) == ("big", (9 << 20) + 21)


@pytest.mark.parametrize("line", [b"x" * 1024, b"data: " + b"1" * 1017 + b"\n"], ids=["one line", "many lines"])
def test_a_long_event_costs_time_in_proportion(line: bytes) -> None:
    """10 MB in pieces of 1 KB: joining all pieces at each one would copy 50 GB and take most of a minute."""
    decoder = MessagesDecoder("asked")
    started_s = time.process_time()
    decoder.feed(b"event: long\ndata: ")
    for _ in range(10_000):
        decoder.feed(line)
    assert time.process_time() - started_s < 2
