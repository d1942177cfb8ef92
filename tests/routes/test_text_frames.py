"""Text as frames of ``/complete/stream``: any text of a model passes an SSE parser unchanged."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from api.native.complete import TextFrames
from tests.support.sse_frames import SseFrames

_NASTY = st.sampled_from(
    ["\r", "\n", "\r\n", "\n\n", "\x00", "\u2028", "\u0085", "\ufeff", "data:", "data: ", "event: x", "id: 1", ":", " ",
     "[DONE]", "[DONE", "]", "retry: 1", json.dumps({"a": 1})]
)  # fmt: skip
_pieces = st.lists(st.lists(_NASTY | st.text(max_size=4), max_size=6).map("".join), max_size=8)


@settings(max_examples=300, deadline=None)
@given(pieces=_pieces, cut=st.integers(1, 7))
def test_any_text_in_any_pieces_is_complete(pieces: list[str], cut: int) -> None:
    """With SSE's only kind of line break, and however the bytes are cut on their way."""
    frames = TextFrames()
    sent = b"".join([frames.encode(piece) for piece in pieces])
    parser = SseFrames()
    seen = [frame for start in range(0, len(sent), cut) for frame in parser.feed(sent[start : start + cut])]
    assert "".join(frame.data for frame in seen) == "".join(pieces).replace("\r\n", "\n").replace("\r", "\n")
    assert all(frame.event == "message" and frame.id is None and frame.data != "[DONE]" for frame in seen)
    assert parser.comments == []
    assert parser.retry_ms is None
