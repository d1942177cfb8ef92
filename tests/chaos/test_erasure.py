"""A tenant with 10,000 jobs is erased while it submits, and the process that erases it is killed: its neighbours feel nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from statistics import quantiles

import pytest

from shared.api_key import ALL_SCOPES, TENANT_SCOPES, Scope
from shared.limits import NO_LIMITS
from shared.store.runtime import Runtime
from tests.support.contents import contents
from tests.support.deployment import MODEL, Deployment
from tests.support.facts import Fact
from tests.support.follower import ask
from tests.support.store import all_keys, submit_many
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

_GONE, _NEIGHBOUR = "to-be-erased", "neighbour"
_JOBS = 10_000
_FLOOD_EVERY_S = 0.01
_WINDOW_S = 5.0
_SLOW = "tokens=5000 gap-ms=50"


def _of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def _submitted(url: str, key: str) -> int:
    body = {"model": MODEL, "max_tokens": 10, "prompt": _SLOW}
    status, _, _ = await ask(url, "/v1/jobs", method="POST", body=body, headers=_of(key))
    return int(status)


@contextlib.asynccontextmanager
async def _flood(url: str, key: str) -> AsyncIterator[list[int]]:
    """The tenant goes on submitting; the statuses that it gets."""
    statuses: list[int] = []

    async def go_on() -> None:
        while True:
            statuses.append(await _submitted(url, key))
            await asyncio.sleep(_FLOOD_EVERY_S)

    task = asyncio.create_task(go_on())
    try:
        yield statuses
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _felt_ms(url: str, key: str, until: asyncio.Event) -> list[float]:
    """How long a neighbour's submits take, one after another."""
    took = []
    while not until.is_set():
        began_s = time.perf_counter()
        assert await _submitted(url, key) == 202
        took.append((time.perf_counter() - began_s) * 1000)
    return took


def _text(took_ms: list[float]) -> str:
    cuts = quantiles(took_ms, n=100)
    return f"p50 {cuts[49]:.1f} / p99 {cuts[98]:.1f} ms of {len(took_ms)}"


async def _key(runtime: Runtime, tenant: str, scopes: frozenset[Scope]) -> str:
    made = await runtime.api_keys.create(tenant, env="test", name="", scopes=scopes, limits=NO_LIMITS)
    assert made is not None
    return made.text


async def _neighbour(url: str, key: str, seconds: float) -> list[float]:
    until = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, until.set)
    return await _felt_ms(url, key, until)


async def test_an_erasure_leaves_nothing_and_neighbours_feel_nothing(empty: Deployment, fact: Fact) -> None:
    """Its jobs wait, and some run; one of the two API processes dies; what it submits meanwhile is refused."""
    for _ in range(2):
        empty.begin_api(TOKENSPOOL_AUTH="keys")
    await empty.make_whole(apis=2, workers=1)
    url, path = empty.urls[0], f"/v1/tenants/{_GONE}"
    async with empty.runtime() as runtime:
        for tenant in (_GONE, _NEIGHBOUR):
            await runtime.tenants.set(tenant, {"running_jobs": 2})
        gone, neighbour = [await _key(runtime, tenant, TENANT_SCOPES) for tenant in (_GONE, _NEIGHBOUR)]
        operator = _of(await _key(runtime, "operators", ALL_SCOPES))
        await submit_many(runtime, _JOBS, tenant=_GONE, model=MODEL, request=b'{"messages":[]}')
        async with _flood(url, gone) as accepted:
            before_ms = await _neighbour(url, neighbour, _WINDOW_S)
        assert set(accepted) == {202}
        before = len(await all_keys(runtime._commands))

        async with _flood(url, gone) as statuses:
            began_s, is_over = time.monotonic(), asyncio.Event()
            assert (await ask(url, path, method="DELETE", headers=operator))[0] == 202
            felt = asyncio.create_task(_felt_ms(url, neighbour, is_over))

            async def are_some_erased() -> bool:
                await asyncio.sleep(0.05)
                status, tenant, _ = await ask(url, path, headers=operator)
                return status == 404 or tenant["erasure"]["jobs_erased"] >= _JOBS // 4

            await wait_until(are_some_erased, "the first jobs")
            empty.apis[1].kill()

            async def is_gone() -> bool:
                await asyncio.sleep(0.05)
                return (await ask(url, path, headers=operator))[0] == 404

            await wait_until(is_gone, "the end of the erasure", timeout_s=90)
            took_s = time.monotonic() - began_s
            is_over.set()
            during_ms = await felt
        assert set(statuses) <= {202, 401, 403}
        refused = statuses.count(401) + statuses.count(403)
        assert set(statuses[statuses.index(403) :]) <= {401, 403}
        left = {name for name, value in (await contents(runtime._commands)).items() if _GONE in f"{name} {value!r}"}
        calm_ms = await _neighbour(url, neighbour, _WINDOW_S)
    fact(
        f"{_JOBS} jobs, {before} keys in Redis: erased in {took_s:.1f} s; {refused} submits of it refused meanwhile; "
        f"a neighbour's submits: {_text(before_ms)} before, {_text(during_ms)} during, {_text(calm_ms)} after"
    )
    assert left == set()
    assert quantiles(during_ms, n=100)[98] < 2 * quantiles(before_ms, n=100)[98] + 5
