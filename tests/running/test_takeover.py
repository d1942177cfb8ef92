"""Workers die, stall and come back: other workers run their jobs, and only a job's current holder writes for it."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared.job import JobState
from shared.store import redis_keys
from shared.store.queue import ALONE_TAKEOVERS, FATAL_TAKEOVERS
from tests.running.crew import STEADY, Crew, replace
from tests.support.store import claim, confirm, expire_leases, submit_many
from tests.support.wait import wait_until

LEASE_S = 0.6
LONG = "tokens=60 gap-ms=10"
"""Longer than a lease."""


async def test_a_worker_that_lives_keeps_its_jobs_for_many_leases(crew: Crew) -> None:
    for _ in range(2):
        await crew.worker(lease_s=0.5)
    job_ids = [await crew.submit("tokens=200 gap-ms=10") for _ in range(4)]
    for job in await crew.all_ended(job_ids):
        assert (job.attempts, len(crew.calls(job.id))) == (1, 1)


async def test_a_worker_that_died_before_it_began_made_no_attempt(crew: Crew) -> None:
    job_id = await crew.submit()
    await claim(crew.runtime, worker="one that dies")
    await crew.runtime._commands.call("ZADD", redis_keys.plain("running"), "XX", 1, job_id)
    await crew.worker(lease_s=LEASE_S)
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)
    assert await crew.field(job_id, "takeovers") is None


async def test_hundreds_of_jobs_of_a_dead_worker_come_back_together(crew: Crew) -> None:
    """REAP takes 100 at a time; the worker must not wait for its next tick between portions."""
    crew.jobs += await submit_many(crew.runtime, 450)
    await claim(crew.runtime, 450, worker="one that dies")
    hand = await crew.worker()
    hand.stop_claiming()
    for job_id in crew.jobs:
        crew.runtime._commands.call("ZADD", redis_keys.plain("running"), "XX", 1, job_id)

    async def are_back() -> bool:
        return int(await crew.runtime._commands.call("ZCARD", redis_keys.plain("running"))) == 0

    await wait_until(are_back, "the jobs to be back", timeout_s=3)


async def test_a_zombie_that_was_silent_until_its_answer_was_complete_cannot_end_the_job(crew: Crew) -> None:
    """Its first command after the takeover is FINISH."""
    zombie = await crew.worker(lease_s=LEASE_S)
    may_finish = asyncio.Event()
    real_finish = zombie.runtime.queue.finish

    async def finish_late(*arguments: Any, **named: Any) -> Any:
        await may_finish.wait()
        return await real_finish(*arguments, **named)

    replace(zombie.runtime.queue, "finish", finish_late)
    job_id = await crew.submit()
    await crew.begun(job_id, 6)
    zombie.stop_renewing()
    zombie.stop_claiming()
    heir = await crew.worker(lease_s=LEASE_S)
    await wait_until(lambda: job_id in heir.running or len(crew.calls(job_id)) == 2, "the takeover")
    may_finish.set()
    await zombie.is_idle()
    assert [line["job_id"] for line in zombie.log.named("claim_lost")] == [job_id]
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)


async def test_a_worker_that_claims_a_job_it_still_runs_ends_the_old_run_first(crew: Crew) -> None:
    hand = await crew.worker(lease_s=LEASE_S)
    job_id = await crew.submit("tokens=100 gap-ms=10")
    await crew.begun(job_id)
    real_renew = hand.runtime.queue.renew
    hand.stop_renewing()
    await wait_until(lambda: len(crew.calls(job_id)) == 2, "the second run")
    replace(hand.runtime.queue, "renew", real_renew)
    assert hand.worker.job_counter == 1
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
    first_call, second_call = crew.calls(job_id)
    assert first_call.ended == "client_closed"
    assert first_call.ended_s is not None
    assert first_call.ended_s - second_call.started_s < 0.1


async def test_a_job_that_killed_its_workers_three_times_fails(crew: Crew) -> None:
    """Each worker had confirmed its start; no fourth worker gets the job."""
    job_id = await crew.submit(model=STEADY, max_attempts=1)
    for takeovers in range(1, FATAL_TAKEOVERS + 1):
        hand = await crew.worker(lease_s=LEASE_S)
        await wait_until(lambda: len(crew.calls(job_id)) == takeovers, f"run {takeovers}")  # noqa: B023
        await wait_until(lambda: is_confirmed(crew, job_id), "the confirmation")
        await hand.killed()
    last = await crew.worker(lease_s=LEASE_S)
    job = await crew.ended(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, job.error.retryable) == (JobState.FAILED, "worker_lost", False)
    assert job.attempts == len(crew.calls(job_id)) == FATAL_TAKEOVERS
    assert last.log.named("job_failed") == [{"job_id": job_id, "code": "worker_lost"}]
    last.expected_errors.add("job_failed")


async def is_confirmed(crew: Crew, job_id: str) -> bool:
    return await crew.field(job_id, "confirmed") == "1"


async def test_suspects_that_died_together_run_apart(crew: Crew) -> None:
    """If one of them kills the worker, the other is not blamed. Jobs without suspicion are not delayed."""
    suspects = [await crew.submit("tokens=30 gap-ms=10") for _ in range(3)]
    for job_id in suspects:
        await crew.runtime._commands.call("HSET", redis_keys.job(job_id), "takeovers", ALONE_TAKEOVERS)
    others = [await crew.submit("tokens=30 gap-ms=10") for _ in range(3)]
    hand = await crew.worker()
    together: list[int] = []
    real_run = hand.worker.run_job

    async def run_watched(job_id: str, score: int) -> None:
        together.append(len(hand.running & set(suspects)))
        await real_run(job_id, score)

    replace(hand.worker, "run_job", run_watched)
    await crew.all_ended([*suspects, *others])
    assert max(together, default=0) <= 1
    spans = sorted((call.started_s, call.ended_s or 0) for job_id in suspects for call in crew.calls(job_id))
    assert all(end <= start + 0.05 for (_, end), (start, _) in itertools.pairwise(spans))


async def test_hundreds_of_jobs_that_lost_two_workers_do_not_wait_for_each_other(crew: Crew) -> None:
    """By random kills. One after the other they would take over a minute."""
    ids = [await crew.submit("tokens=30 gap-ms=10") for _ in range(200)]
    for name in ("one that dies", "another that dies"):
        for found in await claim(crew.runtime, len(ids), worker=name):
            await confirm(crew.runtime, found)
        await expire_leases(crew.runtime, *ids)
        while (await crew.runtime.queue.reap()).back:
            pass
    begun_s = time.monotonic()
    await crew.worker()
    await crew.all_ended(ids, timeout_s=30)
    assert time.monotonic() - begun_s < 12


@pytest.mark.parametrize("lease_s", [0.5, 8])
async def test_leases_are_reaped_however_short_they_are(crew: Crew, lease_s: float) -> None:
    """Without leases to renew, only REAP itself shows that workers are alive."""
    hand = await crew.worker(lease_s=lease_s)
    hand.stop_claiming()
    job_id = await crew.submit()
    await claim(crew.runtime, worker="one that dies")
    await crew.runtime._commands.call("ZADD", redis_keys.plain("running"), "XX", 1, job_id)

    async def is_back() -> bool:
        return await crew.state(job_id) is JobState.QUEUED

    await wait_until(is_back, "the job to be back", timeout_s=5)


class Proxy:
    """Stands between a worker and Redis. A swallowed connection stays open but passes nothing."""

    def __init__(self, url: str) -> None:
        self._target_port = urlsplit(url).port
        self._swallowed: list[asyncio.Event] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield self
        finally:
            server.close()
            self.swallow()
            await server.wait_closed()
            await wait_until(lambda: not self._swallowed, "the proxy's connections to end")

    def swallow(self) -> None:
        """Swallows all open connections; new ones pass."""
        for event in self._swallowed:
            event.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        is_swallowed = asyncio.Event()
        self._swallowed.append(is_swallowed)
        there = asyncio.create_task(self._copy(reader, there_writer, is_swallowed))
        back = asyncio.create_task(self._copy(there_reader, writer, is_swallowed))
        await asyncio.wait([there])
        back.cancel()
        await asyncio.wait([back])
        there_writer.close()
        writer.close()
        self._swallowed.remove(is_swallowed)

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_swallowed: asyncio.Event) -> None:
        try:
            while piece := await reader.read(65_536):
                if not is_swallowed.is_set():
                    writer.write(piece)
        except ConnectionError:
            pass


async def test_a_worker_whose_connections_died_silently_keeps_its_leases(crew: Crew, redis_url: str) -> None:
    """It renews on a new connection before its leases end, although another worker could take its jobs."""
    proxy = await crew.stack.enter_async_context(Proxy(redis_url).running())
    hand = await crew.worker(lease_s=2, redis_url=proxy.url)
    job_ids = [await crew.submit("tokens=450 gap-ms=10") for _ in range(3)]
    for job_id in job_ids:
        await crew.begun(job_id)
    other = await crew.worker(lease_s=2)
    proxy.swallow()
    for job in await crew.all_ended(job_ids):
        assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)
    assert other.log.named("job_taken_over") == []
    assert hand.log.named("redis_trouble")
