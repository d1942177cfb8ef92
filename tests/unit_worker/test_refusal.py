"""Which refusals of an OpenAI-compatible server are retried, where the status alone does not decide."""

from typing import Any

import pytest

from worker.outcome import classify
from worker.providers.refusal import refusal_of

ROWS: list[tuple[int | None, Any, str, bool]] = [
    # status, error, code, retryable
    (429, {"type": "insufficient_quota", "code": "insufficient_quota"}, "upstream_rejected", False),
    (429, {"type": "tokens", "code": "rate_limit_exceeded"}, "upstream_rate_limited", True),
    (429, {"type": "requests", "code": None}, "upstream_rate_limited", True),
    (401, {"type": "invalid_request_error", "code": "invalid_api_key"}, "upstream_auth", False),
    (403, {"type": "request_forbidden", "code": "unsupported_country"}, "upstream_auth", False),
    (400, {"type": "invalid_request_error", "code": "context_length_exceeded"}, "upstream_rejected", False),
    (404, {"type": "invalid_request_error", "code": "model_not_found"}, "upstream_rejected", False),
    (503, {"type": "unavailable_error", "code": 503}, "upstream_overloaded", True),
    (503, {"type": "server_error", "code": "engine_overloaded"}, "upstream_overloaded", True),
    (501, {"type": "not_supported_error", "code": 501}, "upstream_rejected", False),
    (500, {"type": "server_error", "code": None}, "upstream_error", True),
    (400, {"type": "BadRequestError", "code": 400}, "upstream_rejected", False),
    (404, "model 'x' not found", "upstream_rejected", False),
    (500, None, "upstream_error", True),
    # Inside a stream.
    (None, {"type": "server_error"}, "upstream_error", True),
    (None, {"type": "BadRequestError", "code": 400}, "upstream_rejected", False),
    (None, {"code": 429, "message": "Slow down."}, "upstream_rate_limited", True),
    (None, {"code": 7}, "upstream_error", True),
    (None, "it broke", "upstream_error", True),
    (None, {"code": ["a"], "type": {}, "message": 7}, "upstream_error", True),
]


@pytest.mark.parametrize(("status", "error", "code", "retryable"), ROWS)
def test_a_refusal_goes_by_its_code_then_its_type_then_its_status(
    status: int | None, error: object, code: str, retryable: bool
) -> None:
    failure = classify(refusal_of(error, status=status))
    assert (failure.error.code, failure.error.retryable) == (code, retryable)


def test_the_finest_word_is_told() -> None:
    error = {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "Too long"}
    failure = classify(refusal_of(error, status=400))
    assert failure.error.message == "The LLM refused the request (context_length_exceeded): Too long."


def test_a_number_is_the_status_where_there_is_no_other() -> None:
    assert refusal_of({"code": 429}).status == 429
    assert refusal_of({"code": 429}, status=500).status == 500
