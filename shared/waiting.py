"""What holds back a queued job, as callers see it: in the job, and in its ``queued`` and ``waiting`` events."""

from enum import StrEnum
from typing import Literal

import msgspec

Owner = Literal["tenant", "key", "end_user"]
"""Whose limit it is."""


class Shut(StrEnum):
    """Why a route takes no call now."""

    RETRY_AFTER = "retry_after"
    """The upstream has asked for a pause."""
    CIRCUIT = "circuit"
    """Too many of its calls failed. It is probed every few seconds."""
    MINUTE_FULL = "minute_full"
    """Its requests or tokens of a minute are used up."""
    FULL = "full"
    """As many calls as it may have are under way."""


class NoWorker(msgspec.Struct, frozen=True, tag_field="reason", tag="no_worker"):
    """No worker is running, or all of them are draining."""


class NotBefore(msgspec.Struct, frozen=True, tag_field="reason", tag="not_before"):
    """The job's own ``not_before``."""

    until: str


class Retry(msgspec.Struct, frozen=True, tag_field="reason", tag="retry"):
    """The pause before its next attempt."""

    until: str
    attempt: int


class Budget(msgspec.Struct, frozen=True, tag_field="reason", tag="budget"):
    """What is left of a budget is not enough: after what was spent, and what running jobs hold in reserve."""

    of: Owner
    period: Literal["day", "month"]
    limit_usd: float
    spent_usd: float
    held_usd: float
    until: str | None
    """When the next period begins; null if the end of a running job may be enough."""


class RouteShut(msgspec.Struct, frozen=True, tag_field="reason", tag="route"):
    """The LLM may not be called now, nor may any of the job's fallbacks."""

    route: str
    because: Shut
    until: str | None
    """Null if that is unknown."""
    since: str | None
    """Of an open circuit; else null."""


class RunningJobs(msgspec.Struct, frozen=True, tag_field="reason", tag="running_jobs"):
    """As many jobs run as may run at once."""

    of: Owner
    limit: int
    running: int


class Turn(msgspec.Struct, frozen=True, tag_field="reason", tag="turn"):
    """Other jobs are before it."""

    position: int


Reason = NoWorker | NotBefore | Retry | Budget | RouteShut | RunningJobs | Turn

WaitingFor = tuple[Reason, ...]
"""All that holds a job back, most binding first: no worker, then what has an end (the latest first), then the rest, then its turn."""


def queue_position_of(waiting_for: WaitingFor | None) -> int | None:
    """1 starts next. None unless its turn is all that a job waits for."""
    match waiting_for:
        case (Turn(position),):
            return position
        case _:
            return None


class WaitNotice(msgspec.Struct, frozen=True):
    """The data of ``queued`` and ``waiting``."""

    job_id: str
    queue_position: int | None
    waiting_for: WaitingFor


_encode = msgspec.json.Encoder().encode


def notice_of(job_id: str, waiting_for: WaitingFor) -> bytes:
    """The data of ``queued`` and ``waiting``, as one line of JSON."""
    return _encode(WaitNotice(job_id, queue_position_of(waiting_for), waiting_for))
