"""When a follower is sent why its job waits."""

from typing import Any

import pytest

from api.state.wait_notices import Notices
from shared.events import Event, EventId
from shared.waiting import NoWorker, RunningJobs, Turn, WaitingFor, notice_of

_EPOCH = 7


def _turn(place: int) -> WaitingFor:
    return (Turn(place),)


def _notices(sent: WaitingFor | None = None, **how: Any) -> Notices:
    notices = Notices("a-model", _EPOCH, **{"may_wait": True, **how})
    if sent is not None:
        notices.sent(sent, 0.0)
    return notices


def _event(name: str, epoch: int = _EPOCH + 1) -> Event:
    return Event(EventId(epoch, 0), name, b"{}")


def test_the_first_reason_is_due_at_once() -> None:
    """The client came back with a cursor, and was sent no `queued`."""
    notices = _notices()
    assert notices.note(_turn(900), 0.1)
    assert notices.take("job_1", 0.1) == [Event(None, "waiting", notice_of("job_1", _turn(900)))]
    assert notices.take("job_1", 0.1) == []


def test_what_was_sent_is_not_sent_again() -> None:
    """Nor is a change within a second; it is sent after that, if it is still there."""
    notices = _notices(_turn(3))
    assert not notices.note(_turn(3), 9)
    assert not notices.note(_turn(2), 0.9)
    assert notices.note(_turn(2), 1.0)


@pytest.mark.parametrize(("place", "due_s"), [(1, 1), (100, 1), (400, 4), (1_000, 10), (100_000, 10)])
def test_a_far_place_is_sent_less_often(place: int, due_s: float) -> None:
    """A second for each hundred places, at most ten."""
    notices = _notices(_turn(place + 1))
    assert not notices.note(_turn(place), due_s - 0.01)
    assert notices.note(_turn(place), due_s)


def test_a_new_reason_is_sent_however_far_the_place() -> None:
    """Also one that has ended; numbers alone are no new reason."""
    full, fuller = RunningJobs("key", 5, 5), RunningJobs("key", 5, 6)
    notices = _notices(_turn(900))
    assert notices.note((full, Turn(900)), 1.0)
    notices.take("job_1", 1.0)
    assert not notices.note((fuller, Turn(899)), 2.0)
    assert notices.note((NoWorker(), fuller, Turn(899)), 2.0)
    notices.take("job_1", 2.0)
    assert notices.note(_turn(899), 3.0)


def test_a_slow_client_is_sent_the_newest_only() -> None:
    """One notice is held, however many are due before the client reads."""
    notices = _notices(_turn(9))
    for second, place in enumerate((8, 7, 6), start=1):
        assert notices.note(_turn(place), second)
    assert [event.data for event in notices.take("job_1", 3)] == [notice_of("job_1", _turn(6))]
    assert not notices.has_unsent


def test_an_event_of_a_new_claim_ends_the_wait() -> None:
    """A notice that is still held is void, and the same reason is news after it."""
    notices = _notices(_turn(1))
    assert notices.note(_turn(2), 1.0)
    notices.heard(_event("started"))
    assert not notices.has_unsent
    assert not notices.note(_turn(1), 2.0)
    notices.heard(_event("retry"))
    assert notices.note(_turn(1), 2.1)


def test_events_from_before_the_read_say_nothing() -> None:
    """The replay of an earlier attempt does not end the wait for the next."""
    notices = _notices()
    notices.heard(_event("content_block_delta", _EPOCH))
    assert notices.may_wait


def test_a_job_that_does_not_wait_is_not_looked_at_again() -> None:
    """Until an event or a probe says that it may."""
    notices = _notices()
    assert not notices.note(None, 1.0)
    assert not notices.may_wait
