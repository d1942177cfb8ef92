"""A rolling deploy behind a load balancer, while programs with the official SDK call without Idempotency-Keys."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.balancer import Balancer, a_balancer
from tests.support.deployment import Deployment, a_deployment, a_simulator
from tests.support.facts import Fact
from tests.support.sdk_load import SdkLoad
from tests.support.wait import wait_until


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A deployment with the default settings."""
    with a_simulator(tmp_path) as url, a_deployment(url) as deployment:
        yield deployment


async def _replace_apis(deployment: Deployment, balancer: Balancer) -> None:
    """Replaces them one by one: a new API is ready before its old one gets SIGTERM, which ends before the next turn."""
    for old in list(deployment.apis):
        new = deployment.begin_api()
        await deployment.api_up(new)
        balancer.backends.append(new.url)
        await wait_until(lambda url=new.url: balancer.is_ready(url), "the new API", timeout_s=10)  # type: ignore[misc]
        old.signal(signal.SIGTERM)
        assert await old.ended(45) == 0, old.log
        balancer.backends.remove(old.url)
        deployment.apis.remove(old)


async def _replace_workers(deployment: Deployment) -> None:
    for old in list(deployment.workers):
        await deployment.worker_up(deployment.begin_worker())
        old.signal(signal.SIGTERM)
        assert await old.ended(45) == 0, old.log
        deployment.workers.remove(old)


async def _roll(deployment: Deployment, load: SdkLoad, balancer: Balancer, *, streams: int, plain: int) -> None:
    balancer.backends = list(deployment.urls)
    await wait_until(lambda: all(balancer.is_ready(url) for url in deployment.urls), "the balancer", timeout_s=10)
    load.base_url = balancer.url
    async with load.running(streams=streams, plain=plain):
        await asyncio.sleep(1)  # so that all are in the middle of an answer
        await _replace_apis(deployment, balancer)
        await _replace_workers(deployment)


def _told(load: SdkLoad, twice: list[str]) -> str:
    return (
        f"{len(load.broken)} of {len(load.whole) + len(load.broken)} answers broken, {len(twice)} bought twice, "
        f"the longest took {load.longest_s:.1f} s"
    )


@pytest.mark.slow
async def test_an_api_and_a_worker_are_replaced_and_no_answer_breaks(deployment: Deployment, fact: Fact) -> None:
    """A smaller form of the next test."""
    deployment.settings["TOKENSPOOL_SHUTDOWN_NOTICE_S"] = "1"  # enough for this balancer, which polls often
    await deployment.make_whole(apis=1, workers=1)
    load = SdkLoad("", "small-roll", "gap-ms=25", tokens=40)
    async with a_balancer() as balancer:
        await _roll(deployment, load, balancer, streams=4, plain=2)
    twice = await load.bought_twice(deployment)
    fact(_told(load, twice))
    assert (load.broken, twice) == ([], [])


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_two_apis_and_two_workers_are_replaced_and_no_answer_breaks(deployment: Deployment, fact: Fact) -> None:
    """Ten streams and five plain calls at a time, with answers of 3 s: all are complete, and each cost one call."""
    await deployment.make_whole(apis=2, workers=2)
    load = SdkLoad("", "roll", "gap-ms=50", tokens=60)
    async with a_balancer() as balancer:
        await _roll(deployment, load, balancer, streams=10, plain=5)
    twice = await load.bought_twice(deployment)
    fact(_told(load, twice))
    assert (load.broken, twice) == ([], [])
