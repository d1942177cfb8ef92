"""An API and a worker for clients that are not ours: programs in their own processes, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
import uvloop

import worker.providers.anthropic  # noqa: F401 - takes seconds, which no test should spend
from simulator.app import running
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.working import working

PROGRAMS: Final = Path(__file__).parent / "programs"


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `tokenspool serve`."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def served(real_redis: RedisUnderTest) -> AsyncIterator[Served]:
    """An API and a worker on the simulator."""
    async with (
        running() as simulator,
        serving(real_redis.url) as api,
        working(real_redis.url, simulator.url, upstream_retry_base_s=0.01, idle_check_s=0),
    ):
        yield api


async def printed(*command: str | Path) -> str:
    """Runs a program; returns what it prints. It must exit with 0."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(50):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return out.decode()
