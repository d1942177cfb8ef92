"""SIGTERM to an API with open streams: clients must reconnect, and the process ends once nobody waits for a job."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.author import Author
from tests.support.deployment import Api, Deployment, a_deployment
from tests.support.facts import Fact
from tests.support.follower import Follower, ask, asking, following
from tests.support.store import submit
from tests.support.story import assert_saw
from tests.support.wait import wait_until

_NO_UPSTREAM = "http://127.0.0.1:9"


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A Redis; the test starts the APIs."""
    with a_deployment(_NO_UPSTREAM) as deployment:
        yield deployment


async def _ended_after_s(api: Api, number: signal.Signals = signal.SIGTERM) -> float:
    loop = asyncio.get_running_loop()
    told_s = loop.time()
    api.signal(number)
    assert await api.ended(20) == 0, api.log
    return loop.time() - told_s


async def test_followers_reconnect_and_the_process_ends_promptly(deployment: Deployment, fact: Fact) -> None:
    """Followers of running, waiting and silent jobs reconnect to another API with their last id, and miss nothing."""
    leaving, staying = deployment.begin_api(TOKENSPOOL_SHUTDOWN_GRACE_S="1"), deployment.begin_api()
    for api in deployment.apis:
        await deployment.api_up(api)
    async with deployment.runtime() as runtime:
        author = await Author.start(runtime)
        waiting = await submit(runtime, tenant="default")
        urls = [leaving.url, staying.url]
        followers = [
            Follower(urls, job_id, form=form)
            for job_id in (author.job_id, waiting.id)
            for form in ("text", "messages")
            for _ in range(25)
        ]
        tasks = [await following(follower, is_waiting=True) for follower in followers]
        await author.say("Blue")
        await wait_until(lambda: all("Blue" in one.text for one in followers[:50]), "the first word")
        pending = [asyncio.create_task(ask(leaving.url, f"/v1/jobs/{waiting.id}?wait=60")) for _ in range(5)]
        preferring = asyncio.create_task(
            ask(leaving.url, "/v1/jobs", method="POST", headers={"Prefer": "wait=60"}, body={"prompt": "x"})
        )
        await asyncio.sleep(0.1)  # lets them arrive
        took_s = await _ended_after_s(leaving)
        fact(f"ended {took_s:.2f} s after SIGTERM with 100 followers and 6 waiting calls")
        assert took_s < 5
        for status, answer, _ in await asyncio.gather(*pending):
            assert (status, answer["status"]) == (200, "queued")
        status, answer, _ = await preferring
        assert (status, answer["status"]) == (202, "queued")
        for follower in followers:
            assert "the server is restarting, come back with your last event id" in follower.comments
            assert follower.connections[0].ended == "eof"
        await author.say(" light")
        await author.succeed()
        await runtime.jobs.cancel(waiting.id, "default")
        await asyncio.gather(*tasks)
        log = await author.log()
        for follower in followers[:50]:
            assert_saw(follower, log)
        assert {follower.frames[-1].event for follower in followers[50:]} == {"cancelled"}
        assert '_failed"' not in leaving.log
        assert "Traceback" not in leaving.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_although_redis_is_away(deployment: Deployment, number: signal.Signals, fact: Fact) -> None:
    """Followers and long polls are waiting for Redis."""
    api = deployment.begin_api(TOKENSPOOL_SHUTDOWN_GRACE_S="1")
    await deployment.api_up(api)
    async with deployment.runtime() as runtime:
        author = await Author.start(runtime)
        followers = [Follower([api.url], author.job_id) for _ in range(10)]
        tasks = [await following(follower) for follower in followers]
        path = f"/v1/jobs/{author.job_id}?wait=60"
        pending = [asyncio.create_task(ask(api.url, path)) for _ in range(5)]
        await asyncio.sleep(0.1)  # lets them arrive
    deployment.redis.kill()
    took_s = await _ended_after_s(api, number)
    fact(f"ended {took_s:.2f} s after {number.name} with Redis away")
    assert took_s < 5
    for status, answer, _ in await asyncio.gather(*pending):
        assert (status, answer["code"]) == (503, "storage_unavailable")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_it_ends_although_a_client_does_not_read(deployment: Deployment) -> None:
    """It does not wait for a client that never reads its last comment."""
    api = deployment.begin_api()
    await deployment.api_up(api)
    async with deployment.runtime() as runtime:
        author = await Author.start(runtime)
        for _ in range(2_000):
            await author.say("0123456789abcdef" * 256)
        async with asking(api.url, f"/v1/jobs/{author.job_id}/events", receive_buffer=4096):
            took_s = await _ended_after_s(api)
        assert took_s < 12
