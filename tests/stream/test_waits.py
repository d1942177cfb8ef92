"""What the follower of a waiting job is sent: why it waits, when that changes, and nothing once it runs."""

import asyncio
import itertools
import json
from typing import Any

import pytest

from api.anthropic_compat import message_stream
from shared.events import OurEvent
from shared.store.runtime import Runtime
from tests.stream.conftest import Follow, Serve
from tests.support.author import TENANT, Author
from tests.support.builders import encoded
from tests.support.facts import Fact
from tests.support.follower import Follower, asking, following
from tests.support.served import Served
from tests.support.sse_frames import SseFrames
from tests.support.store import claim, claim_one, look_anew, serve_queue, submit, submit_many
from tests.support.wait import wait_until

_RETRY = encoded({"attempt": 2, "reason": "upstream_error", "delay_ms": 60_000})


def _notices(follower: Follower, name: str = "waiting") -> list[Any]:
    return [json.loads(frame.data) for frame in follower.frames if frame.event == name]


def _reasons(notice: Any) -> list[str]:
    return [reason["reason"] for reason in notice["waiting_for"]]


async def _ready(runtime: Runtime, served: Served) -> None:
    """A worker lives, and the API knows it."""
    await serve_queue(runtime)
    await look_anew(served.api.runtime)


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_follower_is_sent_its_place_while_it_goes_down(
    runtime: Runtime, served: Served, follower_of: Follow, fact: Fact, form: str
) -> None:
    """At most once a second, without ids, and only the newest place; then the job starts, and no more is sent."""
    await _ready(runtime, served)
    ids = await submit_many(runtime, 9, tenant=TENANT)
    follower = follower_of(ids[-1], form=form)
    task = await following(follower, is_waiting=True)
    (queued,) = _notices(follower, "queued")
    turn = [{"reason": "turn", "position": 9}]
    assert queued == {"job_id": ids[-1], "queue_position": 9, "waiting_for": turn}
    loop = asyncio.get_running_loop()
    read_s = [loop.time()]
    for _ in range(8):
        await claim_one(runtime)
        await asyncio.sleep(0.3)
        if len(_notices(follower)) == len(read_s):
            read_s.append(loop.time())
    await wait_until(lambda: bool(_notices(follower)) and _notices(follower)[-1]["queue_position"] == 1, "the front")
    places = [notice["queue_position"] for notice in _notices(follower)]
    assert places == sorted(set(places), reverse=True)
    assert len(places) <= 4
    assert all(later - earlier >= 0.65 for earlier, later in itertools.pairwise(read_s))  # seen every 0.3 s
    author = await Author.claim_next(runtime)
    await author.say("Blue")
    await author.succeed()
    await task
    assert all(frame.id is None for frame in follower.frames if frame.event in ("queued", "waiting"))
    names = [frame.event for frame in follower.frames]
    assert names.index("started") == len(places) + 1
    fact(f"9 places in 2.4 s, format={form}: {len(places)} notices")


async def test_a_new_reason_is_sent_within_two_seconds(runtime: Runtime, served: Served, follower_of: Follow) -> None:
    """A tenant's limit holds its jobs back, and is lifted; `queue_position` is null meanwhile."""
    await _ready(runtime, served)
    await submit(runtime, tenant=TENANT)
    await claim(runtime)
    last = await submit(runtime, tenant=TENANT)
    follower = follower_of(last.id)
    task = await following(follower, is_waiting=True)
    await runtime.tenants.set(TENANT, {"running_jobs": 1})
    await wait_until(lambda: len(_notices(follower)) == 1, "the limit", timeout_s=2.2)
    full = {"reason": "running_jobs", "of": "tenant", "limit": 1, "running": 1}
    assert _notices(follower)[0] == {"job_id": last.id, "queue_position": None, "waiting_for": [full]}
    await runtime.tenants.set(TENANT, {"running_jobs": 0})
    await wait_until(lambda: len(_notices(follower)) == 2, "its end", timeout_s=2.2)
    assert _notices(follower)[1]["queue_position"] == 1
    await asyncio.sleep(1.2)
    assert len(_notices(follower)) == 2, "nothing changed"
    await (await Author.claim_next(runtime)).succeed()
    await task


async def test_a_reattached_follower_of_a_running_job_is_not_sent_queued(author: Author, follower_of: Follow) -> None:
    """It sees the log from `started` on."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.succeed()
    await task
    assert [frame.event for frame in follower.frames] == ["started", "succeeded"]


async def test_a_job_between_two_attempts_waits_for_the_next(
    runtime: Runtime, served: Served, author: Author, follower_of: Follow
) -> None:
    """Its followers are sent the time, also one that comes later with a cursor."""
    await _ready(runtime, served)
    follower = follower_of(author.job_id)
    task = await following(follower)
    assert await runtime.queue.release(
        author.claim, reason="upstream_failed", delay_s=60, failures=1, retry_event=_RETRY, attempts=1
    )
    await wait_until(lambda: bool(_notices(follower)), "the wait", timeout_s=3)
    (notice,) = _notices(follower)
    (retry,) = notice["waiting_for"]
    assert (notice["queue_position"], retry["reason"], retry["attempt"]) == (None, "retry", 2)
    late = follower_of(author.job_id, last_event_id=follower.ids[-1])
    late_task = asyncio.create_task(late.follow())
    await wait_until(lambda: bool(_notices(late)), "the wait of the late one", timeout_s=3)
    assert _notices(late) == [notice]
    await runtime.jobs.cancel(author.job_id, TENANT)
    assert [frame.event for frame in (await late_task).frames] == ["waiting", "cancelled"]
    await task


async def test_a_job_that_a_drain_put_back_waits_for_its_turn(serve: Serve, runtime: Runtime, author: Author) -> None:
    """No event says so: the look at silent logs finds it."""
    served = await serve(sse_idle_probe_s=0.2)
    await _ready(runtime, served)
    follower = Follower([served.url], author.job_id)
    task = await following(follower)
    assert await runtime.queue.release(author.claim, reason="drained")
    await wait_until(lambda: bool(_notices(follower)), "the wait", timeout_s=5)
    assert _notices(follower)[0]["queue_position"] == 1
    await (await Author.claim_next(runtime)).succeed()
    await task
    assert [frame.event for frame in follower.frames] == ["started", "waiting", "started", "succeeded"]


async def test_the_other_surfaces_streams_are_not_sent_it(
    runtime: Runtime, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/v1/messages` and `/complete/stream` have no such event."""
    monkeypatch.setattr(message_stream, "HOLD_S", 0.1)  # its head would come so late, as nobody has begun the answer
    message = {"model": "a-model", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}], "stream": True}
    for path, body in (("/v1/messages", message), ("/complete/stream", {"prompt": "Why?"})):
        async with asking(served.url, path, method="POST", body=body) as response:
            await asyncio.sleep(1.2)  # longer than a look
            author = await Author.claim_next(runtime)
            await author.open()
            await author.say("Blue")
            await author.write(("content_block_stop", encoded({"type": "content_block_stop", "index": 0})))
            await author.succeed()
            frames = SseFrames().feed(await response.read())
        assert not {OurEvent.QUEUED, OurEvent.WAITING} & {frame.event for frame in frames}, path
        assert frames
