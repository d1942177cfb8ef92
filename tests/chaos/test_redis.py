"""Redis dies, hangs, fills up, drops connections or starts late: our processes go on, and no job is lost."""

import asyncio
import itertools
import signal
import time
from contextlib import suppress

import pytest

from shared.store import redis_keys
from tests.chaos.conftest import HistoryOf
from tests.support.deployment import Deployment, away
from tests.support.facts import Fact
from tests.support.faults import every_pubsub_connection_cut
from tests.support.follower import Cut, Follower, ask
from tests.support.history import History, Submitted
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


async def _all_have_text(history: History) -> None:
    await wait_until(lambda: all(follower.text for follower in history.followers), "text everywhere", timeout_s=20)


async def _nothing_was_run_twice(deployment: Deployment, jobs: list[Submitted]) -> None:
    async with deployment.runtime() as runtime:
        for job in jobs:
            assert await runtime._commands.call("HGET", redis_keys.job(job.id), "takeovers") is None, job.nonce
            calls = await deployment.calls(job.nonce)
            assert [call.ended for call in calls] == ["completed"], job.nonce


async def _submit_until_taken(history: History, words: str, key: str) -> tuple[Submitted, float]:
    """Repeats a refused or lost submit with the same key, as a client does. Also returns the longest try's time."""
    longest_s = 0.0
    while True:
        began_s = time.monotonic()
        job = await history.submit(words, key=key, nonce=key)
        longest_s = max(longest_s, time.monotonic() - began_s)
        if job is not None:
            return job, longest_s
        await asyncio.sleep(0.1)


def _nobody_ended(deployment: Deployment) -> None:
    for process in (*deployment.apis, *deployment.workers):
        assert process.is_running, process.log


