"""An API that asks for keys, on real sockets and a real Redis, with keys made as the command line makes them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import httpx2
import pytest
import uvloop
from _pytest.terminal import TerminalReporter

from shared.api_key import TENANT_SCOPES, PresentedKey, Scope, read_key_text
from shared.limits import CallerLimits
from shared.store.api_keys import NewKey
from shared.store.runtime import Runtime
from tests.support.facts import fact, print_facts
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving

__all__ = ["fact"]

TENANT = "tenant-a"


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Prints the figures after the results."""
    print_facts(terminalreporter, "tests/keys")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of `tokenspool serve`."""
    return {"uvloop": uvloop.new_event_loop}


class Serve(Protocol):
    """Starts an API that asks for keys; it stops after the test."""

    async def __call__(self, **settings: Any) -> Served: ...


@pytest.fixture
async def serve(real_redis: RedisUnderTest) -> AsyncIterator[Serve]:
    """For tests that need other settings, or two processes."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Served:
            settings = {"redis_url": real_redis.url, "auth": "keys", **settings}
            return await stack.enter_async_context(serving(**settings))

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """An API with the default settings."""
    return await serve()


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a key."""
    async with httpx2.AsyncClient(base_url=served.url) as client:
        yield client


async def make_key(
    runtime: Runtime,
    *,
    tenant: str = TENANT,
    scopes: frozenset[Scope] = TENANT_SCOPES,
    expires_in_s: float | None = None,
    limits: CallerLimits = CallerLimits(),  # noqa: B008 - frozen
    maker: NewKey | None = None,
) -> NewKey:
    """Creates a key."""
    made = await runtime.api_keys.create(
        tenant,
        env="test",
        name="of a test",
        scopes=scopes,
        limits=limits,
        expires_in_s=expires_in_s,
        maker=None if maker is None else presented(maker.text),
    )
    assert made is not None
    return made


def presented(text: str) -> PresentedKey:
    """A text in the form of a key, as a request presents it."""
    found = read_key_text(text.encode())
    assert found is not None
    return found


def bearer(text: str) -> dict[str, str]:
    """The header with a key."""
    return {"Authorization": f"Bearer {text}"}
