"""Every option of a job on the command line: `submit` sends it in the body, `batch submit` in the query."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from api.batches.items import BatchOptions, options_of_query
from api.jobs.request import NO_BOUNDS, JobOptions, draft_of
from shared.job import Priority
from shared.webhooks import EventType, Webhook
from tests.command_line.conftest import Tokenspool
from tests.command_line.fake_api import FakeApi, answer, job

_BATCH = {"id": "batch_01m84bf2k09c4x7t1r5w8n3p6v", "type": "batch", "status": "running", "counts": {"total": 1}}

_GIVEN = (
    *("--timeout-s", "60", "--expires-in-s", "120", "--max-attempts", "5", "--connect-timeout-s", "1"),
    *("--first-token-timeout-s", "2", "--content-idle-timeout-s", "3", "--not-before", "2026-12-24T18:00:00Z"),
    *("--metadata", "order=88=40", "--metadata", "by=Zoë", "--tag", "a b", "--tag", "c"),
    *("--webhook-url", "https://example.com/x", "--webhook-event", "job.failed", "--webhook-result"),
)
_READ: dict[str, Any] = {
    "timeout_s": 60,
    "expires_in_s": 120,
    "max_attempts": 5,
    "connect_timeout_s": 1,
    "first_token_timeout_s": 2,
    "content_idle_timeout_s": 3,
    "not_before_ms": 1_798_135_200_000,
    "metadata": {"order": "88=40", "by": "Zoë"},
    "tags": ("a b", "c"),
    "webhook": Webhook("https://example.com/x", (EventType.JOB_FAILED,), True),
}


def test_submit_sends_them_as_the_api_reads_them(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(202, job())) as api:
        assert tokenspool("submit", "Why?", "--priority", "high", *_GIVEN, "--url", api.url).exit_code == 0
    options = draft_of(json.loads(api.requests[0].body), default_model="a-model", bounds=NO_BOUNDS).options
    assert options == JobOptions.model_construct(**_READ, priority=Priority.HIGH)


def test_a_batch_sends_them_as_the_api_reads_them(tokenspool: Tokenspool, tmp_path: Path) -> None:
    """All but the priority, which is low."""
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b"{}\n")
    with FakeApi(answer(202, _BATCH)) as api:
        assert tokenspool("batch", "submit", file, *_GIVEN, "--url", api.url).exit_code == 0
    query = urlsplit(api.requests[0].path).query
    assert options_of_query(parse_qsl(query)) == BatchOptions.model_construct(**_READ)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("submit", "Why?", "--metadata", "order"), "--metadata must be NAME=VALUE."),
        (("submit", "Why?", "--tag", "bad \udcff"), "The tags must be UTF-8 text, but has other bytes."),
        (("batch", "submit", "x", "--tag", "a,b"), "--tag must not have a comma: give the option once for each."),
    ],
)
def test_a_value_that_cannot_be_sent_is_refused(
    tokenspool: Tokenspool, arguments: tuple[str, ...], sentence: str
) -> None:
    """In a batch's query a comma would make two tags."""
    outcome = tokenspool(*arguments)
    assert (outcome.exit_code, outcome.sentence) == (2, sentence)


@pytest.mark.parametrize(
    "arguments", [("--timeout-s", "0"), ("--priority", "urgent"), ("--webhook-event", "batch.ended")]
)
def test_a_value_that_the_api_would_refuse_is_not_sent(tokenspool: Tokenspool, arguments: tuple[str, str]) -> None:
    with FakeApi() as api:
        assert tokenspool("submit", "Why?", *arguments, "--url", api.url).exit_code == 2
    assert api.requests == []


def test_a_key_of_the_callers_own_finds_the_job_again(tokenspool: Tokenspool) -> None:
    with FakeApi(answer(202, job())) as api:
        tokenspool("submit", "Why?", "--idempotency-key", "order-8840", "--url", api.url)
    assert api.requests[0].headers["idempotency-key"] == "order-8840"
