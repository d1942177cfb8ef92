"""`tokenspool follow` against an API with every failure of an API, a proxy or a network."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line.conftest import Patience, Tokenspool
from tests.command_line.fake_api import (
    GONE,
    JOB_ID,
    FakeApi,
    Then,
    answer,
    delta,
    frame,
    job,
    problem,
    stream,
    succeeded,
)
from tests.support.interruptible import INTERRUPTIBLE

_FULL = Path("/dev/full")
_PLAY = (sys.executable, "-W", "error", "-m", "cli")


def test_it_prints_the_answer_and_nothing_else(tokenspool: Tokenspool) -> None:
    """Only the answer goes to standard output; a missing line end is added."""
    with FakeApi(
        stream(
            b"retry: 1730\n\n",
            frame("queued", {"queue_position": 0}),
            frame("started", {"attempt": 1}, "1-0"),
            b": ping\n\n",
            delta("Blue", "1-3"),
            delta(" light", "1-4"),
            frame("something_new", {"text": "not for me"}, "1-5"),
            succeeded(),
        )
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, "Blue light\n", "")
    (request,) = api.requests
    assert (request.method, request.path) == ("GET", f"/v1/jobs/{JOB_ID}/events")
    assert request.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in request.headers


def test_an_answer_that_ends_its_line_gets_no_second_line_end(tokenspool: Tokenspool) -> None:
    """Line breaks inside it are unchanged."""
    with FakeApi(stream(delta("one\n\n", "1-1"), delta("two\n", "1-2"), succeeded())) as api:
        assert tokenspool("follow", JOB_ID, "--url", api.url).out == "one\n\ntwo\n"


def test_it_prints_the_position_in_the_queue(tokenspool: Tokenspool) -> None:
    """On standard error."""
    with FakeApi(
        stream(
            frame("queued", {"queue_position": 7, "waiting_for": [{"reason": "turn", "position": 7}]}),
            delta("Blue", "1-1"),
            succeeded(),
        )
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.out, outcome.err) == ("Blue\n", "tokenspool: waiting: position 7 in the queue\n")


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
@pytest.mark.parametrize("whole", [True, False])
def test_a_reconnect_sends_the_last_event_id(
    tokenspool: Tokenspool, patience: Patience, then: Then, whole: bool
) -> None:
    """However the connection ended; events without an id do not change it."""
    with FakeApi(
        stream(delta("Blue", "1-3"), delta(" light", "1-4"), b": bye\n\n", then=then, whole=whole),
        stream(delta(" is", "1-5"), frame("reset_like", {}), whole=whole),
        stream(delta(" scattered.", "1-6"), succeeded()),
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, "Blue light is scattered.\n")
    assert [request.headers.get("last-event-id") for request in api.requests] == [None, "1-4", "1-5"]
    assert outcome.err == "tokenspool: the connection broke; reconnecting\n" * 2


def test_a_frame_that_was_cut_in_the_middle_counts_as_unseen(tokenspool: Tokenspool, patience: Patience) -> None:
    """Its text is neither printed twice nor lost, even if its id had arrived completely."""
    half = delta(" light", "1-4")
    with FakeApi(
        stream(delta("Blue", "1-3"), half[:-1], whole=False),
        stream(half[: half.index(b"event:")], whole=False),
        stream(half, succeeded()),
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert outcome.out == "Blue light\n"
    assert [request.headers.get("last-event-id") for request in api.requests] == [None, "1-3", "1-3"]


def test_a_reset_starts_the_text_again_on_a_new_line(tokenspool: Tokenspool) -> None:
    """Printed text cannot be removed; standard error says why it does not count."""
    with FakeApi(
        stream(
            delta("Bl", "1-3"),
            frame("started", {"attempt": 2}, "2-0"),
            frame("reset", {"attempt": 2, "reason": "worker_lost"}, "2-1"),
            delta("Air", "2-4"),
            succeeded(),
        )
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.out, outcome.err) == ("Bl\nAir\n", "tokenspool: the text starts over (worker_lost)\n")


def test_a_reset_without_an_id_keeps_the_last_event_id(tokenspool: Tokenspool, patience: Patience) -> None:
    """The API sends one for a cursor that is not in its log; the same cursor gets the same reset again."""
    made = frame("reset", {"reason": "log_rolled_back"})
    with FakeApi(
        stream(delta("Blu", "5-9"), whole=False),
        stream(made, whole=False),
        stream(made, delta("Blue", "6-1"), whole=False),
        stream(succeeded()),
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert outcome.out == "Blu\nBlue\n"
    assert [request.headers.get("last-event-id") for request in api.requests] == [None, "5-9", "5-9", "6-1"]


def test_a_retry_is_reported_on_standard_error(tokenspool: Tokenspool) -> None:
    """So is the restart of the text."""
    with FakeApi(
        stream(
            delta("Bl", "1-3"),
            frame("retry", {"attempt": 2, "reason": "upstream_error"}, "1-4"),
            frame("reset", {"attempt": 2, "reason": "upstream_failed"}, "1-5"),
            delta("Blue", "1-7"),
            succeeded(),
        )
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert outcome.out == "Bl\nBlue\n"
    assert outcome.err.splitlines() == [
        "tokenspool: the call to the LLM failed; trying again",
        "tokenspool: the text starts over (upstream_failed)",
    ]


def test_a_snapshot_is_the_whole_text(tokenspool: Tokenspool, patience: Patience) -> None:
    """The log was deleted, but the result is there."""
    with FakeApi(
        stream(delta("Blu", "1-3"), whole=False),
        stream(frame("reset", {"reason": "cursor_trimmed"}), frame("snapshot", {"text": "Blue light."}), succeeded()),
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, "Blu\nBlue light.\n")


@pytest.mark.parametrize(
    ("ended", "exit_code", "message"),
    [
        (job("succeeded"), 0, ""),
        (job("cancelled"), 1, "The job was cancelled."),
        (job("running"), 1, "The server at 127.0.0.1 sent an unexpected response (200): check that it is tokenspool."),
    ],
)
def test_after_204_it_reads_how_the_job_ended(
    tokenspool: Tokenspool, patience: Patience, ended: dict[str, Any], exit_code: int, message: str
) -> None:
    """204 says that the client has the end, but this process may not have seen it."""
    with FakeApi(stream(delta("Blue", "1-3"), whole=False), answer(204), answer(200, ended)) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (exit_code, "Blue\n")
    assert outcome.err.splitlines()[1:] == ([f"tokenspool: {message}"] if message else [])
    assert api.requests[-1].path == f"/v1/jobs/{JOB_ID}?result=false"


def test_it_waits_for_an_api_without_redis_as_retry_after_says(tokenspool: Tokenspool, patience: Patience) -> None:
    """A 503 with Retry-After is reported once."""
    away = problem(503, "The storage does not reply.", retry_after="2")
    with FakeApi(away, away, away, stream(delta("Blue", "1-3"), succeeded())) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, "Blue\n")
    assert outcome.err == "tokenspool: the API is not ready; trying again\n"
    assert patience.pauses_s == [2, 2, 2]


def test_an_odd_retry_after_is_bounded(tokenspool: Tokenspool, patience: Patience) -> None:
    """Zero does not cause a flood of requests, a huge one no endless sleep, and an invalid one no failure."""
    with FakeApi(
        *[problem(503, "Away.", retry_after=value) for value in ("0", "86400", "9" * 500, "soon")],
        stream(b"retry: 0\n\n"),
        stream(succeeded()),
    ) as api:
        assert tokenspool("follow", JOB_ID, "--url", api.url).exit_code == 0
    assert patience.pauses_s == [0.1, 10, 10, 10, 0.1]


def test_it_obeys_the_servers_reconnect_time(tokenspool: Tokenspool, patience: Patience) -> None:
    """From `retry:`, even if the connection then broke."""
    with FakeApi(stream(b"retry: 1730\n\n"), stream(b"retry: 2210\n\n", whole=False), stream(succeeded())) as api:
        tokenspool("follow", JOB_ID, "--url", api.url)
    assert patience.pauses_s == [1.73, 2.21]


def test_pauses_grow_while_nobody_responds_and_are_short_again_after_a_response(
    tokenspool: Tokenspool, patience: Patience
) -> None:
    """A stream that breaks every hour must not get ever longer pauses."""
    with FakeApi(
        stream(delta("a", "1-1"), whole=False),
        *[GONE] * 6,
        stream(delta("b", "1-2"), whole=False),
        GONE,
        stream(succeeded()),
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, "ab\n")
    assert patience.pauses_s == [0.5, 1, 2, 4, 8, 10, 10, 0.5, 1]
    assert outcome.err == "tokenspool: the connection broke; reconnecting\n" * 2


def test_it_gives_up_after_five_minutes_and_says_how_to_resume(tokenspool: Tokenspool, patience: Patience) -> None:
    """The job goes on without the follower."""
    with FakeApi(stream(delta("Blue", "1-3"), whole=False)) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (1, "Blue\n")
    assert outcome.err.splitlines() == [
        "tokenspool: the connection broke; reconnecting",
        f"tokenspool: {api.url} has been unreachable for too long; the job continues. To follow it again: tokenspool follow {JOB_ID}",
    ]
    assert 300 <= sum(patience.pauses_s) < 320


def test_no_text_of_a_model_reaches_the_terminal_as_a_command(tokenspool: Tokenspool) -> None:
    """Escape sequences, bells, backspaces and bidirectional marks are removed, also from the server's messages."""
    with FakeApi(
        stream(
            delta("red \x1b[31m", "1-1"),
            delta("\x1b", "1-2"),
            delta("]0;title\x07 \x9b2J back\x08 \u202eleft\u2069 tab\tand\r\nline\x00", "1-3"),
            frame("reset", {"reason": "because\x1b[2J\nof this"}, "1-4"),
            frame("failed", {"error": {"code": "timeout\x1b[A", "message": "Too \x07late."}}, "1-5"),
        )
    ) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert outcome.out == "red [31m]0;title 2J back left tab\tand\nline\n"
    assert outcome.err.splitlines()[-1] == "tokenspool: The job failed: Too late. (timeout[A)"
    assert not any(character in outcome.err for character in "\x1b\x07\x9b")


