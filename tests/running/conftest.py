"""Real workers on a real Redis and a simulated upstream, in the test's own event loop: uvloop, as in production.

Each test also checks its jobs at its end: no gap in a log, one terminal event, a result equal to the streamed answer, a
ledger that matches the simulator's record; and no key, task or unseen exception is left.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

import worker.providers.anthropic  # takes seconds, which no test should spend
import worker.providers.openai  # noqa: F401 - as above
from cli.embedded_redis import EmbeddedRedis
from shared.routes import ProviderName
from shared.settings import load_settings
from shared.store.runtime import open_runtime
from simulator.app import Simulator, running
from tests.running.crew import Crew, assert_every_log_is_whole
from tests.running.ledger import assert_ledger_matches
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import assert_consistent, keys_that_leak

LONGEST_TEST_S = 50


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of worker/app.py."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def nothing_is_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Asserts that every task has ended and that no exception was lost."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    too_long = loop.call_later(LONGEST_TEST_S, cancel_tasks_of, request.function.__name__)
    yield
    too_long.cancel()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    gc.collect()  # asyncio reports a lost exception only when its task is collected
    assert [task.get_name() for task in left] == []
    assert complaints == []


def cancel_tasks_of(function_name: str) -> None:
    """pytest-timeout's signal does not interrupt uvloop (measured): without this a hanging test would never end."""
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__name__", "") == function_name:
            task.cancel(f"the test took longer than {LONGEST_TEST_S} s")


@pytest.fixture
async def simulator(nothing_is_left_behind: None) -> AsyncIterator[Simulator]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
def provider() -> ProviderName:
    """The API by which workers call the simulator. Tests that hold for every provider are ``on_each_provider``."""
    return ProviderName.ANTHROPIC


@pytest.fixture
async def crew(
    nothing_is_left_behind: None, simulator: Simulator, redis_url: str, provider: ProviderName
) -> AsyncIterator[Crew]:
    """A queue without workers; start one with ``await crew.worker()``."""
    settings = load_settings(redis_url=redis_url, provider=provider)  # a submit names the job's routes too
    async with open_runtime(settings, process_name="tests", timeout_s=10) as runtime:
        async with AsyncExitStack() as stack:
            crew = Crew(runtime, simulator, stack, provider)
            yield crew
            await assert_every_log_is_whole(crew)
        await assert_consistent(runtime, crew.jobs)
        await assert_ledger_matches(crew)
        assert await keys_that_leak(runtime._commands) == []


@pytest.fixture
def redis_url(real_redis: RedisUnderTest) -> str:
    """The shared server, emptied. A module that kills its server overrides this with ``own_redis``."""
    return real_redis.url


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    """A server for one test, which may kill it.

    It writes its append-only file before each reply and never calls fsync, so SIGKILL loses nothing. With ``everysec``
    the write itself waits up to 2 s for a slow fsync, and SIGKILL loses the writes acknowledged meanwhile (measured
    with an fsync of 0.9 s: up to 9,801 of 34,378 writes).
    """
    with EmbeddedRedis(options={"appendfsync": "no"}) as server:
        yield server
