"""An upstream that is overloaded, limited, or broken for one model, and workers that share what they know about it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx2
import pytest

from tests.chaos.conftest import HistoryOf
from tests.support.deployment import Call, Deployment, a_deployment
from tests.support.facts import Fact
from tests.support.follower import ask
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(360)]

OUTAGE_S = 60
BROKEN = "sim-t5-g5-f7"
FINE = "sim-t5-g5-f8"
LIMITED = "sim-t5-g5-f9"
OVERLOADED = "sim-t5-g5-f10"


async def say(simulator_url: str, words: str) -> None:
    """Sets the words that the simulator puts before every prompt."""
    async with httpx2.AsyncClient() as client:
        (await client.put(f"{simulator_url}/_simulator/words", content=words.encode())).raise_for_status()


@asynccontextmanager
async def deployed(simulator_url: str, *, workers: int, **settings: str) -> AsyncIterator[Deployment]:
    with a_deployment(simulator_url, **settings) as deployment:
        await deployment.make_whole(apis=1, workers=workers)
        try:
            yield deployment
        finally:
            await say(simulator_url, "")


def calls_within(calls: Sequence[Call], begin_s: float, end_s: float) -> int:
    return sum(begin_s <= call.started_s < end_s for call in calls)


def most_in_a_minute(calls: Sequence[Call]) -> int:
    """The most calls in any sliding minute, by the upstream's times."""
    starts = sorted(call.started_s for call in calls)
    first = most = 0
    for last, start in enumerate(starts):
        while start - starts[first] >= 60:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("retry_after_s", [0, 5])
async def test_a_minute_of_overload_costs_a_few_calls_and_no_job(
    simulator_url: str, history_of: HistoryOf, fact: Fact, retry_after_s: int
) -> None:
    """The upstream sends 529 for 60 s while 300 jobs wait: at most 1.1 calls a job in that minute, none during a
    Retry-After, and all jobs succeed within 15 s of its end.
    """
    async with deployed(simulator_url, workers=2, TOKENSPOOL_MODEL=OVERLOADED) as deployment:
        history = history_of(deployment)
        await say(simulator_url, f"fail=529,retry-after={retry_after_s}" if retry_after_s else "fail=529")
        began_s = time.monotonic()
        jobs = await history.submit_many(300, allowed_calls=10)
        await asyncio.sleep(OUTAGE_S - (time.monotonic() - began_s))
        await say(simulator_url, "")
        over_s = time.monotonic()
        during = [call for call in await deployment.calls() if call.nonce.startswith(history.name)]
        ended = await history.all_ended(timeout_s=40)
        took_s = time.monotonic() - over_s
        calls = [call for call in await deployment.calls() if call.nonce.startswith(history.name)]
        first_good_s = min(call.started_s for call in calls if call.ended == "completed") - over_s
        fact(
            f"retry-after {retry_after_s}: {len(during)} calls of {len(jobs)} jobs in {OUTAGE_S} s; first success begun "
            f"{first_good_s:.1f} s after its end, all ended {took_s:.1f} s after it; {len(calls)} calls in all"
        )
        assert {job["status"] for job in ended.values()} == {"succeeded"}
        assert len(during) <= 1.1 * len(jobs)
        assert took_s <= 15
        if retry_after_s:
            # A gate shuts when a 529 arrives; calls already in progress then are the first wave.
            refused = sorted(call.ended_s or call.started_s for call in during)
            inside = [
                call
                for call in during
                if any(ended_s + 0.5 < call.started_s < ended_s + retry_after_s - 0.1 for ended_s in refused)
            ]
            fact(f"{len(inside)} calls inside a gate")
            assert inside == []


async def test_sixty_requests_a_minute_are_used_and_never_more(
    simulator_url: str, history_of: HistoryOf, fact: Fact
) -> None:
    """4 workers, 200 jobs: no sliding minute has more than 60 calls, and at least 95 % of the quota is used."""
    routes = json.dumps({LIMITED: {"requests_per_minute": 60}})
    async with deployed(
        simulator_url, workers=4, TOKENSPOOL_MODEL=LIMITED, TOKENSPOOL_ROUTES=routes, TOKENSPOOL_CONCURRENCY="50"
    ) as deployment:
        history = history_of(deployment)
        await history.submit_many(200, allowed_calls=1)
        ended = await history.all_ended(timeout_s=300)
        calls = [call for call in await deployment.calls() if call.nonce.startswith(history.name)]
        starts = sorted(call.started_s for call in calls)
        # The first 180 calls fill three whole minutes, so the 181st shows how long they took.
        used = 180 / ((starts[180] - starts[0]) / 60 * 60)
        fact(
            f"most in a sliding minute {most_in_a_minute(calls)}; {used:.1%} used until the 181st call; {len(calls)} calls"
        )
        assert {job["status"] for job in ended.values()} == {"succeeded"}
        assert {job["attempts"] for job in ended.values()} == {1}
        assert most_in_a_minute(calls) <= 60
        assert used >= 0.95
        async with deployment.runtime() as runtime:
            starts_told = [
                sum(event.name == "started" for event in await runtime.log.read(job_id, count=1000)) for job_id in ended
            ]
        fact(f"jobs that were claimed more than once: {sum(count > 1 for count in starts_told)} of {len(starts_told)}")


async def test_an_open_circuit_delays_no_other_model(simulator_url: str, history_of: HistoryOf, fact: Fact) -> None:
    """Jobs of another model start at once after 400 jobs of a model whose upstream is down, and get the slots."""
    async with deployed(simulator_url, workers=1, TOKENSPOOL_CONCURRENCY="20") as deployment:
        url = deployment.urls[0]

        async def submit(model: str, prompt: str) -> str:
            _, job, _ = await ask(url, "/v1/jobs", method="POST", body={"model": model, "prompt": prompt})
            job_id: str = job["id"]
            return job_id

        await asyncio.gather(*[submit(BROKEN, "fail=529") for _ in range(400)])

        async def is_open() -> bool:
            _, health, _ = await ask(url, "/health")
            return any(route["circuit"] == "open" for route in health["routes"])

        await wait_until(is_open, "the circuit to open", timeout_s=20)
        waits_ms = []
        for _ in range(20):
            job_id = await submit(FINE, "nonce=fine")
            _, job, _ = await ask(url, f"/v1/jobs/{job_id}?wait=10")
            assert job["status"] == "succeeded"
            waits_ms.append(job["timing"]["queued_ms"])
        fact(
            f"400 jobs behind an open circuit; another model's job waited {sorted(waits_ms)[10]} ms, at most {max(waits_ms)}"
        )
        assert max(waits_ms) < 1000
