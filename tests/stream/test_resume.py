"""Reconnecting and coming late: every place from which a follower can resume, and what it sees."""

import asyncio
import json

import pytest

from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.stream.conftest import Follow
from tests.support.author import TENANT, Author
from tests.support.follower import ask, asking, following
from tests.support.served import Served
from tests.support.sse_frames import Frame, SseFrames
from tests.support.store import lose, make_overdue, submit
from tests.support.story import assert_saw, comparable, shown
from tests.support.wait import wait_until


async def _frames(served: Served, path: str, headers: dict[str, str] | None = None) -> tuple[int, list[Frame]]:
    async with asking(served.url, path, headers=headers) as response:
        body = await response.read()
        return response.status, SseFrames().feed(body)


async def _write_an_answer(author: Author) -> None:
    await author.open()
    await author.say("Blue", " light")
    await author.say(" is scattered")


async def test_the_last_event_id_header_overrides_the_query(author: Author, served: Served) -> None:
    """When a browser reconnects it sends the header, and keeps its original URL."""
    await _write_an_answer(author)
    await author.succeed()
    log = await author.log()
    path = f"/v1/jobs/{author.job_id}/events?after={log[0].id}"
    _, by_query = await _frames(served, path)
    assert comparable(by_query) == comparable(shown(log[1:], "text"))
    _, by_header = await _frames(served, path, {"Last-Event-ID": str(log[2].id)})
    assert comparable(by_header) == comparable(shown(log[3:], "text"))


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1", "1-1-1", "٣-٣", "1" * 16 + "-0", "0x1-0", "1-0\x01"])
async def test_an_invalid_event_id_is_refused(author: Author, served: Served, cursor: str) -> None:
    """The response is a 400, not a stream."""
    path = f"/v1/jobs/{author.job_id}/events"
    async with asking(served.url, path, headers={"Last-Event-ID": cursor}) as response:
        body = await response.read()
    assert response.status == 400
    if not cursor.endswith("\x01"):  # uvicorn's HTTP parser refuses that one
        assert json.loads(body)["code"] == "invalid_cursor"


async def test_after_now_shows_only_later_events(author: Author, served: Served) -> None:
    """Neither `queued` nor any earlier event."""
    await _write_an_answer(author)
    written = len(await author.log())
    path = f"/v1/jobs/{author.job_id}/events?after=now"
    async with asking(served.url, path) as response:
        parser = SseFrames()
        frames = parser.feed(await response.read_some())  # its first byte shows that the follower's position is fixed
        await author.say(" at dusk")
        await author.succeed()
        while piece := await response.read_some():
            frames += parser.feed(piece)
    log = await author.log()
    assert comparable(frames) == comparable(shown(log[written:], "text"))
    assert [frame.event for frame in frames] == ["delta", "succeeded"]


async def test_after_now_of_an_ended_job_still_shows_the_end(author: Author, served: Served) -> None:
    """A follower that comes too late for anything else sees how the job ended."""
    await _write_an_answer(author)
    await author.succeed()
    _, frames = await _frames(served, f"/v1/jobs/{author.job_id}/events?after=now")
    assert frames[-1].event == "succeeded"


