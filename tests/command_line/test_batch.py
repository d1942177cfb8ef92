"""`tokenspool batch` against an API with every failure of an API, a proxy or a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line.conftest import Patience, Tokenspool
from tests.command_line.fake_api import GONE, Answer, FakeApi, answer, frame, problem, stream

_ID = "batch_01m84bf2k09c4x7t1r5w8n3p6v"
_LINES = b'{"custom_id":"a","params":{"prompt":"x"}}\n{"custom_id":"b","params":{"prompt":"y"}}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(_LINES)
    return path


def _batch(status: str = "running", **counts: int) -> dict[str, Any]:
    return {"id": _ID, "type": "batch", "status": status, "counts": {"total": 2, **counts}}


def _result(line: int) -> bytes:
    return json.dumps({"line": line, "status": "succeeded"}).encode() + b"\n"


_ENDED = frame("ended", _batch("ended", succeeded=2))


def test_it_sends_the_file_and_prints_the_id(tokenspool: Tokenspool, file: Path) -> None:
    """It prints nothing else."""
    with FakeApi(answer(202, _batch())) as api:
        outcome = tokenspool("batch", file, "--url", api.url)
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, f"{_ID}\n", "")
    (request,) = api.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/batches", _LINES)
    assert request.headers["content-type"] == "application/jsonl"
    assert len(request.headers["idempotency-key"]) >= 22


def test_after_a_broken_connection_it_retries_with_the_same_key(
    tokenspool: Tokenspool, patience: Patience, file: Path
) -> None:
    """It sends the whole file again."""
    with FakeApi(GONE, answer(202, _batch())) as api:
        outcome = tokenspool("batch", file, "--url", api.url)
    assert outcome.exit_code == 0
    first, second = api.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body == _LINES


def test_follow_prints_the_progress(tokenspool: Tokenspool, patience: Patience, file: Path) -> None:
    """Over a connection that breaks."""
    progress = frame("progress", {**_batch(queued=1, running=1), "rate_per_s": 1.5})
    with FakeApi(answer(202, _batch()), stream(progress, whole=False), stream(_ENDED)) as api:
        outcome = tokenspool("batch", file, "--follow", "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, "")
    assert outcome.err.splitlines() == [
        f"tokenspool: batch {_ID}",
        "tokenspool: 0 of 2 done, 1 running, 1.5 a second",
        "tokenspool: 2 of 2 done",
    ]
    assert api.requests[1].path == f"/v1/batches/{_ID}/events"


def test_results_are_written_whole_over_broken_connections(
    tokenspool: Tokenspool, patience: Patience, file: Path, tmp_path: Path
) -> None:
    """It resumes after the last complete line."""
    out = tmp_path / "results.jsonl"
    whole = answer(200, _result(1) + _result(2), content_type="application/jsonl")
    cut = Answer(whole.content[:-5])
    rest = answer(200, _result(2), content_type="application/jsonl")
    with FakeApi(answer(202, _batch()), stream(_ENDED), cut, rest) as api:
        outcome = tokenspool("batch", file, "--results", out, "--url", api.url)
    assert outcome.exit_code == 0
    assert out.read_bytes() == _result(1) + _result(2)
    assert [request.path for request in api.requests[2:]] == [
        f"/v1/batches/{_ID}/results?after=0",
        f"/v1/batches/{_ID}/results?after=1",
    ]


def test_requests_that_did_not_succeed_are_exit_code_1(tokenspool: Tokenspool, file: Path) -> None:
    ended = frame("ended", _batch("ended", succeeded=1, failed=1))
    with FakeApi(answer(202, _batch()), stream(ended)) as api:
        outcome = tokenspool("batch", file, "-f", "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.err.splitlines()[-1] == ("tokenspool: 1 of 2 requests did not succeed; their results say why.")


def test_a_file_that_is_not_there_is_said(tokenspool: Tokenspool, tmp_path: Path) -> None:
    outcome = tokenspool("batch", tmp_path / "none.jsonl")
    assert outcome.exit_code == 2
    assert outcome.sentence.endswith("none.jsonl: No such file or directory.")


def test_a_refusal_is_one_sentence(tokenspool: Tokenspool, file: Path) -> None:
    with FakeApi(problem(413, "A batch must have at most 100000 requests.")) as api:
        outcome = tokenspool("batch", file, "--url", api.url)
    assert (outcome.exit_code, outcome.sentence) == (1, "A batch must have at most 100000 requests.")


def test_a_file_that_cannot_be_written_is_reported_before_anything_is_sent(
    tokenspool: Tokenspool, file: Path, tmp_path: Path
) -> None:
    """Otherwise the LLM would be paid for results that cannot be stored."""
    with FakeApi() as api:
        outcome = tokenspool("batch", file, "--results", tmp_path / "nowhere" / "x.jsonl", "--url", api.url)
    assert outcome.exit_code == 2
    assert "Cannot write the file" in outcome.err
    assert api.requests == []


def test_for_a_repeated_batch_only_invalid_lines_are_printed(tokenspool: Tokenspool, file: Path) -> None:
    """Not lines that ran and failed meanwhile."""
    for invalid_lines, said in ((0, ""), (1, "tokenspool: 1 of 3 lines are not valid; their results say why\n")):
        batch = {**_batch(total=3, running=1, failed=2), "invalid_lines": invalid_lines}
        with FakeApi(answer(202, batch, idempotency_replayed="true")) as api:
            outcome = tokenspool("batch", file, "--idempotency-key", "nightly", "--url", api.url)
        assert (outcome.exit_code, outcome.err) == (0, said)


def test_an_api_that_does_not_list_invalid_lines_of_a_repeated_batch_is_not_misread(
    tokenspool: Tokenspool, file: Path
) -> None:
    """An API of an earlier version."""
    with FakeApi(answer(202, _batch(running=1, failed=1), idempotency_replayed="true")) as api:
        outcome = tokenspool("batch", file, "--idempotency-key", "nightly", "--url", api.url)
    assert (outcome.exit_code, outcome.err) == (0, "")


def test_a_key_of_the_callers_own_finds_the_batch_again(tokenspool: Tokenspool, file: Path) -> None:
    """Invalid lines are printed at once."""
    with FakeApi(answer(202, _batch(queued=1, failed=1))) as api:
        outcome = tokenspool("batch", file, "--idempotency-key", "nightly", "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, f"{_ID}\n")
    assert "1 of 2 lines are not valid" in outcome.err
    assert api.requests[0].headers["idempotency-key"] == "nightly"
