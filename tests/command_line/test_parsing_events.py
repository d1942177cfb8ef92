"""The command line's own parser of server-sent events, compared with the simple one of the tests."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cli.event_stream import Event, EventReader
from tests.support.sse_frames import SseFrames

_LINES = st.sampled_from(
    [
        *("", "", "data: one", "data:two", "data", "data:  two spaces", "data: a\u2028b", "data: a\u0085b\x0b\x1c"),
        *("event: delta", "event:", "event", "id: 1-1", "id:", "id: nul \0 in it", "retry: 20", "retry: soon"),
        *(": ping", ":", "unknown: field", " data: indented", "data: Grüße 👩‍🚀", "DATA: large", "data: half \udcff"),
    ]
)
_STREAMS = st.lists(st.tuples(_LINES, st.sampled_from(["\n", "\r", "\r\n"])), max_size=30).map(
    lambda lines: "".join(line + end for line, end in lines).encode(errors="surrogateescape")
)


def _read(*chunks: bytes) -> list[Event]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


@given(stream=_STREAMS, cuts=st.lists(st.integers(0, 400), max_size=10))
def test_it_reads_the_same_as_a_browser_however_the_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    """Names, data and last event ids, with every kind of line end. More follows: after a last CR the two may differ, since
    a browser may wait for a line feed.
    """
    stream += b":"
    judge = SseFrames()
    expected = [
        Event(frame.event, frame.data, judge.last_event_id)
        for place in range(len(stream))
        for frame in judge.feed(stream[place : place + 1])
    ]
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert _read(*[stream[start:end] for start, end in itertools.pairwise(edges)]) == expected


def test_an_id_is_valid_until_the_next_one() -> None:
    """An event without an id has the last one, which may have come without an event."""
    events = _read(b"id: 5-1\ndata: a\n\ndata: b\n\nid: 5-2\n\ndata: c\n\nid:\ndata: d\n\n")
    assert [(event.data, event.last_event_id) for event in events] == [
        ("a", "5-1"),
        ("b", "5-1"),
        ("c", "5-2"),
        ("d", ""),
    ]


def test_a_cut_event_is_never_returned() -> None:
    """Only its blank line completes it."""
    assert _read(b"id: 1-1\ndata: whole\n\nid: 1-2\ndata: half\n") == [Event("message", "whole", "1-1")]


def test_a_leading_byte_order_mark_is_not_part_of_the_first_field() -> None:
    """Only at the very beginning is it a mark."""
    assert _read(b"\xef\xbb", b"\xbfdata: a\xef\xbb\xbf\n\n") == [Event("message", "a\ufeff", "")]


def test_a_valid_retry_is_read_and_an_invalid_one_ignored() -> None:
    """Python refuses to parse a number of five thousand digits."""
    reader = EventReader()
    for line in (b"retry: 1730\n", b"retry: -1\n", b"retry: 1.5\n", b"retry:\n", b"retry: " + b"9" * 5000 + b"\n"):
        assert list(reader.feed(line)) == []
    assert reader.retry_ms == 1730
