"""Submit and follow in one request, and the calls that wait for the end."""

import asyncio
import json
from typing import Any

import pytest

from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.author import Author
from tests.support.follower import Answer, Connection, Follower, ask, asking
from tests.support.served import Served
from tests.support.sse_frames import Frame, SseFrames
from tests.support.story import assert_tells
from tests.support.wait import wait_until

_STREAM = {"Accept": "text/event-stream"}


async def _read_all(answer: Answer) -> list[Frame]:
    parser, frames = SseFrames(), list[Frame]()
    while piece := await answer.read_some():
        frames += parser.feed(piece)
    return frames


def _submitting(served: Served, path: str = "/v1/jobs", **headers: str) -> Any:
    return asking(served.url, path, method="POST", headers=_STREAM | headers, body={"prompt": "Why?"})


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_submit_that_follows_sees_everything(served: Served, runtime: Runtime, form: str) -> None:
    """200, where the job is, `queued`, and every event from the first."""
    async with _submitting(served, f"/v1/jobs?format={form}") as answer:
        assert answer.status == 200
        job_id = answer.headers["location"].removeprefix("/v1/jobs/")
        author = await Author.claim_next(runtime)
        assert author.job_id == job_id
        await author.open()
        await author.say("Blue", " light")
        await author.succeed()
        frames = await _read_all(answer)
    assert json.loads(frames[0].data) == {"job_id": job_id, "queue_position": 1}
    follower = Follower([served.url], job_id, form=form, connections=[Connection(None, 200, frames)])
    assert_tells(follower, await author.log())
    assert follower.text == "Blue light"


async def test_a_job_that_is_over_before_its_follower_listens_is_shown_whole(served: Served, runtime: Runtime) -> None:
    """Whatever was published before the subscription stood is in the log."""

    async def work() -> None:
        while True:
            claims, _ = await runtime.queue.claim("worker-1", count=10, low_count=10, takes_suspect=True)
            for claim in claims:
                author = Author(runtime, claim)
                await author.say("Blue")
                await author.succeed()

    working = asyncio.create_task(work())
    for _ in range(50):
        async with _submitting(served) as answer:
            frames = await _read_all(answer)
        assert [frame.event for frame in frames] == ["queued", "started", "delta", "succeeded"]
    working.cancel()
    await asyncio.wait([working])


async def test_a_repeated_submit_that_follows_shows_the_first_ones_job(served: Served, runtime: Runtime) -> None:
    """From the start, or behind the client's last event; 204 when it has seen the end."""
    key = {"Idempotency-Key": "k-1"}
    async with _submitting(served, **key) as first:
        author = await Author.claim_next(runtime)
        await author.say("Blue")
        async with _submitting(served, **key) as second:
            assert second.headers["location"] == first.headers["location"]
            assert second.headers["idempotency-replayed"] == "true"
            await author.say(" light")
            await author.succeed()
            both = [await _read_all(first), await _read_all(second)]
    assert both[0] == both[1] or both[0][1:] == both[1][1:]  # `queued` tells another position
    end_id = both[0][-1].id
    assert end_id is not None
    async with _submitting(served, **key, **{"Last-Event-ID": str((await author.log())[1].id)}) as third:
        assert [frame.event for frame in await _read_all(third)] == ["delta", "succeeded"]
    async with _submitting(served, **key, **{"Last-Event-ID": end_id}) as fourth:
        assert fourth.status == 204


async def test_a_submit_can_wait_for_its_end(served: Served, runtime: Runtime) -> None:
    """``Prefer: wait``: 200 with the result when it ends in time, 202 when it does not."""
    waiting = asyncio.create_task(
        ask(served.url, "/v1/jobs", method="POST", headers={"Prefer": "wait=20"}, body={"prompt": "Why?"})
    )
    await wait_until(lambda: served.relay.follower_count == 1, "the watch")
    await wait_until(lambda: _is_waiting(runtime), "the job")
    author = await Author.claim_next(runtime)
    await author.say("Blue")
    await author.succeed()
    status, job, headers = await waiting
    assert (status, job["status"], job["result"]["text"]) == (200, "succeeded", "Blue")
    assert headers["preference-applied"] == "wait=20"
    assert served.relay.follower_count == 0

    status, job, headers = await ask(
        served.url, "/v1/jobs", method="POST", headers={"Prefer": "wait=1"}, body={"prompt": "Why?"}
    )
    assert (status, job["status"]) == (202, "queued")
    assert served.relay.follower_count == 0


async def _is_waiting(runtime: Runtime) -> bool:
    return (await runtime.queue.depth())["queued"] > 0  # type: ignore[index]


async def test_a_read_can_wait_for_the_end(served: Served, runtime: Runtime, author: Author) -> None:
    """``?wait=`` answers when the job ends, and at once when it has ended."""
    path = f"/v1/jobs/{author.job_id}?wait=20"
    waiting = [asyncio.create_task(ask(served.url, path)) for _ in range(10)]
    await wait_until(lambda: served.relay.follower_count == 10, "the watches")
    await author.say("Blue")
    await author.succeed()
    for task in waiting:
        status, job, _ = await task
        assert (status, job["status"]) == (200, "succeeded")
    status, job, _ = await ask(served.url, path)
    assert (status, job["result"]["text"]) == (200, "Blue")


async def test_a_wait_outlives_a_lost_last_message(
    serve: Serve, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe finds the end, long before the wait is over."""
    served = await serve(sse_idle_probe_s=0.3)
    waiting = asyncio.create_task(ask(served.url, f"/v1/jobs/{author.job_id}?wait=20"))
    await wait_until(lambda: served.relay.follower_count == 1, "the watch")
    await author.say("Blue")
    monkeypatch.setattr(served.relay._subscriber, "_on_message", lambda *_: None)
    await author.succeed()
    async with asyncio.timeout(5):
        status, job, _ = await waiting
    assert (status, job["status"]) == (200, "succeeded")


async def test_a_wait_takes_any_amount_of_text(serve: Serve, author: Author) -> None:
    """More events than a buffer holds, in one burst: it waits for the end alone."""
    served = await serve(sse_buffer_bytes=1024)
    waiting = asyncio.create_task(ask(served.url, f"/v1/jobs/{author.job_id}?wait=20"))
    await wait_until(lambda: served.relay.follower_count == 1, "the watch")
    await asyncio.gather(*[author.runtime._commands.call("PING")])
    for _ in range(20):
        await author.say(*["0123456789abcdef" * 64] * 20)
    await author.succeed()
    status, job, _ = await waiting
    assert (status, job["status"]) == (200, "succeeded")


async def test_a_stream_says_when_to_come_back_and_that_it_lives(serve: Serve, author: Author) -> None:
    """A jittered ``retry:`` first, ``: ping`` while nothing happens, and the headers that keep proxies from buffering."""
    served = await serve(sse_ping_s=0.1)
    retries = set()
    for _ in range(8):
        parser = SseFrames()
        async with asking(served.url, f"/v1/jobs/{author.job_id}/events") as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store, no-transform"
            assert answer.headers["x-accel-buffering"] == "no"
            assert "content-encoding" not in answer.headers
            while parser.comments.count("ping") < 2:
                parser.feed(await answer.read_some())
        assert parser.retry_ms is not None
        retries.add(parser.retry_ms)
    assert all(1_000 <= retry <= 3_000 for retry in retries)
    assert len(retries) > 1
