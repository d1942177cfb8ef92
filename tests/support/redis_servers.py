"""The Redis under test: fakeredis or a real server, behind one interface."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from fakeredis import FakeServer
from fakeredis.aioredis import FakeAsyncRedisConnection

from shared.store.connect import MakeConnection, connection_maker

FAKE_URL = "redis://fakeredis.invalid:6379/0"


@dataclass(frozen=True)
class RedisUnderTest:
    """An empty Redis. For fakeredis nothing listens at ``url``: ``make_connection`` makes the connections."""

    url: str
    fake: FakeServer | None = None
    make_connection: MakeConnection = field(init=False)

    def __post_init__(self) -> None:
        if self.fake is None:
            make_connection = connection_maker(self.url, name="tests")
        else:
            server = self.fake

            def make_connection() -> FakeAsyncRedisConnection:
                return FakeAsyncRedisConnection(server=server)

        object.__setattr__(self, "make_connection", make_connection)

    @property
    def is_real(self) -> bool:
        """Whether it is a server process."""
        return self.fake is None


def a_fake_redis() -> RedisUnderTest:
    """A new, empty fakeredis."""
    return RedisUnderTest(FAKE_URL, FakeServer(version=(7,)))


def an_emptied_redis(url: str) -> RedisUnderTest:
    """The database at ``url``, emptied."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return RedisUnderTest(url)


def own_database(url: str) -> str:
    """``url`` with a database number of this process's own, because each of xdist's workers empties its database."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return urlunsplit(parts._replace(query=f"db={number}"))
    return urlunsplit(parts._replace(path=f"/{number}"))


on_real_redis = pytest.mark.parametrize("redis_under_test", ["real"], indirect=True)
"""For what fakeredis does not have: a memory limit, dropped connections, or the speed for thousands of jobs."""
