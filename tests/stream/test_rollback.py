"""Redis loses its last second, as after a power cut: followers see a reset or nothing, and never doubled text."""

import asyncio
import json
from pathlib import Path

import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.store.runtime import Runtime
from tests.stream.conftest import Follow
from tests.support.author import TENANT, Author
from tests.support.builders import a_text_delta
from tests.support.follower import Follower, following
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import append, claim_one, expire_leases, lose, submit
from tests.support.story import assert_orderly, assert_saw, comparable, shown
from tests.support.wait import wait_until


@pytest.fixture
def redis_under_test(own_server: EmbeddedRedis) -> RedisUnderTest:
    """A server whose append-only file the test can cut."""
    return RedisUnderTest(own_server.url)


def _file(server: EmbeddedRedis) -> Path:
    (path,) = (server.directory / "appendonlydir").glob("*.incr.aof")
    return path


def _size(server: EmbeddedRedis) -> int:
    """The size of the file, which Redis writes before each reply, whatever the fsync policy."""
    return _file(server).stat().st_size


async def _roll_back(server: EmbeddedRedis, runtime: Runtime, size: int) -> None:
    server.kill()
    with _file(server).open("r+b") as file:
        file.truncate(size)
    server.restart()
    await wait_until(runtime.ping, "Redis")


def _resets(follower: Follower) -> list[str]:
    return [json.loads(frame.data)["reason"] for frame in follower.frames if frame.event == "reset"]


async def test_a_worker_sends_a_lost_tail_again_and_followers_notice_nothing(
    own_server: EmbeddedRedis, author: Author, follower_of: Follow
) -> None:
    """The follower does not see events twice, and the log is complete again."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    await author.say("Blue", " light")
    size = _size(own_server)
    await author.say(" is", " scattered")
    await wait_until(lambda: follower.text == "Blue light is scattered", "the text")
    whole = await author.log()
    await _roll_back(own_server, author.runtime, size)
    assert len(await author.log()) == len(whole) - 2
    expected = await append(author.runtime, author.claim, a_text_delta(" most"), seq=author.seq)
    assert expected == author.seq - 2  # refused: the worker must send again from there
    await append(
        author.runtime,
        author.claim,
        *[a_text_delta(text) for text in (" is", " scattered", " most")],
        seq=expected,
    )
    author.said.append(" most")
    author.seq += 1
    await author.succeed()
    await task
    assert_saw(follower, await author.log())
    assert follower.text == "Blue light is scattered most"
    assert _resets(follower) == []


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_claim_that_redis_forgot_takes_its_text_with_it(
    own_server: EmbeddedRedis, runtime: Runtime, follower_of: Follow, is_cut: bool
) -> None:
    """The record does not know the text that followers saw, so they get `reset`, cut or not."""
    submitted = await submit(runtime, tenant=TENANT)
    size = _size(own_server)
    first = Author(runtime, await claim_one(runtime))
    follower = follower_of(submitted.id)
    task = await following(follower)
    await first.say("Blue", " light")
    await wait_until(lambda: follower.text == "Blue light", "the text")
    if is_cut:
        task.cancel()
        await asyncio.wait([task])
    await _roll_back(own_server, runtime, size)
    second = Author(runtime, await claim_one(runtime))
    await second.say("Air")
    if is_cut:
        task = asyncio.create_task(follower.follow())
    await second.succeed()
    await task
    assert follower.text == "Air"
    assert _resets(follower) in (["log_rolled_back"], ["cursor_trimmed"])
    assert_orderly(follower)
    seen = [frame for frame in follower.frames if frame.id and frame.id.startswith(str(second.claim.epoch))]
    assert comparable(seen) == comparable(shown(await second.log(), "text"))


async def test_followers_discard_text_that_redis_forgot_at_the_takeover(
    own_server: EmbeddedRedis, runtime: Runtime, author: Author, follower_of: Follow
) -> None:
    """Redis knows the claim but not its text, and the worker has died: the record alone shows nothing to reset."""
    follower = follower_of(author.job_id)
    task = await following(follower)
    size = _size(own_server)
    await author.say("Blue")
    await wait_until(lambda: follower.text == "Blue", "the text")
    await _roll_back(own_server, runtime, size)
    await expire_leases(runtime, author.job_id)
    await lose(runtime, author.claim)
    second = await Author.claim_next(runtime)
    await second.say("Air")
    await second.succeed()
    await task
    assert follower.text == "Air"
    assert_orderly(follower)
