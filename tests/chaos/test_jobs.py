"""The promises to jobs, with real processes: cancelling, idempotency, fairness, expiry."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.job import JobState, Priority
from shared.store.queue import Claim
from shared.store.runtime import Runtime
from tests.chaos.conftest import HistoryOf
from tests.support.builders import a_submission
from tests.support.deployment import MODEL, Deployment, Process
from tests.support.facts import Fact
from tests.support.faults import every_pubsub_connection_cut, pubsub_connections
from tests.support.follower import ask
from tests.support.store import make_due
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


async def test_a_cancel_closes_the_upstreams_socket_within_a_second(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """While the answer streams or stalls, before its first token, or before a retry; no event follows the cancel."""
    history = history_of(quick)
    kinds = ["tokens=2000 gap-ms=20", "stall=3", "first-ms=20000", "slow-head=30000", "fail=529,retry-after=2x1"]
    jobs = [job for words in kinds for job in await history.submit_many(6, words, allowed_calls=3)]
    for job in jobs:
        history.follow(job)
    calling = [job for job in jobs if job not in jobs[-6:]]

    async def all_called() -> bool:
        return {call.nonce for call in await quick.calls()} >= {job.nonce for job in calling}

    await wait_until(all_called, "the calls", timeout_s=20)
    for job in jobs:
        assert (await history.cancel(job))["status"] == "cancelled"

    async def all_closed() -> bool:
        calls = [call for job in calling for call in await quick.calls(job.nonce)]
        return all(call.ended is not None for call in calls)

    await wait_until(all_closed, "the close of every call", timeout_s=5)
    delays = [(call.ended_s or 0) - (job.cancelled_s or 0) for job in calling for call in await quick.calls(job.nonce)]
    ended = await history.check()
    assert {job["status"] for job in ended.values()} == {"cancelled"}
    fact(f"{len(delays)} upstream calls closed at most {max(delays) * 1000:.0f} ms after their cancel was answered")
    assert max(delays) < 1


async def test_a_cancel_works_without_pubsub(quick: Deployment, history_of: HistoryOf, fact: Fact) -> None:
    """The message is lost, and a silent upstream causes no write that could be refused: the next renewal finds out."""
    history = history_of(quick)
    jobs = await history.submit_many(4, "stall=3")
    tasks = [history.follow(job) for job in jobs]
    await wait_until(lambda: all(one.text for one in history.followers), "text", timeout_s=20)
    async with quick.runtime() as runtime:
        cut_count = len(await pubsub_connections(runtime))
        # In one write, so that the workers' connections are gone when the cancel is published.
        cut = [every_pubsub_connection_cut(runtime), *[runtime.jobs.cancel(job.id, job.tenant) for job in jobs]]
        assert await asyncio.gather(*cut) == [cut_count, True, True, True, True]
        told_s = time.monotonic()

        async def all_closed() -> bool:
            calls = [call for job in jobs for call in await quick.calls(job.nonce)]
            return all(call.ended is not None for call in calls)

        await wait_until(all_closed, "the close of every call", timeout_s=5)
        took_s = time.monotonic() - told_s
    await asyncio.gather(*tasks)
    await history.check()
    fact(f"without pub/sub the calls were closed {took_s:.2f} s after the cancels")
    assert took_s < 3


async def test_the_same_key_fifty_times_at_once_makes_one_job(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Over two APIs. The key with another body gets 422, even while the first submit is in progress."""
    history = history_of(quick)
    loud = 0
    for number in range(5):
        key = f"{history.name}-{number}"

        async def submit(turn: int, key: str = key) -> object:
            return await history.submit("tokens=5 gap-ms=5", key=key, nonce=key, url=quick.urls[turn % 2])

        async def other_body(turn: int, key: str = key) -> int:
            body = {"prompt": f"nonce=never-{key} other"}
            status, answer, _ = await ask(
                quick.urls[turn % 2], "/v1/jobs", method="POST", headers={"Idempotency-Key": key}, body=body
            )
            assert (status, answer.get("code")) == (422, "idempotency_key_reused")
            return status

        first = await history.submit("tokens=5 gap-ms=5", key=key, nonce=key) if number % 2 else None
        others = [other_body(turn) for turn in range(5)] if first else []
        found = await asyncio.gather(*[submit(turn) for turn in range(50)], *others)
        assert len({job.id for job in found if hasattr(job, "id")}) == 1
        await asyncio.gather(*[other_body(turn) for turn in range(4)])
        loud += 50
    ended = await history.check()
    assert len(ended) == 5
    assert history.refused == {}
    assert [call.nonce for call in await quick.calls() if call.nonce.startswith("never-")] == []
    for job in history.jobs.values():
        assert len(await quick.calls(job.nonce)) == 1
    fact(f"{loud} submits with 5 keys over two APIs: {len(ended)} jobs, {len(ended)} calls")


