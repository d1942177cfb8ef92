"""The connection that all tasks of a process share: every caller gets its own reply, and no outage ends a task."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from cli.embedded_redis import EmbeddedRedis
from shared.errors import StorageUnavailable
from shared.store.commands import Commands
from shared.store.connect import connection_maker, write
from shared.store.jobs import Created
from shared.store.runtime import Runtime
from shared.store.script import NAMES, script
from tests.conftest import StartRuntime
from tests.support.builders import a_submission
from tests.support.redis_servers import RedisUnderTest, on_real_redis
from tests.support.store import claim, submit_many
from tests.support.wait import wait_until

_TICK_S = 0.2
_SLACK_S = 1.0


@pytest.fixture
async def commands(redis_under_test: RedisUnderTest) -> AsyncIterator[Commands]:
    async with Commands(redis_under_test.make_connection, timeout_s=10) as opened:
        yield opened


@contextlib.asynccontextmanager
async def commands_of(server: EmbeddedRedis, *, timeout_s: float = 10) -> AsyncIterator[Commands]:
    async with Commands(connection_maker(server.url, name="tests"), timeout_s=timeout_s) as opened:
        yield opened


async def test_replies_come_as_bytes_integers_none_and_lists(commands: Commands) -> None:
    """As Redis says them."""
    assert await commands.call("SET", "k", "ü") == b"OK"
    assert await commands.call("GET", "k") == "ü".encode()
    assert await commands.call("GET", "absent") is None
    assert await commands.call("RPUSH", "l", 1, 2.5, b"three") == 3
    assert await commands.call("LRANGE", "l", 0, -1) == [b"1", b"2.5", b"three"]
    await commands.call("DEL", "k", "l")


async def test_calls_reach_redis_in_the_order_they_were_made(commands: Commands) -> None:
    """Awaited or not."""
    calls = [commands.call("RPUSH", "l", number) for number in range(200)]
    assert [await call for call in reversed(calls)] == list(range(200, 0, -1))
    assert await commands.call("LRANGE", "l", 0, -1) == [str(number).encode() for number in range(200)]
    await commands.call("DEL", "l")


async def test_what_is_asked_for_in_one_turn_travels_in_one_write(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lever that makes a command cost a tenth."""
    await commands.call("PING")
    writes: list[list[bytes]] = []

    def counted(connection: AbstractConnection, parts: list[bytes]) -> None:
        writes.append(parts)
        write(connection, parts)

    monkeypatch.setattr("shared.store.commands.write", counted)
    await asyncio.gather(*(commands.call("PING") for _ in range(100)))
    assert [len(parts) for parts in writes] == [100]


@on_real_redis
async def test_a_large_argument_arrives_whole(commands: Commands) -> None:
    """A request may be 32 MiB."""
    large = random.Random(1).randbytes(32 << 20)
    assert await commands.call("ECHO", large) == large


async def test_an_error_concerns_its_own_call_and_quotes_nothing(commands: Commands) -> None:
    """Its neighbours are answered; a prompt that stood in the command is not in the message."""
    await commands.call("SET", "k", "text")
    before, wrong, unknown, after = (
        commands.call("ECHO", "before"),
        commands.call("RPUSH", "k", "an unmistakable prompt"),
        commands.call("AN_UNMISTAKABLE_COMMAND", "an unmistakable prompt"),
        commands.call("ECHO", "after"),
    )
    assert (await before, await after) == (b"before", b"after")
    for call in (wrong, unknown):
        with pytest.raises(StorageUnavailable) as caught:
            await call
        assert "unmistakable" not in str(caught.value).lower()
    await commands.call("DEL", "k")


@pytest.mark.parametrize("argument", ["\ud800", None, True])
async def test_an_argument_that_cannot_be_sent_fails_its_asker_alone(commands: Commands, argument: Any) -> None:
    """A bug of one caller does not take the connection from all the others."""
    good = commands.call("ECHO", "good")
    with pytest.raises((TypeError, ValueError)):
        await commands.call("ECHO", argument)
    assert await good == b"good"
    assert await commands.call("ECHO", "later") == b"later"


