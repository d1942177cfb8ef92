"""Why a job waits, in the words of `tokenspool follow`."""

from typing import Any

import msgspec
import pytest

from cli.waiting import sentence_of
from shared.waiting import Budget, NotBefore, NoWorker, Reason, Retry, RouteShut, RunningJobs, Shut, Turn, WaitingFor
from tests.command_line.conftest import Tokenspool
from tests.command_line.fake_api import JOB_ID, FakeApi, delta, frame, stream, succeeded

_AT = "2026-11-23T14:02:11.482Z"


def _as_json(*reasons: Reason) -> Any:
    return msgspec.json.decode(msgspec.json.encode(reasons))


@pytest.mark.parametrize(
    ("reason", "clause"),
    [
        (NoWorker(), "no worker is running"),
        (NotBefore(_AT), f"it is not to start before {_AT}"),
        (Retry(_AT, 2), f"attempt 2 follows at {_AT}"),
        (Budget("key", "day", 1, 1.5, 0, _AT), f"the API key has spent 1.50 of 1.00 USD of this day, until {_AT}"),
        (
            Budget("tenant", "month", 1, 0.5, 0.75, None),
            "the tenant has spent 0.50 of 1.00 USD of this month, and its running jobs may cost 0.75 USD",
        ),
        (RouteShut("a/b", Shut.RETRY_AFTER, _AT, None), f"a/b has asked for a pause until {_AT}"),
        (RouteShut("a/b", Shut.CIRCUIT, None, _AT), f"the calls to a/b fail; its circuit is open since {_AT}"),
        (RouteShut("a/b", Shut.MINUTE_FULL, _AT, None), f"a/b has used up its limit of a minute, until {_AT}"),
        (RouteShut("a/b", Shut.FULL, None, None), "a/b has as many calls under way as it may have"),
        (RunningJobs("tenant", 5, 6), "the tenant runs 6 jobs, and may run 5"),
        (RunningJobs("end_user", 5, 5), "the end user runs 5 jobs, and may run 5"),
        (Turn(12), "position 12 in the queue"),
    ],
)
def test_each_reason_has_its_words(reason: Reason, clause: str) -> None:
    """With the numbers and times of the JSON."""
    assert sentence_of(_as_json(reason)) == f"waiting: {clause}"


def test_several_reasons_are_one_sentence() -> None:
    """In their order."""
    waiting_for: WaitingFor = (NoWorker(), Turn(7))
    assert sentence_of(_as_json(*waiting_for)) == "waiting: no worker is running; position 7 in the queue"


@pytest.mark.parametrize(
    "reason",
    [
        {"reason": "budget"},
        {"reason": "route", "because": "later"},
        {"reason": "later"},
        {"reason": "budget", "of": []},
    ],
)
def test_a_reason_of_a_later_version_is_named(reason: Any) -> None:
    """So are those whose members are not as expected."""
    assert sentence_of([reason]) == f"waiting: {reason['reason']}"


def test_follow_prints_each_change(tokenspool: Tokenspool) -> None:
    """On standard error; a server that sends no list is no reason to fail."""
    events = [
        frame("queued", {"waiting_for": _as_json(NoWorker(), Turn(2))}),
        frame("waiting", {"waiting_for": _as_json(Turn(1))}),
        frame("waiting", {"waiting_for": "soon"}),
        frame("waiting", {"waiting_for": [7, {"reason": "a\nb"}]}),
    ]
    with FakeApi(stream(*events, delta("Blue", "1-1"), succeeded())) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert outcome.out == "Blue\n"
    assert outcome.err.splitlines() == [
        "tokenspool: waiting: no worker is running; position 2 in the queue",
        "tokenspool: waiting: position 1 in the queue",
        "tokenspool: waiting: a b",
    ]
