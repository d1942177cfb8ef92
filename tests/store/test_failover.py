"""A demoted Redis that keeps its connections: both of ours reconnect until a server accepts writes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from redis import exceptions

from cli.embedded_redis import EmbeddedRedis
from shared.errors import StorageUnavailable
from shared.settings import load_settings
from shared.store.connect import is_not_primary
from shared.store.redis_problems import NOT_PRIMARY
from shared.store.runtime import Runtime, open_runtime
from shared.store.script import script
from shared.store.subscriber import Subscriber
from tests.support.builders import a_submission
from tests.support.failover import a_pair, asking
from tests.support.wait import wait_until

_BACK_S = 3.0


@contextlib.asynccontextmanager
async def runtime_at(url: str) -> AsyncIterator[Runtime]:
    async with open_runtime(load_settings(redis_url=url), process_name="moving", timeout_s=1.5) as runtime:
        yield runtime


@contextlib.asynccontextmanager
async def subscribed(runtime: Runtime, channel: str) -> AsyncIterator[tuple[Subscriber, list[bytes]]]:
    heard: list[bytes] = []
    async with runtime.subscriber(
        on_message=lambda _, message: heard.append(message), on_confirmed=lambda _: None
    ) as subscriber:
        subscriber.subscribe(channel)
        await wait_until(lambda: subscriber.stands(channel), "the subscription")
        yield subscriber, heard


async def _writes(runtime: Runtime) -> bool:
    try:
        await runtime.jobs.submit(a_submission(), expires_in_s=60)
    except StorageUnavailable:
        return False
    return True


def _connections(server: EmbeddedRedis) -> list[str]:
    with asking(server) as client:
        return [each["cmd"] for each in client.client_list() if each["name"] == "moving"]


async def test_writes_go_on_at_the_new_primary() -> None:
    """Within three seconds, although every connection to the demoted server stays open."""
    async with a_pair() as pair, runtime_at(pair.url) as runtime:
        assert await _writes(runtime)
        await pair.fail_over()
        began_s = time.monotonic()
        await wait_until(lambda: _writes(runtime), "a write", timeout_s=_BACK_S)
        assert time.monotonic() - began_s < _BACK_S
        assert await runtime._commands.call("ZCARD", "ts:{0}:waiting") >= 2, "what was acknowledged before is there"
        await wait_until(lambda: len(_connections(pair.primary)) == 2, "both connections", timeout_s=_BACK_S)
        assert _connections(pair.replica) == []


async def test_a_subscription_moves_too() -> None:
    """Here the demoted Redis does not replicate the new one, so a client that stays with it gets no messages."""
    async with a_pair() as pair, runtime_at(pair.url) as runtime, subscribed(runtime, "ts:x") as (subscriber, heard):
        await pair.fail_over(is_replicated_back=False)
        await wait_until(lambda: _writes(runtime), "a write", timeout_s=_BACK_S)
        await wait_until(lambda: _connections(pair.replica) == [], "the end of the old connections", timeout_s=_BACK_S)
        await wait_until(lambda: subscriber.stands("ts:x"), "the subscription")
        await runtime._commands.call("PUBLISH", "ts:x", "heard")
        await wait_until(lambda: heard == [b"heard"], "the message")


async def test_an_address_that_still_points_to_the_demoted_server_is_retried() -> None:
    """Not in a tight loop; reads are served meanwhile, and the subscription moves to the new primary too."""
    async with a_pair() as pair, runtime_at(pair.url) as runtime, subscribed(runtime, "ts:x") as (subscriber, heard):
        await pair.fail_over(is_replicated_back=False)
        pair.target = pair.replica
        with asking(pair.replica) as demoted:
            before = demoted.info("stats")["total_connections_received"]
            ends_s = time.monotonic() + 2
            while time.monotonic() < ends_s:
                write, read = asyncio.ensure_future(_writes(runtime)), runtime._commands.call("GET", "absent")
                assert await read is None
                assert not await write
            tried = demoted.info("stats")["total_connections_received"] - before
        assert 2 <= tried <= 20
        assert [problem.code for problem in runtime.problems.current] == [NOT_PRIMARY]
        pair.target = pair.primary
        await wait_until(lambda: _writes(runtime), "a write", timeout_s=_BACK_S)
        await wait_until(lambda: len(_connections(pair.primary)) == 3, "all connections", timeout_s=_BACK_S)
        await wait_until(lambda: subscriber.stands("ts:x"), "the subscription")
        await runtime._commands.call("PUBLISH", "ts:x", "heard")
        await wait_until(lambda: heard == [b"heard"], "the message")
        assert runtime.problems.current == []


async def test_a_primary_without_its_replicas_is_left_and_found_again(own_server: EmbeddedRedis) -> None:
    """NOREPLICAS: a partition may have cut it off. Commands sent together with the refused write get their replies."""
    async with runtime_at(own_server.url) as runtime:
        assert await _writes(runtime)
        with asking(own_server) as client:
            client.config_set("min-replicas-to-write", 1)
            calls = [
                runtime._commands.call("ECHO", "before"),
                runtime._commands.call("SET", "ts:x", 1),  # 6.2 would accept it from a script
                runtime._commands.call("ECHO", "after"),
            ]
            before, refused, after = await asyncio.gather(*calls, return_exceptions=True)
            assert (before, after) == (b"before", b"after")
            assert isinstance(refused, StorageUnavailable)
            client.config_set("min-replicas-to-write", 0)
        await wait_until(lambda: _writes(runtime), "a write", timeout_s=_BACK_S)


async def test_a_replica_that_lost_its_primary_is_left(own_server: EmbeddedRedis) -> None:
    """MASTERDOWN: it does not even serve reads."""
    async with runtime_at(own_server.url) as runtime:
        assert await _writes(runtime)
        with asking(own_server) as client:
            client.config_set("replica-serve-stale-data", "no")
            client.replicaof("127.0.0.1", 1)
            numbers = {each["id"] for each in client.client_list() if each["name"] == "moving"}
            assert not await _writes(runtime)
            await wait_until(
                lambda: numbers - {each["id"] for each in client.client_list() if each["name"] == "moving"} != set(),
                "another connection",
            )
            client.replicaof("NO", "ONE")
        await wait_until(lambda: _writes(runtime), "a write", timeout_s=_BACK_S)
        assert await runtime._commands.call("SCRIPT", "EXISTS", script("submit").sha) == [1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.ReadOnlyError("You can't write against a read only replica."), True),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), True),
        (
            exceptions.ResponseError(
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
            ),
            True,
        ),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write. script: on @user_script:1."), True),
        (
            exceptions.ResponseError(
                "Error running script (call to f_5ca1ab1e): @user_script:1: @user_script: 1: "
                "-READONLY You can't write against a read only replica. "
            ),
            True,
        ),
        (exceptions.ResponseError("unknown command 'X', with args beginning with: 'a: -READONLY prompt'"), False),
        (exceptions.ResponseError("MISCONF Errors writing to the AOF file"), False),
        (exceptions.NoPermissionError("No permissions to access a key"), False),
    ],
)
def test_which_errors_mean_that_the_server_is_no_primary(error: Exception, expected: bool) -> None:
    """In the words of each release, inside a script and outside."""
    assert is_not_primary(error) is expected
