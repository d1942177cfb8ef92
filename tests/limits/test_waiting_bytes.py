"""The bytes of a tenant's requests: counted in the step that stores or drops one, and bounded."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.errors import InvalidRequest, TooManyQueued
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.runtime import Runtime, open_runtime
from tests.support.builders import a_submission
from tests.support.redis_servers import on_real_redis
from tests.support.served import serving
from tests.support.store import (
    Begun,
    assert_consistent,
    begin,
    claim,
    finish,
    make_overdue,
    receive,
    start_batch,
    submit,
)
from tests.support.wait import wait_until

TENANT = "tenant-a"
KIB = b"x" * 1024
MOST = 10_000
"""Room for nine requests of 1 KiB with their specs."""


async def held(runtime: Runtime, tenant: str = TENANT) -> int:
    return int(await runtime._commands.call("HGET", redis_keys.plain("held_bytes"), tenant) or 0)


async def fill(runtime: Runtime) -> list[str]:
    """Submits jobs until one is refused by the limit; returns their ids."""
    await runtime.tenants.set(TENANT, {"waiting_bytes": MOST})
    ids: list[str] = []
    try:
        while len(ids) < 100:
            ids.append((await submit(runtime, request=KIB)).id)
    except TooManyQueued:
        pass
    assert 5 <= len(ids) < 100
    assert MOST - 1500 < await held(runtime) <= MOST
    return ids


async def test_one_more_is_refused_by_name_and_counted_nowhere(runtime: Runtime) -> None:
    """Another tenant's job is accepted."""
    ids = await fill(runtime)
    before = await held(runtime)
    refused = a_submission(request=KIB, idempotency_key="once")
    with pytest.raises(TooManyQueued) as caught:
        await runtime.jobs.submit(refused, expires_in_s=60)
    problem = caught.value
    assert (problem.status, problem.code, problem.retry_after_s) == (429, "too_many_queued", 5)
    assert f"{MOST} bytes" in problem.detail
    assert "--waiting-bytes" in problem.detail
    assert "TOKENSPOOL_TENANT_WAITING_SHARE" in problem.detail
    assert await runtime._commands.call("EXISTS", redis_keys.job(refused.id)) == 0
    assert await held(runtime) == before
    other = await submit(runtime, tenant="tenant-b", request=KIB * 10)
    await assert_consistent(runtime, [*ids, other.id])


async def test_a_request_that_can_never_fit_gets_no_429(runtime: Runtime) -> None:
    """A client that obeys a 429 would retry without end."""
    await runtime.tenants.set(TENANT, {"waiting_bytes": MOST})
    with pytest.raises(InvalidRequest, match=str(MOST)):
        await submit(runtime, request=KIB * 10)
    assert await held(runtime) == 0


async def test_a_job_that_succeeds_drops_its_request_and_one_that_runs_does_not(runtime: Runtime) -> None:
    """Nobody needs it any more: only jobs that did not succeed can be retried."""
    await fill(runtime)
    claimed, other = await claim(runtime, 2)
    with pytest.raises(TooManyQueued):
        await submit(runtime, request=KIB)
    await finish(runtime, claimed)
    assert await runtime._commands.call("HMGET", redis_keys.job(claimed.id), "request", "bytes") == [None, None]
    await submit(runtime, request=KIB)
    assert await runtime.queue.release(other, reason="drained")
    with pytest.raises(TooManyQueued):
        await submit(runtime, request=KIB)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_job_that_does_not_succeed_holds_its_request_until_it_is_erased(runtime: Runtime, how: str) -> None:
    """Submitting and cancelling is free: otherwise such requests could fill Redis for as long as results are kept."""
    ids = await fill(runtime)
    if how == "cancelled":
        await runtime.jobs.cancel(ids[0], TENANT)
    else:
        await make_overdue(runtime, ids[0])
        await runtime.jobs.expire()
    with pytest.raises(TooManyQueued):
        await submit(runtime, request=KIB)
    _, request = await runtime.jobs.request_of(ids[0], TENANT)
    assert request == KIB
    await runtime.jobs.erase(ids[0], TENANT)
    await submit(runtime, request=KIB)


