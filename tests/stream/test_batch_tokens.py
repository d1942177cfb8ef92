"""Every item's events of a batch on one connection: each item is complete, whatever happens to the connections."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from shared.batch import Batch
from shared.job import JobState
from shared.store import redis_keys
from shared.store.runtime import Runtime
from simulator.app import Simulator, running
from tests.stream.conftest import Serve
from tests.support.author import Author
from tests.support.batch_follower import BatchFollower
from tests.support.batches import a_batch, run_all
from tests.support.facts import Fact
from tests.support.faults import every_pubsub_connection_cut
from tests.support.follower import Cut, asking
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served
from tests.support.store import all_keys
from tests.support.wait import wait_until
from tests.support.working import working

_SLOW = "sim-t120-g15-f10"
"""About two seconds."""
_BEGUN = 4
"""Items that a worker runs at once even with a busy loop: here it shares the loop with the API and the simulator."""
_PIECE = "0123456789abcdef" * 256  # 4 KiB


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with running() as simulator:
        yield simulator


def _request(number: int) -> bytes:
    content = f"nonce=n{number} please"
    return msgspec.json.encode({"model": _SLOW, "max_tokens": 1000, "messages": [{"role": "user", "content": content}]})


async def _streaming_batch(runtime: Runtime, count: int) -> Batch:
    return await a_batch(runtime, count, model=_SLOW, requests=[_request(number) for number in range(count)])


async def _assert_tells_all(follower: BatchFollower, runtime: Runtime, batch: Batch) -> None:
    """Every item once, with its end, and its text is its result."""
    ids = [job_id for job_id in await runtime.batches.item_ids(batch.id, 0, 10_000) if job_id]
    jobs = [await runtime.jobs.get(job_id, batch.tenant, with_result=True) for job_id in ids]
    assert set(follower.items) <= set(ids)
    for job in jobs:
        seen = follower.items[job.id]
        assert seen.custom_id == job.spec.custom_id
        assert len(seen.ends) == 1, f"{job.id}: {seen.names}"
        assert seen.names[-1] == job.state
        (end,) = seen.ends
        assert end["id"] == job.id
        if job.state is JobState.SUCCEEDED:
            assert job.result is not None
            text = msgspec.json.decode(bytes(job.result))["text"]
            assert seen.text == text
            assert end["result"]["text"] == text


async def _all_run(runtime: Runtime, count: int) -> None:
    async def do_run() -> bool:
        number: int = await runtime._commands.call("ZCARD", redis_keys.plain("running"))
        return number >= count

    await wait_until(do_run, f"{count} running items")


async def test_every_item_of_a_batch_is_complete(
    served: Served,
    runtime: Runtime,
    simulator: Simulator,
    redis_under_test: RedisUnderTest,
    fact: Fact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twenty items, as many at once as the worker runs on this busy loop.

    Followers come at the start and in the middle, in each format. Their connections are cut at any byte, and the
    subscription is cut again and again.
    """
    batch = await _streaming_batch(runtime, 20)
    followers = [
        BatchFollower([served.url], batch.id, query=f"tokens=true&format={form}")
        for form in ("text", "messages")
        for _ in range(3)
    ]
    staying, broken, late = followers[0::3], followers[1::3], followers[2::3]

    seen_before = {id(follower): 0 for follower in (*staying, *late)}
    """The number of frames before a follower's last connection, once it makes that."""

    async def break_off(follower: BatchFollower) -> BatchFollower:
        for most_bytes in (1, 700, 3000, 2000, 4000, 1500):  # _BEGUN items have more bytes than any of these
            await follower.follow_once(most_bytes=most_bytes)
        seen_before[id(follower)] = len(follower.frames)
        return await follower.follow()

    def is_there(follower: BatchFollower) -> bool:
        before = seen_before.get(id(follower), len(follower.frames))
        return any(frame.event != "progress" for frame in follower.frames[before:])

    async with working(redis_under_test.url, simulator.url, concurrency=40, low_priority_share=1) as worker:
        finish = worker._runtime.queue.finish
        all_are_there = asyncio.Event()

        async def finish_late(*arguments: Any, **named: Any) -> Any:
            await all_are_there.wait()  # who is away at an item's end is not sent it
            return await finish(*arguments, **named)

        monkeypatch.setattr(worker._runtime.queue, "finish", finish_late)
        tasks = [asyncio.create_task(follower.follow()) for follower in staying]
        await _all_run(runtime, _BEGUN)
        tasks += [asyncio.create_task(break_off(follower)) for follower in broken]
        tasks += [asyncio.create_task(follower.follow()) for follower in late]
        await asyncio.sleep(0.3)
        for _ in range(4):
            await every_pubsub_connection_cut(runtime)
            await asyncio.sleep(0.2)
        await wait_until(lambda: all(map(is_there, followers)), "the followers", timeout_s=20)
        all_are_there.set()
        await asyncio.gather(*tasks)
    for follower in followers:
        assert follower.ended is not None
        assert follower.ended["counts"]["succeeded"] == 20
    for follower in (*staying, *late):
        assert follower.connections == 1
        await _assert_tells_all(follower, runtime, batch)
    for follower in broken:
        assert follower.connections == 7
        await _assert_tells_all(follower, runtime, batch)
    fact(
        f"20 items told whole to {len(followers)} followers, over {sum(one.connections for one in followers)} connections"
    )


