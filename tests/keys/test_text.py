"""The text form of a key, and which texts are refused without asking Redis."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.api_key import KEY_ID, digest_of, is_within, new_key_id, new_key_text, read_key_text
from shared.limits import CallerLimits

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"


def test_a_key_names_its_environment_and_its_id() -> None:
    """After them come a secret of 160 bits and a checksum."""
    key_id = new_key_id()
    text = new_key_text(key_id, "live")
    assert KEY_ID.fullmatch(key_id)
    assert re.fullmatch(rf"ts_live_{key_id.removeprefix('key_')}_[0-9A-Za-z]{{33}}", text)
    assert 62**27 > 2**160
    presented = read_key_text(text.encode())
    assert presented is not None
    assert presented == (key_id, digest_of(text.encode()))


def test_no_two_keys_are_the_same() -> None:
    """Nor are two secrets of one key. Ids sort by creation time."""
    ids = [new_key_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert [key_id[4:13] for key_id in ids] == sorted(key_id[4:13] for key_id in ids)
    assert len({new_key_text(ids[0], "live") for _ in range(200)}) == 200


@given(place=st.integers(0, 57), letter=st.sampled_from(_ALPHABET))
def test_one_wrong_letter_is_noticed_at_once(place: int, letter: str) -> None:
    """Wherever it is: CRC-32 detects every single error."""
    text = new_key_text(new_key_id(), "live")
    assert len(text) == 58
    wrong = text[:place] + letter + text[place + 1 :]
    assert (read_key_text(wrong.encode()) is None) == (wrong != text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "ts_", "x", "sk-ant-" + "a" * 80, "ts_live_x_y", "ts_LIVE_01m84bdq4tyw9k2p_" + "a" * 33),
        *("ts_live_01m84bdq4tyw9k2p_" + "ä" * 33, "ts_live_01m84bdq4tyw9k2p_" + "0" * 10_000, "\0" * 58),
    ],
)
def test_a_text_that_is_no_key_of_ours_is_rejected(text: str) -> None:
    """Whatever its length."""
    assert read_key_text(text.encode("latin-1")) is None


def test_a_key_with_limits_cannot_give_wider_ones() -> None:
    """Having no limit is the widest of all."""
    own = CallerLimits(requests_per_minute=10, nano_usd_per_day=5)
    assert is_within(own, own)
    assert is_within(CallerLimits(requests_per_minute=9, nano_usd_per_day=5, queued_jobs=1), own)
    assert not is_within(CallerLimits(requests_per_minute=10), own)
    assert not is_within(CallerLimits(requests_per_minute=11, nano_usd_per_day=5), own)
    assert is_within(own, CallerLimits())