async def age_away(runtime: Runtime, *job_ids: str) -> None:
    """Deletes the jobs' records, and moves time on by an hour, as if their retention were over."""
    call = runtime._commands.call
    (bucket,) = {await call("HGET", redis_keys.job(job_id), "kept_until") for job_id in job_ids}
    names = f"{redis_keys.SHARD}kept_bytes:{TENANT}", redis_keys.plain("kept_due")
    await call("DEL", *[redis_keys.job(job_id) for job_id in job_ids])
    await call("HSET", names[0], 1000, await call("HGET", names[0], bucket))
    await call("HDEL", names[0], bucket)
    await call("ZADD", names[1], 1000, TENANT)


async def test_a_kept_request_is_no_longer_counted_after_its_record_expired(runtime: Runtime) -> None:
    """The loop that ends overdue jobs does this in every process. The counts of other hours stay."""
    first, second = (await submit(runtime, request=KIB)).id, (await submit(runtime, request=KIB)).id
    await runtime.jobs.cancel(first, TENANT)
    before = await held(runtime)
    await age_away(runtime, first)
    await runtime.jobs.cancel(second, TENANT)
    await runtime.jobs.expire()
    assert await held(runtime) == before / 2
    await assert_consistent(runtime, [second])
    await age_away(runtime, second)
    await runtime.jobs.expire()
    for name in ("held_bytes", "kept_due", f"kept_bytes:{TENANT}"):
        assert await runtime._commands.call("EXISTS", f"{redis_keys.SHARD}{name}") == 0


async def test_a_batch_is_counted_as_it_arrives_and_refused_as_a_whole(runtime: Runtime) -> None:
    """Its stored part is dropped."""
    await runtime.tenants.set(TENANT, {"waiting_bytes": MOST})
    begun = await receive(runtime, 3)
    before = await held(runtime)
    assert 0 < before < MOST
    large = await submit(runtime, request=b"x" * (MOST - before - 500))
    with pytest.raises(TooManyQueued):
        await more_of(runtime, begun)
    await runtime.batches.drop(begun.id, TENANT)
    await runtime.batches.advance_all(begun.id)
    await assert_consistent(runtime, [large.id])
    begun = await receive(runtime, 3)
    await begin(runtime, begun)
    await runtime.batches.advance_all(begun.id)
    await assert_consistent(runtime, [large.id])


async def more_of(runtime: Runtime, begun: Begun) -> None:
    from shared.batch import NewItem
    from tests.support.builders import an_id

    items = [NewItem(line, an_id(), f"more-{line}", "a-model", b"x" * 200) for line in range(4, 8)]
    await runtime.batches.add(begun.id, begun.tenant, items)


async def test_a_batch_that_can_never_fit_gets_no_429(runtime: Runtime) -> None:
    """It alone is larger than the limit."""
    begun = await receive(runtime, 3)
    await runtime.tenants.set(TENANT, {"waiting_bytes": await held(runtime) + 100})
    with pytest.raises(InvalidRequest, match="never"):
        await more_of(runtime, begun)


async def test_items_are_kept_no_longer_than_their_batch(runtime: Runtime) -> None:
    """When an item ends, its batch's end is not yet known."""
    begun = await start_batch(runtime, 3)
    for job_id in begun.job_ids:
        await runtime.jobs.cancel(job_id, begun.tenant)
    first = int(await runtime._commands.call("HGET", redis_keys.job(begun.job_ids[0]), "kept_until"))
    await runtime.batches.advance_all(begun.id)
    await assert_consistent(runtime)
    assert int(await runtime._commands.call("HGET", redis_keys.job(begun.job_ids[0]), "kept_until")) <= first
    await runtime.batches.erase(begun.id, begun.tenant)
    await runtime.batches.advance_all(begun.id)
    assert await held(runtime) == 0
    await assert_consistent(runtime)


async def test_a_tenants_share_is_of_what_redis_may_hold(own_server: EmbeddedRedis) -> None:
    """A quarter by default; it can be set for all tenants or for one."""

    async def most(share: float | None, maxmemory: str) -> int:
        settings = {} if share is None else {"tenant_waiting_share": share}
        loaded = load_settings(redis_url=own_server.url, **settings)
        async with open_runtime(loaded, process_name="tests", timeout_s=10) as runtime:
            await runtime._commands.call("CONFIG", "SET", "maxmemory", maxmemory)
            await runtime.memory.look()
            return runtime.memory.tenant_bytes

    assert await most(None, "100mb") == 25 << 20
    assert await most(0.5, "100mb") == 50 << 20
    assert await most(0, "100mb") == 0
    assert await most(None, "0") == 0
    async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=10) as runtime:
        runtime.memory.tenant_bytes = 100
        with pytest.raises(InvalidRequest):
            await submit(runtime)
        await runtime.tenants.set(TENANT, {"waiting_bytes": MOST})
        await submit(runtime)


