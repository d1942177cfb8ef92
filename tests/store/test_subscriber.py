"""The pub/sub connection of a process: it reconnects by itself, and confirms every channel again."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.store import subscriber as module
from shared.store.commands import Commands
from shared.store.connect import MakeConnection, connection_maker
from shared.store.subscriber import Subscriber
from tests.support.redis_servers import RedisUnderTest
from tests.support.wait import wait_until


class Ear:
    """Everything that a subscriber received, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes | None]] = []
        self.subscriber: Subscriber

    @contextlib.asynccontextmanager
    async def open(self, make_connection: MakeConnection) -> AsyncIterator["Ear"]:
        async with Subscriber(make_connection, on_message=self._note, on_confirmed=self._note) as self.subscriber:
            yield self

    def _note(self, channel: str, message: bytes | None = None) -> None:
        self.told.append((channel, message))

    def confirmations(self, channel: str) -> int:
        return self.told.count((channel, None))

    def messages(self, channel: str) -> list[bytes]:
        return [message for name, message in self.told if name == channel and message is not None]

    def were_confirmed(self, channels: list[str], times: int) -> bool:
        return all(self.confirmations(channel) == times for channel in channels)

    def has_heard(self, channel: str, times: int) -> bool:
        return len(self.messages(channel)) == times

    async def subscribe(self, *channels: str) -> None:
        for channel in channels:
            self.subscriber.subscribe(channel)
        for channel in channels:
            await wait_until(partial(self.subscriber.stands, channel), f"the subscription to {channel}")


@pytest.fixture
async def commands(redis_under_test: RedisUnderTest) -> AsyncIterator[Commands]:
    async with Commands(redis_under_test.make_connection, timeout_s=10) as opened:
        yield opened


@contextlib.asynccontextmanager
async def ear_and_mouth(server: EmbeddedRedis) -> AsyncIterator[tuple[Ear, Commands]]:
    make_connection = connection_maker(server.url, name="tests")
    async with Ear().open(make_connection) as ear, Commands(make_connection, timeout_s=10) as commands:
        yield ear, commands


async def test_messages_of_a_confirmed_channel_arrive(redis_under_test: RedisUnderTest, commands: Commands) -> None:
    """The confirmation first, then every message of this channel in order, and of no other."""
    async with Ear().open(redis_under_test.make_connection) as ear:
        await ear.subscribe("a")
        for number in range(3):
            await commands.call("PUBLISH", "a", number)
            await commands.call("PUBLISH", "b", number)
        await wait_until(lambda: len(ear.told) >= 4, "three messages")
        assert ear.told == [("a", None), ("a", b"0"), ("a", b"1"), ("a", b"2")]


async def test_a_channel_subscribed_twice_is_confirmed_once(redis_under_test: RedisUnderTest) -> None:
    """The second call changes nothing."""
    async with Ear().open(redis_under_test.make_connection) as ear:
        await ear.subscribe("a", "a")
        ear.subscriber.subscribe("a")
        await ear.subscribe("b")
        assert ear.told == [("a", None), ("b", None)]


async def test_messages_of_an_unsubscribed_channel_do_not_arrive(
    redis_under_test: RedisUnderTest, commands: Commands
) -> None:
    """It can be subscribed again."""
    async with Ear().open(redis_under_test.make_connection) as ear:
        await ear.subscribe("a", "b")
        ear.subscriber.unsubscribe("a")
        ear.subscriber.unsubscribe("a")
        assert not ear.subscriber.stands("a")
        await wait_until(lambda: _has_no_subscriber(commands, "a"), "the end of the subscription")
        await commands.call("PUBLISH", "a", "unheard")
        await ear.subscribe("a")
        await commands.call("PUBLISH", "a", "heard")
        await wait_until(lambda: ear.messages("a") == [b"heard"], "the message")


async def _has_no_subscriber(commands: Commands, channel: str) -> bool:
    return bool((await commands.call("PUBSUB", "NUMSUB", channel))[1] == 0)


async def test_a_channel_unsubscribed_and_subscribed_in_one_turn_is_subscribed_at_the_end(
    redis_under_test: RedisUnderTest, commands: Commands
) -> None:
    """A follower leaves as another comes: the newer one gets the confirmation of the new subscription."""
    async with Ear().open(redis_under_test.make_connection) as ear:
        await ear.subscribe("a")
        ear.subscriber.unsubscribe("a")
        ear.subscriber.subscribe("a")
        assert not ear.subscriber.stands("a")
        await wait_until(lambda: ear.confirmations("a") == 2, "the second confirmation")
        await commands.call("PUBLISH", "a", "heard")
        await wait_until(lambda: ear.messages("a") == [b"heard"], "the message")


