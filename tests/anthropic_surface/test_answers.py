"""Programs written for the official SDK get what they would get from the Messages API itself."""

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import pytest

from shared.job import JobState
from simulator.app import Simulator
from tests.anthropic_surface.conftest import FAST, Surface, asked, author_of_next
from tests.support.builders import an_answer
from tests.support.store import look_anew, serve_queue

_BLOCKS = ["text", "thinking+text", "tool", "citations", "thinking+citations+tool+text"]
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def _without_ids(message: Any) -> dict[str, Any]:
    """The message as data, without ids, which differ for each call of the simulator."""
    data: dict[str, Any] = message.to_dict()
    data.pop("id")
    data.pop("stop_details", None)  # the SDK adds it to streamed messages
    for block in data["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
        if isinstance(block.get("input"), dict):
            block["input"].pop("call", None)
    return data


@pytest.mark.parametrize("blocks", _BLOCKS)
async def test_the_sdk_gets_the_upstreams_answer(
    surface: Surface, simulator: Simulator, at_work: None, blocks: str
) -> None:
    """Whole and streamed, through tokenspool and directly: every block is equal."""
    prompt = f"blocks={blocks} cached=3"
    async with anthropic.AsyncAnthropic(base_url=simulator.url, api_key="any") as direct:
        expected = _without_ids(await direct.messages.create(**asked(prompt)))
    whole = await surface.client.messages.create(**asked(prompt))
    async with surface.client.messages.stream(**asked(prompt)) as stream:
        streamed = await stream.get_final_message()
    assert _without_ids(whole) == expected
    assert _without_ids(streamed) == expected


async def test_the_sync_client_works_too(surface: Surface, at_work: None) -> None:
    """Whole, streamed, and as raw events."""

    def call() -> tuple[str, str, list[str]]:
        with anthropic.Anthropic(base_url=surface.served.url, api_key="any", max_retries=0) as client:
            whole = client.messages.create(**asked("echo: Blue is the sky."))
            with client.messages.stream(**asked("echo: Blue is the sky.")) as stream:
                text = stream.get_final_text()
            events = [event.type for event in client.messages.create(**asked("echo: Blue"), stream=True)]
        (block,) = whole.content
        assert block.type == "text"
        return block.text, text, events

    whole, text, events = await asyncio.to_thread(call)
    assert whole == text == "Blue is the sky."
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]


async def test_the_answer_is_that_of_the_calls_job(surface: Surface, at_work: None) -> None:
    """The job's id is in a header, and the request's id is where the SDK looks for it."""
    raw = await surface.client.messages.with_raw_response.create(**asked())
    job = await surface.job(raw.headers["x-job-id"])
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert await raw.read() == bytes(
        json.dumps(json.loads(bytes(job.result))["message"], separators=(",", ":")), "utf-8"
    )
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == (await raw.parse())._request_id
    assert raw.headers["content-type"] == "application/json"
    assert "idempotency-replayed" not in raw.headers


async def test_the_response_has_the_position_in_the_queue(surface: Surface) -> None:
    """If its turn is all that the job waits for."""
    await serve_queue(surface.runtime)
    await look_anew(surface.served.api.runtime)
    async with httpx2.AsyncClient(base_url=surface.served.url) as http:
        calling = asyncio.create_task(http.post("/v1/messages", json=asked()))
        author = await author_of_next(surface.runtime)
        await author.write(*an_answer("Hello."))
        await author.succeed()
        headers = (await calling).headers
    assert headers["x-queue-position"] == "1"
    assert headers["x-job-id"] == author.job_id


async def test_unknown_members_reach_the_upstream(surface: Surface) -> None:
    """Members of any name, images and betas, however they were sent; only ``stream`` is ours."""
    content: list[Any] = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PIXEL}},
        {"type": "text", "text": "What is this?"},
    ]
    sent: dict[str, Any] = {"model": "claude-next", "max_tokens": 7, "messages": [{"role": "user", "content": content}]}
    extra = {"job": {"priority": 3}, "prompt": "mine", "new_parameter": [1, {"a": None}], "temperature": 0.25}
    calling = asyncio.create_task(
        surface.client.messages.create(
            **sent, extra_body=extra, extra_query={"beta": "true"}, extra_headers={"anthropic-beta": "one-1, two-2"}
        )
    )
    author = await author_of_next(surface.runtime)
    assert json.loads(author.claim.request) == {**sent, **extra}
    assert author.claim.spec.anthropic_beta == "one-1,two-2"
    assert author.claim.spec.model == "claude-next"
    assert author.claim.spec.timeout_s == 600
    await author.succeed()
    await calling


async def test_betas_may_be_sent_in_several_headers(surface: Surface) -> None:
    """As RFC 9110 allows."""
    headers: Any = [("anthropic-beta", "one"), ("anthropic-beta", "two , three")]
    async with httpx2.AsyncClient(base_url=surface.served.url) as http:
        calling = asyncio.create_task(http.post("/v1/messages?beta=true", json=asked(), headers=headers))
        author = await author_of_next(surface.runtime)
        assert author.claim.spec.anthropic_beta == "one,two,three"
        await author.succeed()
        assert (await calling).status_code == 200


@pytest.mark.parametrize(
    ("headers", "version"),
    [({}, ""), ({"anthropic-version": ""}, ""), ({"anthropic-version": "2031-01-01"}, "2031-01-01")],
)
async def test_the_callers_version_is_the_jobs(surface: Surface, headers: dict[str, str], version: str) -> None:
    """For messages and counts, known to us or not; without one the worker chooses."""
    body = asked()
    async with httpx2.AsyncClient(base_url=surface.served.url) as http:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            calling = asyncio.create_task(http.post(path, json=body, headers=headers))
            author = await author_of_next(surface.runtime)
            assert author.claim.spec.anthropic_version == version
            await author.succeed()
            assert (await calling).status_code == 200


async def test_a_request_without_a_model_is_for_the_default_one(surface: Surface) -> None:
    """It is accepted with any Accept header."""
    body = asked()
    del body["model"]
    async with httpx2.AsyncClient(base_url=surface.served.url) as http:
        calling = asyncio.create_task(http.post("/v1/messages", json=body, headers={"Accept": "image/png"}))
        author = await author_of_next(surface.runtime)
        assert author.claim.spec.model == "claude-sonnet-4-6"
        await author.succeed()
        assert (await calling).status_code == 200


async def test_tokens_are_counted_by_the_upstream(surface: Surface, simulator: Simulator, at_work: None) -> None:
    """Each count is its own job."""
    messages = asked("How many are these?")["messages"]
    async with anthropic.AsyncAnthropic(base_url=simulator.url, api_key="any") as direct:
        expected = await direct.messages.count_tokens(model=FAST, messages=messages)
    raw = await surface.client.messages.with_raw_response.count_tokens(model=FAST, messages=messages)
    assert expected.input_tokens > 0
    assert json.loads(await raw.read()) == {"input_tokens": expected.input_tokens}
    assert raw.headers["x-job-id"].startswith("job_")
