"""The seam between replay and live events, where events could be lost or doubled, tried at every point."""

import asyncio
import random

import pytest

from shared.store.runtime import Runtime
from tests.stream.conftest import Follow
from tests.support.author import Author
from tests.support.follower import Follower
from tests.support.story import assert_saw
from tests.support.wait import wait_until

_WORDS = 40


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_follower_that_comes_at_any_moment_sees_the_whole_log(
    author: Author, follower_of: Follow, form: str
) -> None:
    """A new follower starts before each event, and writing goes on without waiting for it."""
    following: list[asyncio.Task[Follower]] = []
    for number in range(_WORDS):
        following.append(asyncio.create_task(follower_of(author.job_id, form=form).follow()))
        for _ in range(number % 5):
            await asyncio.sleep(0)  # lets the follower reach another point of its subscription
        await author.say(f"word {number} ")
    await author.succeed()
    log = await author.log()
    for follower in await asyncio.gather(*following):
        assert_saw(follower, log)
        assert len(follower.connections) == 1


async def test_a_follower_that_comes_back_with_any_id_at_any_moment_sees_the_rest(
    author: Author, follower_of: Follow
) -> None:
    """Each id so far is a cursor of a new follower, while writing goes on."""
    following: list[tuple[str, asyncio.Task[Follower]]] = []
    for number in range(_WORDS):
        await author.say(f"word {number} ")
        for event in (await author.log())[:: random.choice((1, 2, 3))]:
            cursor = str(event.id)
            following.append((cursor, asyncio.create_task(follower_of(author.job_id, last_event_id=cursor).follow())))
            if len(following) % 7 == 0:
                await asyncio.sleep(0)
        if number % 10 == 9:
            await author.say("and on ")
    await author.succeed()
    log = await author.log()
    for cursor, task in following:
        follower = await task
        assert_saw(follower, log, after=cursor)
        assert len(follower.connections) == 1


async def test_followers_that_come_between_attempts_see_them_in_order(
    runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """Retries inside a claim and hand-backs to the queue in turn, each with a follower at the seam."""
    following = [asyncio.create_task(follower_of(author.job_id).follow())]
    await wait_until(lambda: following[0].done() or author.seq > 0, "a start")
    firsts = [author.claim.epoch]
    writer = author
    for number in range(12):
        await writer.say("one ", "two ")
        following.append(asyncio.create_task(follower_of(author.job_id).follow()))
        if number % 3 == 0:
            await writer.try_again(number + 2)
        elif number % 3 == 1:
            await runtime.queue.release(writer.claim, reason="drained")
            writer = await Author.claim_next(runtime)
            firsts.append(writer.claim.epoch)
        await writer.say("three ")
        following.append(asyncio.create_task(follower_of(author.job_id, form="messages").follow()))
    await writer.succeed()
    log = await writer.log()
    for task in following:
        follower = await task
        first = next(frame for frame in follower.frames if frame.id is not None)
        assert first.event == "started"
        epoch, _, seq = (first.id or "").partition("-")
        assert (int(epoch) in firsts, seq) == (True, "0")
        assert_saw(follower, [event for event in log if event.id and event.id.epoch >= int(epoch)])
        assert follower.text == "".join(writer.said)
