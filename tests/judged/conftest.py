"""An independent judge: llmock, an LLM server that is not ours, breaks its answers and reports what our client did.

It runs in a thread of this process, on a real socket, and is reset before each test. As in tests/running, every test
also checks that each job's log is complete, and that no key, task or exception is left.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from llmock.testing import LLMockServer

from shared.settings import load_settings
from shared.store.runtime import open_runtime
from tests.judged.judge import ANSWER, Judge
from tests.judged.surface import ACTIVE, Surface
from tests.running.conftest import nothing_is_left_behind, pytest_asyncio_loop_factories, redis_url
from tests.running.crew import Crew, assert_every_log_is_whole
from tests.support.store import assert_consistent, keys_that_leak

__all__ = ["nothing_is_left_behind", "pytest_asyncio_loop_factories", "redis_url"]


@pytest.fixture(scope="session")
def judge_server() -> Iterator[LLMockServer]:
    """One server for all tests of this process."""
    with LLMockServer() as server:
        yield server


@pytest.fixture
def judge(judge_server: LLMockServer) -> Judge:
    """Answers every call with ANSWER, until a test scripts something else."""
    judge = Judge(judge_server)
    judge.reset().reply(ANSWER, times=None)
    return judge


@pytest.fixture(params=ACTIVE, ids=lambda surface: surface.name)
def surface(request: pytest.FixtureRequest) -> Surface:
    """Each surface in turn, with the same faults."""
    found: Surface = request.param
    return found


@pytest.fixture
async def crew(nothing_is_left_behind: None, judge: Judge, surface: Surface, redis_url: str) -> AsyncIterator[Crew]:
    """A queue without workers; start one with ``await crew.worker()``."""
    settings = load_settings(redis_url=redis_url)
    async with open_runtime(settings, process_name="tests", timeout_s=10) as runtime:
        async with AsyncExitStack() as stack:
            crew = Crew(runtime, surface.settings(judge.base_url(surface.name)), stack)
            yield crew
            await assert_every_log_is_whole(crew)
        await assert_consistent(runtime, crew.jobs)
        assert await keys_that_leak(runtime._commands) == []
