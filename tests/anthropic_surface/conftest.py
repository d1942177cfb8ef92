"""The Messages API as programs see it: the official SDK, real sockets, a real Redis, and workers on the simulator.

In tests that decide on every event, an Author replaces the worker (``author_of_next``).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
import uvloop
from anthropic import AsyncAnthropic
from anthropic.types import MessageParam

import worker.providers.anthropic  # noqa: F401 - takes seconds, which no test should spend
from shared.events import EventId
from shared.job import Job, JobState
from shared.store import redis_keys
from shared.store.runtime import Runtime
from simulator.app import Simulator, running
from tests.support.author import TENANT, Author
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.store import members, state_of
from tests.support.wait import wait_until
from tests.support.working import working

FAST = "sim-t6-g1-f1"
"""Six tokens, a millisecond apart."""
STEADY = "sim-t400-g5-f1"
"""Takes two seconds."""


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `tokenspool serve`."""
    return {"uvloop": uvloop.new_event_loop}


class Serve(Protocol):
    """Starts an API with these settings; it stops after the test."""

    async def __call__(self, **settings: Any) -> Served: ...


@pytest.fixture
async def serve(real_redis: RedisUnderTest) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Served:
            return await stack.enter_async_context(serving(**{"redis_url": real_redis.url, **settings}))

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """An API without a worker."""
    return await serve()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
async def at_work(served: Served, simulator: Simulator, real_redis: RedisUnderTest) -> AsyncIterator[None]:
    """A worker."""
    async with working(real_redis.url, simulator.url, upstream_retry_base_s=0.01, idle_check_s=0):
        yield


@dataclass(frozen=True)
class Surface:
    """A program that uses the SDK, without the SDK's retries, so that a test sees each response."""

    client: AsyncAnthropic
    served: Served

    @property
    def runtime(self) -> Runtime:
        """The API's store."""
        return self.served.api.runtime

    async def job(self, job_id: str) -> Job:
        """The job of a call."""
        return await self.runtime.jobs.get(job_id, TENANT, with_result=True)

    async def has_ended_as(self, job_id: str, state: JobState) -> None:
        """Waits until the job has ended in this state."""

        async def is_so() -> bool:
            return await state_of(self.runtime, job_id) is state

        await wait_until(is_so, f"{job_id} to be {state}")

    async def is_left(self, author: Author) -> None:
        """Waits until nobody follows the job."""
        await wait_until(lambda: author.job_id not in self.served.relay._watches, "its client to be gone")

    async def has_received_all(self, author: Author) -> None:
        """Waits until the job's follower has received everything written so far."""
        (watch,) = self.served.relay._watches[author.job_id]
        last = EventId(author.claim.epoch, author.seq - 1)
        await wait_until(lambda: watch._position is not None and watch._position >= last, "the follower")
        await wait_until(lambda: watch._waiter is not None, "the follower to wait again")


@pytest.fixture
async def surface(served: Served) -> AsyncIterator[Surface]:
    """A client of the default API."""
    async with a_client(served) as client:
        yield Surface(client, served)
        await wait_until(lambda: served.relay.follower_count == 0, "the end of every watch")


def a_client(served: Served, **options: Any) -> AsyncAnthropic:
    """The official client; only its base URL differs from a program that calls Anthropic."""
    return AsyncAnthropic(**{"base_url": served.url, "api_key": "any", "max_retries": 0, **options})


def asked(prompt: str = "Say hello.", *, model: str = FAST, max_tokens: int = 1000) -> dict[str, Any]:
    """Arguments for create and stream; ``prompt`` is the simulator's script."""
    return {"model": model, "max_tokens": max_tokens, "messages": [said(prompt)]}


def said(prompt: str) -> MessageParam:
    """A message of the user."""
    return {"role": "user", "content": prompt}


async def author_of_next(runtime: Runtime) -> Author:
    """Claims the job of a call as soon as it is queued."""

    async def waits() -> bool:
        return (await runtime.queue.depth())[JobState.QUEUED] > 0

    await wait_until(waits, "the job of the call")
    return await Author.claim_next(runtime)


async def waiting_job(runtime: Runtime) -> str:
    """The id of the only queued job."""

    async def waits() -> bool:
        return bool(await members(runtime, redis_keys.plain("waiting")))

    await wait_until(waits, "the job of the call")
    (job_id,) = await members(runtime, redis_keys.plain("waiting"))
    return job_id
