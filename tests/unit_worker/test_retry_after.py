"""Retry-After, in whatever form an upstream sends it."""

import math
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.retry_after import retry_after_s

NOW_S = 1_795_442_531.0


def seconds_of(**headers: str) -> float | None:
    return retry_after_s({name.replace("_", "-"): value for name, value in headers.items()}, now_s=NOW_S)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("1", 1),
        ("1.5", 1.5),
        (" 7 ", 7),
        ("86400", 86_400),
        ("4294967", 4_294_967),
        (formatdate(NOW_S + 61, usegmt=True), 61),
        (formatdate(NOW_S + 86_400, usegmt=True), 86_400),
        (formatdate(NOW_S - 61, usegmt=True), 0),
        ("Mon, 23 Nov 2026 15:02:41 +0100", 30),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("9" * 400, None),
        ("", None),
        ("soon", None),
        ("1, 2", None),
        ("Mon, 99 Nov 2026 14:02:41 GMT", None),
        ("Mon, 23 Nov 9999999 14:02:41 GMT", None),
    ],
)
def test_seconds_and_dates_are_understood_and_rubbish_is_nothing(value: str, seconds: float | None) -> None:
    assert seconds_of(retry_after=value) == seconds


def test_no_header_is_nothing() -> None:
    assert seconds_of() is None


@pytest.mark.parametrize(("milliseconds", "seconds"), [("250", 0.25), ("0", 0), ("1500.5", 1.5005)])
def test_milliseconds_are_the_more_exact_ones(milliseconds: str, seconds: float) -> None:
    assert seconds_of(retry_after_ms=milliseconds, retry_after="60") == seconds


@pytest.mark.parametrize("milliseconds", ["soon", "-1", "inf", ""])
def test_rubbish_in_milliseconds_leaves_the_seconds(milliseconds: str) -> None:
    assert seconds_of(retry_after_ms=milliseconds, retry_after="60") == 60


@given(value=st.text(max_size=60) | st.from_regex(r"\w{3}, \d{1,3} \w{3} \d{1,6} [\d:]{1,9}( \S{1,5})?"))
def test_whatever_is_sent_no_wait_is_negative_or_endless(value: str) -> None:
    seconds = seconds_of(retry_after=value)
    assert seconds is None or 0 <= seconds < math.inf