def test_a_lone_surrogate_is_printed_as_a_question_mark(tokenspool: Tokenspool) -> None:
    """JSON can contain it, UTF-8 cannot."""
    with FakeApi(stream(delta("half \ud83d pair", "1-1"), succeeded())) as api:
        assert tokenspool("follow", JOB_ID, "--url", api.url).out == "half ? pair\n"


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (
            frame("failed", {"error": {"code": "upstream_auth", "message": "The LLM refused our credentials."}}),
            "The job failed: The LLM refused our credentials. (upstream_auth)",
        ),
        (frame("failed", {"error": "not as it should be"}), "The job failed: no reason given"),
        (frame("failed", ["nonsense"]), "The job failed: no reason given"),
        (frame("cancelled", {}), "The job was cancelled."),
        (frame("expired", {}), "The job expired before it started."),
    ],
)
def test_a_job_without_success_is_exit_code_1_and_a_sentence(tokenspool: Tokenspool, end: bytes, sentence: str) -> None:
    """For scripts, 0 means that the whole answer was printed."""
    with FakeApi(stream(delta("Bl", "1-1"), end)) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out, outcome.err) == (1, "Bl\n", f"tokenspool: {sentence}\n")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (problem(410, "It is\ngone."), "It is gone."),
        (
            problem(401, "A valid API key is needed."),
            "A valid API key is needed. Set TOKENSPOOL_API_KEY to a valid key.",
        ),
        (
            problem(400, "1 field is not valid.", errors=[{"pointer": "#/x", "detail": "must be\n\x1b[1mshorter"}]),
            "1 field is not valid. #/x: must be [1mshorter.",
        ),
        (problem(400, "Strange.", errors={"no": "list"}), "Strange."),
        (problem(400, "Strange.", errors=["no object"]), "Strange."),
        (
            answer(404, b"<h1>Not Found</h1>"),
            "The server at 127.0.0.1 sent an unexpected response (404): check that it is tokenspool.",
        ),
        (
            answer(404, b"[" * 100_000),
            "The server at 127.0.0.1 sent an unexpected response (404): check that it is tokenspool.",
        ),
        (
            answer(302, b"", location="/login"),
            "The server at 127.0.0.1 sent an unexpected response (302): check that it is tokenspool.",
        ),
        (
            answer(200, b"<h1>Welcome</h1>", content_type="text/html"),
            "The server at 127.0.0.1 sent an unexpected response (200): check that it is tokenspool.",
        ),
    ],
)
def test_a_refusal_is_one_sentence(tokenspool: Tokenspool, said: Any, sentence: str) -> None:
    """Also if it comes from another server."""
    with FakeApi(said) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.sentence) == (1, sentence)


