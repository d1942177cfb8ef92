"""Clients that read slowly or not at all: each costs a bounded buffer, and no one else anything."""

import asyncio

from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.author import Author
from tests.support.facts import Fact
from tests.support.follower import Connection, Cut, Follower, Response, asking, following
from tests.support.served import Served
from tests.support.sse_frames import Frame, SseFrames
from tests.support.story import assert_saw
from tests.support.wait import wait_until

_PIECE = "0123456789abcdef" * 256  # 4 KiB
_MOST_PIECES = 6000
_SMALL = 4096


async def _write_until_cut(author: Author, served: Served, *, followers: int) -> float:
    """Returns the longest time that an append took."""
    loop = asyncio.get_running_loop()
    slowest_s = 0.0
    for _ in range(_MOST_PIECES):
        if served.relay.follower_count <= followers:
            return slowest_s
        begun_s = loop.time()
        await author.say(_PIECE)
        slowest_s = max(slowest_s, loop.time() - begun_s)
    raise AssertionError("a client that does not read was never cut")


async def test_a_client_that_does_not_read_is_cut_and_others_are_not_delayed(
    serve: Serve, runtime: Runtime, author: Author, fact: Fact
) -> None:
    """It is cut when 128 KiB wait for it; followers of the same job, or of another, are not delayed."""
    served = await serve(sse_buffer_bytes=128 << 10)
    loop = asyncio.get_running_loop()
    other = await Author.start(runtime)
    same, apart = Follower([served.url], author.job_id), Follower([served.url], other.job_id)
    tasks = [await following(same), await following(apart)]
    path = f"/v1/jobs/{author.job_id}/events"
    async with asking(served.url, path, receive_buffer=_SMALL) as slow:
        await wait_until(lambda: served.relay.follower_count == 3, "the slow client")
        writing = asyncio.create_task(_write_until_cut(author, served, followers=2))
        delays: list[float] = []
        while not writing.done():
            said_s = loop.time()
            await other.say("word ")
            last_id = str((await other.log())[-1].id)
            await wait_until(lambda shown=last_id: shown in apart.at_s, "the other job's word")  # type: ignore[misc]
            delays.append(loop.time() - said_s)
            await asyncio.sleep(0)
        await writing
        frames = await _read_all(slow)
    await author.succeed()
    await other.succeed()
    await asyncio.gather(*tasks)
    log = await author.log()
    assert_saw(same, log)
    assert_saw(apart, await other.log())
    assert [len(follower.connections) for follower in (same, apart)] == [1, 1]
    fact(f"beside a client that does not read: slowest of {len(delays)} words {max(delays) * 1000:.0f} ms")
    assert max(delays) < 2

    cut = Follower([served.url], author.job_id)
    cut.connections.append(Connection(None, 200, frames))
    cut.last_event_id = next(frame.id for frame in reversed(frames) if frame.id)
    await cut.follow()
    assert_saw(cut, log)


async def _read_all(response: Response) -> list[Frame]:
    """The frames that the server sent before it cut the connection; there is no clean end."""
    parser, frames = SseFrames(), list[Frame]()
    try:
        while piece := await response.read_some():
            frames += parser.feed(piece)
    except Cut:
        return frames
    raise AssertionError("a cut stream looked like a whole one")


async def test_a_client_that_never_reads_leaves_nothing_behind(serve: Serve, author: Author) -> None:
    """It neither reads nor disconnects; the API closes its connection and discards what waited for it."""
    served = await serve(sse_buffer_bytes=64 << 10)
    path = f"/v1/jobs/{author.job_id}/events"
    async with asking(served.url, path, receive_buffer=_SMALL):
        await wait_until(lambda: served.relay.follower_count == 1, "the slow client")
        await _write_until_cut(author, served, followers=0)
        await wait_until(lambda: not served.server.server_state.connections, "the close of its connection")


async def test_a_client_that_stops_reading_a_replay_is_cut_in_time(serve: Serve, author: Author) -> None:
    """The job has ended and no event follows; the pings reveal that the client does not read."""
    for _ in range(2000):
        await author.say(_PIECE)
    await author.succeed()
    served = await serve(sse_ping_s=0.2)
    path = f"/v1/jobs/{author.job_id}/events"
    async with asking(served.url, path, receive_buffer=_SMALL):
        await wait_until(lambda: served.relay.follower_count == 0, "the cut")
        await wait_until(lambda: not served.server.server_state.connections, "the close of its connection")


async def test_a_slow_client_that_reads_is_not_cut(serve: Serve, author: Author) -> None:
    """A slow reader gets a long replay completely: a response that takes long is not one that nobody reads."""
    for _ in range(600):
        await author.say(_PIECE)
    await author.succeed()
    served = await serve(sse_ping_s=0.2)
    path = f"/v1/jobs/{author.job_id}/events"
    parser, frames = SseFrames(), list[Frame]()
    async with asking(served.url, path, receive_buffer=65_536) as response:
        while piece := await response.read_some():
            frames += parser.feed(piece)
            await asyncio.sleep(0.005)
    assert frames[-1].event == "succeeded"
    assert sum(frame.event == "delta" for frame in frames) == 600
