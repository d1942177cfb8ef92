"""Workers that die, freeze, wake up and are stopped while they run jobs."""

import asyncio
import signal
import time

import pytest

from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.chaos.conftest import HistoryOf
from tests.support.deployment import Deployment, Process
from tests.support.facts import Fact
from tests.support.follower import Follower
from tests.support.history import History, Submitted
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


async def _runner_of(deployment: Deployment, runtime: Runtime, job: Submitted) -> Process | None:
    """The worker that holds the job's lease, by the pid at the end of its name."""
    name = await runtime._commands.call("HGET", redis_keys.job(job.id), "worker")
    if name is None:
        return None
    pid = int(name.decode().split("-")[-2])
    return next((worker for worker in deployment.workers if worker.pid == pid), None)


async def _by_runner(deployment: Deployment, runtime: Runtime, jobs: list[Submitted]) -> dict[int, list[Submitted]]:
    found: dict[int, list[Submitted]] = {}
    for job in jobs:
        if runner := await _runner_of(deployment, runtime, job):
            found.setdefault(runner.pid, []).append(job)
    return found


async def _takeovers(runtime: Runtime, job: Submitted) -> int:
    return int(await runtime._commands.call("HGET", redis_keys.job(job.id), "takeovers") or 0)


async def _starts(runtime: Runtime, job: Submitted) -> int:
    return sum(event.name == "started" for event in await runtime.log.read(job.id, count=10_000))


async def _all_have_text(history: History) -> None:
    await wait_until(lambda: all(follower.text for follower in history.followers), "text everywhere", timeout_s=20)


def _second_start_s(follower: Follower) -> float:
    """When the follower read the `started` of the second attempt."""
    starts = [frame.id for frame in follower.frames if frame.event == "started" and frame.id]
    return follower.at_s[starts[1]]


