"""A busy event loop takes slots from ``low`` jobs, and gives them back."""

import asyncio

import pytest

from worker.pacing import Lag, room_after

LONG_S, SHORT_S = 0.05, 0.0001


def after(room: int, turns_s: list[float], *, most: int = 75) -> int:
    for turn_s in turns_s:
        room = room_after(room, turn_s, most)
    return room


def test_short_turns_leave_all_the_room() -> None:
    assert after(75, [SHORT_S] * 100) == 75


def test_a_long_turn_takes_a_quarter() -> None:
    assert after(75, [LONG_S]) == 56


@pytest.mark.parametrize(("most", "least"), [(75, 4), (4, 4), (1, 1)])
def test_however_long_the_turns_a_batch_goes_on(most: int, least: int) -> None:
    assert after(most, [LONG_S] * 100, most=most) == least


def test_room_comes_back_within_a_few_turns() -> None:
    assert after(16, [SHORT_S]) == 19
    assert after(4, [SHORT_S] * 30) == 75


async def test_a_turn_is_what_the_loop_did_meanwhile() -> None:
    now_s = 0.0

    def work() -> None:
        nonlocal now_s
        now_s += LONG_S

    lag = Lag(75, lambda: now_s)
    assert lag.room == 4, "the first begin few at a time"
    rooms: list[int] = []
    for does_work in (*[False] * 40, True, False, *[False] * 100):
        if does_work:
            asyncio.get_running_loop().call_soon(work)
        grows = await lag.look()
        assert grows == (lag.room > (rooms[-1] if rooms else 4))
        rooms.append(lag.room)
    assert rooms[39] == 75
    assert rooms[39] > rooms[40] > rooms[41], "one long turn is remembered for a while"
    assert rooms[-1] == 75
    lag.rest()
    assert lag.room == 4
