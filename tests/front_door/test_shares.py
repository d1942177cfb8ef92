"""Followers of one tenant leave connections for other tenants, over real sockets."""

from contextlib import AsyncExitStack

import httpx2

from tests.support.follower import asking
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import serving

FAR = {"prompt": "a", "job": {"not_before": "2026-12-24T00:00:00Z"}}


async def test_followers_of_one_tenant_leave_room_for_others(real_redis: RedisUnderTest) -> None:
    """Without shares, 61 followers at a bound of 60 connections would lock everybody else out."""
    async with serving(real_redis.url, max_connections=20) as served, AsyncExitStack() as connections:
        greedy, other = ({"X-Tenant": tenant} for tenant in ("greedy", "other"))
        async with httpx2.AsyncClient(base_url=served.url) as http:
            job = (await http.post("/v1/jobs", json=FAR, headers=greedy)).json()["id"]
        statuses = []
        for _ in range(16):
            follower = asking(served.url, f"/v1/jobs/{job}/events", headers=greedy)
            statuses.append((await connections.enter_async_context(follower)).status)
        assert statuses == [200] * 15 + [503]
        async with httpx2.AsyncClient(base_url=served.url) as http:
            assert (await http.get("/v1/jobs", headers=other)).status_code == 200
            assert (await http.post("/v1/jobs", json=FAR, headers=other)).status_code == 202
