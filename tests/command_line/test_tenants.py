"""``tokenspool tenants``: an operator's settings for a tenant, and its erasure."""

import asyncio
import io
import json
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.api_key import ALL_SCOPES
from shared.job import JobState
from shared.limits import NO_LIMITS
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.runtime import Runtime, open_runtime
from tests.command_line.conftest import Tokenspool
from tests.support.builders import a_text_delta, a_webhook
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    all_keys,
    append,
    assert_consistent,
    claim,
    finish,
    kind_of,
    receive,
    start_batch,
    submit,
    submit_many,
)


@pytest.fixture(autouse=True)
def settings_of_the_shell(real_redis: RedisUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets Redis's URL in the environment, and a short lease, because an erasure waits for one."""
    monkeypatch.setenv("TOKENSPOOL_REDIS_URL", real_redis.url)
    monkeypatch.setenv("TOKENSPOOL_LEASE_S", "1")


def test_a_tiny_limit_does_not_count_as_no_limit(tokenspool: Tokenspool) -> None:
    """It becomes the smallest limit. Only 0 removes a limit."""
    tokenspool("tenants", "set", "acme", "--usd-per-day", "1e-10", "--queued-jobs", "5")
    assert tokenspool("tenants", "show", "acme").out == "acme queued_jobs=5 usd_per_day=1e-09\n"
    assert tokenspool("tenants", "set", "acme", "--usd-per-day", "0").out == "acme queued_jobs=5\n"


def test_each_subcommand_prints_json(tokenspool: Tokenspool) -> None:
    """All settings by name, null where none is set; of an erasure, the counts."""
    shown = json.loads(tokenspool("tenants", "set", "acme", "--queued-jobs", "5", "--usd-per-day", "0.5", "--json").out)
    assert shown["name"] == "acme"
    assert {name: value for name, value in shown["settings"].items() if value is not None} == {
        "queued_jobs": 5,
        "usd_per_day": 0.5,
    }
    assert json.loads(tokenspool("tenants", "show", "acme", "--json").out) == shown
    assert [json.loads(line) for line in tokenspool("tenants", "list", "--json").out.splitlines()] == [shown]
    cleared = json.loads(tokenspool("tenants", "clear", "acme", "--json").out)
    assert (cleared["name"], set(cleared["settings"].values())) == ("acme", {None})
    erased = json.loads(tokenspool("tenants", "erase", "acme", "--yes", "--json").out)
    assert erased["name"] == "acme"
    assert erased["erased"]["jobs_erased"] == 0


def test_limits_of_each_end_user_are_set_and_shown(tokenspool: Tokenspool) -> None:
    """In the units of their names."""
    options = ("--end-user-running-jobs", "2", "--end-user-usd-per-day", "0.5", "--end-user-usd-per-month", "3")
    shown = "acme end_user_running_jobs=2 end_user_usd_per_day=0.5 end_user_usd_per_month=3\n"
    assert tokenspool("tenants", "set", "acme", *options).out == shown
    assert tokenspool("tenants", "set", "acme", "--end-user-usd-per-day", "0").out == shown.replace(
        " end_user_usd_per_day=0.5", ""
    )


@pytest.mark.parametrize("value", ["-1e308", "nan", "inf", "1e308"])
def test_an_invalid_budget_is_refused(tokenspool: Tokenspool, value: str) -> None:
    """For a tenant and for a key."""
    for command in (("tenants", "set", "acme"), ("keys", "create", "--tenant", "acme")):
        assert tokenspool(*command, f"--usd-per-day={value}").exit_code == 2


@pytest.mark.parametrize("said", ["n\n", ""])
def test_an_erasure_asks_first(
    tokenspool: Tokenspool, real_redis: RedisUnderTest, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Without a confirmation nothing is erased; an invalid name is refused before the question."""
    job_id = asyncio.run(_with_runtime(real_redis, _a_waiting_job))
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    asked = tokenspool("tenants", "erase", "acme")
    assert asked.exit_code == 1
    assert "Erase all jobs and batches of acme" in asked.out + asked.err
    assert tokenspool("tenants", "erase", "a b", "--yes").exit_code == 2
    assert asyncio.run(_with_runtime(real_redis, _left_of("acme", job_id)))


def test_an_erasure_deletes_everything_of_a_tenant_and_nothing_of_others(
    tokenspool: Tokenspool, real_redis: RedisUnderTest
) -> None:
    """Jobs in every state; batches that wait, have ended or still arrive; deliveries; keys; settings. A second run finds none."""
    asyncio.run(_with_runtime(real_redis, _fill("acme")))
    asyncio.run(_with_runtime(real_redis, _fill("acme-2")))
    before = asyncio.run(_with_runtime(real_redis, _names_of("acme-2")))
    outcome = tokenspool("tenants", "erase", "acme", "--yes")
    assert outcome.exit_code == 0, outcome.err
    for line in (
        "keys revoked: 2",
        "batches erased: 3",
        "jobs erased: 252, 250 of them cancelled",
        "deliveries erased: 1",
    ):
        assert line in outcome.err
    left = asyncio.run(_with_runtime(real_redis, _names_of("acme")))
    assert left == []
    assert asyncio.run(_with_runtime(real_redis, _names_of("acme-2"))) == before
    asyncio.run(_with_runtime(real_redis, _assert_the_books_agree))
    again = tokenspool("tenants", "erase", "acme", "--yes")
    assert again.exit_code == 0
    assert "keys revoked: 0" in again.err
    assert "jobs erased: 0," in again.err


Work = Callable[[Runtime], Awaitable[Any]]


async def _with_runtime(redis: RedisUnderTest, work: Work) -> Any:
    async with open_runtime(load_settings(redis_url=redis.url), process_name="tests", timeout_s=10) as runtime:
        return await work(runtime)


async def _a_waiting_job(runtime: Runtime) -> str:
    return (await submit(runtime, tenant="acme")).id


def _left_of(tenant: str, job_id: str) -> Work:
    async def found(runtime: Runtime) -> bool:
        return (await runtime.jobs.get(job_id, tenant)).state is JobState.QUEUED

    return found


def _fill(tenant: str) -> Work:
    async def fill(runtime: Runtime) -> None:
        await runtime.tenants.set(tenant, {"queued_jobs": 1_000})
        for _ in range(2):
            await runtime.api_keys.create(tenant, env="test", name="", scopes=ALL_SCOPES, limits=NO_LIMITS)
        await submit(runtime, tenant=tenant, webhook=a_webhook(), idempotency_key="once")
        await submit(runtime, tenant=tenant)
        running, ended = await claim(runtime, 2)
        await finish(runtime, ended)
        await append(runtime, running, a_text_delta("Hel"))
        gone = await submit(runtime, tenant=tenant, webhook=a_webhook())
        await runtime.jobs.cancel(gone.id, tenant)
        await _age_away(runtime, tenant, gone.id)  # before its delivery was sent
        await submit_many(runtime, 249, tenant=tenant)
        cancelled = await submit(runtime, tenant=tenant, webhook=a_webhook())
        await runtime.jobs.cancel(cancelled.id, tenant)
        await start_batch(runtime, 300, tenant=tenant)
        over = await start_batch(runtime, 2, tenant=tenant)
        await runtime.batches.cancel(over.id, tenant)
        await runtime.batches.advance_all(over.id)
        await receive(runtime, 3, tenant=tenant)

    return fill


async def _assert_the_books_agree(runtime: Runtime) -> None:
    ids = [name.rpartition(":")[2] for name in await all_keys(runtime._commands) if kind_of(name) == "job"]
    await assert_consistent(runtime, ids)


async def _age_away(runtime: Runtime, tenant: str, job_id: str) -> None:
    call = runtime._commands.call
    size, until = await call("HMGET", redis_keys.job(job_id), "bytes", "kept_until")
    await call("HINCRBY", redis_keys.plain("held_bytes"), tenant, -int(size))
    await call("HDEL", f"{redis_keys.SHARD}kept_bytes:{tenant}", until)
    await call("DEL", redis_keys.job(job_id))


def _names_of(tenant: str) -> Work:
    """The names of all keys that belong to the tenant, by their name or their value."""

    async def names(runtime: Runtime) -> list[str]:
        found = []
        for name in await all_keys(runtime._commands):
            record = name if kind_of(name) in {"job", "batch", "delivery"} else None
            owner = await runtime._commands.call("HGET", record, "tenant") if record else None
            if (owner and owner.decode() == tenant) or tenant in re.split(r"[:\n]", name):
                found.append(name)
        return sorted(found)

    return names