async def _fill(runtime: Runtime, tenant: str, count: int, **spec: object) -> list[str]:
    """Queues jobs directly in the store, thousands a second."""
    request = f'{{"model":"{MODEL}","max_tokens":9,"messages":[{{"role":"user","content":"tokens=5 gap-ms=20"}}]}}'
    found = []
    for start in range(0, count, 500):
        submissions = [
            a_submission(tenant=tenant, model=MODEL, request=request.encode(), **spec)  # type: ignore[arg-type]
            for _ in range(min(500, count - start))
        ]
        await asyncio.gather(*[runtime.jobs.submit(one, expires_in_s=3600) for one in submissions])
        found += [one.id for one in submissions]
    return found


async def _starts_ms(runtime: Runtime, tenant: str) -> list[int]:
    """The start times of a tenant's started jobs."""
    found: list[int] = []
    after = None
    while True:
        page = await runtime.jobs.list(tenant, after=after, limit=500)
        found += [job.started_ms for job in page.jobs if job.started_ms is not None]
        if (after := page.next_after) is None:
            return found


@asynccontextmanager
async def _one_worker(deployment: Deployment, slots: int) -> AsyncIterator[tuple[Runtime, Process]]:
    """One worker with few slots; Redis is emptied before and after."""
    with deployment.no_worker_up():
        worker = deployment.begin_worker("--concurrency", str(slots))
        deployment.workers.remove(worker)
        try:
            await deployment.worker_up(worker)
            async with deployment.runtime() as runtime:
                yield runtime, worker
                worker.kill()
                await runtime._commands.call("FLUSHALL")
        finally:
            worker.kill()


async def test_a_tenant_with_two_thousand_jobs_delays_another_by_a_few_slots(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Also after a worker put 500 of them back, or 500 became due at once."""
    slots = 8
    async with _one_worker(quick, slots) as (runtime, worker):
        for story in ("waiting", "put back", "come due"):
            history = history_of(quick)
            worker.signal(signal.SIGSTOP)
            await runtime._commands.call("FLUSHALL")
            await _fill(runtime, "loud", 1_500 if story == "come due" else 2_000)
            if story == "put back":
                claims: list[Claim] = []
                while len(claims) < 500:
                    found, _ = await runtime.queue.claim("by-hand", count=250, low_count=0, takes_suspect=True)
                    claims += found
                await asyncio.gather(*[runtime.queue.release(claim, reason="drained") for claim in claims])
            if story == "come due":
                later_ms = int(time.time() * 1000) + 3_600_000
                await make_due(runtime, *await _fill(runtime, "loud", 500, not_before_ms=later_ms))
            assert sum((await runtime.queue.depth()).values()) == 2_000
            worker.signal(signal.SIGCONT)

            async def is_busy() -> bool:
                return (await runtime.queue.depth())[JobState.RUNNING] == slots

            await wait_until(is_busy, "the first jobs")
            quiet = await history.submit("tokens=2 gap-ms=1", tenant="quiet")
            assert quiet is not None
            ended = await history.check()
            left = sum((await runtime.queue.depth()).values())
            worker.signal(signal.SIGSTOP)
            record = await runtime.jobs.get(quiet.id, "quiet")
            assert record.started_ms is not None
            starts_ms = await _starts_ms(runtime, "loud")
            passed = sum(record.created_ms < start_ms <= record.started_ms for start_ms in starts_ms)
            worker.signal(signal.SIGCONT)
            fact(
                f"2,000 jobs of one tenant, {story}, {left} left: another's job started after "
                f"{ended[quiet.id]['timing']['queued_ms']} ms, {passed} others between its submit and its start"
            )
            assert passed <= 2 * slots


@pytest.mark.slow
async def test_the_bands_share_the_slots_as_promised(quick: Deployment, fact: Fact) -> None:
    """`high` overtakes `normal`, and every eighth claim begins with a lower band, so that no band starves."""
    async with _one_worker(quick, 4) as (runtime, worker):
        worker.signal(signal.SIGSTOP)
        for band in Priority:
            await _fill(runtime, band, 200, priority=band)
        worker.signal(signal.SIGCONT)

        async def some_ran() -> bool:
            return len(await _starts_ms(runtime, "high")) >= 120

        await wait_until(some_ran, "work", timeout_s=30)
        worker.signal(signal.SIGSTOP)
        counts = {band.value: len(await _starts_ms(runtime, band)) for band in Priority}
    fact(f"started of each band while `high` had work: {counts}")
    assert counts["normal"] + counts["low"] >= counts["high"] / 14
    assert counts["normal"] + counts["low"] <= counts["high"] / 3


async def test_a_job_that_nobody_takes_expires_on_time(quick: Deployment, history_of: HistoryOf, fact: Fact) -> None:
    """No worker runs: an API ends the job, and its followers see the end."""
    history = history_of(quick)
    with quick.no_worker_up():
        job = await history.submit("tokens=5", expires_in_s=5)
        assert job is not None
        for url in quick.urls:
            history.follow(job, urls=[url])
        ended = (await history.check())[job.id]
    lived_ms = ended["timing"]["total_ms"]
    told_s = max(at_s for one in history.followers for at_s in one.at_s.values()) - job.acknowledged_s
    fact(f"expires_in_s 5 without a worker: expired after {lived_ms} ms, followers told after {told_s:.2f} s")
    assert ended["status"] == "expired"
    assert 5_000 <= lived_ms < 5_000 + 3 * 500
    assert told_s < 5 + 3 * 0.5
