"""Followers that are cut at random places, and APIs that die while they follow."""

import asyncio
import random
import time

import pytest

from tests.chaos.conftest import HistoryOf
from tests.support.deployment import Deployment
from tests.support.facts import Fact
from tests.support.follower import Follower
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


async def _cut_and_come_back(follower: Follower, luck: random.Random) -> Follower:
    while not follower.has_ended:
        connection = await follower.follow_once(most_bytes=luck.choice((1, 300, 700, 1_500, 3_000, 8_000, None)))
        assert connection.status == 200
    return follower


async def _two_hundred_cut_followers(
    deployment: Deployment, history_of: HistoryOf, fact: Fact, *, jobs: int, words: str
) -> None:
    history = history_of(deployment)
    luck = random.Random()
    tasks = []
    for number, job in enumerate(await history.submit_many(jobs, words)):
        for form in ("text", "messages"):
            for _ in range(100 // jobs):
                urls = list(deployment.urls)
                luck.shuffle(urls)
                follower = Follower(urls, job.id, form=form, tenant=job.tenant)
                history.followers.append(follower)
                tasks.append(asyncio.create_task(_cut_and_come_back(follower, luck), name=f"follower {number}"))
    history.tasks = tasks
    await history.check(timeout_s=60)
    cuts = sum(len(follower.connections) - 1 for follower in history.followers)
    fact(
        f"{len(history.followers)} followers over two APIs, cut {cuts} times at random bytes: each one's sequence is the log"
    )
    assert cuts > len(history.followers)


async def test_two_hundred_followers_cut_at_random_places_each_see_the_log(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Each reconnects to the two APIs in turn."""
    await _two_hundred_cut_followers(quick, history_of, fact, jobs=10, words="tokens=80 gap-ms=20")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_thousands_of_cuts_lose_no_event(quick: Deployment, history_of: HistoryOf, fact: Fact) -> None:
    """Longer answers, some of them after failed attempts."""
    await _two_hundred_cut_followers(quick, history_of, fact, jobs=20, words="tokens=1000 gap-ms=20")


async def test_followers_of_a_killed_api_go_on_at_the_other(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """SIGKILL in mid-stream: they reconnect with their last event id and miss nothing."""
    history = history_of(quick)
    jobs = await history.submit_many(20, "tokens=150 gap-ms=20")
    victim, other = quick.apis
    for job in jobs:
        for form in ("text", "messages"):
            for _ in range(2):
                history.follow(job, form=form, urls=[victim.url, other.url])
    await wait_until(lambda: all(one.text for one in history.followers), "text everywhere", timeout_s=20)
    killed_s = time.monotonic()
    victim.kill()
    await history.all_followed()
    back = [one.connections[1] for one in history.followers]
    quick.apis.remove(victim)
    await history.check()
    delays = []
    for follower in history.followers:
        assert follower.connections[0].ended == "cut"
        assert "reset" not in [frame.event for frame in follower.frames]
        first = next(frame.id for frame in follower.connections[1].frames if frame.id)
        delays.append(follower.at_s[first] - killed_s)
    assert all(connection.asked_id for connection in back)
    fact(f"80 followers of a killed API: the next event after at most {max(delays):.2f} s, none lost or doubled")
    assert max(delays) < 9


async def test_an_api_killed_during_submits_makes_each_job_once(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Its callers got no response: each repeats its submit at the other API, with its key, until it gets one."""
    history = history_of(quick)
    victim, other = quick.apis

    async def submit(number: int) -> None:
        key = f"{history.name}-key-{number}"
        url = victim.url
        while await history.submit("tokens=3 gap-ms=1", url=url, key=key, nonce=key) is None:
            url = other.url

    submitting = [asyncio.create_task(submit(number)) for number in range(400)]
    await wait_until(lambda: len(history.jobs) > 40, "some jobs")
    victim.kill()
    await asyncio.gather(*submitting)
    quick.apis.remove(victim)
    unknown = history.refused[0]
    ended = await history.check()
    nonces = {call.nonce for call in await quick.calls() if call.nonce.startswith(f"{history.name}-key-")}
    assert len(ended) == len(nonces) == 400
    fact(f"400 submits, {unknown} of them without an answer when the API was killed: 400 jobs, 400 calls")
    assert unknown > 0
