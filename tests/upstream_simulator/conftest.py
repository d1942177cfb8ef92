"""A simulator in the test's own event loop, and the official SDKs as its clients."""

from collections.abc import AsyncIterator

import anthropic
import openai
import pytest

from simulator.app import Simulator, running
from tests.upstream_simulator.asking import Asking, ChatAsking


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with running() as simulator:
        yield simulator


@pytest.fixture
def transport() -> str:
    """The SDK's HTTP client; a module whose tests must pass with both parametrizes it."""
    return "aiohttp"


@pytest.fixture
async def asking(transport: str, simulator: Simulator) -> AsyncIterator[Asking]:
    # verify=False: loading the certificates takes longer than most of these tests, which use no TLS.
    http_client = {"aiohttp": anthropic.DefaultAioHttpClient, "httpx2": anthropic.DefaultAsyncHttpxClient}[transport]
    async with anthropic.AsyncAnthropic(
        base_url=simulator.url, api_key="made-up", max_retries=0, timeout=5, http_client=http_client(verify=False)
    ) as client:
        yield Asking(client)


@pytest.fixture
async def chat_asking(transport: str, simulator: Simulator) -> AsyncIterator[ChatAsking]:
    http_client = {"aiohttp": openai.DefaultAioHttpClient, "httpx2": openai.DefaultAsyncHttpxClient}[transport]
    async with openai.AsyncOpenAI(
        base_url=f"{simulator.url}/v1",
        api_key="made-up",
        max_retries=0,
        timeout=5,
        http_client=http_client(verify=False),
    ) as client:
        yield ChatAsking(client)
