"""`tokenspool jobs`, `batch` and `usage` on what an API may send."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.command_line.conftest import Patience, Tokenspool
from tests.command_line.fake_api import GONE, JOB_ID, FakeApi, answer, job, problem

_OTHER = "job_01m84bdq4t7w9k2p5x8r3n6v0d"
_BATCH = "batch_01m84bf2k09c4x7t1r5w8n3p6v"


def _page(*items: dict[str, Any], next_after: str | None = None) -> dict[str, Any]:
    return {"data": list(items), "has_more": next_after is not None, "next": next_after}


def _failed(job_id: str = JOB_ID) -> dict[str, Any]:
    error = {"code": "upstream_overloaded", "message": "The LLM was overloaded.", "retryable": True}
    return {**job("failed"), "id": job_id, "model": "a-model", "error": error, "cost_usd": 0.5}


def test_a_list_has_a_line_for_each_job(tokenspool: Tokenspool) -> None:
    waiting = {**job(), "id": _OTHER, "model": "a-model", "queue_position": 3, "tags": ["a", "b\x1b[2J"]}
    with FakeApi(answer(200, _page(_failed(), waiting))) as api:
        outcome = tokenspool("jobs", "list", "--status", "failed", "--tag", "x y", "--url", api.url)
    assert outcome.exit_code == 0
    assert [line.split() for line in outcome.out.splitlines()] == [
        ["id", "status", "model", "created", "ran", "cost", "tags"],
        [JOB_ID, "failed:", "upstream_overloaded", "a-model", "-", "-", "$0.5000", "-"],
        [_OTHER, "queued,", "place", "3", "a-model", "-", "-", "-", "a", "b[2J"],
    ]
    assert api.requests[0].path == "/v1/jobs?status=failed&tag=x+y&limit=20"


def test_a_list_follows_the_pages_up_to_its_limit(tokenspool: Tokenspool) -> None:
    """A page may have fewer jobs than were asked for, even none."""
    pages = [_page(_failed(), next_after="a"), _page(next_after="b"), _page(_failed(_OTHER), next_after="c")]
    with FakeApi(*(answer(200, page) for page in pages)) as api:
        outcome = tokenspool("jobs", "list", "--limit", "2", "--json", "--url", api.url)
    assert [json.loads(line)["id"] for line in outcome.out.splitlines()] == [JOB_ID, _OTHER]
    assert [request.path.partition("?")[2] for request in api.requests] == [
        "limit=2",
        "after=a&limit=1",
        "after=b&limit=1",
    ]


def test_an_empty_list_is_said(tokenspool: Tokenspool) -> None:
    """On standard error: a script that counts lines finds none."""
    with FakeApi(answer(200, _page())) as api:
        outcome = tokenspool("jobs", "list", "--url", api.url)
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, "", "tokenspool: there are no such jobs\n")


def test_show_prints_what_is_known_and_the_result(tokenspool: Tokenspool) -> None:
    """What is not known has no line, and an escape sequence in the answer does not reach the terminal."""
    done = {
        **job("succeeded", result={"text": "Bl\x1b[31mue\nsky"}, usage={"input_tokens": 1200, "output_tokens": 5}),
        "timing": {"queued_ms": 12, "running_ms": 2100},
        "metadata": {"run": "nightly"},
    }
    with FakeApi(answer(200, done), problem(404, "Not found.")) as api:
        outcome = tokenspool("jobs", "show", JOB_ID, "--url", api.url)
    assert api.requests[0].path == f"/v1/jobs/{JOB_ID}"
    fields, _, result = outcome.out.partition("\n\n")
    shown = dict(line.split(maxsplit=1) for line in fields.splitlines())
    assert shown["status"] == "succeeded"
    assert shown["tokens"] == "1,200 in, 5 out"
    assert (shown["waited"], shown["ran"], shown["metadata"]) == ("12 ms", "2.1 s", "run=nightly")
    assert "cost" not in shown
    assert result == "Bl[31mue\nsky\n"


def test_show_prints_what_was_tried_and_what_came_so_far(tokenspool: Tokenspool) -> None:
    """A list of the calls, with the one that runs."""
    tried = {
        "attempt": 1,
        "outcome": "upstream_truncated",
        "model": "m",
        "worker": "w-1",
        "usage": {"output_tokens": 7},
    }
    running = {"attempt": 2, "outcome": None, "model": "m", "worker": "w-2", "usage": None}
    with FakeApi(
        answer(200, {**job("failed"), "partial": {"text": "Bl"}}), answer(200, {"data": [tried, running]})
    ) as api:
        outcome = tokenspool("jobs", "show", JOB_ID, "--url", api.url)
    assert api.requests[1].path == f"/v1/jobs/{JOB_ID}/attempts"
    _, attempts, text = outcome.out.split("\n\n")
    assert [line.split() for line in attempts.splitlines()[1:]] == [
        ["1", "upstream_truncated", "m", "w-1", "-", "7", "-"],
        ["2", "running", "m", "w-2", "-", "-", "-"],
    ]
    assert text == "What came so far:\nBl\n"


def test_show_says_why_a_job_waits(tokenspool: Tokenspool) -> None:
    """In the words of `tokenspool follow`."""
    waiting = {**job(), "waiting_for": [{"reason": "no_worker"}, {"reason": "turn", "position": 7}]}
    with FakeApi(answer(200, waiting)) as api:
        outcome = tokenspool("jobs", "show", JOB_ID, "--url", api.url)
    assert re.search("^why +waiting: no worker is running; position 7 in the queue$", outcome.out, re.MULTILINE)


def test_show_as_json_is_the_document_of_the_api(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(200, _failed())) as api:
        outcome = tokenspool("jobs", "show", JOB_ID, "--json", "--url", api.url)
    assert json.loads(outcome.out) == _failed()


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_an_unknown_job_is_one_sentence(tokenspool: Tokenspool, command: str) -> None:
    with FakeApi(problem(404, "There is no such job.")) as api:
        outcome = tokenspool("jobs", command, "../x y", "--url", api.url)
    assert (outcome.exit_code, outcome.sentence) == (1, "There is no such job.")
    assert api.requests[0].path.startswith("/v1/jobs/..%2Fx%20y")


def test_cancel_says_how_each_job_ended(tokenspool: Tokenspool) -> None:
    """One that had ended before has not changed."""
    with FakeApi(answer(200, job("cancelled")), answer(200, _failed(_OTHER))) as api:
        outcome = tokenspool("jobs", "cancel", JOB_ID, _OTHER, "--url", api.url)
    assert outcome.exit_code == 0
    assert outcome.out == f"{JOB_ID} cancelled\n{_OTHER} had ended as failed: upstream_overloaded\n"


def test_retry_prints_the_new_ids_and_goes_on_after_a_refusal(tokenspool: Tokenspool, patience: Patience) -> None:
    """Each is sent with an Idempotency-Key, so that a broken connection makes no second job."""
    new = answer(202, {**job(), "id": _OTHER})
    with FakeApi(problem(409, "It has not ended."), GONE, new) as api:
        outcome = tokenspool("jobs", "retry", JOB_ID, _OTHER, "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (1, f"{_OTHER}\n")
    assert outcome.err.splitlines() == [
        f"tokenspool: {JOB_ID}: It has not ended.",
        "tokenspool: 1 of 2 jobs could not be changed; the lines above say why.",
    ]
    first, second, third = (request.headers["idempotency-key"] for request in api.requests)
    assert first != second == third


def test_a_broken_connection_is_said_after_five_tries(tokenspool: Tokenspool, patience: Patience) -> None:
    with FakeApi(*[GONE] * 5) as api:
        outcome = tokenspool("jobs", "show", JOB_ID, "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.sentence == f"The connection to {api.url} broke 5 times; run the command again."


# --- many jobs at once ---

_OPERATION = "op_01m84bdq4t7w9k2p5x8r3n6v0c"


def _operation(status: str = "running", **counts: int) -> dict[str, Any]:
    return {"id": _OPERATION, "type": "operation", "status": status, "counts": counts}


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Patience:
    """Time passes without waiting."""
    patience = Patience()
    monkeypatch.setattr("cli.operations.time", patience)
    return patience


def test_many_jobs_are_retried_as_one_operation(tokenspool: Tokenspool, moments: Patience) -> None:
    """Its progress is noted every five seconds if it changes, and its end."""
    looks = [_operation(matched=count, done=count) for count in (10, 20, 30, 30, 40, 50)]
    looks[4]["waiting_for"] = "too_many_queued"
    answers = [
        answer(202, _operation()),
        *(answer(200, look) for look in (*looks, _operation("ended", matched=60, done=59, skipped=1))),
    ]
    conditions = ("--status", "failed", "--metadata", "run=1", "--created-after", "2026-11-30T00:00:00Z")
    with FakeApi(*answers) as api:
        outcome = tokenspool("jobs", "retry", *conditions, "--json", "--url", api.url)
    assert outcome.exit_code == 0
    assert outcome.err.splitlines() == [
        f"tokenspool: operation {_OPERATION}",
        "tokenspool: 40 jobs found: 40 done; waiting for too_many_queued",
        "tokenspool: ended: 60 jobs found: 59 done, 1 skipped",
    ]
    assert json.loads(outcome.out)["status"] == "ended"
    begun = api.requests[0]
    assert (begun.path, len(begun.headers["idempotency-key"]) >= 22) == ("/v1/jobs/retry", True)
    assert json.loads(begun.body) == {
        "filter": {"status": "failed", "metadata": {"run": "1"}, "created_after": "2026-11-30T00:00:00Z"}
    }
    assert {request.path for request in api.requests[1:]} == {f"/v1/operations/{_OPERATION}"}


def test_all_jobs_must_be_meant(tokenspool: Tokenspool) -> None:
    """Neither ids nor conditions, both, or conditions with --all: nothing is sent."""
    for arguments in ((), (JOB_ID, "--status", "queued"), ("--all", "--tag", "x"), (JOB_ID, "--dry-run")):
        outcome = tokenspool("jobs", "cancel", *arguments)
        assert outcome.exit_code == 2
        assert outcome.sentence == "Give cancel job ids, or conditions (see --help), or --all for all jobs."


def test_a_dry_run_only_counts(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(200, {"type": "dry_run", "matched": 5000, "has_more": True})) as api:
        outcome = tokenspool("jobs", "erase", "--all", "--dry-run", "--url", api.url)
    assert outcome.err == "tokenspool: 5,000 or more jobs meet the conditions; nothing was changed\n"
    assert json.loads(api.requests[0].body) == {"all": True, "dry_run": True}


def test_jobs_that_fail_in_an_operation_are_exit_code_1(tokenspool: Tokenspool, moments: Patience) -> None:
    with FakeApi(answer(202, _operation()), answer(200, _operation("ended", matched=3, failed=3))) as api:
        outcome = tokenspool("jobs", "retry", "--all", "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.err.splitlines()[-1].startswith("tokenspool: 3 jobs could not be changed")


def test_an_operation_that_cannot_be_watched_continues(tokenspool: Tokenspool, moments: Patience) -> None:
    """The error says how to watch it again."""
    with FakeApi(answer(200, _operation()), problem(503, "Redis cannot be reached.")) as api:
        outcome = tokenspool("jobs", "operation", _OPERATION, "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.sentence == (
        f"Redis cannot be reached. The operation continues. To watch it again: tokenspool jobs operation {_OPERATION}"
    )


def test_an_operation_is_cancelled(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(200, _operation("cancelled", matched=1, done=1))) as api:
        outcome = tokenspool("jobs", "operation", _OPERATION, "--cancel", "--url", api.url)
    assert (outcome.exit_code, outcome.err) == (0, "tokenspool: cancelled: 1 jobs found: 1 done\n")
    assert (api.requests[0].method, api.requests[0].path) == ("POST", f"/v1/operations/{_OPERATION}/cancel")


def test_single_jobs_are_erased(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(204)) as api:
        assert tokenspool("jobs", "erase", JOB_ID, "--url", api.url).err == f"tokenspool: {JOB_ID} is erased\n"
    assert api.requests[0].method == "DELETE"


# --- batches ---


def _batch(status: str = "ended", **counts: int) -> dict[str, Any]:
    return {"id": _BATCH, "type": "batch", "status": status, "counts": {"total": 3, **counts}, "cost_usd": 2}


def test_a_list_of_batches_counts_what_is_done(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(200, _page(_batch("running", queued=1, succeeded=1, expired=1)))) as api:
        outcome = tokenspool("batch", "list", "--url", api.url)
    assert outcome.out.splitlines()[1].split() == [_BATCH, "running", "3", "2", "1", "-", "$2.00"]


@pytest.mark.parametrize(("command", "method"), [("status", "GET"), ("cancel", "POST")])
def test_a_batch_is_shown(tokenspool: Tokenspool, command: str, method: str) -> None:
    with FakeApi(answer(200, _batch(succeeded=2, failed=1))) as api:
        outcome = tokenspool("batch", command, _BATCH, "--url", api.url)
    shown = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert (shown["status"], shown["requests"], shown["failed"], shown["cost"]) == ("ended", "3", "1", "$2.00")
    path = f"/v1/batches/{_BATCH}" + ("/cancel" if command == "cancel" else "")
    assert (api.requests[0].method, api.requests[0].path) == (method, path)


def test_a_batch_is_retried_with_a_key(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(202, _batch("running"))) as api:
        outcome = tokenspool("batch", "retry", _BATCH, "--retryable", "--url", api.url)
    assert outcome.out == f"{_BATCH}\n"
    assert api.requests[0].path == f"/v1/batches/{_BATCH}/retry?retryable=true"
    assert len(api.requests[0].headers["idempotency-key"]) >= 22


def test_results_go_to_standard_output_or_a_file(tokenspool: Tokenspool, tmp_path: Path) -> None:
    """A file gets the bytes of the API; the terminal gets the same JSON without control characters."""
    line = '{"line":1,"status":"failed","result":{"text":"Grüße \x9b31m"}}\n'.encode()
    response = answer(200, line, content_type="application/jsonl")
    file = tmp_path / "results.jsonl"
    with FakeApi(response, response) as api:
        shown = tokenspool("batch", "results", _BATCH, "--status", "failed", "--url", api.url)
        written = tokenspool(
            "batch", "results", _BATCH, "-o", file, "--custom-id", "a b", "--custom-id", "c", "--url", api.url
        )
    assert json.loads(shown.out) == json.loads(line)
    assert "\x9b" not in shown.out
    assert (written.exit_code, written.out, file.read_bytes()) == (0, "", line)
    assert api.requests[0].path == f"/v1/batches/{_BATCH}/results?status=failed&after=0"
    assert api.requests[1].path == f"/v1/batches/{_BATCH}/results?custom_id=a+b&custom_id=c&after=0"


# --- usage ---


def _usage(**members: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens"), 1000)
    return {"calls": 2, "cache_creation_input_tokens": 0, "cost_usd": 12.5, **counts, **members}


def test_usage_is_a_table_with_its_total(tokenspool: Tokenspool) -> None:
    """All pages are one report."""
    report = {"from": "2026-11-01", "to": "2026-11-02", "group_by": ["day", "key"], "total": _usage(unpriced_calls=1)}
    first: dict[str, Any] = {**report, "data": [_usage(day="2026-11-01", key=None)], "has_more": True, "next": "x"}
    last: dict[str, Any] = {**report, "data": [_usage(day="2026-11-02", key="key_1")], "has_more": False, "next": None}
    arguments = ("usage", "--from", "2026-11-01", "--to", "2026-11-02", "--group-by", "day,key")
    with FakeApi(*[answer(200, page) for page in (first, last)] * 2) as api:
        table = tokenspool(*arguments, "--url", api.url)
        document = json.loads(tokenspool(*arguments, "--json", "--url", api.url).out)
    numbers = ["2", "1,000", "0", "1,000", "1,000", "$12.50"]
    assert [line.split() for line in table.out.splitlines()[1:]] == [
        ["2026-11-01", "-", *numbers],
        ["2026-11-02", "key_1", *numbers],
        ["total", "-", *numbers],
    ]
    assert table.err == "tokenspool: the price of 1 calls is unknown: their cost is not in the sums\n"
    assert document == {**report, "data": [*first["data"], *last["data"]]}
    assert api.requests[1].path == "/v1/usage?from=2026-11-01&to=2026-11-02&group_by=day%2Ckey&after=x"


# --- limits and workers ---


def test_limits_are_a_table(tokenspool: Tokenspool) -> None:
    """A limit that is not set has no line."""
    limits = {
        "read_at": "2026-11-30T12:00:00Z",
        "tenant": {"id": "acme", "running_jobs": {"limit": 20, "used": 3, "remaining": 17, "resets_at": None}},
        "key": {
            "id": "key_1",
            "requests_per_minute": None,
            "usd_per_day": {
                "limit_usd": 50.0,
                "spent_usd": 1.5,
                "held_usd": 0.5,
                "remaining_usd": 48.0,
                "resets_at": "soon",
            },
        },
    }
    with FakeApi(*[answer(200, limits)] * 2) as api:
        outcome = tokenspool("limits", "--url", api.url)
        document = tokenspool("limits", "--json", "--url", api.url)
    assert [line.split() for line in outcome.out.splitlines()[1:]] == [
        ["tenant", "running", "jobs", "20", "3", "-", "17", "-"],
        ["key", "usd", "per", "day", "$50.00", "$1.50", "$0.5000", "$48.00", "soon"],
    ]
    assert json.loads(document.out) == limits


def test_workers_are_a_table(tokenspool: Tokenspool) -> None:
    worker = {"name": "w-1", "version": None, "slots": 100, "running": 7, "draining": True, "llm": "degraded"}
    with FakeApi(answer(200, {"data": [worker]}), answer(200, {"data": []})) as api:
        outcome = tokenspool("workers", "--url", api.url)
        nobody = tokenspool("workers", "--url", api.url)
    assert outcome.out.splitlines()[1].split() == ["w-1", "-", "drains", "100", "7", "degraded", "-"]
    assert nobody.err == "tokenspool: no worker is running: start one with `tokenspool worker`\n"


# --- for programs ---


def test_submit_prints_the_job_as_json(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(202, job())) as api:
        assert json.loads(tokenspool("submit", "Why?", "--json", "--url", api.url).out) == job()


def test_the_version_is_printed(tokenspool: Tokenspool) -> None:
    outcome = tokenspool("--version")
    assert outcome.exit_code == 0
    assert outcome.out.startswith("tokenspool ")


def test_the_simulator_prints_its_words(tokenspool: Tokenspool) -> None:
    assert "fail=529x2,retry-after=3" in tokenspool("simulator", "--grammar").out
