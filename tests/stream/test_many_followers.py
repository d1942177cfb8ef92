"""Hundreds of followers in one process: what they share, and what each sees when all are cut at random."""

import asyncio
import random
import resource

import pytest

from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.author import Author
from tests.support.facts import Fact
from tests.support.faults import connections, pubsub_connections
from tests.support.follower import Follower
from tests.support.served import Served
from tests.support.story import assert_saw
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(120)  # takes some seconds; a busy machine needs more


@pytest.fixture(autouse=True)
def enough_files() -> None:
    """Both ends of each connection are in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _cut_and_come_back(follower: Follower, luck: random.Random) -> None:
    """Reads a random number of bytes, is cut there, and reconnects with the last id of a complete frame."""
    while not follower.has_ended:
        connection = await follower.follow_once(most_bytes=luck.choice((1, 200, 600, 1_000, 2_000, 6_000)))
        assert connection.status == 200
        await asyncio.sleep(0)


async def test_two_hundred_followers_cut_at_random_bytes_each_see_the_log(
    runtime: Runtime, served: Served, fact: Fact
) -> None:
    """Ten jobs with twenty followers each, in both formats, cut repeatedly inside heads, frames and chunks."""
    luck = random.Random()  # seeded by pytest-randomly, which prints it
    authors = [await Author.start(runtime) for _ in range(10)]
    followers = [
        Follower([served.url], author.job_id, form=form)
        for author in authors
        for form in ("text", "messages")
        for _ in range(10)
    ]
    tasks = [asyncio.create_task(_cut_and_come_back(follower, luck)) for follower in followers]
    for number in range(40):
        for author in authors:
            await author.say(f"{number} ")
            if number == 20:
                await author.try_again(2)
        await asyncio.sleep(0.01)
    for author in authors:
        await author.succeed()
    await asyncio.gather(*tasks)
    logs = {author.job_id: await author.log() for author in authors}
    for follower in followers:
        assert_saw(follower, logs[follower.job_id])
    fact(
        f"200 followers over {sum(len(follower.connections) for follower in followers)} connections, all equal to the log"
    )


async def test_a_thousand_followers_share_one_subscription(
    serve: Serve, runtime: Runtime, author: Author, fact: Fact
) -> None:
    """They also share two connections for commands: their number makes no difference to Redis."""
    served = await serve()
    followers = [Follower([served.url], author.job_id) for _ in range(1_000)]
    tasks = [asyncio.create_task(follower.follow()) for follower in followers]
    await wait_until(lambda: all(follower.ids for follower in followers), "a thousand followers", timeout_s=20)
    held = await connections(runtime, "tokenspool-api")
    listening = await pubsub_connections(runtime, "tokenspool-api")
    assert (len(held), len(listening)) == (3, 1)
    assert len(served.relay._watches) == 1
    assert served.relay.follower_count == 1_000
    loop = asyncio.get_running_loop()
    said_s = loop.time()
    await author.say("Blue")
    await wait_until(lambda: all(follower.text == "Blue" for follower in followers), "the word everywhere")
    fact(
        f"1,000 followers on {len(held)} Redis connections; a word reached all of them in {loop.time() - said_s:.2f} s"
    )
    await author.succeed()
    await asyncio.gather(*tasks)
    log = await author.log()
    for follower in followers:
        assert_saw(follower, log)
    assert served.relay.follower_count == 0
