"""The figures of the service over the last hour, in buckets of ten seconds. Over all tenants; they name none.

A bucket holds what waited, ran and had ended at its beginning, as one API process sampled it, and the tokens and first
tokens that the workers added. Pure: shared/store/figures.py keeps the buckets in Redis.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from shared.job import TERMINAL_STATES

BUCKET_S: Final = 10
BUCKET_MS: Final = BUCKET_S * 1000
BUCKETS: Final = 360
"""An hour of them."""
KEPT_MS: Final = (BUCKETS + 10) * BUCKET_MS

OUTCOMES: Final = tuple(sorted(state.value for state in TERMINAL_STATES))

_LEAST_MS: Final = 10.0
_STEPS_PER_DOUBLING: Final = 4
"""A class of durations ends 19 % above its beginning, so a percentile is right within a tenth."""
_MOST_CLASS: Final = 80


class Bucket(NamedTuple):
    """Ten seconds."""

    waiting: int | None = None
    """At its beginning; None, as the next two, if no API process sampled it."""
    running: int | None = None
    ended: Mapping[str, int] | None = None
    """By outcome, how many jobs had ended until its beginning."""
    tokens: int = 0
    first_tokens: Mapping[int, int] = {}
    """By class of duration, how many answers began."""


EMPTY: Final = Bucket()


class Point(NamedTuple):
    """A whole bucket, as charts show it."""

    number: int
    waiting: int
    running: int
    tokens: int
    succeeded: int
    failed: int
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None


def class_of(duration_ms: float) -> int:
    """The class of a duration; 0 is up to 10 ms."""
    if duration_ms <= _LEAST_MS:
        return 0
    return min(_MOST_CLASS, math.ceil(_STEPS_PER_DOUBLING * math.log2(duration_ms / _LEAST_MS)))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """The duration (ms) that this share of them does not exceed; None if there are none."""
    left = share * sum(counts.values())
    for number in sorted(counts):
        if counts[number] >= left > 0:
            within = left / counts[number]
            return round(_LEAST_MS * math.exp2((number - 1 + within) / _STEPS_PER_DOUBLING), 1)
        left -= counts[number]
    return None


def first_tokens_of(buckets: Iterable[Bucket]) -> dict[int, int]:
    """The classes of several buckets, added up."""
    counts: dict[int, int] = {}
    for bucket in buckets:
        for number, count in bucket.first_tokens.items():
            counts[number] = counts.get(number, 0) + count
    return counts


def ended_since(since_ms: int, ended: Mapping[str, int], buckets: Mapping[int, Bucket]) -> dict[str, int]:
    """How many jobs have ended since then, by outcome, if ``ended`` have so far. Between two samples: in proportion."""
    samples = [(number, bucket.ended) for number, bucket in sorted(buckets.items()) if bucket.ended is not None]
    before = [sample for sample in samples if sample[0] * BUCKET_MS <= since_ms]
    after = [sample for sample in samples if sample[0] * BUCKET_MS > since_ms]
    if not before:  # nobody sampled so long ago: since the first sample
        first = after[0][1] if after else ended
        return {outcome: ended.get(outcome, 0) - first.get(outcome, 0) for outcome in OUTCOMES}
    (begin, low), (end, high) = before[-1], after[0] if after else (before[-1][0] + 1, ended)
    share = min(1.0, (since_ms / BUCKET_MS - begin) / (end - begin))
    return {
        outcome: ended.get(outcome, 0)
        - low.get(outcome, 0)
        - round(share * (high.get(outcome, 0) - low.get(outcome, 0)))
        for outcome in OUTCOMES
    }


def points_of(buckets: Mapping[int, Bucket], last: int) -> list[Point]:
    """The hour up to the bucket ``last``, from the first one that holds anything. What was not sampled stays as before."""
    first = min((number for number, bucket in buckets.items() if bucket != EMPTY and number <= last), default=last + 1)
    points: list[Point] = []
    waiting = running = 0
    ended: Mapping[str, int] = {}
    for number in range(max(first, last - BUCKETS + 1), last + 1):
        bucket = buckets.get(number, EMPTY)
        waiting = waiting if bucket.waiting is None else bucket.waiting
        running = running if bucket.running is None else bucket.running
        ended = ended if bucket.ended is None else bucket.ended
        following = buckets.get(number + 1, EMPTY).ended
        then = ended if following is None else following
        if not ended:  # the first sample of all
            ended = then
        points.append(
            Point(
                number,
                waiting,
                running,
                max(0, bucket.tokens),
                max(0, then.get("succeeded", 0) - ended.get("succeeded", 0)),
                max(0, then.get("failed", 0) - ended.get("failed", 0)),
                percentile(bucket.first_tokens, 0.5),
                percentile(bucket.first_tokens, 0.95),
            )
        )
    return points


def fields_of(waiting: int, running: int, ended: Mapping[str, int]) -> list[str | int]:
    """A sample, as the names and values of a bucket's hash."""
    return ["waiting", waiting, "running", running, *[part for pair in ended.items() for part in pair]]


def bucket_of(flat: Sequence[bytes]) -> Bucket:
    """A bucket from the names and values of its hash. What a newer release adds is ignored."""
    found = {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return Bucket(
        found.get("waiting"),
        found.get("running"),
        {outcome: found.get(outcome, 0) for outcome in OUTCOMES} if "waiting" in found else None,
        found.get("tokens", 0),
        {int(name[1:]): count for name, count in found.items() if name[0] == "t" and name[1:].isdigit()},
    )
