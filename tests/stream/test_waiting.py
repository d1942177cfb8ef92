"""Requests that wait for a job's end, and what a stream sends while nothing happens."""

import asyncio

import pytest

from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.author import Author
from tests.support.follower import ask, asking
from tests.support.served import Served
from tests.support.sse_frames import SseFrames
from tests.support.wait import wait_until


async def test_a_read_can_wait_for_the_end(served: Served, runtime: Runtime, author: Author) -> None:
    """``?wait=`` responds when the job ends; at once if it has already ended."""
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
    """The relay's probe of the log finds the end long before the wait is over."""
    served = await serve(sse_idle_probe_s=0.3)
    waiting = asyncio.create_task(ask(served.url, f"/v1/jobs/{author.job_id}?wait=20"))
    await wait_until(lambda: served.relay.follower_count == 1, "the watch")
    await author.say("Blue")
    monkeypatch.setattr(served.relay._subscriber, "_on_message", lambda *_: None)
    await author.succeed()
    async with asyncio.timeout(5):
        status, job, _ = await waiting
    assert (status, job["status"]) == (200, "succeeded")


async def test_a_wait_is_not_cut_off_by_any_amount_of_text(serve: Serve, author: Author) -> None:
    """A burst of more events than a follower's buffer holds: a wait needs only the last one."""
    served = await serve(sse_buffer_bytes=1024)
    waiting = asyncio.create_task(ask(served.url, f"/v1/jobs/{author.job_id}?wait=20"))
    await wait_until(lambda: served.relay.follower_count == 1, "the watch")
    await asyncio.gather(*[author.runtime._commands.call("PING")])
    for _ in range(20):
        await author.say(*["0123456789abcdef" * 64] * 20)
    await author.succeed()
    status, job, _ = await waiting
    assert (status, job["status"]) == (200, "succeeded")


async def test_a_stream_sends_a_reconnect_time_and_pings(serve: Serve, author: Author) -> None:
    """First a jittered ``retry:``, then ``: ping`` while nothing happens; its headers keep proxies from buffering."""
    served = await serve(sse_ping_s=0.1)
    retries = set()
    for _ in range(8):
        parser = SseFrames()
        async with asking(served.url, f"/v1/jobs/{author.job_id}/events") as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-store, no-transform"
            assert response.headers["x-accel-buffering"] == "no"
            assert "content-encoding" not in response.headers
            while parser.comments.count("ping") < 2:
                parser.feed(await response.read_some())
        assert parser.retry_ms is not None
        retries.add(parser.retry_ms)
    assert all(1_000 <= retry <= 3_000 for retry in retries)
    assert len(retries) > 1
