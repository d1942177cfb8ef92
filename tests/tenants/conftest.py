"""An API over real sockets on a real Redis; a tenant that owns one of everything, and another one who asks for it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from shared.store.runtime import Runtime
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.tenants.victim import Victim, a_victim
from tests.tenants.wire import Line, a_line


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of `tokenspool serve`: with asyncio's, Nagle's algorithm stays on, which costs 40 ms a response."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def redis_under_test(real_redis: RedisUnderTest) -> RedisUnderTest:
    """A real server, because stored bytes are compared."""
    return real_redis


@pytest.fixture
async def victim(runtime: Runtime) -> Victim:
    """The tenant, made before any API starts."""
    return await a_victim(runtime)


@pytest.fixture
async def served(victim: Victim, real_redis: RedisUnderTest) -> AsyncIterator[Served]:
    """An API that asks for keys, which is the default."""
    async with serving(real_redis.url, auth="keys") as running:
        yield running


@pytest.fixture
async def line(served: Served, victim: Victim) -> AsyncIterator[Line]:
    """A connection to the API."""
    async with a_line(served.url, victim.key_texts) as opened:
        yield opened