async def test_one_tenants_large_requests_leave_room_for_all_others(own_server: EmbeddedRedis) -> None:
    """However far in the future they are due; a month is the most."""
    async with (
        serving(own_server.url, max_not_before_s=3600) as served,
        httpx2.AsyncClient(base_url=served.url, timeout=30) as http,
    ):
        await served.api.runtime._commands.call("CONFIG", "SET", "maxmemory", "128mb")
        await wait_until(lambda: served.api.runtime.memory.tenant_bytes == 32 << 20, "a look at Redis's memory")
        messages = [{"role": "user", "content": "x" * (7 << 20)}]
        body: Any = {"messages": messages}
        evil = {"X-Tenant": "evil"}
        seen = [(await http.post("/v1/jobs", json=body, headers=evil)).status_code for _ in range(7)]
        assert seen == [202] * 4 + [429] * 3
        response = await http.post("/v1/jobs", json=body, headers=evil)
        assert response.json()["code"] == "too_many_queued"
        assert response.headers["retry-after"] == "5"
        await served.api.runtime.memory.look()
        assert (await http.post("/v1/jobs", json={"prompt": "x"}, headers={"X-Tenant": "bob"})).status_code == 202

        late = {"not_before": "2096-01-01T00:00:00Z"}
        requests = [{"custom_id": "a", "params": {"prompt": "x"}}]
        for path, body in (
            ("/v1/jobs", {"prompt": "x", "job": late}),
            ("/v1/batches", {"requests": requests, "job": late}),
        ):
            response = await http.post(path, json=body)
            (error,) = response.json()["errors"]
            assert (response.status_code, error["pointer"]) == (400, "#/job/not_before")
            assert "TOKENSPOOL_MAX_NOT_BEFORE_S" in error["detail"]
        line = b'{"custom_id":"a","params":{"prompt":"x"}}\n'
        response = await http.post(
            "/v1/batches", params=late, content=line, headers={"Content-Type": "application/jsonl"}
        )
        (error,) = response.json()["errors"]
        assert (response.status_code, error["pointer"]) == (400, "not_before")


@on_real_redis
async def test_the_share_costs_a_submit_one_command_of_redis(runtime: Runtime) -> None:
    """It applies by default, so it must cost next to nothing."""

    async def commands_of(most: int) -> dict[str, int]:
        runtime.memory.tenant_bytes = most
        await submit(runtime)
        await runtime._commands.call("CONFIG", "RESETSTAT")
        await submit(runtime)
        text = (await runtime._commands.call("INFO", "commandstats")).decode()
        rows = [row.split(":", 1) for row in text.split("\r\n") if row.startswith("cmdstat_")]
        return {name: int(row.partition("calls=")[2].partition(",")[0]) for name, row in rows}

    found = await commands_of(1 << 30)
    assert found["cmdstat_hincrby"] == 2  # one for this sum, one for the waiting jobs
    assert found == await commands_of(0)


async def test_the_sums_are_right_after_redis_has_lost_its_last_writes(own_server: EmbeddedRedis) -> None:
    """A script's writes are in the file all together or not at all, so no recount is needed."""
    chance = random.Random(11)
    async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=10) as runtime:
        await start_batch(runtime, 20)
        for number in range(60):
            await submit(runtime, request=b"x" * chance.randrange(2000))
            if number % 3 == 0:
                for claimed in await claim(runtime, 2):
                    if chance.random() < 0.5:
                        await finish(runtime, claimed)
                    else:
                        await runtime.jobs.cancel(claimed.id, claimed.tenant)
    for _ in range(4):
        own_server.kill()
        file = newest_file(own_server.directory)
        with file.open("r+b") as log:
            log.truncate(file.stat().st_size - chance.randrange(1, 15_000))
        await asyncio.to_thread(own_server.restart)
        async with open_runtime(load_settings(redis_url=own_server.url), process_name="tests", timeout_s=10) as runtime:
            names = await runtime._commands.call("KEYS", redis_keys.job("*"))
            ids = [name.decode().removeprefix(redis_keys.job("")) for name in names]
            assert len(ids) > 20
            await assert_consistent(runtime, ids)


def newest_file(directory: Path) -> Path:
    """The file to which the server appends."""
    return max((directory / "appendonlydir").glob("*.incr.aof"), key=lambda file: file.stat().st_mtime)
