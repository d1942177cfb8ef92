"""What is written to a job's log and sent to its followers: event names, ids, and the form on the pub/sub channel.

The log holds the upstream's own Messages events unchanged, and our events between them. An event's id is
``<epoch>-<seq>``: a claim makes the epoch, and seq counts from 0 without gaps. This one id is the entry id of the Redis
stream, the fence, the order, and the ``id:`` of the server-sent event.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from shared.job import TERMINAL_STATES


class OurEvent(StrEnum):
    """Events that are ours. The terminal ones are named after the states."""

    QUEUED = "queued"
    """Made by the relay, without an id, if the job waits: ``{job_id, queue_position, waiting_for}``."""
    WAITING = "waiting"
    """The same, when one of them has changed; at most once a second, and only the newest."""
    STARTED = "started"
    """Always seq 0 of a claim: ``{attempt}``."""
    RETRY = "retry"
    """The attempt failed and another follows: ``{attempt, reason, delay_ms}``."""
    RESET = "reset"
    """Throw away all text so far: ``{attempt, reason}``, reason one of RESET_REASONS."""
    SNAPSHOT = "snapshot"
    """Made by the relay when the log is gone: ``{text}`` replaces all text so far."""
    DELTA = "delta"
    """``format=text`` only, made by the relay from the upstream's text deltas: ``{text}``."""


TERMINAL_EVENTS: Final = frozenset(state.value for state in TERMINAL_STATES)

OUR_NAMES: Final = TERMINAL_EVENTS | {event.value for event in OurEvent}
"""Reserved names: an upstream's event that has one of them is skipped."""

RESET_REASONS: Final = ("worker_lost", "upstream_failed", "drained", "cursor_trimmed", "log_rolled_back")


class EventId(NamedTuple):
    """``<epoch>-<seq>``; compares as Redis compares stream ids."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"


class Event(NamedTuple):
    """One entry of a log."""

    id: EventId | None
    """None for an event that the relay makes itself."""
    name: str
    data: bytes
    """One line of JSON."""

    @property
    def is_terminal(self) -> bool:
        """Whether it is the job's last event."""
        return self.name in TERMINAL_EVENTS


_CURSOR: Final = re.compile(r"(\d{1,15})-(\d{1,10})", re.ASCII)


def parse_cursor(text: str) -> EventId | None:
    """The event id in ``Last-Event-ID``, or None if it cannot be one of ours."""
    match = _CURSOR.fullmatch(text)
    return EventId(int(match[1]), int(match[2])) if match else None


def encode_published(first_id: EventId, events: Iterable[tuple[str, bytes]]) -> bytes:
    """The message on a job's channel for (name, data) events whose seqs count up from ``first_id``.

    It is the id of the first event, then the name and the data of each event, all separated by line feeds (data is one line
    of JSON).
    """
    return b"\n".join([b"%d-%d" % first_id, *[b"%b\n%b" % (name.encode(), data) for name, data in events]])


def decode_published(message: bytes) -> list[Event]:
    """The events of one message on a job's channel, in the form of ``encode_published``."""
    first, *rest = message.split(b"\n")
    epoch_text, _, seq_text = first.partition(b"-")
    epoch, seq = int(epoch_text), int(seq_text)
    return [
        Event(EventId(epoch, seq + index // 2), rest[index].decode(), rest[index + 1])
        for index in range(0, len(rest), 2)
    ]


def following_on(events: Iterable[Event], position: EventId | None) -> tuple[list[Event], bool]:
    """The events that follow ``position`` without a gap, and whether that is all of them.

    ``position`` is the last event that a client has; None: it has none. Events that it has are left out. The list ends at a
    gap, or where another epoch begins: only the log says what comes next.
    """
    following: list[Event] = []
    for event in events:
        assert event.id is not None
        if position is None:
            if event.id.seq != 0:
                return following, False
        elif event.id <= position:
            continue
        elif event.id.epoch != position.epoch or event.id.seq != position.seq + 1:
            return following, False
        position = event.id
        following.append(event)
    return following, True


class _TextDelta(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _ContentBlockDelta(msgspec.Struct):
    delta: _TextDelta


_delta_decoder: Final = msgspec.json.Decoder(_ContentBlockDelta)
_encode: Final = msgspec.json.Encoder().encode

DELTA_TYPES: Final = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
"""Member of a content block that grows → the type of the deltas that extend it."""


_HEADS: Final = {
    member: b'{"type":"content_block_delta","index":%%d,"delta":{"type":"%b","%b":' % (kind.encode(), member.encode())
    for member, kind in DELTA_TYPES.items()
}
_TEXT_DELTA: Final = _HEADS["text"] + b"%b}}"
_TEXT_MARK: Final = _HEADS["text"].partition(b"%d,")[2]


def delta_head(index: int, member: str) -> bytes:
    """The beginning of all deltas of block ``index``, up to the value of ``member``; ``encode_delta`` completes it."""
    return _HEADS[member] % index


def encode_delta(head: bytes, value: str) -> bytes:
    """The data of one ``content_block_delta``."""
    return head + _encode(value) + b"}}"


def encode_text_delta(index: int, text: str) -> bytes:
    """The data of one text delta, for a caller that has no ``delta_head``."""
    return _TEXT_DELTA % (index, _encode(text))


def text_as_json(event: Event) -> bytes | None:
    """The text that a ``content_block_delta`` adds, still as JSON; None if it adds none.

    ``encode_delta`` made nearly all deltas, and from these the text is cut out: decoding costs several times as much.
    """
    _, mark, rest = event.data.partition(_TEXT_MARK)
    if mark and rest.endswith(b"}}"):
        return rest[:-2]
    text = text_of(event)
    return None if text is None else _encode(text)


def text_of(event: Event) -> str | None:
    """The text that a ``content_block_delta`` adds to the answer, or None if it adds none."""
    if event.name != "content_block_delta":
        return None
    delta = _delta_decoder.decode(event.data).delta
    return delta.text if delta.type == "text_delta" else None
