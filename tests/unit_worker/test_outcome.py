"""Which failures are worth another attempt, and what the job then says: a row for each error type and status."""

import pytest

from shared.errors import JOB_ERROR_CODES
from worker.outcome import TIMED_OUT, broken, failure_of, truncated

BY_TYPE = [
    # error type, code, worth another attempt
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
    # status, code, worth another attempt
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
    (301, "upstream_error", True),
    (500, "upstream_error", True),
    (502, "upstream_error", True),
    (503, "upstream_error", True),
    (504, "upstream_error", True),
    (529, "upstream_overloaded", True),
    (599, "upstream_error", True),
]


@pytest.mark.parametrize(("error_type", "code", "retryable"), BY_TYPE)
def test_an_error_event_in_a_stream_goes_by_its_type(error_type: str | None, code: str, retryable: bool) -> None:
    error = failure_of(status=None, error_type=error_type).error
    assert (error.code, error.retryable, error.upstream_status) == (code, retryable, None)


@pytest.mark.parametrize(("status", "code", "retryable"), BY_STATUS)
@pytest.mark.parametrize("error_type", [None, "", "an_error_of_tomorrow"])
def test_an_unknown_type_goes_by_the_status(status: int, code: str, retryable: bool, error_type: str | None) -> None:
    error = failure_of(status=status, error_type=error_type).error
    assert (error.code, error.retryable, error.upstream_status) == (code, retryable, status)


@pytest.mark.parametrize(("error_type", "code", "retryable"), BY_TYPE[:11])
@pytest.mark.parametrize("status", [200, 400, 429, 500, 529])
def test_the_type_comes_before_the_status(error_type: str, code: str, retryable: bool, status: int) -> None:
    """An error event inside a stream comes with status 200, and a proxy may put its own status on an envelope."""
    error = failure_of(status=status, error_type=error_type).error
    assert (error.code, error.retryable, error.upstream_status) == (code, retryable, status)


def test_every_code_is_one_that_callers_are_told_of() -> None:
    codes = {code for _, code, _ in (*BY_TYPE, *BY_STATUS)}
    codes |= {failure.error.code for failure in (broken("it"), truncated("it"), TIMED_OUT)}
    assert codes == set(JOB_ERROR_CODES) - {"worker_lost"}


def test_cuts_and_rubbish_are_worth_another_attempt() -> None:
    assert (broken("no connection to it").error.code, broken("").error.retryable) == ("upstream_error", True)
    assert (truncated("no end").error.code, truncated("").error.retryable) == ("upstream_truncated", True)


def test_the_message_says_what_the_upstream_said_and_no_more_than_is_readable() -> None:
    error = failure_of(status=400, error_type="invalid_request_error", message="max_tokens: Field required").error
    assert error.message == "The LLM refused the request (invalid_request_error): max_tokens: Field required."
    long = failure_of(status=400, error_type="t" * 10_000, message="m" * 10_000).error
    assert len(long.message) < 700


def test_retry_after_is_kept_with_the_failure() -> None:
    assert failure_of(status=429, error_type=None, retry_after_s=7.5).retry_after_s == 7.5
