"""The figures of the last hour: percentiles, what ended since when, and the points of the charts."""

from typing import Any

import pytest

from shared.figures import (
    BUCKET_MS,
    BUCKETS,
    Bucket,
    bucket_of,
    class_of,
    ended_since,
    fields_of,
    percentile,
    points_of,
)


def _ended(succeeded: int, failed: int = 0) -> dict[str, int]:
    return {"cancelled": 0, "expired": 0, "failed": failed, "succeeded": succeeded}


def _sampled(succeeded: int, *, failed: int = 0, waiting: int = 0, **more: Any) -> Bucket:
    return Bucket(waiting, 0, _ended(succeeded, failed))._replace(**more)


@pytest.mark.parametrize("duration_ms", [11, 50, 333, 1_000, 60_000, 599_000])
def test_a_percentile_is_right_within_a_fifth(duration_ms: float) -> None:
    """Whatever the duration: the classes grow with it."""
    found = percentile({class_of(duration_ms): 7}, 0.5)
    assert found is not None
    assert 0.8 <= found / duration_ms <= 1.2


def test_percentiles_are_those_of_all_durations() -> None:
    """The 95th of a hundred is among the slowest."""
    counts = {class_of(100): 94, class_of(10_000): 6}
    assert percentile(counts, 0.5) == pytest.approx(100, rel=0.2)
    assert percentile(counts, 0.95) == pytest.approx(10_000, rel=0.2)
    assert percentile({}, 0.5) is None


def test_what_no_class_holds_is_in_the_first_or_the_last_one() -> None:
    """A bucket has a bounded number of fields."""
    assert class_of(0) == class_of(-5) == class_of(10) == 0
    assert class_of(1e12) == class_of(1e15) < 100


def test_what_ended_since_then_is_counted_between_samples_in_proportion() -> None:
    """Half of what a bucket saw, from its middle on; and all that came after."""
    buckets = {number: _sampled(10 * number) for number in range(10)}
    assert ended_since(5 * BUCKET_MS, _ended(95), buckets)["succeeded"] == 45
    assert ended_since(5 * BUCKET_MS + BUCKET_MS // 2, _ended(95), buckets)["succeeded"] == 40
    assert ended_since(9 * BUCKET_MS, _ended(95, 2), buckets) == _ended(5, 2)


def test_what_ended_before_the_first_sample_is_not_counted() -> None:
    """Nobody knows when that was."""
    assert ended_since(0, _ended(7), {5: _sampled(4)})["succeeded"] == 3
    assert ended_since(0, _ended(7), {})["succeeded"] == 0


def test_the_history_begins_with_the_first_bucket_that_holds_anything() -> None:
    """And has a value for each bucket since then; what was not sampled stays as it was."""
    buckets = {
        3: _sampled(100, waiting=4, tokens=7, first_tokens={class_of(200): 1}),
        4: Bucket(tokens=5),
        5: _sampled(103, failed=2, waiting=6),
        6: _sampled(104, failed=2),
    }
    points = points_of(buckets, 5)
    assert [point.number for point in points] == [3, 4, 5]
    assert [point.waiting for point in points] == [4, 4, 6]
    assert [point.tokens for point in points] == [7, 5, 0]
    assert [(point.succeeded, point.failed) for point in points] == [(0, 0), (3, 2), (1, 0)]
    assert points[0].first_token_p50_ms == pytest.approx(200, rel=0.2)
    assert points[1].first_token_p95_ms is None
    assert points_of({}, 5) == []


def test_the_history_is_an_hour_at_most() -> None:
    """The oldest buckets fall out."""
    points = points_of({number: _sampled(number) for number in range(BUCKETS + 50)}, BUCKETS + 40)
    assert len(points) == BUCKETS
    assert {point.succeeded for point in points} == {1}


def test_a_bucket_is_read_as_it_was_written() -> None:
    """What a newer release adds is ignored."""
    fields = [*fields_of(3, 2, _ended(5, 1)), "tokens", 9, "t12", 4, "sampled", 1, "tomorrow", 1]
    flat = [str(part).encode() for part in fields]
    assert bucket_of(flat) == Bucket(3, 2, _ended(5, 1), 9, {12: 4})
    assert bucket_of([b"tokens", b"9"]) == Bucket(tokens=9)
