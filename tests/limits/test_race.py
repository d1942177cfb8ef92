"""Fifty callers at two API processes, with a limit of twenty."""

import asyncio
from collections import Counter
from typing import Any

from shared.limits import CallerLimits
from shared.store import redis_keys
from tests.keys.conftest import TENANT, make_key
from tests.support.deployment import a_deployment
from tests.support.follower import ask
from tests.support.limits import age, counted


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


async def test_what_is_left_equals_the_counters_while_fifty_callers_race() -> None:
    """Each read is of one moment: every accepted submit counts in all limits of the key and the tenant, or in none."""
    with a_deployment("http://127.0.0.1:1", TOKENSPOOL_AUTH="keys") as deployment:
        for _ in range(2):
            deployment.begin_api()
        for api in deployment.apis:
            await deployment.api_up(api)
        async with deployment.runtime() as runtime:
            most = CallerLimits(requests_per_minute=30, tokens_per_minute=1_000_000, queued_jobs=40)
            await runtime.tenants.set(
                TENANT, {"requests_per_minute": 100, "queued_jobs": 100, "waiting_bytes": 1 << 20}
            )
            made = await make_key(runtime, limits=most)
            headers = {"Authorization": f"Bearer {made.text}"}
            statuses: Counter[int] = Counter()
            reads: list[Any] = []

            async def read(url: str) -> None:
                status, found, _ = await ask(url, "/v1/limits", headers=headers)
                assert status == 200
                reads.append(found)

            async def submit_and_read(url: str) -> None:
                body = {"prompt": "Say hello."}
                status, _, _ = await ask(url, "/v1/jobs", method="POST", headers=headers, body=body)
                statuses[status] += 1
                await read(url)

            urls = [deployment.urls[number % 2] for number in range(50)]
            await asyncio.gather(*[act(url) for url in urls for act in (submit_and_read, read)])
            _, last, _ = await ask(deployment.urls[0], "/v1/limits", headers=headers)
            assert statuses == {202: 30, 429: 20}
            assert await counted(runtime, f"key:{made.key.id}") == (30, last["key"]["tokens_per_minute"]["used"])
            assert await counted(runtime, f"tenant:{TENANT}") == (30, 0)
            assert (
                int(await runtime._commands.call("HGET", redis_keys.plain("held_bytes"), TENANT))
                == (last["tenant"]["waiting_bytes"]["used"])
            )
            one_job = {name: last[owner][name]["used"] / 30 for owner, name in _COUNTED}
            moments = set()
            for found in [*reads, last]:
                jobs = {found[owner][name]["used"] / one_job[name] for owner, name in _COUNTED}
                assert len(jobs) == 1, found
                moments |= jobs
                for owner, name in _COUNTED:
                    assert found[owner][name]["remaining"] == found[owner][name]["limit"] - found[owner][name]["used"]
            assert 30 in moments
            assert len(moments) > 2, "all reads were before or after the race"


_COUNTED = (
    *[("key", name) for name in ("requests_per_minute", "tokens_per_minute", "queued_jobs")],
    *[("tenant", name) for name in ("requests_per_minute", "queued_jobs", "waiting_bytes")],
)
