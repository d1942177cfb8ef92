"""A stopped worker finishes its jobs or hands them back; it loses none and runs none twice."""

import asyncio
from typing import Any

import pytest

from shared.job import JobState
from shared.store import redis_keys
from tests.running.crew import STEADY, TENANT, Crew, Hand, replace
from tests.support.wait import wait_until


async def until_done(hand: Hand) -> None:
    async with asyncio.timeout(10):
        await hand.done


async def test_what_runs_ends_and_what_waits_is_left_to_others(crew: Crew) -> None:
    first = await crew.worker(concurrency=3)
    running = [await crew.submit("tokens=40 gap-ms=10") for _ in range(3)]
    for job_id in running:
        await crew.begun(job_id)
    waiting = [await crew.submit() for _ in range(3)]
    first.worker.drain()
    await until_done(first)
    assert [await crew.state(job_id) for job_id in running] == [JobState.SUCCEEDED] * 3
    assert [await crew.state(job_id) for job_id in waiting] == [JobState.QUEUED] * 3

    await crew.worker()
    for job in await crew.all_ended([*running, *waiting]):
        assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)
        assert len(crew.calls(job.id)) == 1


async def test_an_idle_worker_stops_at_once_and_says_so(crew: Crew) -> None:
    hand = await crew.worker()
    hand.worker.drain()
    await until_done(hand)
    assert [event for _, event, _ in hand.log.lines] == ["worker_started", "draining", "worker_stopped"]
    assert await crew.runtime.workers.living() == []


@pytest.mark.parametrize("hurry", [False, True], ids=["its time over", "a second signal"])
async def test_what_cannot_end_in_time_is_handed_back(crew: Crew, hurry: bool) -> None:
    """The attempt is not counted: even a job with one attempt runs again. Followers get `reset`."""
    first = await crew.worker(drain_s=3600 if hurry else 0.05)
    job_id = await crew.submit("tokens=200 gap-ms=10", max_attempts=1)
    await crew.begun(job_id)
    first.worker.drain()
    if hurry:
        assert await crew.state(job_id) is JobState.RUNNING
        first.worker.drain()
    await until_done(first)
    assert await crew.state(job_id) is JobState.QUEUED
    assert crew.calls(job_id)[0].ended == "client_closed"
    assert await crew.field(job_id, "failures") == "0"
    assert first.log.named("handed_back")[0]["jobs"] == 1

    await crew.worker()
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    assert [event for event in await crew.ours(job_id) if event[0] in {"reset", "started"}] == [
        ("started", {"attempt": 1}),
        ("started", {"attempt": 2}),
        ("reset", {"attempt": 2, "reason": "drained"}),
    ]


async def test_a_job_between_two_attempts_is_handed_back_with_its_failures(crew: Crew) -> None:
    first = await crew.worker()
    job_id = await crew.submit("fail=529x1,retry-after=1.9")

    async def waits() -> bool:
        return "retry" in await crew.names(job_id)

    await wait_until(waits, "the wait")
    first.worker.drain()
    first.worker.drain()
    await until_done(first)
    assert await crew.field(job_id, "failures") == "1"
    await crew.worker()
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED


async def test_jobs_of_a_claim_on_its_way_are_not_lost(crew: Crew) -> None:
    """The signal comes between CLAIM in Redis and its reply; otherwise the jobs would wait until their leases end."""
    hand = await crew.worker(lease_s=600)
    was_claimed, may_answer = asyncio.Event(), asyncio.Event()
    real_claim = hand.runtime.queue.claim

    async def claim_late(*arguments: Any, **named: Any) -> Any:
        answer = await real_claim(*arguments, **named)
        if answer[0]:
            was_claimed.set()
            await may_answer.wait()
        return answer

    replace(hand.runtime.queue, "claim", claim_late)
    job_id = await crew.submit()
    await was_claimed.wait()
    hand.worker.drain()
    may_answer.set()
    await until_done(hand)
    assert await crew.state(job_id) is JobState.SUCCEEDED


async def test_nothing_is_claimed_once_the_signal_came(crew: Crew) -> None:
    hand = await crew.worker(concurrency=2)
    running = await crew.submit("tokens=60 gap-ms=10")
    await crew.begun(running)
    hand.worker.drain()
    waiting = await crew.submit()
    await until_done(hand)
    assert await crew.state(waiting) is JobState.QUEUED
    assert await crew.state(running) is JobState.SUCCEEDED


async def test_a_draining_worker_hears_cancellations(crew: Crew) -> None:
    hand = await crew.worker()
    job_id = await crew.submit(model=STEADY)
    await crew.begun(job_id)
    hand.worker.drain()
    await crew.runtime.jobs.cancel(job_id, TENANT)
    await until_done(hand)
    assert await crew.state(job_id) is JobState.CANCELLED


async def test_a_draining_worker_says_so(crew: Crew) -> None:
    hand = await crew.worker()
    job_id = await crew.submit("tokens=200 gap-ms=10")
    await crew.begun(job_id)
    hand.worker.drain()

    async def says() -> bool:
        (told,) = await crew.runtime.workers.living()
        return (told["draining"], told["running"]) == ("1", "1")

    await wait_until(says, "the worker to tell")
    await crew.runtime.jobs.cancel(job_id, TENANT)


async def test_a_handed_back_job_keeps_its_place(crew: Crew) -> None:
    first = await crew.worker(concurrency=1, drain_s=0)
    running = await crew.submit("tokens=100 gap-ms=10")
    await crew.begun(running)
    waiting = await crew.submit()
    await first.drained()
    flow = redis_keys.flow(redis_keys.flow_of("normal", TENANT, "anthropic/sim-t6-g1-f1"))
    assert await crew.runtime._commands.call("ZRANGE", flow, 0, -1) == [running.encode(), waiting.encode()]
    await crew.worker()
    await crew.all_ended([running, waiting])
