"""Why a part of an answer became void, for streams that have no event for that and end with an error instead."""

from collections.abc import Sequence
from typing import Final

import msgspec

from shared.events import Event, OurEvent

_SENTENCES: Final = {
    "worker_lost": "The worker was lost after the start of the answer, which cannot be retracted here",
    "drained": "The worker was stopped after the start of the answer, which cannot be retracted here",
}
_UPSTREAM: Final = "The LLM failed after the start of its answer, which cannot be retracted here"


class _Announcement(msgspec.Struct):
    reason: str = "upstream_failed"


def reason_of(events: Sequence[Event]) -> str:
    """The reason that the first ``retry`` or ``reset`` gives: a code of ``job.error``, or a reason of ``reset``."""
    for event in events:
        if event.name in (OurEvent.RETRY, OurEvent.RESET):
            return msgspec.json.decode(event.data, type=_Announcement).reason
    return _Announcement().reason


def sentence_of(reason: str) -> str:
    """The message for the client."""
    return f"{_SENTENCES.get(reason, _UPSTREAM)} ({reason}): send the request again."
