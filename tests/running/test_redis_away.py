"""Redis goes away and comes back, or is full: no job runs twice, none is lost, no worker ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
import structlog

from cli.embedded_redis import EmbeddedRedis
from shared.errors import StorageFull, StorageUnavailable
from shared.job import JobState
from shared.store import redis_keys
from tests.running.crew import Crew, Hand, replace
from tests.support.wait import wait_until

LEASE_S = 1.0
STREAMS = 20


@pytest.fixture
def redis_url(own_redis: EmbeddedRedis) -> str:
    """A server that the test may kill."""
    return own_redis.url


@asynccontextmanager
async def away(server: EmbeddedRedis, for_s: float) -> AsyncIterator[None]:
    """Kills Redis, runs the block, and restarts Redis on the same files at least ``for_s`` after the kill."""
    loop = asyncio.get_running_loop()
    server.kill()
    back_s = loop.time() + for_s
    try:
        yield
        await asyncio.sleep(max(0, back_s - loop.time()))  # the length of the outage
    finally:
        await asyncio.to_thread(server.restart)


async def assert_run_once(crew: Crew, job_ids: list[str], *hands: Hand) -> None:
    for job in await crew.all_ended(job_ids):
        assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)
        assert len(crew.calls(job.id)) == 1
        assert await crew.field(job.id, "takeovers") is None
        assert [name for name, _ in await crew.ours(job.id)] == ["started", "succeeded"]
    for hand in hands:
        assert not hand.done.done(), "no process ends because of Redis"
        assert hand.log.named("job_taken_over") == []
        assert hand.log.named("loop_failed") == []


@pytest.mark.parametrize(("for_s", "lease_s"), [(0.4, 8), (1.8, LEASE_S)], ids=["a moment", "for longer than a lease"])
async def test_streams_go_on_where_they_were(
    crew: Crew, own_redis: EmbeddedRedis, for_s: float, lease_s: float
) -> None:
    """There are two workers, which might take each other for dead; they hold the tokens of the outage."""
    hands = [await crew.worker(lease_s=lease_s) for _ in range(2)]
    job_ids = [await crew.submit("tokens=60 gap-ms=20") for _ in range(STREAMS)]
    for job_id in job_ids:
        await crew.begun(job_id)
    async with away(own_redis, for_s):
        pass
    await assert_run_once(crew, job_ids, *hands)


async def test_answers_that_were_completed_meanwhile_are_kept(crew: Crew, own_redis: EmbeddedRedis) -> None:
    """The upstream is not called again, however long Redis is away."""
    hand = await crew.worker(lease_s=LEASE_S)
    job_ids = [await crew.submit("tokens=100 gap-ms=10") for _ in range(STREAMS)]
    for job_id in job_ids:
        await crew.begun(job_id)
    async with away(own_redis, 1.8):
        await crew.simulator.until(lambda: not crew.simulator.record.open_streams)
        assert len(hand.running) == STREAMS
    await assert_run_once(crew, job_ids, hand)


async def test_jobs_start_again_when_it_is_back(crew: Crew, own_redis: EmbeddedRedis) -> None:
    hand = await crew.worker(lease_s=LEASE_S)
    waiting = [await crew.submit(not_before_ms=4_000_000_000_000) for _ in range(3)]
    async with away(own_redis, 0.5):
        pass
    await wait_until(crew.runtime.ping, "Redis to be back")
    for job_id in waiting:
        await crew.runtime._commands.call("ZADD", redis_keys.plain("deferred"), "XX", 1, job_id)
    await assert_run_once(crew, waiting, hand)


async def test_a_silent_upstream_is_noticed_without_redis(crew: Crew, own_redis: EmbeddedRedis) -> None:
    """Retries, deferrals and failures during an outage are written after it. No call is made without its row in the
    ledger, so a retry waits for Redis too.
    """
    hand = await crew.worker(content_idle_timeout_s=0.2)
    stalling = await crew.submit("stall=3x1 gap-ms=10")
    deferring = await crew.submit(
        "fail=429x1,retry-after=2.2 slow-head=300", model="sim-t6-g1-f2"
    )  # a model with its own gate
    failing = await crew.submit("fail=400 slow-head=300")
    await crew.begun(stalling)
    await wait_until(lambda: len(hand.running) == 3, "three runs")
    async with away(own_redis, 1.0):
        await crew.simulator.until(lambda: all(crew.calls(job)[0].ended for job in (stalling, deferring, failing)))
    first, second, third = await crew.all_ended([stalling, deferring, failing])
    assert (first.state, first.attempts) == (JobState.SUCCEEDED, 2)
    assert (second.state, second.attempts) == (JobState.SUCCEEDED, 2)
    assert (third.state, third.attempts) == (JobState.FAILED, 1)
    assert [name for name, _ in await crew.ours(stalling)] == ["started", "retry", "reset", "succeeded"]
    assert [name for name, _ in await crew.ours(deferring)] == ["started", "retry", "started", "succeeded"]


async def test_a_worker_takes_no_more_from_its_upstream_than_it_may_hold(crew: Crew, own_redis: EmbeddedRedis) -> None:
    """1 MiB of a job waits for Redis, the rest in the socket; Redis's silence does not count as the upstream's."""
    await crew.worker(content_idle_timeout_s=1.0)
    job_id = await crew.submit("tokens=60 gap-ms=5 big-line=10,bytes=8000000")
    await crew.begun(job_id)
    async with away(own_redis, 2.2):
        pass
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)


async def test_a_drain_waits_for_redis_as_long_as_it_may(crew: Crew, own_redis: EmbeddedRedis) -> None:
    hand = await crew.worker()
    job_id = await crew.submit("tokens=50 gap-ms=10")
    await crew.begun(job_id)
    async with away(own_redis, 0.6):
        hand.worker.drain()
        await crew.simulator.until(lambda: not crew.simulator.record.open_streams)
    async with asyncio.timeout(10):
        await hand.done
    assert (await crew.ended(job_id)).attempts == 1


async def test_a_drain_without_redis_ends(
    crew: Crew, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers take over the jobs when their leases end."""
    monkeypatch.setattr("worker.arq_worker._HAND_BACK_S", 0.2)
    hand = await crew.worker(lease_s=LEASE_S, timeout_s=0.3)
    job_id = await crew.submit("tokens=100 gap-ms=10")
    await crew.begun(job_id)
    async with away(own_redis, 0.1):
        hand.worker.drain()
        hand.worker.drain()
        async with asyncio.timeout(5):
            await hand.done
        assert hand.log.named("hand_back_failed")[0]["jobs"] == 1
    await crew.worker(lease_s=LEASE_S)
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED


async def test_jobs_that_stream_into_a_full_redis_finish(crew: Crew, own_redis: EmbeddedRedis) -> None:
    """New jobs are refused until there is room again."""
    hands = [await crew.worker(lease_s=LEASE_S) for _ in range(2)]
    job_ids = [await crew.submit("tokens=120 gap-ms=15") for _ in range(STREAMS)]
    for job_id in job_ids:
        await crew.begun(job_id)
    with redis.Redis.from_url(own_redis.url) as server:
        used = int(server.info("memory")["used_memory"])
        server.config_set("maxmemory", used // 2)
        with pytest.raises(StorageFull):
            await crew.submit()
        await assert_run_once(crew, job_ids, *hands)
        server.config_set("maxmemory", 0)
    assert (await crew.ended(await crew.submit())).state is JobState.SUCCEEDED


async def test_a_cut_of_every_connection_loses_nothing(crew: Crew, own_redis: EmbeddedRedis) -> None:
    """Replies are lost with the connections: commands are sent again, and take effect once."""
    hands = [await crew.worker(lease_s=LEASE_S) for _ in range(2)]
    job_ids = [await crew.submit("tokens=80 gap-ms=15") for _ in range(STREAMS)]
    with redis.Redis.from_url(own_redis.url) as server:
        for tokens in (1, 15, 30, 45):
            await crew.begun(job_ids[0], tokens)
            for client in server.client_list():
                if client["name"] == "worker":
                    server.execute_command("CLIENT", "KILL", "ID", client["id"])
    await assert_run_once(crew, job_ids, *hands)


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_in_the_turn_in_which_the_connection_breaks_waits_for_the_next_one(crew: Crew, turns: int) -> None:
    """A closed uvloop transport refuses writes at once, but its reader notices only in the next turn."""
    await wait_until(lambda: crew.runtime._commands.is_connected, "a connection")
    transport = crew.runtime._commands._connection._writer.transport  # type: ignore[union-attr]
    transport.abort()
    for _ in range(turns):
        await asyncio.sleep(0)
    calls = [crew.runtime._commands.call("ECHO", b"heard") for _ in range(2)]
    await asyncio.wait(calls)
    for call in calls:
        assert isinstance(call.exception(), StorageUnavailable) or call.result() == b"heard"
    await wait_until(crew.runtime.ping, "another connection")


@pytest.mark.parametrize("turns", range(6))
async def test_a_channel_subscribed_in_the_turn_in_which_the_connection_breaks_is_on_the_next_one(
    crew: Crew, turns: int
) -> None:
    async with crew.runtime.subscriber(on_message=lambda *_: None, on_confirmed=lambda _: None) as subscriber:
        subscriber.subscribe("before")
        await wait_until(lambda: subscriber.stands("before"), "the first channel")
        transport = subscriber._connection._writer.transport  # type: ignore[union-attr]
        transport.abort()
        for _ in range(turns):
            await asyncio.sleep(0)
        subscriber.subscribe("meanwhile")
        await wait_until(lambda: subscriber.stands("meanwhile") and subscriber.stands("before"), "both channels")


async def test_a_bug_in_reading_replies_is_logged_and_costs_one_connection(crew: Crew) -> None:
    """It does not end the process: waiting calls fail, and the next call gets a new connection."""
    await wait_until(crew.runtime.ping, "a connection")
    commands = crew.runtime._urgent  # the connection that sends the pings
    real_answer = commands._answer

    def answer_wrongly(*_: object) -> None:
        replace(commands, "_answer", real_answer)
        raise RuntimeError("a bug of ours")

    replace(commands, "_answer", answer_wrongly)
    with structlog.testing.capture_logs() as lines:
        assert not await crew.runtime.ping()
        await wait_until(crew.runtime.ping, "another connection")
    assert [line["event"] for line in lines] == ["commands_failed"]
