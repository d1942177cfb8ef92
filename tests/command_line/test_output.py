"""What commands print for people, and what for programs."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from cli.output import WIDTH, dollars, local, put_json, put_table, relative, span


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0404, "40 ms"), (4.24, "4.2 s"), (42, "42 s"), (150, "2 min"), (7300, "2 h"), (86_400 * 3, "3 d")],
)
def test_a_span_is_said_in_its_largest_unit(seconds: float, said: str) -> None:
    assert span(seconds) == said


@pytest.mark.parametrize(
    ("usd", "said"), [(None, ""), (0, "$0.00"), (0.0421, "$0.0421"), (0.000042, "$0.000042"), (1234.5, "$1,234.50")]
)
def test_money_is_dollars(usd: float | None, said: str) -> None:
    """A small amount is not rounded to nothing."""
    assert dollars(usd) == said


def test_a_time_is_relative_and_local() -> None:
    """A text that is not a time stays: another version of the API may send it."""
    past, future = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (-3.1, 200))
    assert relative(past.isoformat()) == "3 s ago"
    assert relative(future.isoformat()) == "in 3 min"
    assert local(past.isoformat()) == f"{past.astimezone():%-d %b %Y %H:%M:%S} (3 s ago)"
    assert (relative(None), local(None), relative("soon"), local("soon")) == ("", "", "soon", "soon")


def test_columns_are_aligned_and_fit_the_width(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the named columns are cut, and no cell breaks its line."""
    put_table(
        ("id", "model", "cost", "tags"),
        [("a" * 30, "m" * 60, "$1.00", "t\n" * 40), ("b", "n", "$10.00", "")],
        numbers=("cost",),
        cut=("model", "tags"),
    )
    head, first, second = capsys.readouterr().out.splitlines()
    assert len(first) == WIDTH
    assert first.split() == ["a" * 30, "m" * 28 + "…", "$1.00", *first.split()[3:]]
    assert head.index("tags") == first.index("t ") == second.index("-")
    assert second.index("$10.00") + 1 == first.index("$1.00")


def test_json_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """One line of ASCII, which is read as the same value."""
    value = {"text": "\x1b[31m\x9b31m\u202e\ud83d Grüße\n"}
    put_json(value)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.removesuffix("\n").isprintable()
    assert json.loads(out) == value
