"""`tokenspool submit` against an API with every failure of an API, a proxy or a network."""

import io
import json
import sys

import pytest

from tests.command_line.conftest import Patience, Tokenspool
from tests.command_line.fake_api import (
    GONE,
    JOB_ID,
    Answer,
    FakeApi,
    answer,
    delta,
    frame,
    job,
    problem,
    stream,
    succeeded,
)


def test_it_prints_the_id_and_nothing_else(tokenspool: Tokenspool) -> None:
    """So that a script can use it."""
    with FakeApi(answer(202, job())) as api:
        outcome = tokenspool("submit", "Why is the sky blue?", "--url", api.url)
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, f"{JOB_ID}\n", "")
    (request,) = api.requests
    assert (request.method, request.path) == ("POST", "/v1/jobs")
    assert json.loads(request.body) == {"prompt": "Why is the sky blue?"}
    assert len(request.headers["idempotency-key"]) >= 22


def test_options_are_sent(tokenspool: Tokenspool) -> None:
    """Omitted options are not."""
    with FakeApi(answer(202, job())) as api:
        tokenspool("submit", "Grüße 👩‍🚀", "--model", "a-model", "--max-tokens", "7", "--url", api.url)
    assert json.loads(api.requests[0].body) == {"prompt": "Grüße 👩‍🚀", "model": "a-model", "max_tokens": 7}


