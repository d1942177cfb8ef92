"""A client that disconnects leaves nothing: no watch, subscription, task, connection or memory."""

import asyncio
import gc
import resource
from collections import Counter

import psutil
import pytest

from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.author import TENANT, Author
from tests.support.facts import Fact
from tests.support.follower import ask, asking
from tests.support.served import Served
from tests.support.store import submit
from tests.support.wait import wait_until


def _tasks() -> Counter[str]:
    return Counter(task.get_name().rstrip("0123456789") for task in asyncio.all_tasks())


async def _is_subscribed(runtime: Runtime, job_id: str) -> bool:
    _, count = await runtime._commands.call("PUBSUB", "NUMSUB", redis_keys.events(job_id))
    return int(count) > 0


async def _nothing_is_left(served: Served, runtime: Runtime, job_id: str, tasks: Counter[str]) -> None:
    async def unsubscribed() -> bool:
        return not await _is_subscribed(runtime, job_id)

    await wait_until(lambda: served.relay.follower_count == 0, "no watch")
    assert served.relay._watches == {}
    await wait_until(unsubscribed, "no subscription")
    await wait_until(lambda: not served.server.server_state.connections, "no connection")
    await wait_until(lambda: _tasks() <= tasks, f"the tasks of before, {tasks}; there are {_tasks()}")


@pytest.mark.parametrize("form", ["text", "messages"])
async def test_a_follower_that_goes_leaves_nothing(served: Served, runtime: Runtime, author: Author, form: str) -> None:
    """It disconnects while it waits for more."""
    tasks = _tasks()
    for _ in range(20):
        async with asking(served.url, f"/v1/jobs/{author.job_id}/events?format={form}") as response:
            await response.read_some()
            await wait_until(lambda: served.relay.follower_count == 1, "the watch")
    await _nothing_is_left(served, runtime, author.job_id, tasks)


async def test_followers_that_go_at_once_leave_nothing(served: Served, runtime: Runtime, author: Author) -> None:
    """They disconnect before the response begins, or in the middle of it."""
    tasks = _tasks()
    for number in range(30):
        async with asking(served.url, f"/v1/jobs/{author.job_id}/events") as response:
            if number % 2:
                await response.read_some(number)
        if number % 3 == 0:
            await author.say("word ")
    await _nothing_is_left(served, runtime, author.job_id, tasks)


async def test_waiting_calls_that_go_leave_nothing(served: Served, runtime: Runtime, author: Author) -> None:
    """Clients with ``?wait=`` hang up."""
    tasks = _tasks()
    path = f"/v1/jobs/{author.job_id}?wait=30"
    waiting = [asyncio.create_task(ask(served.url, path)) for _ in range(20)]
    await wait_until(lambda: served.relay.follower_count == 20, "the watches")
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await _nothing_is_left(served, runtime, author.job_id, tasks)


async def test_a_follower_that_stays_is_not_affected_by_those_that_go(
    served: Served, runtime: Runtime, author: Author
) -> None:
    """Only the last of its followers ends a job's subscription."""
    path = f"/v1/jobs/{author.job_id}/events"
    async with asking(served.url, path) as stays:
        await stays.read_some()
        for _ in range(10):
            async with asking(served.url, path) as goes:
                await goes.read_some()
            await wait_until(lambda: served.relay.follower_count == 1, "the one that stays")
            assert await _is_subscribed(runtime, author.job_id)


async def test_a_follower_that_comes_as_another_goes_misses_nothing(served: Served, author: Author) -> None:
    """The UNSUBSCRIBE and SUBSCRIBE of one channel cross; the second follower still gets all further events."""
    path = f"/v1/jobs/{author.job_id}/events"
    for number in range(40):
        async with asking(served.url, path) as goes:
            await goes.read_some()
        async with asking(served.url, f"{path}?after=now") as response:
            await response.read_some()
            await author.say(f"word {number}")
            async with asyncio.timeout(5):
                assert f"word {number}".encode() in await response.read_some()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_ten_thousand_followers_that_came_and_went_leave_nothing(
    serve: Serve, runtime: Runtime, fact: Fact
) -> None:
    """Fifty jobs, two hundred followers at a time; after the first thousands, memory no longer grows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    served = await serve()
    jobs = [(await submit(runtime, tenant=TENANT)).id for _ in range(50)]
    process = psutil.Process()
    await ask(served.url, "/health/live")
    tasks = _tasks()

    async def come_and_go(number: int) -> None:
        async with asking(served.url, f"/v1/jobs/{jobs[number % 50]}/events") as response:
            if number % 3:
                await response.read_some()

    async def thousands(first: int, last: int) -> None:
        for start in range(first, last, 200):
            await asyncio.gather(*[come_and_go(number) for number in range(start, start + 200)])

    await thousands(0, 4_000)
    gc.collect()
    before = process.memory_info().rss
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await thousands(4_000, 10_000)
    took_s = loop.time() - began_s
    for job_id in jobs:
        await _nothing_is_left(served, runtime, job_id, tasks)
    gc.collect()
    grown = process.memory_info().rss - before
    fact(f"10,000 came and went; the last 6,000 in {took_s:.1f} s, memory grew by {grown / 1e6:.1f} MB")
    assert grown < 20e6