def test_a_job_that_is_erased_meanwhile_is_reported_as_gone(tokenspool: Tokenspool, patience: Patience) -> None:
    """Its stream ends without a terminal event, and then the job is a 404."""
    with FakeApi(stream(delta("Blue", "1-3")), problem(404, "Not found.")) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (1, "Blue\n")
    assert outcome.err.splitlines()[-1] == f"tokenspool: No job {JOB_ID} at {api.url}."


def test_an_absent_api_is_reported_at_once(tokenspool: Tokenspool, patience: Patience) -> None:
    """With what to do about it."""
    with FakeApi() as api:
        pass
    outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.sentence.startswith(f"Cannot reach tokenspool at {api.url}: start it with `tokenspool dev`")
    assert patience.pauses_s == []


@pytest.mark.parametrize("job_id", ["../../health", "a/b?c#d", "line\nbreak", "", "%2e%2e", "jöb"])
def test_any_id_is_one_segment_of_the_path(tokenspool: Tokenspool, job_id: str) -> None:
    """A mistyped id is a 404, not another request."""
    with FakeApi(problem(404, "Not found.")) as api:
        assert tokenspool("follow", "--url", api.url, "--", job_id).exit_code == 1
    (request,) = api.requests
    assert request.path.startswith("/v1/jobs/")
    assert request.path.endswith("/events")
    assert request.path.count("/") == 4


