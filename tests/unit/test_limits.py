"""What is reserved for a request, by each member that bounds its answer."""

from typing import Any

import msgspec
import pytest

from shared.limits import MULTIPLIERS, OUTPUT_BOUNDS, reservation_of


def _output(**members: Any) -> int:
    return reservation_of(msgspec.json.encode({"model": "m", **members})).max_tokens


@pytest.mark.parametrize("name", OUTPUT_BOUNDS)
def test_each_member_that_bounds_the_answer_counts(name: str) -> None:
    """An upstream obeys one of them; we reserve the largest."""
    assert _output(**{name: 5000}) == 5000
    assert _output(**{"max_tokens": 1, name: 5000}) == 5000


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_several_answers_count_as_several(name: str) -> None:
    """Each answer may be as long as the bound."""
    assert _output(**{"max_tokens": 10, name: 3}) == 30


def test_absent_and_null_count_as_one_answer() -> None:
    """As for the upstream."""
    assert _output() == 0
    assert _output(max_tokens=7, max_completion_tokens=None, n=None) == 7


def test_four_bytes_of_input_are_one_token() -> None:
    """The reservation is the sum of input and output."""
    request = msgspec.json.encode({"max_tokens": 10, "n": 2, "messages": ["a" * 400]})
    assert reservation_of(request).tokens == 20 + len(request) // 4 + 1
