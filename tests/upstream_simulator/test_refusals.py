"""What the simulator refuses, as the official SDK sees it, and the error statuses that a prompt can ask for."""

import email.utils
import time
from typing import Any

import anthropic
import pytest

from simulator.app import Simulator
from tests.upstream_simulator.asking import MODEL, Asking, user

INVALID: dict[str, dict[str, Any]] = {
    "max_tokens: must be greater than or equal to 1": {"max_tokens": 0},
    "max_tokens: Input should be a valid integer": {"max_tokens": "7"},
    "messages: at least one message is required": {"messages": []},
    "messages.0.role: Input should be 'user' or 'assistant'": {"messages": [{"role": "system", "content": "x"}]},
    "messages.0.content: Field required": {"messages": [{"role": "user"}]},
    "messages.0.content: Input should be a valid string or a valid list": {
        "messages": [{"role": "user", "content": 5}]
    },
    "messages.0.content.0.text: Field required": {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    "messages.0.content.0.type: Field required": {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
    "messages.0: all messages must have non-empty content except for the optional final assistant message": {
        "messages": user("")
    },
    "model: Input should be a valid string": {"model": 5},
    "system: Input should be a valid string or a valid list": {"system": 5},
    "job: Extra inputs are not permitted": {"extra_body": {"job": {}}},
}


@pytest.mark.parametrize("message", list(INVALID))
async def test_an_invalid_request_is_refused_in_the_real_apis_words(asking: Asking, message: str) -> None:
    request: dict[str, Any] = {"model": MODEL, "max_tokens": 10, "messages": user("hello")} | INVALID[message]
    with pytest.raises(anthropic.BadRequestError) as refused:
        await asking.client.messages.create(**request)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id is not None
    assert message in str(refused.value)


OLD, NEW = "2023-06-01", "2026-10-21"

CITED = [{"type": "text", "text": "See.", "citations": [{"type": "char_location"}]}]
UNCITED = [{"type": "text", "text": "See.", "citations": []}]
DOCUMENT = [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A source."}}]
NOT_IN_THE_NEW: dict[str, dict[str, Any]] = {
    "temperature: Extra inputs are not permitted": {"temperature": 1.0},
    "top_p: Extra inputs are not permitted": {"top_p": 1.0},
    "top_k: Extra inputs are not permitted": {"top_k": None},
    "messages.0.content.0.citations: Extra inputs are not permitted": {
        "messages": [{"role": "user", "content": CITED}]
    },
    "messages.1.content.0: document blocks are not permitted in assistant messages": {
        "messages": [*user("x"), {"role": "assistant", "content": DOCUMENT}, *user("y")]
    },
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("message", list(NOT_IN_THE_NEW))
async def test_a_version_refuses_what_it_no_longer_has(asking: Asking, message: str, path: str) -> None:
    """The previous version accepts it."""
    body = {"model": MODEL, "max_tokens": 10, "messages": user("hello")} | NOT_IN_THE_NEW[message]

    async def post(version: str) -> None:
        headers = {"anthropic-version": version}
        await asking.client.post(path, body=body, cast_to=object, options={"headers": headers})

    await post(OLD)
    with pytest.raises(anthropic.BadRequestError) as refused:
        await post(NEW)
    assert refused.value.type == "invalid_request_error"
    assert message in str(refused.value)


async def test_a_version_accepts_similar_but_valid_members(asking: Asking) -> None:
    """A user's document, an assistant's citations, an empty list of citations."""
    turns = [
        {"role": "user", "content": [*DOCUMENT, *UNCITED]},
        {"role": "assistant", "content": CITED},
        *user("y"),
    ]
    body = {"model": MODEL, "max_tokens": 10, "messages": turns}
    await asking.client.post("/v1/messages", body=body, cast_to=object)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (anthropic.omit, "anthropic-version: header is required"),
        ("", "anthropic-version: header is required"),
        ("2023-06-01, 2023-06-01", 'anthropic-version: "2023-06-01, 2023-06-01" is not a valid version'),
    ],
    ids=["none", "empty", "twice"],
)
async def test_a_request_must_name_a_version(asking: Asking, simulator: Simulator, version: Any, message: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        await asking.whole("hello", extra_headers={"anthropic-version": version})
    assert refused.value.type == "invalid_request_error"
    assert message in str(refused.value)
    assert simulator.calls[0].version in (None, version)


async def test_the_record_names_the_version(asking: Asking, simulator: Simulator) -> None:
    await asking.whole("hello", extra_headers={"anthropic-version": OLD})
    await asking.whole("hello")
    assert [call.version for call in simulator.calls] == [OLD, NEW]


async def test_a_missing_max_tokens_is_refused(asking: Asking) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
        await asking.client.post("/v1/messages", body={"model": MODEL, "messages": user("x")}, cast_to=object)


async def test_a_body_that_is_no_object_is_refused(asking: Asking) -> None:
    with pytest.raises(anthropic.BadRequestError, match="must be a JSON object"):
        await asking.client.post("/v1/messages", body=[1], cast_to=object)


async def test_a_mistyped_simulated_model_does_not_exist(asking: Asking) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        await asking.whole("hello", model="sim-50x20")
    assert refused.value.type == "not_found_error"


async def test_an_unknown_path_is_an_error_of_the_same_shape(asking: Asking) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        await asking.client.messages.batches.list()
    assert refused.value.type == "not_found_error"


async def test_a_mistyped_fault_is_refused_and_not_ignored(asking: Asking) -> None:
    with pytest.raises(anthropic.BadRequestError, match="retryafter"):
        await asking.whole("fail=529,retryafter=3")


@pytest.mark.parametrize(
    ("headers", "ended"),
    [
        ({"authorization": "Bearer k", "x-api-key": anthropic.omit}, "completed"),
        ({"authorization": anthropic.omit, "x-api-key": "k"}, "completed"),
        ({"authorization": anthropic.omit, "x-api-key": anthropic.omit}, "refused"),
        ({"authorization": "Basic k", "x-api-key": anthropic.omit}, "refused"),
    ],
    ids=["bearer", "x-api-key", "none", "basic"],
)
async def test_both_ways_to_send_a_key_are_accepted_and_none_is_not(
    asking: Asking, simulator: Simulator, headers: dict[str, Any], ended: str
) -> None:
    try:
        await asking.whole("hello", extra_headers=headers)
    except anthropic.AuthenticationError as refused:
        error_type = refused.type
    else:
        error_type = None
    assert error_type == ("authentication_error" if ended == "refused" else None)
    assert simulator.calls[0].ended == ended


ERRORS = {
    400: (anthropic.BadRequestError, "invalid_request_error"),
    401: (anthropic.AuthenticationError, "authentication_error"),
    402: (anthropic.APIStatusError, "billing_error"),
    403: (anthropic.PermissionDeniedError, "permission_error"),
    404: (anthropic.NotFoundError, "not_found_error"),
    409: (anthropic.ConflictError, "conflict_error"),
    413: (anthropic.RequestTooLargeError, "request_too_large"),
    429: (anthropic.RateLimitError, "rate_limit_error"),
    500: (anthropic.InternalServerError, "api_error"),
    503: (anthropic.ServiceUnavailableError, "api_error"),
    504: (anthropic.DeadlineExceededError, "timeout_error"),
    529: (anthropic.OverloadedError, "overloaded_error"),
}


@pytest.mark.parametrize("status", list(ERRORS))
async def test_every_error_status_can_be_asked_for(asking: Asking, status: int) -> None:
    error, error_type = ERRORS[status]
    for ask in (asking.whole, asking.streamed):
        with pytest.raises(error) as failed:
            await ask(f"fail={status},message=one%20two")
        assert failed.value.status_code == status
        assert failed.value.type == error_type
        assert failed.value.request_id is not None
        assert "one two" in str(failed.value)


async def test_an_error_can_have_another_type_than_its_status_says(asking: Asking) -> None:
    with pytest.raises(anthropic.RateLimitError) as failed:
        await asking.whole("fail=429,type=overloaded_error")
    assert failed.value.type == "overloaded_error"


@pytest.mark.parametrize("value", ["0", "1.5", "61", "86400", "-1", "soon", "Wed,%2021%20Oct%202026%2007:28:00%20GMT"])
async def test_retry_after_is_sent_as_it_was_asked_for(asking: Asking, value: str) -> None:
    with pytest.raises(anthropic.OverloadedError) as failed:
        await asking.whole(f"fail=529,retry-after={value.replace(',', '%2C')}")
    assert failed.value.response.headers["retry-after"] == value.replace("%20", " ")


async def test_retry_after_can_be_a_date(asking: Asking) -> None:
    before_s = time.time()
    with pytest.raises(anthropic.RateLimitError) as failed:
        await asking.whole("fail=429,retry-after=date+60,retry-after-ms=10,should-retry=false")
    headers = failed.value.response.headers
    waits_s = email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - before_s
    assert 58 < waits_s < 66
    assert headers["retry-after-ms"] == "10"
    assert headers["x-should-retry"] == "false"


async def test_headers_of_ones_own_are_sent_with_answers_and_failures(asking: Asking) -> None:
    name = "anthropic-ratelimit-requests-remaining"
    raw = asking.client.messages.with_raw_response
    answered = await raw.create(model=MODEL, max_tokens=9, messages=user(f"header={name}:7 header=x-more:a%20b"))
    assert answered.headers[name] == "7"
    assert answered.headers["x-more"] == "a b"
    with pytest.raises(anthropic.RateLimitError) as failed:
        await asking.whole(f"header={name}:0 fail=429")
    assert failed.value.response.headers[name] == "0"


async def test_a_header_cannot_end_its_line(asking: Asking) -> None:
    with pytest.raises(anthropic.BadRequestError, match="not printable ASCII"):
        await asking.whole("header=x-more:a%0d%0aset-cookie:b")
    with pytest.raises(anthropic.BadRequestError, match="does not fit"):
        await asking.whole("fail=529,retry-after=1%0d%0aset-cookie:b")


@pytest.mark.parametrize(("body", "content_type"), [("html", "text/html"), ("text", "text/plain"), ("empty", None)])
async def test_a_failure_need_not_have_the_error_envelope(asking: Asking, body: str, content_type: str | None) -> None:
    with pytest.raises(anthropic.InternalServerError) as failed:
        await asking.whole(f"fail=502,body={body}")
    assert failed.value.type is None
    assert failed.value.response.headers.get("content-type") == content_type


async def test_a_page_instead_of_a_stream_has_no_events(asking: Asking) -> None:
    assert await asking.events("fail=200,body=html") == []


async def test_the_sdks_own_retries_show_in_the_record(simulator: Simulator) -> None:
    async with anthropic.AsyncAnthropic(base_url=simulator.url, api_key="k", max_retries=2) as client:
        message = await Asking(client).whole("nonce=r fail=529x2,retry-after-ms=1")
    assert message.stop_reason == "end_turn"
    assert [(call.ended, call.status, call.sdk_retry) for call in simulator.record.of_nonce("r")] == [
        ("fault", 529, "0"),
        ("fault", 529, "1"),
        ("completed", 200, "2"),
    ]


async def test_counting_tokens_can_fail_too(asking: Asking) -> None:
    with pytest.raises(anthropic.OverloadedError):
        await asking.client.messages.count_tokens(model=MODEL, messages=user("fail=529x1"))
    assert (await asking.client.messages.count_tokens(model=MODEL, messages=user("fail=529x1"))).input_tokens == 1
