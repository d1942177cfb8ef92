"""``/complete`` and ``/complete/stream``: a prompt in, its answer out, and every failure."""

import asyncio
import json

import httpx2
import pytest

from api.native import complete
from shared.errors import JobError
from shared.job import JobState, Step, Usage
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.routes.conftest import CalledApi, StartApi, problem_of
from tests.support.author import Author
from tests.support.builders import encoded
from tests.support.follower import asking
from tests.support.served import Served
from tests.support.sse_frames import Frame, SseFrames
from tests.support.store import finish, make_overdue, members, state_of
from tests.support.wait import wait_until

_BODY = {"prompt": "Say hello."}


async def _claimed(runtime: Runtime) -> Author:
    """Claims the job of a call as soon as it is queued."""

    async def waits() -> bool:
        return (await runtime.queue.depth())[JobState.QUEUED] > 0

    await wait_until(waits, "the job of the call")
    return await Author.claim_next(runtime)


async def _finish(api: CalledApi, author: Author, ending: Ending) -> None:
    await finish(api.runtime, author.claim, ending, seq=author.seq)


async def test_complete_returns_result_model_and_tokens(api: CalledApi) -> None:
    """The model that answered, and the output tokens that the LLM reported."""
    calling = asyncio.create_task(api.http.post("/complete", json=_BODY | {"max_tokens": 9}))
    author = await _claimed(api.runtime)
    assert json.loads(author.claim.request) == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Say hello."}],
    }
    message = {"model": "a-model-20260101", "content": [{"type": "text", "text": "Hello."}]}
    result = encoded({"text": "Hello.", "stop_reason": "end_turn", "message": message})
    await _finish(api, author, Ending(Step.SUCCEED, result, usage=Usage(input_tokens=12, output_tokens=3)))
    response = await calling
    assert response.status_code == 200
    assert response.json() == {"result": "Hello.", "model": "a-model-20260101", "tokens_used": 3}
    assert api.state.relay.follower_count == 0


async def test_complete_asks_for_512_tokens_by_default(api: CalledApi) -> None:
    """Its job expires when its caller stops waiting."""
    calling = asyncio.create_task(api.http.post("/complete", json=_BODY))
    author = await _claimed(api.runtime)
    assert json.loads(author.claim.request)["max_tokens"] == 512
    assert author.claim.timeout_ms == 30_000
    await author.succeed()
    assert (await calling).status_code == 200


_FAILURES = [
    ("upstream_rate_limited", 429),
    ("timeout", 504),
    ("upstream_rejected", 502),
    ("upstream_auth", 502),
    ("upstream_overloaded", 502),
    ("upstream_error", 502),
    ("upstream_truncated", 502),
    ("worker_lost", 502),
]


@pytest.mark.parametrize(("code", "status"), _FAILURES)
async def test_a_failure_of_the_llm_has_its_status(api: CalledApi, code: str, status: int) -> None:
    """And the code of its job."""
    calling = asyncio.create_task(api.http.post("/complete", json=_BODY))
    author = await _claimed(api.runtime)
    await _finish(api, author, Ending(Step.FAIL, error=JobError(code, "What happened.", retryable=True)))
    response = await calling
    assert problem_of(response, status, code)["detail"] == "What happened."
    assert ("retry-after" in response.headers) == (status == 429)


@pytest.mark.parametrize(("code", "status"), _FAILURES)
async def test_a_failure_on_the_stream_is_an_error_event_and_no_done(api: CalledApi, code: str, status: int) -> None:
    """With the same problem document."""
    calling = asyncio.create_task(api.http.post("/complete/stream", json=_BODY))
    author = await _claimed(api.runtime)
    await author.say("Hel")
    await _finish(api, author, Ending(Step.FAIL, error=JobError(code, "What happened.", retryable=True)))
    text, error = _frames(await calling)
    assert (text.event, text.data) == ("message", "Hel")
    assert error.event == "error"
    document = json.loads(error.data)
    assert (document["status"], document["code"], document["type"]) == (status, code, f"/problems/{code}")
    assert document["request_id"]


async def test_a_job_that_never_starts_is_504(api: CalledApi) -> None:
    """Waiting in the queue counts towards the 30 s."""
    calling = asyncio.create_task(api.http.post("/complete", json=_BODY))
    await make_overdue(api.runtime, await _waiting_job(api))
    await api.runtime.jobs.expire()
    problem_of(await calling, 504, "timeout")


