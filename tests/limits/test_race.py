"""Fifty callers at two API processes, with a limit of twenty."""

import asyncio
from collections import Counter

from shared.store import redis_keys
from tests.support.deployment import a_deployment
from tests.support.follower import ask
from tests.support.limits import age


async def test_of_fifty_callers_at_two_processes_exactly_twenty_are_accepted() -> None:
    """In any 60 s, also after some of the first ones have left the window."""
    with a_deployment("http://127.0.0.1:1") as deployment:
        for _ in range(2):
            deployment.begin_api()
        for api in deployment.apis:
            await deployment.api_up(api)
        async with deployment.runtime() as runtime:
            await runtime.tenants.set("default", {"requests_per_minute": 20})

            async def race(callers: int) -> Counter[int]:
                answers = await asyncio.gather(
                    *(
                        ask(deployment.urls[number % 2], "/v1/jobs", method="POST", body={"prompt": "Say hello."})
                        for number in range(callers)
                    )
                )
                for status, _, headers in answers:
                    named = {name.lower(): value for name, value in headers.items()}
                    assert named["ratelimit-policy"] == '"requests";q=20;w=60'
                    if status == 429:
                        assert 1 <= int(named["retry-after"]) <= 61
                        assert '"requests";r=0;t=' in named["ratelimit"]
                return Counter(status for status, _, _ in answers)

            assert await race(12) == {202: 12}
            window = redis_keys.pace("tenant:default")
            await age(runtime, window, 40_000)
            assert await race(50) == {202: 8, 429: 42}
            await age(runtime, window, 30_000)  # the first twelve have left the window, the next eight have not
            assert await race(50) == {202: 12, 429: 38}
            await age(runtime, window, 61_000)
            assert await race(50) == {202: 20, 429: 30}
