"""Every test here also checks that it left no key without a TTL, unless redis_keys.py gives a reason."""

from collections.abc import AsyncIterator

import pytest

from shared.store.commands import Commands
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import keys_that_leak


@pytest.fixture(autouse=True)
async def no_key_is_left_without_a_reason(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Each key has a TTL, or shared/store/redis_keys.py says why it has none."""
    name = next((name for name in ("redis_under_test", "real_redis") if name in request.fixturenames), None)
    redis: RedisUnderTest | None = request.getfixturevalue(name) if name else None
    yield
    if redis is not None:
        async with Commands(redis.make_connection, timeout_s=10) as commands:
            assert await keys_that_leak(commands) == []