async def test_redis_killed_and_back_after_three_seconds_loses_nothing(
    real: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Jobs stream, wait and arrive meanwhile; submits are refused with Retry-After, and repeated with their keys."""
    history = history_of(real)
    streaming = await history.submit_many(20, "tokens=200 gap-ms=20")
    tasks = [history.follow(job, form=("text", "messages")[number % 2]) for number, job in enumerate(streaming)]
    await _all_have_text(history)
    stop = asyncio.Event()
    slowest_s = 0.0

    async def submit_on(number: int) -> None:
        nonlocal slowest_s
        round_ = 0
        while not stop.is_set():
            key = f"{history.name}-{number}-{round_}"
            _, longest_s = await _submit_until_taken(history, "tokens=5 gap-ms=5", key)
            slowest_s = max(slowest_s, longest_s)
            round_ += 1
            await asyncio.sleep(0.02)

    submitting = [asyncio.create_task(submit_on(number)) for number in range(5)]
    began_s = time.monotonic()
    await away(real.redis, 3)
    back_s = time.monotonic()
    await asyncio.gather(*tasks)
    known = len(history.jobs)
    await wait_until(lambda: len(history.jobs) > known + 20, "work goes on", timeout_s=20)
    stop.set()
    await asyncio.gather(*submitting)
    ended = await history.check()
    _nobody_ended(real)
    await _nothing_was_run_twice(real, list(history.jobs.values()))
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    assert set(history.refused) <= {503}, history.refused
    assert history.refused[503] > 0
    assert slowest_s < 2 * 3
    first_s = min(at_s for one in history.followers for at_s in one.at_s.values() if at_s > back_s)
    fact(
        f"Redis away for {back_s - began_s:.1f} s: {len(ended)} jobs, 0 lost, {history.refused[503]} submits refused, "
        f"the slowest answer {slowest_s:.2f} s; tokens flowed {first_s - back_s:.2f} s after it was back"
    )


async def _away_for_longer_than_a_lease(
    deployment: Deployment, history: History, fact: Fact, *, hangs: bool, seconds: float, tokens: int
) -> None:
    jobs = await history.submit_many(20, f"tokens={tokens} gap-ms=20")
    tasks = [history.follow(job, form=("text", "messages")[number % 2]) for number, job in enumerate(jobs)]
    await _all_have_text(history)
    if hangs:
        deployment.redis.child.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)  # the length of the fault
        deployment.redis.child.signal(signal.SIGCONT)
    else:
        await away(deployment.redis, seconds)
    back_s = time.monotonic()
    await asyncio.gather(*tasks)
    done_s = time.monotonic()
    ended = await history.check()
    _nobody_ended(deployment)
    await _nothing_was_run_twice(deployment, jobs)
    assert {(job["status"], job["attempts"]) for job in ended.values()} == {("succeeded", 1)}
    for follower in history.followers:
        assert [frame.event for frame in follower.frames].count("started") == 1
        assert "reset" not in [frame.event for frame in follower.frames]
    again = sum(len(follower.connections) - 1 for follower in history.followers)
    fact(
        f"Redis {'hung' if hangs else 'away'} for {seconds} s with 20 jobs streaming: 20 calls, 0 takeovers, "
        f"all followers done {done_s - back_s:.1f} s later, {again} reconnects"
    )


async def test_redis_away_for_longer_than_a_lease_runs_nothing_twice(
    real: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Twelve seconds with leases of eight: after an outage, workers do not count as dead."""
    await _away_for_longer_than_a_lease(real, history_of(real), fact, hangs=False, seconds=12, tokens=700)


async def test_redis_that_hangs_for_longer_than_a_lease_runs_nothing_twice(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Connections stay open but get no reply; when Redis wakes it runs all commands sent meanwhile at once."""
    await _away_for_longer_than_a_lease(quick, history_of(quick), fact, hangs=True, seconds=3, tokens=250)


async def test_no_event_is_lost_while_every_subscription_is_cut_each_second(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Subscriptions of APIs and workers, while twenty jobs stream: no event is lost, doubled or out of order."""
    history = history_of(quick)
    jobs = await history.submit_many(20, "tokens=200 gap-ms=20")
    tasks = [history.follow(job, form=("text", "messages")[number % 2]) for number, job in enumerate(jobs)]
    await _all_have_text(history)
    cut = 0
    async with quick.runtime() as runtime:
        while not all(task.done() for task in tasks):
            cut += await every_pubsub_connection_cut(runtime)
            await asyncio.wait(tasks, timeout=1)  # one fault a second
    await asyncio.gather(*tasks)
    ended = await history.check()
    await _nothing_was_run_twice(quick, jobs)
    assert cut >= 8
    assert {len(follower.connections) for follower in history.followers} == {1}
    events = sum(len(follower.ids) for follower in history.followers)
    slowest_s = max(_longest_gap_s(follower) for follower in history.followers)
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    fact(f"{cut} subscriptions cut: {events} events, 0 lost, doubled or out of order; longest gap {slowest_s:.2f} s")


def _longest_gap_s(follower: Follower) -> float:
    times = sorted(follower.at_s.values())
    return max(later - earlier for earlier, later in itertools.pairwise(times))


async def test_every_connection_to_redis_cut_again_and_again_loses_nothing(
    real: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Replies to executed commands are lost: claims, appends, ends and submits can all be repeated safely."""
    history = history_of(real)
    jobs = await history.submit_many(20, "tokens=150 gap-ms=20")
    tasks = [history.follow(job, form=("text", "messages")[number % 2]) for number, job in enumerate(jobs)]
    await _all_have_text(history)
    stop = asyncio.Event()
    cut = 0

    async def submit_on(number: int) -> None:
        round_ = 0
        while not stop.is_set():
            key = f"{history.name}-{number}-{round_}"
            await _submit_until_taken(history, "tokens=3 gap-ms=1", key)
            round_ += 1

    submitting = [asyncio.create_task(submit_on(number)) for number in range(5)]
    async with real.runtime() as runtime:
        while not all(task.done() for task in tasks):
            for kind in ("normal", "pubsub"):
                cut += await runtime._commands.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await asyncio.wait(tasks, timeout=0.25)  # four faults a second
    stop.set()
    await asyncio.gather(*submitting)
    ended = await history.check(timeout_s=60)
    _nobody_ended(real)
    await _nothing_was_run_twice(real, list(history.jobs.values()))
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    assert set(history.refused) <= {503}
    fact(
        f"{cut} connections cut: {len(ended)} jobs, {len(ended)} calls, 0 lost; {history.refused[503]} submits refused"
    )


_NOTICED_S = 1.5
"""An API checks Redis's memory once a second; until then a submit may use the last free kilobytes."""


async def test_a_full_redis_lets_jobs_end_and_refuses_new_ones(
    quick: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Redis reaches maxmemory while jobs stream: they finish, submits get 503 with Retry-After, and all recovers."""
    history = history_of(quick)
    jobs = await history.submit_many(20, "tokens=150 gap-ms=20")
    tasks = [history.follow(job) for job in jobs]
    await _all_have_text(history)
    async with quick.runtime() as runtime:
        (_, most) = await runtime._commands.call("CONFIG", "GET", "maxmemory")
        facts = (await runtime._commands.call("INFO", "memory")).decode()
        used = int(facts.partition("used_memory:")[2].split()[0])
        await runtime._commands.call("CONFIG", "SET", "maxmemory", used)
        full_s = time.monotonic()
        early, answers = list[int](), list[tuple[int, str | None, bool]]()
        while not all(task.done() for task in tasks):
            status, answer, headers = await ask(
                quick.urls[(len(early) + len(answers)) % 2], "/v1/jobs", method="POST", body={"prompt": "tokens=1"}
            )
            if time.monotonic() - full_s < _NOTICED_S:
                early.append(status)
            else:
                answers.append((status, answer.get("code"), "retry-after" in headers))
            await asyncio.wait(tasks, timeout=0.1)
        ended = await history.check()
        took_s = time.monotonic() - full_s
        assert set(early) <= {202, 503}
        assert set(answers) == {(503, "storage_full", True)}
        _nobody_ended(quick)
        await runtime._commands.call("CONFIG", "SET", "maxmemory", most)
        healed_s = time.monotonic()
        await wait_until(lambda: _accepts(quick, history), "submits are taken again")
        fact(
            f"{len(jobs)} jobs ended in {took_s:.1f} s at maxmemory, {len(answers)} submits refused; "
            f"taken again {time.monotonic() - healed_s:.1f} s after there was room"
        )
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    await _nothing_was_run_twice(quick, jobs)
    await history.check()


async def _accepts(deployment: Deployment, history: History) -> bool:
    found = [await history.submit("tokens=2", url=url) for url in deployment.urls]
    return all(found)


async def test_processes_that_start_before_redis_wait_for_it(
    empty: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """They start, log what is missing, and work as soon as Redis is there."""
    empty.redis.stop()
    api, worker = empty.begin_api(), empty.begin_worker()
    await empty.api_up(api)
    await empty.worker_up(worker)
    status, answer, _ = await ask(api.url, "/health")
    assert (status, answer["status"], answer["redis"]) == (503, "degraded", "unavailable")
    began_s = time.monotonic()
    status, answer, headers = await ask(api.url, "/v1/jobs", method="POST", body={"prompt": "tokens=1"})
    assert (status, answer["code"], "retry-after" in headers) == (503, "storage_unavailable", True)
    refused_s = time.monotonic() - began_s
    assert refused_s < 2 * 3
    empty.redis.start()
    back_s = time.monotonic()
    history = history_of(empty)

    async def accepted() -> bool:
        with suppress(OSError, Cut):
            return await history.submit("tokens=3 gap-ms=1") is not None
        return False

    await wait_until(accepted, "a submit")
    ended = await history.check()
    fact(
        f"without Redis a submit was refused in {refused_s:.2f} s; "
        f"with it the first job was done {time.monotonic() - back_s:.2f} s later"
    )
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    assert all(process.is_running for process in (api, worker))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_redis_killed_again_and_again_loses_nothing(real: Deployment, history_of: HistoryOf, fact: Fact) -> None:
    """Ten outages of up to three seconds, while jobs keep arriving."""
    history = history_of(real)
    stop = asyncio.Event()

    async def submit_on(number: int) -> None:
        round_ = 0
        while not stop.is_set():
            key = f"{history.name}-{number}-{round_}"
            job, _ = await _submit_until_taken(history, "tokens=50 gap-ms=20", key)
            if round_ % 10 == 0:
                history.follow(job)
            round_ += 1
            await asyncio.sleep(0.05)

    submitting = [asyncio.create_task(submit_on(number)) for number in range(8)]
    for number in range(10):
        wanted = len(history.jobs) + 20
        await wait_until(lambda: len(history.jobs) > wanted, "work", timeout_s=30)  # noqa: B023 - waited for at once
        await away(real.redis, 0.3 * number)
    stop.set()
    await asyncio.gather(*submitting)
    ended = await history.check(timeout_s=90)
    _nobody_ended(real)
    assert {job["status"] for job in ended.values()} == {"succeeded"}
    fact(
        f"{len(ended)} jobs through 10 kills of Redis: 0 lost, 0 run twice, {sum(history.refused.values())} submits refused"
    )
