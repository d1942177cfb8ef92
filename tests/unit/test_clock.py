"""The format of times on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clock import from_rfc3339, to_rfc3339

YEAR_9999_MS = 253_402_300_799_999


@given(st.integers(0, YEAR_9999_MS))
def test_every_millisecond_survives_a_round_trip(time_ms: int) -> None:
    """Until the year 9999; always in UTC, with exactly three digits."""
    text = to_rfc3339(time_ms)
    assert len(text) == len("2026-11-23T14:02:11.482Z")
    assert text.endswith("Z")
    assert from_rfc3339(text) == time_ms


def test_texts_sort_as_times_do() -> None:
    """Also over the end of a second and of a year."""
    times_ms = [0, 999, 1_000, 1_795_442_531_482, 1_798_761_599_999, 1_798_761_600_000, YEAR_9999_MS]
    texts = [to_rfc3339(time_ms) for time_ms in times_ms]
    assert texts == sorted(texts)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T14:02:11.482Z",
        "2026-11-23T14:02:11.482+00:00",
        "2026-11-23t14:02:11.482z",
        "2026-11-23T15:32:11.482+01:30",
        "2026-11-23T03:02:11.4820000-11:00",
        "2026-11-23T14:02:11.482000000Z",
    ],
)
def test_one_moment_has_many_valid_forms(text: str) -> None:
    """Any offset, any case, up to nine digits of a second."""
    assert from_rfc3339(text) == 1_795_442_531_482


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1795442531482",
        "2026-11-23",
        "2026-11-23T14:02Z",
        "2026-11-23T14:02:11",
        "2026-11-23 14:02:11Z",
        "2026-11-23T14:02:11.Z",
        "2026-11-23T14:02:11,482Z",
        "2026-11-23T14:02:11+0100",
        "2026-11-23T14:02:11+25:00",
        "2026-11-23T24:30:00Z",
        "2026-11-23T14:60:00Z",
        "2026-02-29T14:02:11Z",
        "2026-13-01T14:02:11Z",
        "20261123T140211Z",
        "2026-W48-1T14:02:11Z",
        " 2026-11-23T14:02:11Z",
        "2026-11-23T14:02:11Z\n",
        "２０２６-11-23T14:02:11Z",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """A time without an offset is ambiguous."""
    with pytest.raises(ValueError, match=r".+"):
        from_rfc3339(text)


@given(st.text(max_size=40) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", fullmatch=True))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    """A time can be rendered again if its year allows it."""
    try:
        time_ms = from_rfc3339(text)
    except ValueError:
        return
    if 0 <= time_ms <= YEAR_9999_MS:
        assert from_rfc3339(to_rfc3339(time_ms)) == time_ms