async def test_a_follower_can_resume_inside_an_older_attempt(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """It sees the rest of the dead attempt, then `started`, `reset` and the new attempt."""
    await author.say("Blue", " light")
    cursor = str((await author.log())[1].id)
    await lose(runtime, author.claim)
    second = await Author.claim_next(runtime)
    await second.say("Air")
    await second.succeed()
    follower = await follower_of(author.job_id, last_event_id=cursor).follow()
    assert_saw(follower, await second.log(), after=cursor)
    assert [frame.event for frame in follower.frames] == ["delta", "started", "reset", "delta", "succeeded"]
    assert json.loads(follower.frames[2].data) == {"attempt": 2, "reason": "worker_lost"}
    assert follower.text == "Air"


async def test_without_an_id_a_follower_begins_with_the_newest_attempt(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """It sees all from `started`, which has the attempt's number; not `queued`, since the job does not wait."""
    await author.say("Blue")
    await lose(runtime, author.claim)
    second = await Author.claim_next(runtime)
    await second.say("Air")
    await second.succeed()
    follower = await follower_of(author.job_id).follow()
    assert [frame.event for frame in follower.frames] == ["started", "reset", "delta", "succeeded"]
    assert json.loads(follower.frames[0].data) == {"attempt": 2}
    assert follower.ids[0] == f"{second.claim.epoch}-0"


@pytest.mark.parametrize("has_ended", [False, True])
async def test_an_id_that_was_lost_with_the_logs_tail_is_reset(
    author: Author, follower_of: Follow, has_ended: bool
) -> None:
    """The id is ahead of the log, because Redis has lost its last second."""
    await _write_an_answer(author)
    if has_ended:
        await author.succeed()
    ahead = f"{author.claim.epoch}-{author.seq + 50}"
    follower = follower_of(author.job_id, last_event_id=ahead)
    if not has_ended:
        await author.succeed()
    await follower.follow()
    first, *rest = follower.frames
    assert (first.event, first.id) == ("reset", None)
    assert json.loads(first.data) == {"attempt": 1, "reason": "log_rolled_back"}
    assert comparable(rest) == comparable(shown(await author.log(), "text"))
    assert follower.text == "Blue light is scattered"


async def test_an_id_that_no_attempt_had_is_reset(author: Author, follower_of: Follow) -> None:
    """The id lies between those of the log."""
    await _write_an_answer(author)
    await author.succeed()
    follower = await follower_of(author.job_id, last_event_id=f"{author.claim.epoch - 5}-3").follow()
    first, *rest = follower.frames
    assert (first.event, first.id, json.loads(first.data)["reason"]) == ("reset", None, "cursor_trimmed")
    assert comparable(rest) == comparable(shown(await author.log(), "text"))


async def test_an_id_of_a_job_that_never_started_is_reset(runtime: Runtime, follower_of: Follow) -> None:
    """The id is another job's, or of a claim that Redis lost; the follower begins from the start."""
    submitted = await submit(runtime, tenant=TENANT)
    follower = follower_of(submitted.id, last_event_id="1795442531900-3")
    task = await following(follower, is_waiting=True)
    writer = await Author.claim_next(runtime)
    await writer.say("Air")
    await writer.succeed()
    await task
    assert [frame.event for frame in follower.frames] == ["reset", "started", "delta", "succeeded"]
    assert json.loads(follower.frames[0].data)["reason"] == "log_rolled_back"


async def _forget_log(runtime: Runtime, job_id: str) -> None:
    await runtime._commands.call("DEL", redis_keys.log(job_id))


async def test_after_the_log_is_deleted_a_snapshot_has_the_whole_answer(
    runtime: Runtime, author: Author, served: Served, follower_of: Follow
) -> None:
    """`snapshot` replaces all text events; then comes the end. A follower that had some text gets `reset` first."""
    await _write_an_answer(author)
    cursor = str((await author.log())[2].id)
    await author.succeed()
    end_id = str((await author.log())[-1].id)
    await _forget_log(runtime, author.job_id)

    fresh = await follower_of(author.job_id).follow()
    assert [frame.event for frame in fresh.frames] == ["snapshot", "succeeded"]
    assert fresh.text == "Blue light is scattered"
    assert fresh.ids == [end_id]

    back = await follower_of(author.job_id, last_event_id=cursor).follow()
    assert [frame.event for frame in back.frames] == ["reset", "snapshot", "succeeded"]
    assert json.loads(back.frames[0].data)["reason"] == "cursor_trimmed"
    assert back.text == "Blue light is scattered"

    assert (await follower_of(author.job_id, last_event_id=end_id).follow_once()).status == 204
    _, late = await _frames(served, f"/v1/jobs/{author.job_id}/events?after=now")
    assert late[-1].event == "succeeded"


async def test_after_the_log_of_a_failure_is_deleted_its_end_is_shown(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """There is no text to show, only the terminal event with the job and its error."""
    await _write_an_answer(author)
    await author.fail()
    await _forget_log(runtime, author.job_id)
    follower = await follower_of(author.job_id).follow()
    assert [frame.event for frame in follower.frames] == ["failed"]
    assert json.loads(follower.frames[-1].data)["error"]["code"] == "upstream_error"


async def test_a_job_that_is_gone_is_not_found(runtime: Runtime, author: Author, served: Served) -> None:
    """The job was erased, or its retention is over."""
    await author.succeed()
    status, _, _ = await ask(served.url, f"/v1/jobs/{author.job_id}", method="DELETE")
    assert status == 204
    status, _, _ = await ask(served.url, f"/v1/jobs/{author.job_id}/events")
    assert status == 404


@pytest.mark.parametrize("how", ["expired", "cancelled"])
async def test_every_follower_sees_the_end_of_a_job_that_never_started(
    runtime: Runtime, served: Served, follower_of: Follow, how: str
) -> None:
    """Such a job has no log: live followers get a message, late ones the record, and those who saw the end 204."""
    submitted = await submit(runtime, tenant=TENANT)
    followers = [follower_of(submitted.id) for _ in range(3)]
    tasks = [await following(follower, is_waiting=True) for follower in followers]
    if how == "cancelled":
        await ask(served.url, f"/v1/jobs/{submitted.id}/cancel", method="POST")
    else:
        await make_overdue(runtime, submitted.id)
        await runtime.jobs.expire()
    late = follower_of(submitted.id)
    assert [frame.event for frame in (await late.follow()).frames] == [how]
    for follower in await asyncio.gather(*tasks):
        assert [frame.event for frame in follower.frames] == ["queued", how]
        assert json.loads(follower.frames[-1].data)["status"] == how
        assert len(follower.ids) == 1
    assert len({follower.ids[0] for follower in [*followers, late]}) == 1
    again = follower_of(submitted.id, last_event_id=late.ids[0])
    assert (await again.follow_once()).status == 204


async def test_a_follower_sees_a_retry_inside_the_claim(author: Author, follower_of: Follow) -> None:
    """It sees `retry`, then `reset`, with rising ids of the same claim; the text is the last attempt's."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.say("Blue", " light")
    await wait_until(lambda: follower.text == "Blue light", "the first attempt")
    await author.try_again(2)
    await wait_until(lambda: follower.text == "", "the reset")
    await author.say("Air")
    await author.succeed()
    await task
    assert_saw(follower, await author.log())
    assert [frame.event for frame in follower.frames if frame.id] == [
        "started",
        "delta",
        "delta",
        "retry",
        "reset",
        "delta",
        "succeeded",
    ]
    assert follower.text == "Air"


async def test_a_takeover_before_any_text_resets_nothing(runtime: Runtime, author: Author, follower_of: Follow) -> None:
    """The followers hold no text to discard."""
    await lose(runtime, author.claim)
    second = await Author.claim_next(runtime)
    await second.say("Air")
    await second.succeed()
    follower = await follower_of(author.job_id, last_event_id=f"{author.claim.epoch}-0").follow()
    assert [frame.event for frame in follower.frames] == ["started", "delta", "succeeded"]


async def test_the_last_takeover_ends_the_job_for_its_followers(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """The third worker that a job kills makes it fail, and its event says so."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.say("Blue")
    await lose(runtime, author.claim)
    for _ in range(2):
        writer = await Author.claim_next(runtime)
        await writer.say("Again")
        await lose(runtime, writer.claim)
    await task
    assert_saw(follower, await author.log())
    assert follower.frames[-1].event == "failed"
    assert json.loads(follower.frames[-1].data)["error"]["code"] == "worker_lost"


async def test_a_deferred_retry_has_an_event_outside_any_claim(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """The job returns to the queue until its next attempt: `retry` has its own epoch, then comes the new attempt."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.say("Blue")
    retry = b'{"attempt":2,"reason":"upstream_overloaded","delay_ms":1}'
    await runtime.queue.release(author.claim, reason="upstream_failed", failures=1, retry_event=retry)
    await wait_until(lambda: any(frame.event == "retry" for frame in follower.frames), "`retry`")
    second = await Author.claim_next(runtime)
    await second.say("Air")
    await second.succeed()
    await task
    assert_saw(follower, await second.log())
    assert follower.text == "Air"
