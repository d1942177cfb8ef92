"""The API on real sockets, real workers and a simulated upstream, on a real Redis.

The fixtures are those of tests/stream (`served`, `author`, `follower_of`) and of tests/running (`crew`).
"""

from tests.running.conftest import crew, nothing_is_left_behind, provider, redis_url, simulator
from tests.stream.conftest import (
    author,
    follower_of,
    pytest_asyncio_loop_factories,
    redis_under_test,
    serve,
    served,
)

__all__ = [
    "author",
    "crew",
    "follower_of",
    "nothing_is_left_behind",
    "provider",
    "pytest_asyncio_loop_factories",
    "redis_under_test",
    "redis_url",
    "serve",
    "served",
    "simulator",
]