async def test_a_late_follower_begins_with_snapshots(served: Served, runtime: Runtime) -> None:
    """A snapshot of the newest attempt, then live events. An item that starts later begins with `started`."""
    batch = await a_batch(runtime, 2)
    author = await Author.claim_next(runtime)
    await author.say("thrown ", "away ")
    await author.try_again(2)
    await author.say("Blue ")
    follower = BatchFollower([served.url], batch.id)
    following = asyncio.create_task(follower.follow())
    await wait_until(lambda: "snapshot" in follower.items[author.job_id].names, "the snapshot")
    assert follower.items[author.job_id].text == "Blue "
    await author.say("light.")
    other = await Author.claim_next(runtime)
    await other.say("Green.")
    await author.succeed()
    await other.fail()
    await following
    assert follower.items[author.job_id].names == ["snapshot", "delta", "succeeded"]
    assert follower.items[other.job_id].names == ["started", "delta", "failed"]
    await _assert_tells_all(follower, runtime, batch)


async def test_a_new_attempt_throws_the_text_away(served: Served, runtime: Runtime) -> None:
    batch = await a_batch(runtime, 1)
    author = await Author.claim_next(runtime)
    follower = BatchFollower([served.url], batch.id)
    following = asyncio.create_task(follower.follow())
    await wait_until(lambda: bool(follower.items[author.job_id].names), "the snapshot")
    await author.say("wrong")
    await author.try_again(2)
    await author.say("right")
    await author.succeed()
    await following
    assert follower.items[author.job_id].names == ["snapshot", "delta", "retry", "reset", "delta", "succeeded"]
    await _assert_tells_all(follower, runtime, batch)


async def test_items_that_never_ran_have_an_end_too(served: Served, runtime: Runtime) -> None:
    """A cancelled batch of more items than one portion: every item's end comes before the batch's."""
    batch = await a_batch(runtime, 600)
    author = await Author.claim_next(runtime)
    follower = BatchFollower([served.url], batch.id)
    following = asyncio.create_task(follower.follow())
    await wait_until(lambda: bool(follower.items[author.job_id].names), "the snapshot")
    await runtime.batches.cancel(batch.id, batch.tenant)
    await runtime.batches.advance_all(batch.id)
    await following
    assert len(follower.items) == 600
    await _assert_tells_all(follower, runtime, batch)


async def test_events_that_were_not_published_are_read_from_the_log(served: Served, runtime: Runtime) -> None:
    """The mark of a followed batch is lost, so items publish nothing; followers still see starts and ends."""
    batch = await a_batch(runtime, 30)
    author = await Author.claim_next(runtime)
    follower = BatchFollower([served.url], batch.id)
    following = asyncio.create_task(follower.follow())
    await wait_until(lambda: bool(follower.items[author.job_id].names), "the snapshot")
    await runtime._commands.call("DEL", redis_keys.batch_followed(batch.id))
    await author.say("unheard")
    await author.succeed()
    other = await Author.claim_next(runtime)
    await other.say("unheard too")
    await wait_until(lambda: other.job_id in follower.items, "the item that began unheard")
    await runtime._commands.call("DEL", redis_keys.batch_followed(batch.id))
    await other.succeed()
    await run_all(runtime, "never in a log")
    for name in await all_keys(runtime._commands):
        if name.startswith(redis_keys.log("")) and not name.endswith(other.job_id):
            await runtime._commands.call("DEL", name)
    await following
    await _assert_tells_all(follower, runtime, batch)


async def test_no_event_of_an_item_is_told_when_nobody_asks(served: Served, runtime: Runtime) -> None:
    batch = await a_batch(runtime, 1)
    follower = BatchFollower([served.url], batch.id, query="tokens=false")
    following = asyncio.create_task(follower.follow())
    await wait_until(lambda: bool(follower.progress), "the first progress")
    author = await Author.claim_next(runtime)
    await author.say("Blue")
    assert await runtime._commands.call("EXISTS", redis_keys.batch_followed(batch.id)) == 0
    await author.succeed()
    await following
    assert follower.items == {}


async def test_a_client_that_does_not_read_is_cut_and_can_reconnect(serve: Serve, runtime: Runtime) -> None:
    """Nobody else is delayed; after reconnecting it has everything."""
    served = await serve(sse_buffer_bytes=128 << 10)
    batch = await a_batch(runtime, 1)
    author = await Author.claim_next(runtime)
    reading, slow = BatchFollower([served.url], batch.id), BatchFollower([served.url], batch.id)
    following = asyncio.create_task(reading.follow())
    stop = asyncio.Event()

    async def read_late() -> str:
        async with asking(served.url, f"/v1/batches/{batch.id}/events?tokens=true", receive_buffer=4096) as response:
            await stop.wait()
            try:
                await response.read()
            except Cut:
                return "cut"
        return "whole"

    late = asyncio.create_task(read_late())
    relay = served.api.batch_relay
    await wait_until(lambda: relay.follower_count == 2, "both followers")
    await wait_until(lambda: bool(reading.items[author.job_id].names), "the snapshot")
    for _ in range(6000):
        if relay.follower_count < 2:
            break
        await author.say(_PIECE)
    assert relay.follower_count == 1
    stop.set()
    assert await late == "cut"
    following_again = asyncio.create_task(slow.follow())
    await wait_until(lambda: bool(slow.items[author.job_id].names), "the snapshot")
    await author.say("the end")
    await author.succeed()
    await asyncio.gather(following, following_again)
    assert reading.connections == 1
    await _assert_tells_all(reading, runtime, batch)
    await _assert_tells_all(slow, runtime, batch)