def test_the_key_is_sent_and_no_proxy_is_used_for_this_machine(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy could not reach this machine's loopback."""
    monkeypatch.setenv("TOKENSPOOL_API_KEY", "sk-made-up\n")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with FakeApi(stream(succeeded())) as api:
        assert tokenspool("follow", JOB_ID, "--url", api.url).exit_code == 0
    assert api.requests[0].headers["authorization"] == "Bearer sk-made-up"


def test_ctrl_c_says_that_the_job_goes_on() -> None:
    """130, and how to come back."""
    with (
        FakeApi(stream(delta("Blue", "1-3"), then=Then.HOLD)) as api,
        subprocess.Popen(
            [*INTERRUPTIBLE, *_PLAY, "follow", JOB_ID, "--url", api.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.read(4) == b"Blue"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"\n")
    assert (
        err.decode()
        == f"tokenspool: Stopped following; the job continues. To follow it again: tokenspool follow {JOB_ID}\n"
    )


def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    """As in `tokenspool follow … | head -c 4`."""
    with FakeApi(stream(*[delta("Blue light. ", f"1-{number}") for number in range(20_000)], succeeded())) as api:
        ours, theirs = os.pipe()
        with subprocess.Popen(
            [*_PLAY, "follow", JOB_ID, "--url", api.url], stdout=theirs, stderr=subprocess.PIPE
        ) as process:
            os.close(theirs)
            assert os.read(ours, 4) == b"Blue"
            os.close(ours)
            _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(not _FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence() -> None:
    """Not a traceback at the first token, and not another one at exit."""
    with FakeApi(stream(delta("Blue", "1-3"), succeeded())) as api, _FULL.open("wb") as full:
        done = subprocess.run(
            [*_PLAY, "follow", JOB_ID, "--url", api.url], stdout=full, stderr=subprocess.PIPE, check=False, timeout=20
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "tokenspool: Cannot write to standard output: No space left on device.\n"


def test_a_terminal_event_of_megabytes_is_read(tokenspool: Tokenspool) -> None:
    """It holds the whole result, on one line."""
    result = {"text": "word " * 400_000}
    with FakeApi(stream(delta("Blue", "1-3"), frame("succeeded", job("succeeded", result=result), "1-9"))) as api:
        outcome = tokenspool("follow", JOB_ID, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, "Blue\n")
    assert json.loads(json.dumps(result)) == result


def test_as_json_each_event_is_a_line(tokenspool: Tokenspool) -> None:
    """The answer itself is only in the events, and the end decides the exit code."""
    error = {"error": {"code": "timeout", "message": "Too late."}}
    with FakeApi(stream(delta("Blue", "1-3"), frame("failed", error, "1-4"))) as api:
        outcome = tokenspool("follow", JOB_ID, "--json", "--url", api.url)
    assert [json.loads(line) for line in outcome.out.splitlines()] == [
        {"event": "delta", "id": "1-3", "data": {"text": "Blue"}},
        {"event": "failed", "id": "1-4", "data": error},
    ]
    assert (outcome.exit_code, outcome.err) == (1, "tokenspool: The job failed: Too late. (timeout)\n")
