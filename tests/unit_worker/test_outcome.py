"""Which failures are retried, and the job's error then: a row for each error type and status."""

import pytest

from shared.errors import JOB_ERROR_CODES
from shared.job import Usage
from shared.store.upstreams import CallEnd, Verdict
from worker.governor import _with_verdict
from worker.outcome import TIMED_OUT, Breakage, How, Refusal, classify

BY_TYPE = [
    # error type, code, retryable
    ("invalid_request_error", "upstream_rejected", False),
    ("billing_error", "upstream_rejected", False),
    ("not_found_error", "upstream_rejected", False),
    ("request_too_large", "upstream_rejected", False),
    ("authentication_error", "upstream_auth", False),
    ("permission_error", "upstream_auth", False),
    ("rate_limit_error", "upstream_rate_limited", True),
    ("overloaded_error", "upstream_overloaded", True),
    ("timeout_error", "upstream_error", True),
    ("conflict_error", "upstream_error", True),
    ("api_error", "upstream_error", True),
    ("an_error_of_tomorrow", "upstream_error", True),
    ("", "upstream_error", True),
    (None, "upstream_error", True),
]

BY_STATUS = [
    # status, code, retryable
    (400, "upstream_rejected", False),
    (401, "upstream_auth", False),
    (402, "upstream_rejected", False),
    (403, "upstream_auth", False),
    (404, "upstream_rejected", False),
    (408, "upstream_error", True),
    (409, "upstream_error", True),
    (413, "upstream_rejected", False),
    (422, "upstream_rejected", False),
    (429, "upstream_rate_limited", True),
    (499, "upstream_rejected", False),
    (301, "upstream_rejected", False),  # the base URL is wrong, and a retry does not help
    (307, "upstream_rejected", False),
    (500, "upstream_error", True),
    (502, "upstream_error", True),
    (503, "upstream_error", True),
    (504, "upstream_error", True),
    (529, "upstream_overloaded", True),
    (599, "upstream_error", True),
]


@pytest.mark.parametrize(("error_type", "code", "retryable"), BY_TYPE)
def test_an_error_event_in_a_stream_goes_by_its_type(error_type: str | None, code: str, retryable: bool) -> None:
    error = classify(Refusal(None, error_type)).error
    assert (error.code, error.retryable, error.upstream_status) == (code, retryable, None)


@pytest.mark.parametrize(("status", "code", "retryable"), BY_STATUS)
@pytest.mark.parametrize("error_type", [None, "", "an_error_of_tomorrow"])
def test_an_unknown_type_goes_by_the_status(status: int, code: str, retryable: bool, error_type: str | None) -> None:
    error = classify(Refusal(status, error_type)).error
    assert (error.code, error.retryable, error.upstream_status) == (code, retryable, status)


@pytest.mark.parametrize(("error_type", "code", "retryable"), BY_TYPE[:11])
@pytest.mark.parametrize("status", [200, 400, 429, 500, 529])
def test_the_type_overrides_the_status(error_type: str, code: str, retryable: bool, status: int) -> None:
    """An error event inside a stream has status 200, and a proxy may change an envelope's status."""
    error = classify(Refusal(status, error_type)).error
    assert (error.code, error.retryable, error.upstream_status) == (code, retryable, status)


BREAKAGES = [
    # what broke, code, retryable, counts against the upstream
    (How.UNREACHABLE, "upstream_error", True, True),
    (How.UNHEARD, "upstream_error", True, True),
    (How.UNANSWERED, "upstream_error", True, True),
    (How.SILENT, "upstream_error", True, True),
    (How.STALLED, "upstream_error", True, True),
    (How.IMPATIENT, "upstream_error", True, False),
    (How.CUT, "upstream_truncated", True, True),
    (How.ENDED_EARLY, "upstream_truncated", True, True),
    (How.GARBLED, "upstream_truncated", True, False),
    (How.FAULTY, "upstream_error", True, False),
    (How.OUT_OF_TIME, "timeout", False, False),
]


def test_the_table_of_breakages_has_each() -> None:
    assert [how for how, *_ in BREAKAGES] == list(How)


@pytest.mark.parametrize(("how", "code", "retryable", "trouble"), BREAKAGES)
def test_what_broke_without_a_word_of_the_upstream(how: How, code: str, retryable: bool, trouble: bool) -> None:
    failure = classify(Breakage(how))
    assert (failure.error.code, failure.is_retryable, failure.is_trouble) == (code, retryable, trouble)
    assert failure.error.upstream_status is None


def test_every_code_is_one_that_callers_are_told_of() -> None:
    codes = {code for _, code, _ in (*BY_TYPE, *BY_STATUS)} | {code for _, code, _, _ in BREAKAGES}
    assert codes == set(JOB_ERROR_CODES) - {"worker_lost", "invalid_line"}


@pytest.mark.parametrize(("status", "trouble"), [(400, False), (401, False), (429, False), (500, True), (529, True)])
def test_a_circuit_opens_for_failures_of_the_upstream(status: int, trouble: bool) -> None:
    """Rate limits have their gate, and a bad request or key is our fault."""
    assert classify(Refusal(status, retry_after_s=5)).opens_circuit is trouble


def test_a_rate_limit_without_a_time_opens_a_circuit() -> None:
    """The governor makes its probes: a job that carries one must not lose an attempt."""
    assert classify(Refusal(429)).opens_circuit
    assert not classify(Refusal(429)).is_trouble


def test_a_job_whose_time_is_over_is_retryable_but_not_retried() -> None:
    """The caller may submit it again with more time; this job has none left."""
    assert TIMED_OUT.error.retryable
    assert not TIMED_OUT.is_retryable


def test_a_detail_is_told_instead_of_the_usual_words() -> None:
    failure = classify(Breakage(How.STALLED, "no content for 60 s"))
    assert failure.error.message == "The LLM failed: no content for 60 s."


def test_the_message_says_what_the_upstream_said_and_no_more_than_is_readable() -> None:
    error = classify(Refusal(400, "invalid_request_error", "max_tokens: Field required")).error
    assert error.message == "The LLM refused the request (invalid_request_error): max_tokens: Field required."
    long = classify(Refusal(400, "t" * 10_000, "m" * 10_000)).error
    assert len(long.message) < 700


def test_retry_after_is_kept_with_the_failure() -> None:
    assert classify(Refusal(429, retry_after_s=7.5)).retry_after_s == 7.5


@pytest.mark.parametrize("how", [How.GARBLED, How.IMPATIENT, How.FAULTY])
def test_failures_unrelated_to_health_do_not_count_against_the_route(how: How) -> None:
    """A server's habits, a caller's own limits and our own faults: the route may serve all others well."""
    end = CallEnd("upstream_truncated", Usage(), is_estimated=False, cost_nano_usd=0)
    failure = classify(Breakage(how))
    assert not failure.opens_circuit
    assert not failure.is_of_route
    assert _with_verdict(end, failure, None, 60).verdict is Verdict.NONE