async def test_a_killed_workers_jobs_run_elsewhere_within_twelve_seconds(
    real: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """With the default lease and a timeout of 600 s: followers see `reset`, then the whole answer."""
    await real.make_whole(apis=1, workers=2)
    history = history_of(real)
    jobs = await history.submit_many(30, "tokens=120 gap-ms=20", allowed_calls=2, timeout_s=600)
    tasks = [history.follow(job, form=("text", "messages")[number % 2]) for number, job in enumerate(jobs)]
    await _all_have_text(history)
    async with real.runtime() as runtime:
        by_runner = await _by_runner(real, runtime, jobs)
        victim = max(real.workers, key=lambda worker: len(by_runner.get(worker.pid, [])))
        orphans = {job.id for job in by_runner[victim.pid]}
        killed_s = time.monotonic()
        victim.kill()
        await asyncio.gather(*tasks)
        ended = await history.check()
        for follower in history.followers:
            if follower.job_id in orphans:
                reasons = [frame.data for frame in follower.frames if frame.event == "reset"]
                assert reasons == ['{"attempt":2,"reason":"worker_lost"}']
                assert ended[follower.job_id]["attempts"] == 2
            else:
                assert all(frame.event != "reset" for frame in follower.frames)
        for job in jobs:
            assert await _takeovers(runtime, job) == (job.id in orphans)
            assert len(await real.calls(job.nonce)) == 1 + (job.id in orphans)
    times_s = sorted(_second_start_s(one) - killed_s for one in history.followers if one.job_id in orphans)
    fact(f"takeover of {len(times_s)} jobs: {times_s[0]:.1f} to {times_s[-1]:.1f} s after kill -9, lease 8 s")
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    assert times_s[-1] < 12


async def test_a_worker_that_slept_past_its_lease_writes_nothing_more(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """SIGSTOP, takeover, SIGCONT: one terminal event, one result, and the zombie finds that it lost its claim."""
    history = history_of(quick)
    jobs = await history.submit_many(10, "tokens=200 gap-ms=20", allowed_calls=2)
    tasks = [history.follow(job) for job in jobs]
    await _all_have_text(history)
    async with quick.runtime() as runtime:
        by_runner = await _by_runner(quick, runtime, jobs)
        zombie = max(quick.workers, key=lambda worker: len(by_runner.get(worker.pid, [])))
        taken = {job.id for job in by_runner[zombie.pid]}
        stopped_s = time.monotonic()
        zombie.signal(signal.SIGSTOP)
        followers = [follower for follower in history.followers if follower.job_id in taken]
        await wait_until(
            lambda: all(sum(frame.event == "started" for frame in one.frames) == 2 for one in followers),
            "the takeovers",
            timeout_s=20,
        )
        took_s = max(_second_start_s(one) for one in followers) - stopped_s
        zombie.signal(signal.SIGCONT)
        woken_s = time.monotonic()
        await asyncio.gather(*tasks)
        ended = await history.check()
        for job in jobs:
            assert await _takeovers(runtime, job) == (job.id in taken)
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    assert zombie.is_running
    reported = {line["job_id"] for line in zombie.lines("job_succeeded")}
    assert not reported & taken, "the zombie believes that it ended a job"
    firsts = [(await quick.calls(job.nonce))[0] for job in jobs if job.id in taken]
    assert {call.ended for call in firsts} == {"client_closed"}
    gave_up_s = max(call.client_closed_s or 0 for call in firsts) - woken_s
    assert gave_up_s < 2
    fact(
        f"{len(taken)} jobs taken over {took_s:.1f} s after SIGSTOP (lease 1 s); "
        f"the zombie gave up its calls {gave_up_s:.2f} s after SIGCONT"
    )


async def test_a_worker_finishes_its_jobs_after_sigterm(quick: Deployment, history_of: HistoryOf, fact: Fact) -> None:
    """Another worker takes the jobs that arrive meanwhile; each job runs once, with one call of the LLM."""
    history = history_of(quick)
    jobs = await history.submit_many(40, "tokens=100 gap-ms=20")
    for job in jobs[::4]:
        history.follow(job)
    await wait_until(lambda: all(one.text for one in history.followers), "text", timeout_s=20)
    leaving = quick.workers[0]
    told_s = time.monotonic()
    leaving.signal(signal.SIGTERM)
    for _ in range(10):  # while the first worker drains
        jobs += await history.submit_many(4, "tokens=20 gap-ms=5")
        await asyncio.sleep(0.02)
    assert await leaving.ended(30) == 0
    fact(f"the worker ended {time.monotonic() - told_s:.1f} s after SIGTERM, its longest job had 2 s")
    ended = await history.check()
    calls = [call for job in jobs for call in await quick.calls(job.nonce)]
    assert len(calls) == len(jobs)
    assert {call.ended for call in calls} == {"completed"}
    assert {(job["status"], job["attempts"]) for job in ended.values()} == {("succeeded", 1)}
    async with quick.runtime() as runtime:
        assert {await _starts(runtime, job) for job in jobs} == {1}


async def test_a_worker_loses_no_pending_claim_after_sigterm(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """SIGTERM during many short jobs: no job waits for a lease to expire."""
    history = history_of(quick)
    words = "tokens=2 gap-ms=1 first-ms=1"
    leaving = quick.workers[0]
    rush = [asyncio.create_task(history.submit(words)) for _ in range(150)]
    await wait_until(lambda: len(history.jobs) > 30, "the rush")
    leaving.signal(signal.SIGTERM)
    rush += [asyncio.create_task(history.submit(words)) for _ in range(150)]
    await asyncio.gather(*rush)
    assert await leaving.ended(20) == 0
    ended = await history.check()
    async with quick.runtime() as runtime:
        assert [job.nonce for job in history.jobs.values() if await _starts(runtime, job) != 1] == []
    slowest_ms = max(job["timing"]["total_ms"] for job in ended.values())
    fact(f"{len(ended)} jobs around a SIGTERM, the slowest took {slowest_ms} ms (lease 1 s)")


async def test_a_second_sigterm_hands_the_jobs_back_at_once(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """They run on another worker, the attempt is not counted, and `reset` has the reason."""
    history = history_of(quick)
    jobs = await history.submit_many(10, "tokens=150 gap-ms=20", allowed_calls=2)
    tasks = [history.follow(job) for job in jobs]
    await _all_have_text(history)
    async with quick.runtime() as runtime:
        by_runner = await _by_runner(quick, runtime, jobs)
        leaving = max(quick.workers, key=lambda worker: len(by_runner.get(worker.pid, [])))
        theirs = {job.id for job in by_runner[leaving.pid]}
        leaving.signal(signal.SIGTERM)
        await wait_until(lambda: bool(leaving.lines("draining")), "the drain")
        told_s = time.monotonic()
        leaving.signal(signal.SIGTERM)
        assert await leaving.ended(20) == 0
        took_s = time.monotonic() - told_s
        await asyncio.gather(*tasks)
        await history.check()
        again_s = 0.0
        for follower in history.followers:
            if follower.job_id in theirs:
                reasons = [frame.data for frame in follower.frames if frame.event == "reset"]
                assert reasons == ['{"attempt":2,"reason":"drained"}']
                again_s = max(again_s, _second_start_s(follower) - told_s)
        for job in jobs:
            assert await _takeovers(runtime, job) == 0
            assert await runtime._commands.call("HGET", redis_keys.job(job.id), "failures") in (None, b"0")
    fact(f"ended {took_s:.2f} s after the second SIGTERM; its {len(theirs)} jobs ran again after {again_s:.2f} s")
    assert took_s < 5
    assert again_s < 3


async def _kill_again_and_again(deployment: Deployment, history: History, *, kills: int, jobs: int) -> None:
    """Each kill hits a worker that runs jobs, new and old ones."""
    for _ in range(kills):
        submitted = await history.submit_many(jobs // kills, "tokens=60 gap-ms=20", allowed_calls=4)
        for job in submitted[::4]:
            history.follow(job)
        await wait_until(lambda: all(one.text for one in history.followers), "text in all jobs", timeout_s=30)
        deployment.workers.pop(0).kill()
        deployment.begin_worker()
        await deployment.worker_up(deployment.workers[-1])


def _assert_lost_only_by_poison(ended: dict[str, dict[str, object]]) -> int:
    lost = 0
    for job in ended.values():
        if job["status"] == "failed":
            assert job["error"]["code"] == "worker_lost"  # type: ignore[index]
            lost += 1
        else:
            assert job["status"] == "succeeded"
    return lost


async def test_killing_workers_again_and_again_loses_no_job(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """A hundred jobs, and SIGKILL for each new worker."""
    history = history_of(quick)
    await _kill_again_and_again(quick, history, kills=3, jobs=99)
    ended = await history.check(timeout_s=60)
    calls = sum([len(await quick.calls(job.nonce)) for job in history.jobs.values()])
    lost = _assert_lost_only_by_poison(ended)
    fact(f"99 jobs, 3 kills of workers: {calls} calls of the LLM, {lost} ended by the poison limit, 0 lost")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killing_workers_for_a_long_time_loses_no_job(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Rounds of a hundred jobs with five kills each."""
    lost, jobs = 0, 0
    for number in range(8):
        history = history_of(quick)
        history.name = f"{history.name}-{number}"
        await _kill_again_and_again(quick, history, kills=5, jobs=100)
        lost += _assert_lost_only_by_poison(await history.check(timeout_s=60))
        jobs += len(history.jobs)
    fact(f"{jobs} jobs, 40 kills of workers, {lost} ended by the poison limit, 0 lost")
