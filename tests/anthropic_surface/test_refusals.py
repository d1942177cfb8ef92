"""Every error on this surface has the envelope of the Messages API, whoever raised it, and quotes no content."""

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import pytest

from api.anthropic_compat import messages
from api.http import anthropic_errors
from shared.errors import InternalError, JobError
from shared.job import JobState, Step
from shared.model_info import ModelInfo
from shared.store.queue import Ending
from simulator.app import Simulator
from tests.anthropic_surface.conftest import Serve, Surface, a_client, asked, author_of_next
from tests.support.builders import encoded
from tests.support.served import Served
from tests.support.store import finish, submit
from worker.providers.model_list import anthropic_page

_FAILURES = [
    ("upstream_rejected", 400, False, 400, "invalid_request_error"),
    ("upstream_rejected", None, False, 400, "invalid_request_error"),
    ("upstream_rejected", 402, False, 402, "billing_error"),
    ("upstream_rejected", 404, False, 404, "not_found_error"),
    ("upstream_rejected", 413, False, 413, "request_too_large"),
    ("upstream_rejected", 401, False, 400, "invalid_request_error"),
    ("upstream_auth", 401, False, 500, "api_error"),
    ("upstream_rate_limited", 429, True, 429, "rate_limit_error"),
    ("upstream_overloaded", 529, True, 529, "overloaded_error"),
    ("upstream_error", 500, True, 500, "api_error"),
    ("upstream_truncated", None, True, 500, "api_error"),
    ("timeout", None, True, 504, "timeout_error"),
    ("worker_lost", None, False, 500, "api_error"),
]


@pytest.mark.parametrize("words", ["fail=500", "fail=529"])
async def test_one_call_of_an_sdk_is_three_calls_of_the_llm(
    served: Served, at_work: None, simulator: Simulator, words: str
) -> None:
    """And not nine, although the SDK itself retries such failures twice."""
    async with a_client(served, max_retries=2) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**asked(words))
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert len(simulator.calls) == 3


def envelope_of(response: httpx2.Response, status: int, error_type: str) -> str:
    """The message of an error response, which must be exactly the envelope."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"type", "error", "request_id"}
    assert document["type"] == "error"
    assert document["error"]["type"] == error_type
    assert document["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    may_retry = status == 429 or (status >= 500 and status != 504)
    assert response.headers.get("x-should-retry") == (None if may_retry else "false")
    message: str = document["error"]["message"]
    return message


@pytest.fixture
async def http(surface: Surface) -> Any:
    async with httpx2.AsyncClient(base_url=surface.served.url) as client:
        yield client


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("code", "upstream_status", "retryable", "status", "error_type"), _FAILURES)
async def test_each_way_to_fail_has_its_status_and_type(
    surface: Surface,
    code: str,
    upstream_status: int | None,
    retryable: bool,
    status: int,
    error_type: str,
    is_streamed: bool,
) -> None:
    """Before the stream. The SDK must not retry: our own attempts are used up, and each retry would be three more calls."""
    calling = asyncio.create_task(surface.client.messages.create(**asked(), stream=is_streamed))
    author = await author_of_next(surface.runtime)
    error = JobError(code, "What happened.", retryable, upstream_status)
    await finish(surface.runtime, author.claim, Ending(Step.FAIL, error=error), seq=author.seq)
    with pytest.raises(anthropic.APIStatusError) as caught:
        await calling
    assert (caught.value.status_code, caught.value.type, caught.value.api_message) == (
        status,
        error_type,
        "What happened.",
    )
    headers = caught.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert ("retry-after" in headers) == (status == 429)
    assert headers["x-job-id"] == author.job_id


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: must be a JSON object, but the body is empty"),
        (b"[]", "body: must be a JSON object"),
        (b'{"a":1,', "body: must be JSON; it is not valid, or breaks off"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "max_tokens: is missing"),
        (b'{"max_tokens":1}', "messages: is missing"),
        (b'{"max_tokens":0,"messages":[]}', "max_tokens: must be a whole number from 1 to 10000000; messages: must not be empty"),
        (b'{"max_tokens":1,"messages":[{"role":"user","content":3}]}', "messages.0.content: must be a text or a list of blocks"),
        (b'{"max_tokens":1,"messages":[{"role":"user","content":"x"}],"stream":"yes"}', "stream: must be true or false"),
    ],
)  # fmt: skip
async def test_an_invalid_body_is_400_and_names_the_fields(http: httpx2.AsyncClient, body: bytes, message: str) -> None:
    """In the form of the Messages API, and never as FastAPI's 422."""
    response = await http.post("/v1/messages", content=body, headers={"Content-Type": "application/json"})
    assert envelope_of(response, 400, "invalid_request_error") == message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-on-disconnect", "perhaps"),
        ("anthropic-beta", "x" * 1025),
        ("anthropic-beta", "a\x80b"),
        ("Idempotency-Key", ""),
    ],
)
async def test_an_invalid_header_is_400(http: httpx2.AsyncClient, name: str, value: str) -> None:
    """The error names it."""
    headers: Any = [(name.encode(), value.encode("latin-1"))]
    message = envelope_of(await http.post("/v1/messages", json=asked(), headers=headers), 400, "invalid_request_error")
    assert message.startswith(f"{name}: must be ")