@pytest.mark.parametrize("path", ["/complete", "/complete/stream"])
async def test_after_30_s_the_job_is_cancelled_and_the_caller_gets_504(
    api: CalledApi, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Nobody waits for it after that."""
    monkeypatch.setattr(complete, "TIMEOUT_S", 1)
    calling = asyncio.create_task(api.http.post(path, json=_BODY))
    author = await _claimed(api.runtime)
    response = await calling
    if path == "/complete":
        problem_of(response, 504, "timeout")
    else:
        (error,) = _frames(response)
        assert (error.event, json.loads(error.data)["status"]) == ("error", 504)
    assert await state_of(api.runtime, author.job_id) is JobState.CANCELLED


@pytest.mark.parametrize("path", ["/complete", "/complete/stream"])
async def test_a_job_that_another_call_cancels_is_502(api: CalledApi, path: str) -> None:
    """There will be no answer."""
    calling = asyncio.create_task(api.http.post(path, json=_BODY))
    author = await _claimed(api.runtime)
    await api.http.post(f"/v1/jobs/{author.job_id}/cancel")
    response = await calling
    if path == "/complete":
        problem_of(response, 502, "upstream_error")
    else:
        (error,) = _frames(response)
        assert (error.event, json.loads(error.data)["status"]) == ("error", 502)


@pytest.mark.parametrize("path", ["/complete", "/complete/stream"])
async def test_a_full_queue_is_503(start_api: StartApi, path: str) -> None:
    """Also on the stream, since nothing has been sent yet."""
    api = await start_api(max_queued=1)
    await api.submitted()
    problem_of(await api.http.post(path, json=_BODY), 503, "queue_full")
    assert api.state.relay.follower_count == 0


@pytest.mark.parametrize("path", ["/complete", "/complete/stream"])
async def test_a_stopping_server_responds_with_503_and_cancels(api: CalledApi, path: str) -> None:
    """Another process may serve the next call."""
    calling = asyncio.create_task(api.http.post(path, json=_BODY))
    author = await _claimed(api.runtime)
    api.state.stop()
    response = await calling
    if path == "/complete":
        problem_of(response, 503, "server_stopping")
    else:
        (error,) = _frames(response)
        assert (error.event, json.loads(error.data)["code"]) == ("error", "server_stopping")
    assert await state_of(api.runtime, author.job_id) is JobState.CANCELLED


@pytest.mark.parametrize("path", ["/complete", "/complete/stream"])
async def test_a_client_that_disconnects_cancels_its_job(served: Served, path: str) -> None:
    """The API notices it at once, even while there is nothing to send."""
    runtime = served.api.runtime

    async def call() -> None:
        async with asking(served.url, path, method="POST", body=_BODY) as answer:
            await answer.read()

    calling = asyncio.create_task(call())
    author = await _claimed(runtime)
    calling.cancel()

    async def is_cancelled() -> bool:
        return await state_of(runtime, author.job_id) is JobState.CANCELLED

    await wait_until(is_cancelled, "the job's end")
    await wait_until(lambda: served.relay.follower_count == 0, "the end of its watch")


async def test_the_stream_is_text_and_then_done(api: CalledApi) -> None:
    """Text with any line breaks passes an SSE parser unchanged, except that every break becomes a line feed."""
    calling = asyncio.create_task(api.http.post("/complete/stream", json=_BODY))
    author = await _claimed(api.runtime)
    await author.open()
    said = ["Two\nlines", "\n\n", " data: x\n", "a\r", "\nb\rc", "[DONE]", "", "\u2028end\x00"]
    for text in said:
        await author.say(text)
    await author.succeed()
    response = await calling
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *texts, done = _frames(response)
    assert done == Frame("message", "[DONE]", None)
    assert "[DONE]" not in [frame.data for frame in texts]
    assert "".join(frame.data for frame in texts) == "Two\nlines\n\n data: x\na\nb\nc[DONE]\u2028end\x00"


async def test_an_attempt_that_fails_before_any_text_is_invisible(api: CalledApi) -> None:
    """The next attempt may succeed."""
    calling = asyncio.create_task(api.http.post("/complete/stream", json=_BODY))
    author = await _claimed(api.runtime)
    await author.open()
    await author.try_again(2)
    await author.say("Hello.")
    await author.succeed()
    assert [frame.data for frame in _frames(await calling)] == ["Hello.", "[DONE]"]


async def test_a_reset_after_text_ends_the_stream_with_an_error(api: CalledApi) -> None:
    """The format cannot clear text. The job ends too, since nobody reads on."""
    calling = asyncio.create_task(api.http.post("/complete/stream", json=_BODY))
    author = await _claimed(api.runtime)
    await author.say("Hel")
    await author.try_again(2)
    text, error = _frames(await calling)
    assert text.data == "Hel"
    assert (error.event, json.loads(error.data)["status"]) == ("error", 502)
    assert await state_of(api.runtime, author.job_id) is JobState.CANCELLED


async def test_the_stream_is_a_stream_whatever_accept_says(api: CalledApi) -> None:
    """The path decides, and ``curl --json`` accepts only JSON."""
    calling = asyncio.create_task(api.http.post("/complete/stream", json=_BODY, headers={"Accept": "application/json"}))
    await (await _claimed(api.runtime)).succeed()
    assert [frame.data for frame in _frames(await calling)] == ["[DONE]"]


async def _waiting_job(api: CalledApi) -> str:
    async def waits() -> bool:
        return bool(await members(api.runtime, redis_keys.plain("waiting")))

    await wait_until(waits, "the job of the call")
    (job_id,) = await members(api.runtime, redis_keys.plain("waiting"))
    return job_id


def _frames(response: httpx2.Response) -> list[Frame]:
    return SseFrames().feed(response.content)
