"""A stream of this surface ends with ``message_stop`` or with an error, whatever happens to its job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import anthropic
import pytest
from anthropic.types import Message

from api.anthropic_compat import message_stream
from shared.job import JobState
from shared.store import redis_keys
from simulator.app import Simulator
from tests.anthropic_surface.conftest import Serve, Surface, a_client, asked, author_of_next
from tests.support.author import TENANT, Author
from tests.support.builders import an_answer, block_start, message_start, wired
from tests.support.follower import asking
from tests.support.redis_servers import RedisUnderTest
from tests.support.sse_frames import Frame, SseFrames
from tests.support.store import expire_leases, make_overdue, state_of
from tests.support.wait import wait_until
from tests.support.working import working

_START = wired([message_start(input_tokens=1, output_tokens=1)])
_BLOCK = wired([block_start(0, {"type": "text", "text": ""})])


async def _final(client: anthropic.AsyncAnthropic, **headers: str) -> Message:
    async with client.messages.stream(**asked(), extra_headers=headers) as stream:
        return await stream.get_final_message()


async def _begin(author: Author, text: str = "Hel") -> None:
    await author.write(*_START, *_BLOCK)
    await author.say(text)


async def _refused(calling: "asyncio.Task[Message]", status: int, error_type: str) -> anthropic.APIStatusError:
    """The error of a call."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        await calling
    assert (caught.value.status_code, caught.value.type) == (status, error_type), caught.value.body
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.response.headers["request-id"]
    return caught.value


def _message_of(error: anthropic.APIStatusError) -> str:
    body: Any = error.body
    message: str = body["error"]["message"]
    return message


class LoseWorker(Protocol):
    """Lets the worker of a job die; a real worker takes over."""

    async def __call__(self, author: Author) -> None: ...


@pytest.fixture
async def lost_worker(surface: Surface, simulator: Simulator, real_redis: RedisUnderTest) -> AsyncIterator[LoseWorker]:
    async with AsyncExitStack() as stack:

        async def lose(author: Author) -> None:
            await expire_leases(surface.runtime, author.job_id)
            await stack.enter_async_context(working(real_redis.url, simulator.url, idle_check_s=0))

        yield lose


async def test_the_stream_is_the_upstreams_own_events(surface: Surface) -> None:
    """It has no event of ours and no ids, and ends directly after ``message_stop``."""
    answer = an_answer("Blue", " light")
    seen: list[tuple[int, str, bytes]] = []

    async def call() -> None:
        body = {**asked(), "stream": True}
        async with asking(surface.served.url, "/v1/messages", method="POST", body=body) as reading:
            seen.append((reading.status, reading.headers["content-type"], await reading.read()))

    calling = asyncio.create_task(call())
    author = await author_of_next(surface.runtime)
    await author.write(*answer)
    await author.succeed()
    await calling
    ((status, content_type, content),) = seen
    assert (status, content_type) == (200, "text/event-stream; charset=utf-8")
    frames = SseFrames().feed(content)
    assert frames == [Frame(name, data.decode(), None) for name, data in answer]


async def test_the_head_waits_for_the_first_event_and_failures_before_it_have_their_status(surface: Surface) -> None:
    """Our own events do not begin the response."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await author.try_again(2)
    await author.fail()
    await _refused(calling, 500, "api_error")


async def test_a_failure_after_the_head_is_an_error_event(surface: Surface) -> None:
    """An overloaded_error, after which clients start again. The status was already sent."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await author.fail()
    await _refused(calling, 200, "overloaded_error")


