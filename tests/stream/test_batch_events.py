"""Following a batch's progress: at once, on change, and to its end."""

import asyncio
import json

from shared.clock import from_rfc3339
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.batch_follower import BatchFollower
from tests.support.batches import a_batch, run_all, succeed
from tests.support.follower import ask, asking
from tests.support.served import Served
from tests.support.store import claim
from tests.support.wait import wait_until


async def test_progress_is_sent_at_once_on_change_and_at_the_end(served: Served, runtime: Runtime) -> None:
    """The last event equals a read of the batch."""
    batch = await a_batch(runtime, 6, invalid=[6])
    follower = BatchFollower([served.url], batch.id, query="")
    following = asyncio.create_task(follower.follow())
    await wait_until(lambda: len(follower.progress) == 1, "the first progress")
    first = follower.progress[0]
    counts = first["counts"]
    assert (counts["total"], counts["queued"], counts["failed"]) == (6, 5, 1)
    assert (first["rate_per_s"], first["estimated_end_at"]) == (None, None)
    for claimed in await claim(runtime, 3):
        await succeed(runtime, claimed)
    await wait_until(lambda: follower.progress[-1]["counts"]["succeeded"] == 3, "the change")
    await run_all(runtime)
    await following
    assert follower.progress[-1]["counts"]["succeeded"] == 5
    _, read, _ = await ask(served.url, f"/v1/batches/{batch.id}")
    assert follower.ended == read
    assert {frame.event for frame in follower.frames} == {"progress", "ended"}
    await wait_until(lambda: served.api.batch_relay.follower_count == 0, "the watch to close")


async def test_a_batch_that_has_ended_is_sent_at_once(served: Served, runtime: Runtime) -> None:
    """With tokens or without."""
    batch = await a_batch(runtime, 2)
    await run_all(runtime)
    for query in ("", "tokens=true"):
        follower = BatchFollower([served.url], batch.id, query=query)
        assert await follower.follow_once() == "ended"
        assert [frame.event for frame in follower.frames] == ["progress", "ended"]


async def test_a_client_that_has_seen_the_end_gets_204(served: Served, runtime: Runtime) -> None:
    """A browser's EventSource reconnects after every end, with the id of the last event; only a 204 stops it."""
    batch = await a_batch(runtime, 2)
    await run_all(runtime)
    path = f"/v1/batches/{batch.id}/events"
    for query in ("", "?tokens=true"):
        follower = BatchFollower([served.url], batch.id, query=query[1:])
        assert await follower.follow_once() == "ended"
        end_id = follower.frames[-1].id
        assert end_id is not None
        assert await follower_after(served, path + query, end_id) == 204
        for other in ("1-0", f"{end_id}1"):
            assert await follower_after(served, path + query, other) == 200
        assert await follower_after(served, path + query, "") == 200
        assert await follower_after(served, path + query, "ended") == 400


async def follower_after(served: Served, path: str, seen: str) -> int:
    """The status of the response to a client with that Last-Event-ID."""
    async with asking(served.url, path, headers={"Last-Event-ID": seen}) as response:
        return response.status


async def test_the_id_of_an_end_is_not_believed_before_the_end(served: Served, runtime: Runtime) -> None:
    """Whatever a client claims to have seen, it gets the progress of a running batch."""
    batch = await a_batch(runtime, 2)
    assert await follower_after(served, f"/v1/batches/{batch.id}/events", "1795442531900-0") == 200


async def test_progress_has_a_rate_and_an_estimated_end(served: Served, runtime: Runtime) -> None:
    """After the batch was watched for a second."""
    batch = await a_batch(runtime, 1000)
    follower = BatchFollower([served.url], batch.id, query="")
    following = asyncio.create_task(follower.follow())

    def has_estimate() -> bool:
        return bool(follower.progress) and follower.progress[-1]["estimated_end_at"] is not None

    async def one_more() -> bool:
        for claimed in await claim(runtime, 1):
            await succeed(runtime, claimed)
        return has_estimate()

    await wait_until(one_more, "an estimate")
    newest = follower.progress[-1]
    assert newest["rate_per_s"] > 0
    assert from_rfc3339(newest["estimated_end_at"]) > batch.created_ms
    await run_all(runtime)
    await following
    assert follower.progress[-1]["estimated_end_at"] is None


async def test_all_followers_of_a_batch_share_one_poll(served: Served, runtime: Runtime) -> None:
    """Fifty followers of one batch."""
    batch = await a_batch(runtime, 2)
    followers = [BatchFollower([served.url], batch.id, query="") for _ in range(50)]
    tasks = [asyncio.create_task(follower.follow()) for follower in followers]
    await wait_until(lambda: served.api.batch_relay.follower_count == 50, "fifty followers")
    assert len(served.api.batch_relay._followed) == 1
    await run_all(runtime)
    await asyncio.gather(*tasks)
    assert len({json.dumps(follower.ended) for follower in followers}) == 1


async def test_an_erased_batch_ends_the_stream(served: Served, runtime: Runtime) -> None:
    """A follower that reconnects gets 404."""
    batch = await a_batch(runtime, 1)
    follower = BatchFollower([served.url], batch.id, query="")
    following = asyncio.create_task(follower.follow_once())
    await wait_until(lambda: bool(follower.progress), "the first progress")
    await runtime._commands.call("HSET", redis_keys.batch(batch.id), "state", "dropped")
    assert await following == "eof"
    status, _, _ = await ask(served.url, f"/v1/batches/{batch.id}/events")
    assert status == 404


async def test_followers_of_batches_reconnect_after_a_shutdown(served: Served, runtime: Runtime) -> None:
    """They reconnect to another API."""
    batch = await a_batch(runtime, 1)
    followers = [BatchFollower([served.url], batch.id, query=query) for query in ("", "tokens=true")]
    tasks = [asyncio.create_task(follower.follow_once()) for follower in followers]
    await wait_until(lambda: all(follower.progress for follower in followers), "the first progress")
    served.api.stop()
    assert await asyncio.gather(*tasks) == ["eof", "eof"]
    for follower in followers:
        assert any("restarting" in comment for comment in follower.comments)


async def test_a_silent_batch_is_pinged(serve: Serve, runtime: Runtime) -> None:
    batch = await a_batch(runtime, 1)
    served = await serve(sse_ping_s=0.05)
    follower = BatchFollower([served.url], batch.id, query="")
    following = asyncio.create_task(follower.follow())
    async with asking(served.url, f"/v1/batches/{batch.id}/events") as response:
        seen = b""
        while seen.count(b": ping") < 3:
            seen += await response.read_some()
    await run_all(runtime)
    await following
