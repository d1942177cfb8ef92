"""Hostile input to any route never causes a 5xx, and no response quotes it."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings

from api.app import create_app
from shared.settings import load_settings
from tests.fuzz.hostile import (
    ROUTES,
    Answer,
    answer_of,
    bodies,
    content_types,
    echoed,
    headers,
    large_bodies,
    queries,
)
from tests.routes.conftest import CalledApi, called_api
from tests.support.redis_servers import RedisUnderTest

_CAMPAIGN = 50_000


class Target:
    """An application, and statistics of its responses."""

    def __init__(self, api: CalledApi) -> None:
        self.app = create_app(load_settings(auth="off", allowed_hosts="*", redis_url=api.state.settings.redis_url))
        self.api = api
        self.statuses: Counter[int] = Counter()
        self.slowest: tuple[float, str, bytes] = (0.0, "", b"")
        self.over_100_ms = 0

    async def post(self, path: str, body: bytes, given: list[tuple[bytes, bytes]], query: bytes = b"") -> Answer:
        """Sends one POST, and records how long it took."""
        answer = await answer_of(self.app, self.api.state, path, body, given, query)
        self.statuses[answer.status] += 1
        self.over_100_ms += answer.took_ms > 100
        self.slowest = max(self.slowest, (answer.took_ms, path, body[:60]))
        return answer

    async def post_everywhere(self, body: bytes, given: list[tuple[bytes, bytes]], query: bytes) -> None:
        """Sends the body to each route, and checks each response."""
        for path in ROUTES:
            answer = await self.post(path, body, given, query)
            assert answer.status < 500, (path, answer)
            assert not echoed(answer), (path, answer)

    def tell(self, what: str) -> None:
        """Prints the figures."""
        total = sum(self.statuses.values())
        print(  # noqa: T201
            f"{what}: {total} bodies, {dict(sorted(self.statuses.items()))} (0: gone before its answer), "
            f"{self.over_100_ms} over 100 ms, slowest {self.slowest}"
        )


@pytest.fixture
async def target(real_redis: RedisUnderTest) -> AsyncIterator[Target]:
    """An application on a real Redis, without a worker."""
    async with called_api(redis_url=real_redis.url) as api:
        running = Target(api)
        yield running
        running.tell("in all")


_cases = given(body=bodies, content_type=content_types, more=headers, query=queries)
_checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.timeout(120)
@settings(max_examples=40, deadline=None, suppress_health_check=_checks)
@_cases
async def test_no_body_makes_a_5xx_or_comes_back(
    target: Target, body: bytes, content_type: bytes, more: list[tuple[bytes, bytes]], query: bytes
) -> None:
    """A small part of the campaign."""
    await target.post_everywhere(body, [(b"content-type", content_type), *more], query)


@pytest.mark.fuzz
@pytest.mark.timeout(3000)
@settings(max_examples=_CAMPAIGN // len(ROUTES) + 1, deadline=None, suppress_health_check=_checks, database=None)
@_cases
async def test_50_000_hostile_bodies(
    target: Target, body: bytes, content_type: bytes, more: list[tuple[bytes, bytes]], query: bytes
) -> None:
    """For `make fuzz`, which prints the statuses and the slowest requests."""
    await target.post_everywhere(body, [(b"content-type", content_type), *more], query)


@pytest.mark.fuzz
@pytest.mark.timeout(600)
async def test_the_largest_bodies(target: Target) -> None:
    """32 MB that cause the most work, on each route that reads a body."""
    for name, body in large_bodies().items():
        target.slowest = (0.0, "", b"")
        for path in ROUTES:
            answer = await target.post(path, body, [(b"content-type", b"application/json")])
            assert answer.status < 500, (name, path)
        target.tell(name)
