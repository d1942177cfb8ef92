"""OpenAI's SDK with a wrong base URL: it must raise an error, and never mistake our response for one of OpenAI's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2
import pytest
from anthropic import AsyncAnthropic
from openai import APIStatusError, AsyncAzureOpenAI, AsyncOpenAI, OpenAI

from tests.support.served import Served

_SDK: Final = {"user-agent": "OpenAI/JS 6.8.1", "x-stainless-lang": "js", "x-stainless-package-version": "6.8.1"}


@pytest.fixture
async def openai(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        yield client


BATCHES: Final[dict[str, Callable[[AsyncOpenAI], Any]]] = {
    "list": lambda client: client.batches.list(),
    "retrieve": lambda client: client.batches.retrieve("batch_abc123"),
    "cancel": lambda client: client.batches.cancel("batch_abc123"),
    "create": lambda client: client.batches.create(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id="file-abc123"
    ),
}


@pytest.mark.parametrize("call", BATCHES.values(), ids=BATCHES.keys())
async def test_openais_sdk_gets_an_error_at_our_batches(
    openai: AsyncOpenAI, call: Callable[[AsyncOpenAI], Any]
) -> None:
    """Our own response would look like success to it."""
    with pytest.raises(APIStatusError) as caught:
        await call(openai)
    assert (caught.value.status_code, caught.value.code, caught.value.type, caught.value.param) == (
        400,
        "invalid_request",
        "invalid_request_error",
        None,
    )
    assert "tokenspool's own batch API" in caught.value.message
    assert "/openai/v1" in caught.value.message


async def test_openais_sdk_cannot_read_a_batch_of_ours_but_others_can(served: Served, openai: AsyncOpenAI) -> None:
    """Even with a valid id; also with the synchronous client and with Azure's."""
    body = {"requests": [{"custom_id": "a", "params": {"model": "sim-t6-g1-f1", "prompt": "Say hello."}}]}
    async with httpx2.AsyncClient(base_url=served.url) as http:
        batch_id = (await http.post("/v1/batches", json=body)).json()["id"]
        assert (await http.get(f"/v1/batches/{batch_id}")).status_code == 200
    with pytest.raises(APIStatusError) as caught:
        await openai.batches.retrieve(batch_id)
    assert caught.value.status_code == 400

    def synchronously() -> None:
        with OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
            client.batches.retrieve(batch_id)

    with pytest.raises(APIStatusError) as caught:
        await asyncio.to_thread(synchronously)
    assert caught.value.status_code == 400
    azure = AsyncAzureOpenAI(base_url=f"{served.url}/v1", api_key="any", api_version="1", max_retries=0)
    async with azure:
        with pytest.raises(APIStatusError) as caught:
            await azure.batches.retrieve(batch_id)
        assert caught.value.status_code == 400


async def test_a_path_that_is_not_served_is_named_as_openais_sdk_expects(openai: AsyncOpenAI) -> None:
    """For other forms of errors it reports "no body"."""
    for call in (
        openai.files.list(),
        openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "Say hello."}]),
        openai.responses.create(model="m", input="Say hello."),
        openai.embeddings.create(model="m", input="Say hello."),
    ):
        with pytest.raises(APIStatusError) as caught:
            await call
        assert (caught.value.status_code, caught.value.code) == (404, "not_found")
        assert "This path is not served" in caught.value.message


async def test_the_error_member_is_added_to_problem_documents_only_for_sdks(served: Served) -> None:
    """Other callers get the usual problem document."""
    async with httpx2.AsyncClient(base_url=served.url) as http:
        for method, path, status, param in (
            ("GET", "/v1/files", 404, None),
            ("PUT", "/v1/jobs", 405, None),
            ("GET", "/v1/jobs?limit=0", 400, "limit"),
        ):
            plain = (await http.request(method, path)).json()
            answer = await http.request(method, path, headers=_SDK)
            assert answer.headers["content-type"] == "application/problem+json"
            document = answer.json()
            error = document.pop("error")
            assert {**document, "request_id": ""} == {**plain, "request_id": ""}
            assert set(error) == {"message", "type", "code", "param"}
            assert (document["status"], error["code"], error["param"]) == (status, document["code"], param)


async def test_anthropics_sdk_gets_it_too(served: Served) -> None:
    """At paths of the Messages API that are not built."""
    async with AsyncAnthropic(base_url=served.url, api_key="any", max_retries=0) as client:
        with pytest.raises(Exception, match="This path is not served"):
            await client.post("/v1/files", cast_to=httpx2.Response)
