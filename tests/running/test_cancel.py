"""A cancelled job ends at once, and its worker closes the call to the upstream within a second."""

import asyncio
import random
import time
from typing import Any

import pytest

from shared.job import JobState
from shared.store.subscriber import Subscriber
from tests.running.crew import STEADY, TENANT, Crew, replace
from tests.running.providers import on_each_provider
from tests.support.wait import wait_until
from worker.arq_worker import ArqWorker


async def cancelled(crew: Crew, job_id: str) -> None:
    """Cancels the job, and waits up to a second until the upstream has noticed."""
    began_s = time.monotonic()
    assert await crew.runtime.jobs.cancel(job_id, TENANT)
    *_, call = crew.calls(job_id)
    await crew.simulator.until(lambda: call.ended is not None, timeout_s=1)
    assert call.ended == "client_closed"
    assert call.client_closed_s is not None
    assert call.client_closed_s - began_s < 1
    assert (await crew.job(job_id)).state is JobState.CANCELLED


@on_each_provider
@pytest.mark.parametrize(
    "script", ["", "stall=head", "stall=0", "stall=3", "pings=3,every-ms=10", "gap-ms=1", "slow-head=9000"]
)
async def test_cancelling_closes_the_upstream_wherever_the_answer_is(crew: Crew, script: str) -> None:
    hand = await crew.worker()
    job_id = await crew.submit(script, model=STEADY)
    await wait_until(lambda: len(crew.calls(job_id)) == 1, "the call")
    await cancelled(crew, job_id)
    log = await crew.events(job_id)
    await hand.is_idle()
    assert await crew.events(job_id) == log, "nothing comes after the end"
    assert len(crew.calls(job_id)) == 1


@on_each_provider
async def test_cancelling_between_two_attempts_makes_no_further_call(crew: Crew) -> None:
    hand = await crew.worker()
    job_id = await crew.submit("fail=529,retry-after=1.5")

    async def waits() -> bool:
        return "retry" in await crew.names(job_id)

    await wait_until(waits, "the wait for the second attempt")
    assert await crew.runtime.jobs.cancel(job_id, TENANT)
    await hand.is_idle()
    assert len(crew.calls(job_id)) == 1
    assert await crew.names(job_id) == ["started", "retry", "cancelled"]


async def test_a_cancellation_that_arrives_before_its_job_works_too(crew: Crew) -> None:
    """It is published while the claim's reply is on its way: the worker does not have the job yet."""
    hand = await crew.worker()
    real_claim = hand.runtime.queue.claim

    async def claim_late(*arguments: Any, **named: Any) -> Any:
        claims, due_s = await real_claim(*arguments, **named)
        for claim in claims:
            await crew.runtime.jobs.cancel(claim.id, TENANT)
        await asyncio.sleep(0.01)  # the worker ignores the message
        return claims, due_s

    replace(hand.runtime.queue, "claim", claim_late)
    job_id = await crew.submit("stall=head")
    await crew.ended(job_id)
    await wait_until(lambda: not hand.running, "the run to end", timeout_s=1)
    assert await crew.names(job_id) == ["started", "cancelled"]
    await wait_until(lambda: not crew.simulator.record.open_streams, "the call, if one was made, to be closed")


async def test_a_worker_without_pubsub_polls_every_half_second(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent upstream causes no APPEND that Redis could refuse."""
    monkeypatch.setattr(ArqWorker, "_on_message", lambda *_: None)
    monkeypatch.setattr(Subscriber, "stands", lambda *_: False)
    await crew.worker(lease_s=600)
    job_id = await crew.submit("stall=3")
    await crew.begun(job_id)
    await cancelled(crew, job_id)


async def test_a_worker_that_missed_the_message_is_refused_at_its_next_write(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArqWorker, "_on_message", lambda *_: None)
    hand = await crew.worker(lease_s=600)
    job_id = await crew.submit(model=STEADY)
    await crew.begun(job_id)
    await cancelled(crew, job_id)
    await hand.is_idle()
    assert [line["job_id"] for line in hand.log.named("claim_lost")] == [job_id]


@on_each_provider
async def test_a_cancellation_and_an_end_at_once_leave_one_of_them(crew: Crew) -> None:
    """The second one gets the state that won. The fixture checks each job's log after the test."""
    await crew.worker(concurrency=50)
    chance = random.Random(7)
    job_ids = [await crew.submit("tokens=10 gap-ms=2") for _ in range(50)]

    async def cancel_around_the_end(job_id: str) -> tuple[str, bool]:
        await asyncio.sleep(chance.uniform(0, 0.12))
        return job_id, await crew.runtime.jobs.cancel(job_id, TENANT)

    answers = dict(await asyncio.gather(*map(cancel_around_the_end, job_ids)))
    for job in await crew.all_ended(job_ids):
        assert job.state is (JobState.CANCELLED if answers[job.id] else JobState.SUCCEEDED)
