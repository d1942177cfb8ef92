"""What came so far: the events of a log, added up to what a follower shows."""

from typing import Any

import msgspec

from shared.completion import Completion
from shared.events import Event, OurEvent
from shared.partial import Folding
from tests.support.builders import (
    a_text_delta,
    an_answer,
    block_delta,
    block_start,
    block_stop,
    encoded,
    message_start,
    wired,
)

_TOOL = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {}}


def _folded(*events: tuple[str, bytes]) -> Any:
    folding = Folding()
    for name, data in events:
        folding.add(Event(None, name, data))
    return folding.partial and msgspec.json.decode(folding.partial)


def _begun(*events: tuple[str, Any]) -> list[tuple[str, bytes]]:
    return wired([message_start(input_tokens=1), *events])


def _reset(attempt: int) -> tuple[str, bytes]:
    return OurEvent.RESET, encoded({"attempt": attempt, "reason": "upstream_failed"})


def test_the_pieces_so_far_are_one_text() -> None:
    """A whole answer is one too: the log does not say whether it was accepted."""
    assert _folded(*an_answer("Hel", "lo")[:-4]) == [{"type": "text", "text": "Hel"}]
    assert _folded(*an_answer("Hel", "lo"), ("failed", b"{}")) == [{"type": "text", "text": "Hello"}]


def test_without_content_there_is_nothing() -> None:
    assert _folded() is None
    assert _folded((OurEvent.STARTED, b'{"attempt":1}'), *_begun(), ("cancelled", b"{}")) is None


def test_a_reset_discards_all_before_it() -> None:
    first, second = an_answer("wrong")[:-3], an_answer("ri", "ght")[:-4]
    assert _folded(*first, _reset(2)) is None
    assert _folded(*first, _reset(2), *second) == [{"type": "text", "text": "ri"}]


def test_input_that_was_cut_is_the_text_that_came() -> None:
    """It is not parsed, and `input` is absent: an empty one would look complete."""
    cut = _begun(block_start(0, _TOOL), block_delta(0, type="input_json_delta", partial_json='{"city":"Par'))
    (block,) = _folded(*cut)
    assert block == {"type": "tool_use", "id": "toolu_1", "name": "look_up", "partial_json": '{"city":"Par'}


def test_input_that_is_complete_is_parsed_although_the_answer_was_cut() -> None:
    events = _begun(
        block_start(0, _TOOL),
        block_delta(0, type="input_json_delta", partial_json='{"city":"Paris"}'),
        block_stop(0),
        block_start(1, _TOOL),
        block_delta(1, type="input_json_delta", partial_json=""),
    )
    first, second = _folded(*events)
    assert first["input"] == {"city": "Paris"}
    assert "partial_json" not in first
    assert (second["partial_json"], "input" in second) == ("", False)


def test_blocks_of_all_types_are_content() -> None:
    events = _begun(
        block_start(0, {"type": "thinking", "thinking": "", "signature": ""}),
        block_delta(0, type="thinking_delta", thinking="Hm"),
        block_start(1, {"type": "text", "text": ""}),
        block_delta(1, type="text_delta", text="So"),
    )
    assert _folded(*events) == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "So"},
    ]


def test_events_that_do_not_fit_are_left_out() -> None:
    assert _folded(a_text_delta("lost"), *an_answer("Hel", "lo")) == [{"type": "text", "text": "Hello"}]


def test_a_message_that_does_not_fit_has_no_partial() -> None:
    """The same message would make no result."""
    completion = Completion()
    for name, data in _begun(
        block_start(0, {"type": "text", "text": "", "citations": 7}),
        block_delta(0, type="citations_delta", citation={}),
    ):
        completion.add(name, data)
    assert completion.partial() is None
