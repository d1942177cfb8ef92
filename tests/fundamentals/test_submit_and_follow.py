"""Submit a job and follow its tokens in the same request, or wait for its end.

`Author` stands in for the worker: a test decides which event is appended to the job's log, and when.
"""

import asyncio
import json
from typing import Any

import pytest

from shared.store.runtime import Runtime
from tests.support.author import Author
from tests.support.follower import Connection, Follower, Response, ask, asking
from tests.support.served import Served
from tests.support.sse_frames import Frame, SseFrames
from tests.support.story import assert_saw
from tests.support.wait import wait_until

_STREAM = {"Accept": "text/event-stream"}


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_submit_that_follows_sees_every_event(served: Served, runtime: Runtime, form: str) -> None:
    """The response is a 200 with the job's Location; it streams `queued`, then each event of the log."""
    await served.api.runtime.waits.look()
    async with _submitting(served, f"/v1/jobs?format={form}") as response:
        assert response.status == 200
        job_id = response.headers["location"].removeprefix("/v1/jobs/")
        author = await Author.claim_next(runtime)
        assert author.job_id == job_id
        await author.open()
        await author.say("Blue", " light")
        await author.succeed()
        frames = await _read_all(response)
    assert json.loads(frames[0].data) == {
        "job_id": job_id,
        "queue_position": None,
        "waiting_for": [{"reason": "no_worker"}],  # the author, which takes a worker's part, is not known as one
    }
    follower = Follower([served.url], job_id, form=form, connections=[Connection(None, 200, frames)])
    assert_saw(follower, await author.log())
    assert follower.text == "Blue light"


async def test_a_repeated_submit_follows_the_first_ones_job(served: Served, runtime: Runtime) -> None:
    """From the first event, or after the client's Last-Event-ID; 204 if that was the last event."""
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
    assert both[0][0].event == "queued"
    assert both[0][1:] == both[1]  # the second came when the job ran
    end_id = both[0][-1].id
    assert end_id is not None
    async with _submitting(served, **key, **{"Last-Event-ID": str((await author.log())[1].id)}) as third:
        assert [frame.event for frame in await _read_all(third)] == ["delta", "succeeded"]
    async with _submitting(served, **key, **{"Last-Event-ID": end_id}) as fourth:
        assert fourth.status == 204


async def test_a_job_that_ends_before_its_follower_subscribes_is_shown_whole(served: Served, runtime: Runtime) -> None:
    """Events published before the subscription began are read from the log."""

    async def work() -> None:
        while True:
            claims, _ = await runtime.queue.claim("worker-1", count=10, low_count=10, takes_suspect=True)
            for claim in claims:
                author = Author(runtime, claim)
                await author.say("Blue")
                await author.succeed()

    working = asyncio.create_task(work())
    for _ in range(50):
        async with _submitting(served) as response:
            frames = await _read_all(response)
        assert [frame.event for frame in frames] == ["queued", "started", "delta", "succeeded"]
    working.cancel()
    await asyncio.wait([working])


def _submitting(served: Served, path: str = "/v1/jobs", **headers: str) -> Any:
    return asking(served.url, path, method="POST", headers=_STREAM | headers, body={"prompt": "Why?"})


async def _read_all(response: Response) -> list[Frame]:
    parser, frames = SseFrames(), list[Frame]()
    while piece := await response.read_some():
        frames += parser.feed(piece)
    return frames


async def test_a_submit_can_wait_for_its_end(served: Served, runtime: Runtime) -> None:
    """``Prefer: wait``: 200 with the result if the job ends in that time, otherwise 202."""
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
