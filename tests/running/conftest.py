"""Real workers on a real Redis and a simulated upstream, in the test's own event loop: the loop of production, uvloop.

After each test its jobs are judged: no hole in a log, one end each, the result as it was told, books that agree, no key
left behind, no task, no exception that nobody saw.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

import worker.providers.anthropic  # takes seconds, which are no test's
import worker.providers.openai  # noqa: F401 - as above
from cli.embedded_redis import EmbeddedRedis
from shared.routes import ProviderName
from shared.settings import load_settings
from shared.store.runtime import open_runtime
from simulator.app import Simulator, running
from tests.running.crew import Crew, assert_every_job_was_told_whole
from tests.running.ledger import assert_ledger_matches
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import assert_consistent, keys_that_leak

LONGEST_TEST_S = 25


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What worker/app.py runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def nothing_is_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Every task has ended, and no exception was lost."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    too_long = loop.call_later(LONGEST_TEST_S, cancel_tasks_of, request.function.__name__)
    yield
    too_long.cancel()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    gc.collect()  # a lost exception is only told of when its task is collected
    assert [task.get_name() for task in left] == []
    assert complaints == []


def cancel_tasks_of(function_name: str) -> None:
    """pytest-timeout's signal does not interrupt uvloop (measured): a test that hangs would hang for ever."""
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__name__", "") == function_name:
            task.cancel(f"the test took longer than {LONGEST_TEST_S} s")


@pytest.fixture
async def simulator(nothing_is_left_behind: None) -> AsyncIterator[Simulator]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
def provider() -> ProviderName:
    """By which API the workers ask the simulator. What must hold for every provider is marked ``on_each_provider``."""
    return ProviderName.ANTHROPIC


@pytest.fixture
async def crew(
    nothing_is_left_behind: None, simulator: Simulator, redis_url: str, provider: ProviderName
) -> AsyncIterator[Crew]:
    """Nobody works yet: ``await crew.worker()``."""
    settings = load_settings(redis_url=redis_url, provider=provider)  # whoever submits names the routes too
    async with open_runtime(settings, process_name="tests", timeout_s=10) as runtime:
        async with AsyncExitStack() as stack:
            crew = Crew(runtime, simulator, stack, provider)
            yield crew
            await assert_every_job_was_told_whole(crew)
        await assert_consistent(runtime, crew.jobs)
        await assert_ledger_matches(crew)
        assert await keys_that_leak(runtime._commands) == []


@pytest.fixture
def redis_url(real_redis: RedisUnderTest) -> str:
    """The shared server, emptied. A module that kills its server overrides this with one of its own."""
    return real_redis.url


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    """A server of this test alone, to be killed.

    Its file is written before each reply, and left to the kernel to sync: a SIGKILL loses nothing. With ``everysec`` the
    write itself waits up to 2 s for a slow fsync, and what was acknowledged meanwhile dies with the process (measured
    with an fsync of 0.9 s: up to 9,801 of 34,378 writes).
    """
    with EmbeddedRedis(options={"appendfsync": "no"}) as server:
        yield server
