"""The API over real sockets on a real Redis; an Author or a real worker writes the jobs' logs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
import uvloop
from _pytest.terminal import TerminalReporter

from shared.store.runtime import Runtime
from tests.support.author import Author
from tests.support.facts import fact, print_facts
from tests.support.follower import Follower
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving

__all__ = ["fact"]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Prints the figures after the results."""
    print_facts(terminalreporter, "tests/stream")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `tokenspool serve`."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def redis_under_test(real_redis: RedisUnderTest) -> RedisUnderTest:
    """Tests of pub/sub and its faults need a real server."""
    return real_redis


class Serve(Protocol):
    """Starts an API with these settings; it stops after the test."""

    async def __call__(self, **settings: Any) -> Served: ...


@pytest.fixture
async def serve(redis_under_test: RedisUnderTest) -> AsyncIterator[Serve]:
    """For tests that need other settings, or two processes."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Served:
            return await stack.enter_async_context(serving(redis_under_test.url, **settings))

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """An API with the default settings."""
    return await serve()


@pytest.fixture
async def author(runtime: Runtime) -> Author:
    """A stand-in for a worker, which has just claimed a job."""
    return await Author.start(runtime)


class Follow(Protocol):
    """Makes a follower of a job, not yet connected."""

    def __call__(self, job_id: str, *, form: str = "text", last_event_id: str = "") -> Follower: ...


@pytest.fixture
def follower_of(served: Served) -> Follow:
    """Followers of the default API."""

    def make(job_id: str, *, form: str = "text", last_event_id: str = "") -> Follower:
        return Follower([served.url], job_id, form=form, last_event_id=last_event_id)

    return make
