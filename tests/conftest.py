"""Fixtures for every test: no network, an environment without keys and settings, and an empty Redis.

``runtime`` runs a test twice, on fakeredis and on a real server. A test about the server itself uses ``real_redis`` or
``own_server`` instead.
"""

import gc
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
from hypothesis import settings as hypothesis_settings

from cli.embedded_redis import EmbeddedRedis
from shared.settings import load_settings
from shared.store.runtime import Runtime, open_runtime
from tests.support.loopback import only_loopback
from tests.support.redis_servers import RedisUnderTest, a_fake_redis, an_emptied_redis, own_database

_OF_THE_DEVELOPER = ("ANTHROPIC_", "OPENAI_", "TOKENSPOOL_")
_OF_THE_TEST_RUN = ("TOKENSPOOL_REDIS_BINARY",)  # the server to test with


def pytest_configure() -> None:
    """Removes the developer's keys and settings, so that no test can spend money or depend on them."""
    for name in list(os.environ):
        if name.startswith(_OF_THE_DEVELOPER) and name not in _OF_THE_TEST_RUN:
            del os.environ[name]
    # No deadline: a busy machine must not fail a test.
    hypothesis_settings.register_profile("tests", deadline=None, max_examples=50)
    hypothesis_settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Excepts the modules and the thousands of tests from garbage collection: they stay, and would be looked through
    again by each collection, which some tests force.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def closed_network() -> Iterator[None]:
    """Tests can reach only this machine."""
    with only_loopback():
        yield


@pytest.fixture(scope="session")
def real_redis_url() -> Iterator[str]:
    """One server for the process, or a database at TEST_REDIS_URL; it is emptied before each test."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield own_database(url)
        return
    with EmbeddedRedis(append_only=False) as server:
        yield server.url


@pytest.fixture
def real_redis(real_redis_url: str) -> RedisUnderTest:
    """A real, empty server."""
    return an_emptied_redis(real_redis_url)


@pytest.fixture
def own_server() -> Iterator[EmbeddedRedis]:
    """A real server for one test, which may kill, stop or fill it.

    Its append-only file is on, as in production, but without fsync: during a slow fsync, acknowledged writes may wait
    in the server's memory for up to 2 s, and SIGKILL would lose them.
    """
    with EmbeddedRedis(options={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture(params=["fakeredis", "real"])
def redis_under_test(request: pytest.FixtureRequest) -> RedisUnderTest:
    """An empty Redis of each kind in turn."""
    if request.param == "fakeredis":
        return a_fake_redis()
    real: RedisUnderTest = request.getfixturevalue("real_redis")
    return real


class StartRuntime(Protocol):
    """Opens a Runtime on the Redis under test, with members of Settings by name; it is closed after the test."""

    async def __call__(self, *, timeout_s: float = 10, **settings: Any) -> Runtime: ...


@pytest.fixture
async def start_runtime(redis_under_test: RedisUnderTest) -> AsyncIterator[StartRuntime]:
    """For tests that need other settings, or two processes."""
    async with AsyncExitStack() as stack:

        async def start(*, timeout_s: float = 10, **settings: Any) -> Runtime:
            return await stack.enter_async_context(
                open_runtime(
                    load_settings(**{"redis_url": redis_under_test.url, **settings}),
                    process_name="tests",
                    timeout_s=timeout_s,
                    make_connection=redis_under_test.make_connection,
                )
            )

        yield start


@pytest.fixture
async def runtime(start_runtime: StartRuntime) -> Runtime:
    """The store with the default settings, on each kind of Redis in turn."""
    return await start_runtime()