def test_the_address_may_come_from_the_environment(tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a path, and with a slash at its end."""
    with FakeApi(answer(202, job())) as api:
        monkeypatch.setenv("TOKENSPOOL_URL", f"{api.url}/spool/")
        assert tokenspool("submit", "Hello").exit_code == 0
    assert api.requests[0].path == "/spool/v1/jobs"


def test_a_dash_reads_the_prompt_from_standard_input(tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, including line breaks."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    with FakeApi(answer(202, job())) as api:
        tokenspool("submit", "-", "--url", api.url)
    assert json.loads(api.requests[0].body) == {"prompt": "one\ntwo\n"}


def test_with_follow_the_answer_goes_to_standard_output_and_the_id_to_standard_error(tokenspool: Tokenspool) -> None:
    """The id is needed to follow the job again."""
    with FakeApi(answer(202, job()), stream(delta("Blue", "1-3"), succeeded())) as api:
        outcome = tokenspool("submit", "Why?", "--follow", "--url", api.url)
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, "Blue\n", f"tokenspool: job {JOB_ID}\n")
    assert api.requests[1].path == f"/v1/jobs/{JOB_ID}/events"


def test_with_follow_a_failed_job_is_exit_code_1(tokenspool: Tokenspool) -> None:
    """As with `follow` itself."""
    end = frame("failed", {"error": {"code": "timeout", "message": "The job was not done in time."}}, "1-3")
    with FakeApi(answer(202, job()), stream(end)) as api:
        outcome = tokenspool("submit", "Why?", "-f", "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.err.splitlines()[-1] == "tokenspool: The job failed: The job was not done in time. (timeout)"


def test_after_a_broken_connection_it_retries_with_the_same_key(tokenspool: Tokenspool, patience: Patience) -> None:
    """So there is one job, even if the first try had been accepted."""
    half = answer(202, job())
    with FakeApi(GONE, Answer(half.content[:-5]), answer(202, job())) as api:
        outcome = tokenspool("submit", "Why?", "--url", api.url)
    assert (outcome.exit_code, outcome.out) == (0, f"{JOB_ID}\n")
    assert len(api.requests) == 3
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 1
    assert len({request.body for request in api.requests}) == 1


def test_each_submit_has_a_key_of_its_own(tokenspool: Tokenspool) -> None:
    """The same prompt twice makes two jobs."""
    with FakeApi(answer(202, job()), answer(202, job())) as api:
        tokenspool("submit", "Why?", "--url", api.url)
        tokenspool("submit", "Why?", "--url", api.url)
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 2


def test_after_five_tries_it_says_that_the_outcome_is_unknown(tokenspool: Tokenspool, patience: Patience) -> None:
    """The API may have accepted the job before it broke, so "nobody responds" would be wrong."""
    with FakeApi(GONE, GONE) as api:
        outcome = tokenspool("submit", "Why?", "--url", api.url)
    assert outcome.exit_code == 1
    assert (
        outcome.sentence == f"The connection to {api.url} broke 5 times; it is not known whether the job was submitted."
    )
    assert patience.pauses_s == [0.4, 0.8, 1.6, 3.2]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            problem(
                400,
                "2 fields are not valid.",
                errors=[{"pointer": "#/prompt", "detail": "is empty"}, {"pointer": "#/model", "detail": "is too long"}],
            ),
            "2 fields are not valid. #/prompt: is empty. #/model: is too long.",
        ),
        (problem(503, "The queue is full.", retry_after="10"), "The queue is full."),
        (
            answer(502, b"Bad gateway"),
            "The server at 127.0.0.1 sent an unexpected response (502): check that it is tokenspool.",
        ),
        (
            answer(200, b"<h1>Welcome</h1>"),
            "The server at 127.0.0.1 sent an unexpected response (200): check that it is tokenspool.",
        ),
        (
            answer(200, ["no job"]),
            "The server at 127.0.0.1 sent an unexpected response (200): check that it is tokenspool.",
        ),
        (
            answer(202, {"id": 7}),
            "The server at 127.0.0.1 sent an unexpected response (202): check that it is tokenspool.",
        ),
    ],
)
def test_a_refusal_is_one_sentence(tokenspool: Tokenspool, said: Answer, sentence: str) -> None:
    """Also if it comes from another server."""
    with FakeApi(said) as api:
        outcome = tokenspool("submit", "Why?", "--url", api.url)
    assert (outcome.exit_code, outcome.sentence) == (1, sentence)


def test_an_absent_api_is_reported_at_once(tokenspool: Tokenspool, patience: Patience) -> None:
    """With what to do about it."""
    with FakeApi() as api:
        pass
    outcome = tokenspool("submit", "Why?", "--url", api.url)
    assert outcome.exit_code == 1
    assert outcome.sentence.startswith(f"Cannot reach tokenspool at {api.url}: start it with `tokenspool dev`")
    assert patience.pauses_s == []


@pytest.mark.parametrize("arguments", [("bad \udcff byte",), ("fine", "--model", "bad \udcff")])
def test_bytes_that_are_no_text_are_refused(tokenspool: Tokenspool, arguments: tuple[str, ...]) -> None:
    """Python passes them on as lone surrogates, which JSON in UTF-8 cannot contain."""
    outcome = tokenspool("submit", *arguments)
    assert outcome.exit_code == 2
    assert outcome.sentence.endswith("must be UTF-8 text, but has other bytes.")


def test_standard_input_that_is_no_text_is_refused(tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example an image."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\xff"), encoding="utf-8"))
    outcome = tokenspool("submit", "-")
    assert (outcome.exit_code, outcome.sentence) == (
        2,
        "The prompt must be UTF-8 text, but has other bytes.",
    )


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://[bad", "http://h:99999", "http://a..b"]
)
def test_an_invalid_address_is_refused(tokenspool: Tokenspool, url: str) -> None:
    """The error names the variable that may contain it."""
    outcome = tokenspool("submit", "Why?", "--url", url)
    assert outcome.exit_code == 2
    assert outcome.sentence == f"TOKENSPOOL_URL must be the http:// or https:// URL of the API, but is {url!r}."


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_is_invalid_in_a_header_is_refused_and_not_shown(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """It may still be a secret."""
    monkeypatch.setenv("TOKENSPOOL_API_KEY", key)
    outcome = tokenspool("submit", "Why?")
    assert outcome.exit_code == 2
    assert outcome.sentence == "TOKENSPOOL_API_KEY must be one line of printable ASCII, but is something else."


@pytest.mark.parametrize(("name", "value"), [("ALL_PROXY", "nonsense://proxy"), ("SSL_CERT_FILE", "/nowhere.pem")])
def test_unusable_proxies_and_certificates_are_reported(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """For an API that is not on this machine."""
    monkeypatch.setenv(name, value)
    outcome = tokenspool("submit", "Why?", "--url", "https://tokenspool.invalid")
    assert outcome.exit_code == 2
    assert outcome.sentence.startswith(
        "Cannot use a variable for proxies or certificates (ALL_PROXY, SSL_CERT_FILE, …)"
    )
