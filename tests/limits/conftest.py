"""Limits in the store, in an API called without sockets, and over two processes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.routes.conftest import CalledApi, StartApi, called_api
from tests.support.redis_servers import RedisUnderTest


@pytest.fixture
async def start_api(real_redis: RedisUnderTest) -> AsyncIterator[StartApi]:
    """For tests that need other settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> CalledApi:
            return await stack.enter_async_context(called_api(**{"redis_url": real_redis.url, **settings}))

        yield start