async def test_the_routers_errors_have_the_envelope_too(http: httpx2.AsyncClient) -> None:
    """Unknown paths and methods of this surface; other paths keep their problem documents."""
    for path in (
        "/v1/messages/nope",
        "/v1/models/nope",
        "/v1/models/a/b",
        "/v1/messages/",
        "/v1/messages/count_tokens/x",
    ):
        envelope_of(await http.get(path), 404, "not_found_error")
    response = await http.get("/v1/messages")
    envelope_of(response, 405, "invalid_request_error")
    assert response.headers["allow"] == "OPTIONS, POST"
    for path in ("/v1/messagesx", "/v1/modelsx"):
        response = await http.get(path)
        assert response.headers["content-type"] == "application/problem+json"
        assert "request-id" not in response.headers


async def test_what_is_not_json_is_415(http: httpx2.AsyncClient) -> None:
    """So is a compressed body."""
    response = await http.post("/v1/messages", content=b"{}", headers={"Content-Type": "text/plain"})
    envelope_of(response, 415, "invalid_request_error")


async def test_a_body_that_is_too_large_is_413(serve: Serve) -> None:
    """The SDK has an exception for it."""
    served = await serve(max_body_bytes=1024)
    async with a_client(served) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**asked("x" * 2000))
    envelope_of(caught.value.response, 413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/models/x"])
async def test_without_a_key_all_is_401(serve: Serve, path: str) -> None:
    """With authentication on."""
    served = await serve(auth="keys")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        response = await (http.get(path) if "models" in path else http.post(path, json=asked()))
    envelope_of(response, 401, "authentication_error")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_full_queue_is_529(serve: Serve, path: str) -> None:
    """With Retry-After."""
    served = await serve(max_queued=1)
    await submit(served.api.runtime)
    async with httpx2.AsyncClient(base_url=served.url) as http:
        response = await http.post(path, json=asked())
    envelope_of(response, 529, "overloaded_error")
    assert response.headers["retry-after"] == "10"
    assert served.relay.follower_count == 0


async def test_an_unexpected_error_is_500(http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response does not say what it was."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("canary-4f1d")

    monkeypatch.setattr(messages, "parse_message_call", fail)
    assert envelope_of(await http.post("/v1/messages", json=asked()), 500, "api_error") == InternalError().detail


async def test_a_count_that_takes_too_long_is_504(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job ends then."""
    monkeypatch.setattr(messages, "COUNT_TIMEOUT_S", 0.3)
    calling = asyncio.create_task(surface.client.messages.count_tokens(model="m", messages=asked()["messages"]))
    author = await author_of_next(surface.runtime)
    assert (author.claim.timeout_ms, author.claim.spec.max_attempts) == (10_000, 2)
    with pytest.raises(anthropic.APIStatusError) as caught:
        await calling
    envelope_of(caught.value.response, 504, "timeout_error")
    await surface.has_ended_as(author.job_id, JobState.CANCELLED)


async def test_the_models_are_the_default_the_routes_and_the_upstreams(serve: Serve) -> None:
    """Each once, in pages."""
    served = await serve(model="mine", routes={"by-name": {}, "claude-*": {}})
    told = [ModelInfo(f"claude-{number}", f"Claude {number}", "2026-01-01T00:00:00Z") for number in range(5)]
    told.append(ModelInfo("mine", "My own", "2026-02-01T00:00:00Z"))
    await served.api.runtime.workers.publish_models("anthropic", encoded(told))
    expected = ["mine", "by-name", *(f"claude-{number}" for number in range(5))]
    async with a_client(served) as client, httpx2.AsyncClient(base_url=served.url) as http:
        assert [model.id async for model in client.models.list()] == expected
        assert [model.id async for model in client.models.list(limit=2)] == expected
        page = (await http.get("/v1/models?limit=2&before_id=claude-2")).json()
        assert ([model["id"] for model in page["data"]], page["has_more"]) == (["claude-0", "claude-1"], True)
        assert (page["first_id"], page["last_id"]) == ("claude-0", "claude-1")
        assert (await client.models.retrieve("mine")).display_name == "My own"
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("claude-9")
        for query in ("limit=0", "limit=1001", "limit=x", "after_id=nope", "before_id=mine&after_id=mine"):
            envelope_of(await http.get(f"/v1/models?{query}"), 400, "invalid_request_error")


async def test_a_model_has_all_the_details_that_its_upstream_reported(serve: Serve) -> None:
    """Its limits, its retirement and its capabilities; details that were not reported are not made up."""
    served = await serve(model="mine")
    said: dict[str, Any] = {
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "lifecycle": "deprecated",
        "retires_at": None,
        "capabilities": {"batch": {"supported": True}},
    }
    page = {"data": [{"id": "claude-a", "display_name": "A", "created_at": "2026-01-01T00:00:00Z", **said}]}
    await served.api.runtime.workers.publish_models("anthropic", encoded(anthropic_page(encoded(page)).models))
    async with a_client(served) as client, httpx2.AsyncClient(base_url=served.url) as http:
        told = (await http.get("/v1/models/claude-a")).json()
        assert told == {"type": "model", **page["data"][0]}
        assert told in (await http.get("/v1/models")).json()["data"]
        assert set((await http.get("/v1/models/mine")).json()) == {"type", "id", "display_name", "created_at"}
        model = await client.models.retrieve("claude-a")
        assert (model.max_input_tokens, model.max_tokens, model.lifecycle) == (200_000, 64_000, "deprecated")
        assert model.capabilities is not None
        assert model.capabilities.batch.supported


def test_an_envelope_is_one_line_of_json() -> None:
    """Whatever the message contains."""
    frame = anthropic_errors.error_frame(anthropic_errors.Refusal(500, "api_error", 'a\nb"'), "req_1")
    name, data, *rest = frame.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: "))["error"]["message"] == 'a\nb"'
