"""Computes from a job's log what a follower must have seen; every stream test compares with this."""

import itertools
import json
from collections.abc import Sequence

from shared.events import Event, EventId
from tests.support.follower import TERMINAL, Follower, text_of_frames
from tests.support.sse_frames import Frame

_SHOWN_IN_TEXT = frozenset({"started", "retry", "reset"})


def shown(log: Sequence[Event], form: str) -> list[Frame]:
    """The frames of a whole log in a format. Terminal frames are without data, which is the job itself."""
    frames = []
    for event in log:
        text = event.data.decode()
        if event.name in TERMINAL:
            frames.append(Frame(event.name, "", str(event.id)))
        elif form == "messages" or event.name in _SHOWN_IN_TEXT:
            frames.append(Frame(event.name, text, str(event.id)))
        elif event.name == "content_block_delta":
            delta = json.loads(text)["delta"]
            if delta["type"] == "text_delta":
                frames.append(Frame("delta", json.dumps({"text": delta["text"]}), str(event.id)))
    return frames


def comparable(frames: Sequence[Frame]) -> list[tuple[str, str | None, str]]:
    """The frames that have an id, comparable by content: JSON by value, terminal events without the job."""
    return [
        (frame.event, frame.id, "" if frame.event in TERMINAL else json.dumps(json.loads(frame.data), sort_keys=True))
        for frame in frames
        if frame.id is not None
    ]


def assert_saw(follower: Follower, log: Sequence[Event], *, after: str | None = None) -> None:
    """The follower saw exactly the log, or all of it after an id: nothing lost, doubled or out of order."""
    expected = shown(log, follower.form)
    if after is not None:
        expected = [frame for frame in expected if id_of(frame) > id_of(after)]
    seen, wanted = comparable(follower.frames), comparable(expected)
    if seen != wanted:
        raise AssertionError(f"{follower.job_id}: {difference(seen, wanted)}")
    assert_orderly(follower)


def assert_orderly(follower: Follower) -> None:
    """Checks that ids rise over all connections, and that nothing follows the terminal event."""
    ids = [id_of(frame) for frame in follower.frames if frame.id is not None]
    for one, next_one in itertools.pairwise(ids):
        assert one < next_one, f"{follower.job_id}: {next_one} behind {one}"
    events = [frame.event for frame in follower.frames]
    for event in events[:-1]:
        assert event not in TERMINAL, f"{follower.job_id}: something behind {event}"


def id_of(frame: Frame | str) -> EventId:
    """A comparable event id."""
    text = frame if isinstance(frame, str) else frame.id
    assert text is not None
    epoch, _, seq = text.partition("-")
    return EventId(int(epoch), int(seq))


def difference(seen: Sequence[object], wanted: Sequence[object]) -> str:
    """Describes the first difference between two sequences."""
    for place, (left, right) in enumerate(zip(seen, wanted, strict=False)):
        if left != right:
            return f"event {place} is {left}, should be {right} ({len(seen)} seen, {len(wanted)} in the log)"
    if len(seen) < len(wanted):
        return f"{len(wanted) - len(seen)} missing at the end, first {wanted[len(seen)]}"
    return f"{len(seen) - len(wanted)} too many, first {seen[len(wanted)]}"


def text_of_log(log: Sequence[Event]) -> str:
    """The text of the newest attempt."""
    return text_of_frames(shown(log, "text"))