async def test_a_failure_that_nobody_waits_for_is_not_a_warning(commands: Commands) -> None:
    """Its asker may have been cancelled, or wanted another reply first."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    commands.call("NO_SUCH_COMMAND")
    for _ in range(3):
        await commands.call("PING")
    gc.collect()
    assert complaints == []


async def test_a_call_that_was_cancelled_before_it_was_sent_never_happens(commands: Commands) -> None:
    """What is not sent yet can still be taken back."""
    await commands.call("PING")
    commands.call("SET", "k", 1).cancel()
    assert await commands.call("GET", "k") is None


async def test_no_reply_is_mixed_up_under_random_cancellation(commands: Commands) -> None:
    """10,000 calls, each cancelled at a random moment of its way or not at all: whoever is left gets his own reply."""
    chance = random.Random(7)
    answered = cancelled = 0

    async def ask(number: int) -> bool:
        return bool(await commands.call("ECHO", f"call {number}") == f"call {number}".encode())

    for start in range(0, 10_000, 250):
        asking = [asyncio.create_task(ask(number)) for number in range(start, start + 250)]
        for turn in range(4):
            for task in asking:
                if chance.random() < 0.2:
                    task.cancel()
            await asyncio.wait(asking, timeout=0 if turn < 3 else None, return_when=asyncio.FIRST_COMPLETED)
        results = await asyncio.gather(*asking, return_exceptions=True)
        answered += sum(result is True for result in results)
        cancelled += sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert answered + cancelled == 10_000
    assert answered > 1000
    assert cancelled > 1000


async def test_scripts_heal_after_script_flush(start_runtime: StartRuntime) -> None:
    """NOSCRIPT is answered by sending the text: nobody sees it, and it happens once."""
    runtime = await start_runtime()
    await submit_many(runtime, 3)
    await runtime._commands.call("SCRIPT", "FLUSH")
    replies = await asyncio.gather(*(runtime.jobs.submit(a_submission(), expires_in_s=60) for _ in range(50)))
    assert all(isinstance(reply, Created) for reply in replies)
    assert len(await claim(runtime, 100)) == 53
    assert await runtime._commands.call("SCRIPT", "EXISTS", script("submit").sha) == [1]


async def test_what_is_open_fails_when_the_connection_is_closed(redis_under_test: RedisUnderTest) -> None:
    """Nobody waits for ever."""
    async with Commands(redis_under_test.make_connection, timeout_s=10) as commands:
        await commands.call("PING")
        unsent = commands.call("PING")
    with pytest.raises(StorageUnavailable):
        await unsent
    with pytest.raises(StorageUnavailable):
        await commands.call("PING")


# A server that goes away


async def test_a_killed_server_fails_calls_in_time_and_is_found_again(own_server: EmbeddedRedis) -> None:
    """Nothing has to be opened again; what was acknowledged is there."""
    async with commands_of(own_server, timeout_s=0.5) as commands:
        await commands.call("SET", "k", "kept")
        own_server.kill()
        started_s = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await commands.call("GET", "k")
        assert time.monotonic() - started_s < 0.5 + _TICK_S + _SLACK_S
        assert not commands.is_connected
        own_server.restart()
        await wait_until(lambda: commands.is_connected, "a new connection")
        assert await commands.call("GET", "k") == b"kept"


async def test_a_call_outlives_a_short_outage(own_server: EmbeddedRedis) -> None:
    """Not sent yet when the server was away, sent when it is back, within its time."""
    async with commands_of(own_server) as commands:
        await commands.call("SET", "k", "kept")
        own_server.kill()
        await wait_until(lambda: not commands.is_connected, "the loss of the connection")
        waiting = asyncio.ensure_future(commands.call("GET", "k"))
        await asyncio.to_thread(own_server.restart)
        assert await waiting == b"kept"


async def test_a_server_that_is_not_there_yet_is_waited_for(own_server: EmbeddedRedis) -> None:
    """A process may start before Redis does."""
    own_server.stop()
    async with commands_of(own_server) as commands:
        waiting = asyncio.ensure_future(commands.call("PING"))
        await asyncio.to_thread(own_server.start)
        assert await waiting == b"PONG"


async def test_killed_connections_are_made_again(own_server: EmbeddedRedis) -> None:
    """CLIENT KILL fails at most what was on its way."""
    async with commands_of(own_server) as commands, commands_of(own_server) as killer:
        for number in range(5):
            assert await commands.call("ECHO", number) == str(number).encode()
            await killer.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await wait_until(lambda: not commands.is_connected, "the loss of the connection")
            assert await commands.call("ECHO", "again") == b"again"


@pytest.mark.parametrize("payload_bytes", [1, 16 << 20])
async def test_a_server_that_hangs_fails_calls_in_time(own_server: EmbeddedRedis, payload_bytes: int) -> None:
    """Half open: it neither answers nor closes. Also when the sockets are full of what it does not read."""
    payload = b"x" * payload_bytes
    async with commands_of(own_server, timeout_s=0.5) as commands:
        await commands.call("PING")
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                started_s = time.monotonic()
                calls = [commands.call("ECHO", payload), commands.call("PING")]
                for outcome in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(outcome, StorageUnavailable)
                assert time.monotonic() - started_s < 0.5 + _TICK_S + _SLACK_S
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        await wait_until(lambda: _answers(commands), "the server's answer")


@on_real_redis
async def test_a_long_turn_of_the_loop_is_no_silence(redis_under_test: RedisUnderTest) -> None:
    """Longer than the timeout, with the deadlines looked at before anything is read: whoever was asked has answered."""
    async with Commands(redis_under_test.make_connection, timeout_s=0.2) as commands:
        await commands.call("PING")
        for _ in range(3):
            call = commands.call("PING")
            time.sleep(0.3)  # noqa: ASYNC251 - what a thousand requests in one turn do
            assert await call == b"PONG"


async def test_a_server_that_answers_late_keeps_its_connection() -> None:
    """It is busy with what it was asked for: calls fail in time, each alone, and those behind them get their own replies."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while (await reader.readuntil(b"\r\n")).startswith(b"*"):
            arguments = [(await reader.readuntil(b"\r\n"), await reader.readuntil(b"\r\n"))[1][:-2] for _ in range(2)]
            if arguments[0] == b"ECHO":
                await asyncio.sleep(0.1)  # one after the other
            writer.write(b"$%d\r\n%b\r\n" % (len(arguments[1]), arguments[1]))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    maker = partial(Connection, host=host, port=port, lib_name=None, lib_version=None)
    async with server, Commands(maker, timeout_s=0.3) as commands:
        await commands.call("ECHO", "first")
        calls = [commands.call("ECHO", str(number)) for number in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes[0] == b"0"
        assert {type(outcome) for outcome in outcomes[10:]} == {StorageUnavailable}
        assert commands.is_connected
        await wait_until(lambda: not commands._sent, "the late replies")
        assert await commands.call("ECHO", "last") == b"last"
        assert connections == 1


async def test_what_waits_for_a_server_that_hangs_is_bounded_in_bytes(own_server: EmbeddedRedis) -> None:
    """One more is refused at once: many submits of 32 MB would fill the memory within the timeout."""
    async with commands_of(own_server, timeout_s=60) as commands:
        await commands.call("PING")
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            prompt = b"x" * (8 << 20)
            calls = [commands.call("SET", "k", prompt)]
            while not calls[-1].done():
                assert len(calls) < 30
                calls.append(commands.call("SET", "k", prompt))
                await asyncio.sleep(0)  # what can be sent is
            with pytest.raises(StorageUnavailable):
                await calls.pop()
            for call in calls:
                call.cancel()
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        await wait_until(lambda: _answers(commands), "the server's answer")


async def _answers(commands: Commands) -> bool:
    try:
        return bool(await commands.call("PING"))
    except StorageUnavailable:
        return False


async def test_no_reply_is_mixed_up_when_connections_break(own_server: EmbeddedRedis) -> None:
    """Under load, with the connection killed every few calls: a reply is the asker's own, or an error."""
    async with commands_of(own_server) as commands, commands_of(own_server) as killer:
        outcomes = {"own": 0, "lost": 0}

        async def ask(number: int) -> None:
            try:
                assert await commands.call("ECHO", f"call {number}") == f"call {number}".encode()
                outcomes["own"] += 1
            except StorageUnavailable:
                outcomes["lost"] += 1

        for start in range(0, 2_000, 100):
            asking = [asyncio.create_task(ask(number)) for number in range(start, start + 100)]
            await killer.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.gather(*asking)
        assert outcomes["own"] + outcomes["lost"] == 2_000
        assert outcomes["own"] > 0


async def test_closing_ends_while_the_server_hangs(own_server: EmbeddedRedis) -> None:
    """A shutdown does not wait for Redis."""
    async with commands_of(own_server) as commands:
        await commands.call("PING")
        os.kill(own_server.pid, signal.SIGSTOP)
        call = commands.call("ECHO", b"x" * (16 << 20))
        await asyncio.wait([call], timeout=0)
        started_s = time.monotonic()
    os.kill(own_server.pid, signal.SIGCONT)
    assert time.monotonic() - started_s < _SLACK_S
    assert isinstance(call.exception(), StorageUnavailable)


@contextlib.asynccontextmanager
async def far_away(server: EmbeddedRedis, *, one_way_s: float) -> AsyncIterator[str]:
    """The URL of the same server, as seen from another continent."""
    loop = asyncio.get_running_loop()
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            loop.call_later(one_way_s, writer.write, piece)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.extend((writer, far_writer))
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1")
    try:
        yield f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0"
    finally:
        proxy.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_a_server_on_another_continent_is_reached(own_server: EmbeddedRedis) -> None:
    """160 ms there and back: opening a connection takes a few round trips, not one for each script."""
    scripts = [script(name) for name in NAMES]
    async with far_away(own_server, one_way_s=0.08) as url:
        maker = connection_maker(url, name="tests")
        async with Commands(maker, timeout_s=3, scripts=scripts) as commands:
            assert await commands.call("PING") == b"PONG"
            assert await commands.call("SCRIPT", "EXISTS", *(each.sha for each in scripts)) == [1] * len(scripts)


class _Breaking:
    """A connection that stands until it is told to break."""

    def __init__(self) -> None:
        self.reads = asyncio.get_running_loop().create_future()

    async def connect(self) -> None:
        pass

    async def disconnect(self, nowait: bool = False) -> None:
        pass

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        pass

    async def read_response(self, **_: Any) -> Any:
        return await self.reads


async def test_closing_ends_in_the_very_moment_in_which_the_connection_breaks() -> None:
    """Two ways out at once: the loss must not swallow the order to stop."""
    connections: list[_Breaking] = []

    def make_connection() -> Any:
        connections.append(_Breaking())
        return connections[-1]

    commands = Commands(make_connection, timeout_s=1)
    async with asyncio.timeout(2):
        async with commands:
            await wait_until(lambda: commands.is_connected, "the connection")
            connections[0].reads.set_exception(RedisConnectionError())
            await asyncio.wait([asyncio.ensure_future(_nothing())])


async def _nothing() -> None:
    pass


async def test_a_reply_that_nobody_asked_for_costs_the_connection_and_nothing_more(
    redis_under_test: RedisUnderTest,
) -> None:
    """From then on no reply could be trusted to be its asker's."""
    connections: list[Any] = [_Breaking(), redis_under_test.make_connection()]
    unasked = connections[0]
    async with Commands(lambda: connections.pop(0), timeout_s=10) as commands:
        await wait_until(lambda: commands.is_connected, "the connection")
        unasked.reads.set_result(b"unasked")
        await wait_until(lambda: connections == [], "another connection")
        assert await commands.call("PING") == b"PONG"


# The runtime


async def test_a_ping_says_whether_redis_answers(runtime: Runtime) -> None:
    """For health checks."""
    assert await runtime.ping()


async def test_a_runtime_opens_and_closes_without_redis(own_server: EmbeddedRedis) -> None:
    """Redis being away ends no process, not even at its start."""
    from shared.settings import load_settings
    from shared.store.runtime import open_runtime

    own_server.stop()
    settings = load_settings(redis_url=own_server.url, redis_timeout_s=0.2)
    async with open_runtime(settings, process_name="tests") as runtime:
        assert not await runtime.ping()
        with pytest.raises(StorageUnavailable):
            await runtime.jobs.submit(a_submission(), expires_in_s=60)