async def test_a_failing_callback_does_not_stop_other_messages(
    redis_under_test: RedisUnderTest, commands: Commands
) -> None:
    """Another release of ours may publish a message that this one cannot read."""
    heard: list[bytes] = []

    def on_message(_: str, message: bytes) -> None:
        heard.append(message)
        raise ValueError("cannot read this")

    async with Subscriber(
        redis_under_test.make_connection, on_message=on_message, on_confirmed=lambda _: None
    ) as subscriber:
        subscriber.subscribe("a")
        await wait_until(lambda: subscriber.stands("a"), "the subscription")
        await commands.call("PUBLISH", "a", "one")
        await commands.call("PUBLISH", "a", "two")
        await wait_until(lambda: heard == [b"one", b"two"], "both messages")


async def test_a_subscriber_without_channels_keeps_its_connection(
    redis_under_test: RedisUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API process without followers is idle, not half open: the connection is there for the next follower."""
    monkeypatch.setattr(module, "_PING_S", 0.01)
    monkeypatch.setattr(module, "_SILENCE_S", 0.5)
    seen = Counter[str]()

    def make_connection() -> Any:
        seen["connections"] += 1
        connection = redis_under_test.make_connection()
        send = connection.send_packed_command

        async def counted(command: Any, check_health: bool = True) -> None:
            seen["writes"] += 1
            await send(command, check_health)

        connection.send_packed_command = counted  # type: ignore[method-assign]
        return connection

    loop = asyncio.get_running_loop()
    async with Ear().open(make_connection):
        await wait_until(lambda: seen["connections"] > 0, "a connection")
        idle_since_s = loop.time()
        await wait_until(lambda: seen["connections"] > 1 or loop.time() - idle_since_s > 0.8, "a while of silence")
        assert seen["connections"] == 1
        assert seen["writes"] > 5


# Drops


async def test_many_subscribes_at_once_are_one_connection(own_server: EmbeddedRedis) -> None:
    """redis-py's own PubSub would take a connection for each, and read only one of them."""
    async with ear_and_mouth(own_server) as (ear, commands):
        channels = [f"channel-{number}" for number in range(1200)]
        await ear.subscribe(*channels)
        clients = await commands.call("CLIENT", "LIST", "TYPE", "pubsub")
        assert clients.count(b"id=") == 1
        assert b"name=tests" in clients
        await commands.call("PUBLISH", "channel-1199", "heard")
        await wait_until(lambda: ear.messages("channel-1199") == [b"heard"], "the message")


async def test_every_channel_is_confirmed_again_after_a_drop(own_server: EmbeddedRedis) -> None:
    """CLIENT KILL TYPE pubsub: messages published meanwhile are lost, which the new confirmations show."""
    async with ear_and_mouth(own_server) as (ear, commands):
        channels = [f"channel-{number}" for number in range(700)]
        await ear.subscribe(*channels)
        for times in (2, 3):
            assert await commands.call("CLIENT", "KILL", "TYPE", "pubsub") == 1
            await wait_until(partial(ear.were_confirmed, channels, times), f"confirmation number {times} of each")
            await commands.call("PUBLISH", "channel-0", "heard")
            await wait_until(partial(ear.has_heard, "channel-0", times - 1), "the message")


async def test_changes_during_an_outage_apply_after_it(own_server: EmbeddedRedis) -> None:
    """The new connection has exactly the channels that are wanted now."""
    async with ear_and_mouth(own_server) as (ear, commands):
        await ear.subscribe("kept", "left")
        own_server.kill()
        await wait_until(lambda: not ear.subscriber.stands("kept"), "the loss of the connection")
        ear.subscriber.unsubscribe("left")
        ear.subscriber.subscribe("new")
        await asyncio.to_thread(own_server.restart)
        await wait_until(lambda: ear.subscriber.stands("kept") and ear.subscriber.stands("new"), "both channels")
        assert (ear.confirmations("kept"), ear.confirmations("left"), ear.confirmations("new")) == (2, 1, 1)
        assert await _has_no_subscriber(commands, "left")


async def test_a_server_that_is_not_there_yet_is_waited_for(own_server: EmbeddedRedis) -> None:
    """A process may start before Redis does."""
    own_server.stop()
    async with ear_and_mouth(own_server) as (ear, _):
        ear.subscriber.subscribe("a")
        await asyncio.to_thread(own_server.start)
        await wait_until(lambda: ear.subscriber.stands("a"), "the subscription")


async def test_a_half_open_connection_is_noticed(own_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server neither sends nor closes: pings get no reply, and the connection counts as lost."""
    monkeypatch.setattr(module, "_PING_S", 0.05)
    monkeypatch.setattr(module, "_SILENCE_S", 0.11)
    async with ear_and_mouth(own_server) as (ear, _):
        await ear.subscribe("a")
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: not ear.subscriber.stands("a"), "the drop")
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        await wait_until(lambda: ear.subscriber.stands("a"), "the subscription")
        assert ear.confirmations("a") == 2


async def test_closing_ends_while_the_server_hangs(own_server: EmbeddedRedis) -> None:
    """A shutdown does not wait for Redis."""
    async with asyncio.timeout(5):
        async with ear_and_mouth(own_server) as (ear, _):
            await ear.subscribe("a")
            os.kill(own_server.pid, signal.SIGSTOP)
        os.kill(own_server.pid, signal.SIGCONT)
