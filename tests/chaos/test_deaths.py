"""How soon a killed worker is noticed, and that nothing else is taken for a death. More rounds: ROUNDS_OF_DEATHS."""

import asyncio
import os
import signal
import statistics
import time

import pytest

from shared.store import redis_keys
from tests.chaos.conftest import HistoryOf
from tests.support.deployment import Deployment
from tests.support.facts import Fact
from tests.support.wait import wait_until

_ROUNDS = int(os.environ.get("ROUNDS_OF_DEATHS", "4"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90 + 30 * _ROUNDS)]


def _deaths(deployment: Deployment) -> int:
    return sum(len(worker.lines("worker_died")) for worker in deployment.processes if worker.name.startswith("worker"))


async def test_a_killed_workers_jobs_run_elsewhere_in_four_seconds(
    real: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """With the default lease of 8 s, under load: from SIGKILL until each of its jobs has started again."""
    await real.make_whole(apis=1, workers=3)
    times_s: list[float] = []
    async with real.runtime() as runtime:
        for number in range(_ROUNDS):
            history = history_of(real)
            history.name = f"{history.name}-{number}"
            jobs = await history.submit_many(15, "tokens=250 gap-ms=20", allowed_calls=2, timeout_s=600)

            async def workers_of() -> dict[str, int]:
                read = [runtime._commands.call("HGET", redis_keys.job(job.id), "worker") for job in jobs]  # noqa: B023
                names = await asyncio.gather(*read)
                pids = [int(name.decode().split("-")[-2]) if name else 0 for name in names]
                return dict(zip((job.id for job in jobs), pids, strict=True))  # noqa: B023

            async def all_run() -> bool:
                return all((await workers_of()).values())

            await wait_until(all_run, "all jobs to run", timeout_s=20)
            await asyncio.sleep(1 + 0.1 * (number % 10))  # the kill falls anywhere between two looks
            before = await workers_of()
            victim = max(real.workers, key=lambda worker: list(before.values()).count(worker.pid))
            orphans = {job_id for job_id, pid in before.items() if pid == victim.pid}
            assert orphans
            killed_s = time.monotonic()
            victim.kill()
            while orphans:
                after = await workers_of()
                started = {job_id for job_id in orphans if after[job_id] not in (0, victim.pid)}
                times_s += [time.monotonic() - killed_s] * len(started)
                orphans -= started
                await asyncio.sleep(0.01)
            await real.make_whole(apis=1, workers=3)
            ended = await history.check(timeout_s=60)
            assert {job["status"] for job in ended.values()} == {"succeeded"}
    times_s.sort()
    p99_s = times_s[int(len(times_s) * 0.99)]
    fact(
        f"{_ROUNDS} kills, {len(times_s)} jobs started again: p50 {statistics.median(times_s):.2f} s, p99 {p99_s:.2f} s"
    )
    assert p99_s < 4
    assert statistics.median(times_s) < 2.5


async def test_a_restart_a_killed_connection_and_a_pause_are_no_death(
    real: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Redis is killed and comes back, connections are killed ten times as often, and a worker is stopped for 4 s."""
    await real.make_whole(apis=1, workers=3)
    history = history_of(real)
    before = _deaths(real)
    jobs = await history.submit_many(15, f"tokens={100 + 150 * _ROUNDS} gap-ms=20", timeout_s=600)
    async with real.runtime() as runtime:
        kinds = ("pubsub", "normal")
        for number in range(10 * _ROUNDS):
            clients = await runtime._commands.call("CLIENT", "LIST", "TYPE", kinds[number % 2])
            ids = [line.split()[0].partition(b"=")[2] for line in clients.splitlines() if b"name=tests" not in line]
            await runtime._commands.call("CLIENT", "KILL", "ID", ids[number % len(ids)])
            await asyncio.sleep(0.1)
    for _ in range(_ROUNDS):
        real.redis.kill()
        real.redis.restart()
        await asyncio.sleep(1)  # the others may look as soon as they are connected
    paused = real.workers[0]
    paused.signal(signal.SIGSTOP)
    await asyncio.sleep(4)  # half a lease: far longer than a death takes to be noticed
    paused.signal(signal.SIGCONT)
    ended = await history.check(timeout_s=120)
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    assert len(jobs) == len(ended)
    assert _deaths(real) == before
    fact(f"{_ROUNDS} restarts of Redis, {10 * _ROUNDS} killed connections, one pause of 4 s: 0 taken for a death")