async def test_pings_are_sent_until_a_late_answer_begins(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the longest wait for a status the head is sent, then pings at intervals; the answer follows as usual."""
    monkeypatch.setattr(message_stream, "HOLD_S", 0.05)
    served = await serve(sse_ping_s=0.05)
    async with asking(served.url, "/v1/messages", method="POST", body={**asked(), "stream": True}) as call:
        frames = SseFrames()
        seen: list[Frame] = []
        while len(seen) < 3:
            seen += frames.feed(await call.read_some())
        assert set(seen) == {Frame("ping", '{"type":"ping"}', None)}
        author = await author_of_next(served.api.runtime)
        await author.write(*an_answer("Hello."))
        await author.succeed()
        names = [frame.event for frame in frames.feed(await call.read()) if frame.event != "ping"]
    assert names == [name for name, _ in an_answer("Hello.")]


async def test_a_failure_after_pings_is_an_error_event(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK raises it."""
    monkeypatch.setattr(message_stream, "HOLD_S", 0.01)
    served = await serve()
    async with a_client(served) as client:
        calling = asyncio.create_task(_final(client))
        author = await author_of_next(served.api.runtime)
        await asyncio.sleep(0.05)
        await author.fail()
        await _refused(calling, 200, "api_error")


async def test_a_retry_before_any_content_is_invisible(surface: Surface) -> None:
    """The client sees only one ``message_start``."""
    events: list[str] = []

    async def call() -> Message:
        async with surface.client.messages.stream(**asked()) as stream:
            async for event in stream:
                events.append(event.type)  # noqa: PERF401 - read while it grows
            return await stream.get_final_message()

    calling = asyncio.create_task(call())
    author = await author_of_next(surface.runtime)
    await author.write(*_START)
    await wait_until(lambda: events == ["message_start"], "the first event")
    await author.try_again(2)
    await author.write(*an_answer("Hello."))
    await author.succeed()
    message = await calling
    assert [block.to_dict()["text"] for block in message.content] == ["Hello."]
    assert events.count("message_start") == 1


async def test_a_reset_after_content_ends_the_stream_with_an_error_and_the_job(surface: Surface) -> None:
    """Otherwise the SDK would join both attempts into one text (measured)."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)
    await author.try_again(2)
    await _refused(calling, 200, "overloaded_error")
    await surface.has_ended_as(author.job_id, JobState.CANCELLED)


async def test_the_error_after_the_first_words_is_the_jobs_own(surface: Surface) -> None:
    """Not a general error about the LLM, which may not be the cause."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)
    await author.fail()
    error = await _refused(calling, 200, "overloaded_error")
    assert _message_of(error) == "The LLM failed. (upstream_error)"


async def test_a_lost_worker_is_the_streams_error(surface: Surface, lost_worker: "LoseWorker") -> None:
    """The next worker to claim the job ends it with that error."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)
    await lost_worker(author)
    error = await _refused(calling, 200, "overloaded_error")
    job = await surface.job(author.job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "worker_lost")
    assert _message_of(error) == f"{job.error.message} (worker_lost)"


async def test_a_lost_worker_is_the_streams_error_even_if_the_job_goes_on(
    surface: Surface, lost_worker: "LoseWorker"
) -> None:
    """With an Idempotency-Key: a retry gets the whole new attempt."""
    calling = asyncio.create_task(_final(surface.client, **{"Idempotency-Key": "k"}))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)
    await lost_worker(author)
    error = await _refused(calling, 200, "overloaded_error")
    assert _message_of(error) == (
        "The worker was lost after the start of the answer, which cannot be retracted here (worker_lost): "
        "send the request again."
    )
    await surface.has_ended_as(author.job_id, JobState.SUCCEEDED)


async def test_with_a_key_the_job_goes_on_after_a_reset(surface: Surface) -> None:
    """The same key then gets the whole answer of the new attempt."""
    calling = asyncio.create_task(_final(surface.client, **{"Idempotency-Key": "k"}))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)
    await author.try_again(2)
    await _refused(calling, 200, "overloaded_error")
    assert await state_of(surface.runtime, author.job_id) is JobState.RUNNING
    calling = asyncio.create_task(_final(surface.client, **{"Idempotency-Key": "k"}))
    await author.write(*an_answer("Hello."))
    await author.succeed()
    assert [block.to_dict()["text"] for block in (await calling).content] == ["Hello."]


async def test_an_answer_is_whole_only_when_its_job_has_succeeded(surface: Surface) -> None:
    """``message_stop`` without a stop reason means a failed attempt, and is not streamed."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await author.write(*an_answer("Hel", stop_reason=None))
    await surface.has_received_all(author)
    await author.fail()
    await _refused(calling, 200, "overloaded_error")


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_stopping_server_ends_streams_with_an_error(serve: Serve, has_begun: bool) -> None:
    """So that the client retries. Jobs for which only that client waited end."""
    served = await serve()
    async with a_client(served) as client:
        calling = asyncio.create_task(_final(client))
        author = await author_of_next(served.api.runtime)
        surface = Surface(client, served)
        if has_begun:
            await _begin(author)
            await surface.has_received_all(author)
        served.api.stop()
        if has_begun:
            await _refused(calling, 200, "overloaded_error")
        else:
            error = await _refused(calling, 503, "api_error")
            assert error.response.headers["retry-after"] == "1"
            assert "x-should-retry" not in error.response.headers
        await surface.has_ended_as(author.job_id, JobState.CANCELLED)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_job_that_somebody_cancels_is_an_error(surface: Surface, has_begun: bool) -> None:
    """There will be no answer, and a retry would run what somebody has cancelled."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    if has_begun:
        await _begin(author)
        await surface.has_received_all(author)
    await surface.runtime.jobs.cancel(author.job_id, TENANT)
    error = await _refused(calling, 200 if has_begun else 500, "api_error")
    assert has_begun or error.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_job_that_never_starts_is_504(surface: Surface, is_streamed: bool) -> None:
    """The SDK does not retry it."""

    async def call() -> Message:
        if is_streamed:
            return await _final(surface.client)
        message: Message = await surface.client.messages.create(**asked())
        return message

    calling = asyncio.create_task(call())
    await wait_until(lambda: surface.served.relay.follower_count == 1, "the call")

    async def waits() -> bool:
        return bool(await surface.runtime._commands.call("ZCARD", redis_keys.plain("waiting")))

    await wait_until(waits, "the job")
    (job_id,) = [
        name.decode() for name in await surface.runtime._commands.call("ZRANGE", redis_keys.plain("waiting"), 0, -1)
    ]
    await make_overdue(surface.runtime, job_id)
    await surface.runtime.jobs.expire()
    error = await _refused(calling, 504, "timeout_error")
    assert error.response.headers["x-should-retry"] == "false"


async def test_a_job_that_is_erased_while_it_is_followed_is_an_error(surface: Surface) -> None:
    """Whoever erased it."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)
    job_id = author.job_id
    await surface.runtime._commands.call("DEL", redis_keys.job(job_id), redis_keys.log(job_id))
    await _refused(calling, 200, "api_error")


async def test_a_bug_on_the_way_is_an_error_too(surface: Surface, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even then the client must not mistake the cut for the end of the answer."""
    calling = asyncio.create_task(_final(surface.client))
    author = await author_of_next(surface.runtime)
    await _begin(author)
    await surface.has_received_all(author)

    def fail(*_: object) -> bytes:
        raise ValueError("canary-4f1d")

    monkeypatch.setattr(message_stream.Editor, "frames_of", fail)
    await author.say("lo")
    error = await _refused(calling, 200, "api_error")
    assert "canary" not in str(error.body)
