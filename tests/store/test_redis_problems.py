"""Problems of Redis are named for the operator: why it cannot be reached, what it refuses, how it may lose jobs."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import exceptions

from cli.embedded_redis import EmbeddedRedis
from shared.errors import StorageUnavailable
from shared.settings import load_settings
from shared.store.connect import refusal_of
from shared.store.redis_problems import RedisProblem, RedisProblems
from shared.store.runtime import open_runtime
from tests.support.failover import asking
from tests.support.wait import wait_until

SECRET = "unmistakable"


async def named(url: str, *, timeout_s: float = 1) -> RedisProblem:
    """The one problem that a process with this URL has, once a call has failed of it."""
    told: list[RedisProblem] = []
    settings = load_settings(redis_url=url)
    async with open_runtime(settings, process_name="tests", timeout_s=timeout_s, on_problem=told.append) as runtime:
        with pytest.raises(StorageUnavailable) as caught:
            await runtime._commands.call("GET", "ts:x")
        (problem,) = runtime.problems.current
        assert told == [problem], "said once"
        assert caught.value.reason == problem.detail
        assert caught.value.detail == "The storage does not reply.", "a caller hears nothing of it"
        assert SECRET not in f"{problem}"
        return problem


async def test_a_wrong_password(own_server: EmbeddedRedis) -> None:
    with asking(own_server) as client:
        client.execute_command("ACL", "SETUSER", "someone", "on", ">right", "~ts:*", "+@all")
        problem = await named(own_server.url.replace("redis://", f"redis://someone:{SECRET}@"))
    assert problem == RedisProblem("login_refused", "Redis refuses the user or the password in TOKENSPOOL_REDIS_URL.")


async def test_no_password_where_one_is_wanted(own_server: EmbeddedRedis) -> None:
    with asking(own_server) as client:
        client.config_set("requirepass", SECRET)
        problem = await named(own_server.url)
        client.config_set("requirepass", "")
    assert problem.code == "login_refused"
    assert problem.detail == "Redis requires a password: add it to TOKENSPOOL_REDIS_URL."


async def test_too_many_clients(own_server: EmbeddedRedis) -> None:
    with asking(own_server) as client:
        client.config_set("maxclients", 1)
        problem = await named(own_server.url)
        client.config_set("maxclients", 100)
    assert problem == RedisProblem("too_many_clients", "Redis accepts no more clients: raise its maxclients.")


async def test_a_database_that_is_not_there(own_server: EmbeddedRedis) -> None:
    problem = await named(own_server.url.removesuffix("/0") + "/99")
    assert problem == RedisProblem("no_database", "Redis has no database with the number in TOKENSPOOL_REDIS_URL.")


async def test_nobody_there() -> None:
    problem = await named(f"redis://:{SECRET}@127.0.0.1:1/0")
    assert problem.code == "unreachable"
    assert problem.detail.startswith("Redis cannot be reached at 127.0.0.1:1 (")
    assert problem.detail.endswith("): start it, or set TOKENSPOOL_REDIS_URL to its address.")


def make_certificate(folder: Path) -> None:
    """Signed by itself alone."""
    new_key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-keyout", "host.key", "-out", "host.pem"]
    subprocess.run(["openssl", *new_key, *names], cwd=folder, check=True, capture_output=True)


@contextlib.asynccontextmanager
async def a_tls_server(folder: Path) -> AsyncIterator[int]:
    """Nobody has heard of its CA; it never gets as far as Redis's protocol. Its port."""
    await asyncio.to_thread(make_certificate, folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "host.pem", folder / "host.key")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_an_unknown_ca(tmp_path: Path) -> None:
    async with a_tls_server(tmp_path) as port:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the server's side of each refused handshake
        problem = await named(f"rediss://:{SECRET}@127.0.0.1:{port}/0")
    assert problem.code == "tls_failed"
    assert "its certificate is not trusted (self-signed certificate)" in problem.detail
    assert "ssl_ca_certs" in problem.detail


async def test_tls_to_a_port_without(own_server: EmbeddedRedis) -> None:
    problem = await named(own_server.url.replace("redis://", "rediss://"), timeout_s=2.5)
    assert problem.code in {"tls_failed", "unreachable"}, "as the server ends it"
    assert "127.0.0.1" in problem.detail


async def test_it_is_over_when_it_is(own_server: EmbeddedRedis) -> None:
    own_server.kill()
    async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=10) as runtime:
        await wait_until(lambda: bool(runtime.problems.current), "a problem")
        own_server.restart()
        assert await runtime.ping()
        assert runtime.problems.current == []


async def test_what_redis_may_lose_is_seen_from_info_alone(own_server: EmbeddedRedis) -> None:
    """Eviction, and no append-only file."""
    async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=10) as runtime:
        await runtime.memory.look()
        assert runtime.problems.current == []
        with asking(own_server) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
        await runtime.memory.look()
        assert [problem.code for problem in runtime.problems.current] == ["may_evict", "not_persistent"]
        assert all(problem.is_warning for problem in runtime.problems.current)


def test_a_problem_is_news_when_it_begins_and_is_forgotten_when_nobody_sees_it() -> None:
    """And no more than once a minute, however often it comes and goes."""
    now_s, told = 0.0, list[str]()
    problems = RedisProblems(lambda problem: told.append(problem.code), lambda: now_s)
    for seen_s in (0.0, 5.0, 14.0, 28.0):
        now_s = seen_s
        problems.note(RedisProblem("refused", "x"))
    assert told == ["refused"]
    now_s = 44.0
    assert problems.current == []
    problems.note(RedisProblem("refused", "x"))
    assert told == ["refused"]
    now_s = 61.0
    problems.note(RedisProblem("refused", "x"))
    assert told == ["refused", "refused"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (exceptions.NoPermissionError("User u has no permissions to run the 'publish' command"), "no_permission", "publish"),
        (exceptions.NoPermissionError("No permissions to access a channel"), "no_permission", "&ts:*"),
        (exceptions.NoPermissionError("No permissions to access a key"), "no_permission", "~ts:*"),
        (
            exceptions.ResponseError("ACL failure in script: No permissions to access a channel script: on @user_script:1."),
            "no_permission",
            "&ts:*",
        ),
        (
            exceptions.ResponseError(
                "The user executing the script can't publish to the channel mentioned in the command script: f_1, on @user_script:1."
            ),
            "no_permission",
            "&ts:*",
        ),
        (exceptions.NoPermissionError("User u has no permissions to run the 'info' command"), "info_refused", "+info"),
        (exceptions.ResponseError("unknown command 'INFO', with args beginning with: 'memory' "), "info_refused", "+info"),
        (exceptions.ResponseError("MISCONF Errors writing to the AOF file: disk"), "refused", "MISCONF"),
        (exceptions.ResponseError(f"unknown command 'X', with args beginning with: '{SECRET}'"), "refused", "(ERR)"),
        (exceptions.ResponseError(f"{SECRET.upper()}-{SECRET} x"), "refused", "(ERR)"),
    ],
)  # fmt: skip
def test_what_redis_refuses_is_named_without_what_was_sent(error: Exception, code: str, words: str) -> None:
    problem = refusal_of(error)
    assert problem.code == code
    assert words in problem.detail
    assert SECRET not in problem.detail.lower()
