"""End users of a tenant: fair turns among them, and the limits that a tenant sets for each."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from shared.errors import BudgetExceeded
from shared.job import JobState, Step
from shared.limits import CallerLimits
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.queue import Claim, Ending
from shared.store.runtime import Runtime, open_runtime
from tests.limits.test_parking import PRICED
from tests.support.builders import a_line, a_submission
from tests.support.limits import A_DOLLAR, TENANT, spent
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    A_RESULT,
    all_keys,
    assert_consistent,
    claim,
    claim_one,
    finish,
    job_of,
    kind_of,
    lose,
    start_batch,
    state_of,
    submit,
    submit_many,
    ttl_ms,
)

HOSTILE = ("a:b", "a/b", "/", ":", "::", "*", "%d", "日本", "'\"\\", "user:tenant-a/x", "x" * 64, " ", "a\nb")


def owner_of(end_user: str, tenant: str = "tenant-a") -> str:
    """The owner as Redis knows it."""
    return f"user:{redis_keys.user_of(tenant, end_user)}"


async def end_with(runtime: Runtime, claimed: Claim, cost: int) -> None:
    """The job succeeds at that cost."""
    await runtime.queue.finish(claimed, Ending(Step.SUCCEED, A_RESULT), seq=claimed.next_seq, cost=cost)


def users_of(claims: list[Claim]) -> Counter[str | None]:
    """How many of these jobs each end user has."""
    return Counter(found.spec.end_user for found in claims)


# Turns


async def test_an_end_user_with_a_thousand_jobs_delays_another_by_one_turn(runtime: Runtime) -> None:
    """Its first job is the tenant's next or second next, also among those of another tenant."""
    await submit_many(runtime, 1000, end_user="ann")
    await claim(runtime, 7)
    late = await submit(runtime, end_user="bob")
    assert late.id in [found.id for found in await claim(runtime, 2)]
    await submit_many(runtime, 20, tenant="tenant-b")
    last = await submit(runtime, end_user="eve")
    assert last.id in [found.id for found in await claim(runtime, 4) if found.tenant == "tenant-a"][:2]


async def test_end_users_take_turns_and_give_their_tenant_no_more_of_them(runtime: Runtime) -> None:
    """So do the jobs for nobody. A second tenant still gets half of all."""
    ids = [
        job_id
        for user in ("ann", "bob", None)
        for job_id in await submit_many(runtime, 20 + 40 * (user == "ann"), end_user=user)
    ]
    ids += await submit_many(runtime, 60, tenant="tenant-b", end_user="ann")
    claims = await claim(runtime, 60)
    shares = Counter((found.tenant, found.spec.end_user) for found in claims)
    assert 29 <= shares["tenant-b", "ann"] <= 31
    assert all(9 <= shares["tenant-a", user] <= 11 for user in ("ann", "bob", None))
    await assert_consistent(runtime, ids)


@pytest.mark.parametrize("end_user", HOSTILE)
async def test_an_end_user_may_be_called_anything(runtime: Runtime, end_user: str) -> None:
    """Its text is in no key. It has its own turns and limits, and those of no other."""
    await runtime.tenants.set("tenant-a", {"end_user_running_jobs": 1})
    ids = await submit_many(runtime, 2, end_user=end_user, model="vendor/m:1") + await submit_many(runtime, 2)
    claims = await claim(runtime, 10)
    assert users_of(claims) == {end_user: 1, None: 2}
    await assert_consistent(runtime, ids)
    assert not [name for name in await all_keys(runtime._commands) if len(end_user) > 1 and end_user in name]
    for found in claims:
        await finish(runtime, found)
    assert (await claim_one(runtime)).spec.end_user == end_user


# Running jobs


async def test_each_end_user_runs_up_to_its_limit_however_its_jobs_end(runtime: Runtime) -> None:
    """Others go on, those of another tenant and jobs for nobody too. An end, a cancel and a worker's death make room."""
    await runtime.tenants.set("tenant-a", {"end_user_running_jobs": 1})
    ids = await submit_many(runtime, 4, end_user="ann")
    others = await submit_many(runtime, 2, end_user="bob") + await submit_many(runtime, 3)
    others += await submit_many(runtime, 3, tenant="tenant-b", end_user="ann")
    claims = await claim(runtime, 20)
    assert users_of([found for found in claims if found.tenant == "tenant-a"]) == {"ann": 1, "bob": 1, None: 3}
    assert len(claims) == 8
    first = next(found for found in claims if found.id == ids[0])
    await finish(runtime, first)
    (second,) = await claim(runtime, 20)
    await runtime.jobs.cancel(second.id, "tenant-a")
    (third,) = await claim(runtime, 20)
    await lose(runtime, third)
    (again,) = await claim(runtime, 20)
    assert (again.id, await claim(runtime, 20)) == (third.id, [])
    await assert_consistent(runtime, [*ids, *others])


async def test_a_changed_limit_holds_for_jobs_that_wait(runtime: Runtime) -> None:
    """Parked flows of all end users are looked at again at once."""
    await runtime.tenants.set("tenant-a", {"end_user_running_jobs": 1})
    ids = [job_id for user in ("ann", "bob") for job_id in await submit_many(runtime, 3, end_user=user)]
    assert len(await claim(runtime, 20)) == 2
    assert await claim(runtime, 20) == []
    await runtime.tenants.set("tenant-a", {"end_user_running_jobs": 2})
    assert users_of(await claim(runtime, 20)) == {"ann": 1, "bob": 1}
    await runtime.tenants.set("tenant-a", {"end_user_running_jobs": 0})
    assert users_of(await claim(runtime, 20)) == {"ann": 1, "bob": 1}
    await assert_consistent(runtime, ids)


async def test_limits_of_tenant_key_and_end_user_all_hold(runtime: Runtime) -> None:
    """Whichever is reached first; a flow that is parked for one is not forgotten when another has room."""
    await runtime.tenants.set("tenant-a", {"running_jobs": 3, "end_user_running_jobs": 2})
    members: dict[str, Any] = {"key_id": "key-1", "limits": CallerLimits(running_jobs=1)}
    ids = await submit_many(runtime, 3, end_user="ann", **members)
    ids += await submit_many(runtime, 3, end_user="ann") + await submit_many(runtime, 3, end_user="bob")
    done = 0
    while claims := await claim(runtime, 20):
        assert len(claims) <= 3
        assert users_of(claims)["ann"] <= 2
        await assert_consistent(runtime, ids)
        for found in claims:
            await finish(runtime, found)
        done += len(claims)
    assert done == 9


# Budgets


@pytest.mark.parametrize("span", ["day", "month"])
async def test_a_spent_budget_refuses_submits_and_parks_what_waits(runtime: Runtime, span: str) -> None:
    """Of that end user alone. It is refused before anything is counted, and more budget opens it at once."""
    await runtime.tenants.set("tenant-a", {f"end_user_nano_usd_per_{span}": A_DOLLAR})
    ids = await submit_many(runtime, 3, end_user="ann") + await submit_many(runtime, 2, end_user="bob")
    first = next(found for found in await claim(runtime, 2) if found.spec.end_user == "ann")
    await end_with(runtime, first, A_DOLLAR)
    assert await spent(runtime, owner_of("ann")) == [A_DOLLAR]
    assert [found.spec.end_user for found in await claim(runtime, 20)] == ["bob"]
    with pytest.raises(BudgetExceeded) as refused:
        await submit(runtime, end_user="ann")
    assert 0 < (refused.value.retry_after_s or 0) <= (86_400 if span == "day" else 31 * 86_400)
    others = [await submit(runtime, end_user="bob"), await submit(runtime)]
    others.append(await submit(runtime, tenant="tenant-b", end_user="ann"))
    assert len(await claim(runtime, 20)) == 3
    await runtime.tenants.set("tenant-a", {f"end_user_nano_usd_per_{span}": 2 * A_DOLLAR})
    assert {found.id for found in await claim(runtime, 20)} == {ids[1], ids[2]}
    await assert_consistent(runtime, [*ids, *(each.id for each in others)])


async def test_an_end_user_s_budget_is_exceeded_by_one_job_at_most(runtime: Runtime) -> None:
    """The most that a running job may cost is reserved until its cost is known."""
    await runtime.tenants.set("tenant-a", {"end_user_nano_usd_per_month": A_DOLLAR // 100})
    ids = await submit_many(runtime, 20, end_user="ann", **PRICED) + await submit_many(
        runtime, 2, end_user="bob", **PRICED
    )
    claims = await claim(runtime, 60)
    assert users_of(claims) == {"ann": 1, "bob": 1}
    await assert_consistent(runtime, ids)
    running = next(found for found in claims if found.spec.end_user == "ann")
    await end_with(runtime, running, 1)
    (running,) = await claim(runtime, 60)  # the job was cheap, so there is room for another
    await end_with(runtime, running, A_DOLLAR // 50)
    assert await claim(runtime, 60) == []
    await assert_consistent(runtime, ids)


async def test_a_call_that_ends_after_its_job_was_erased_is_charged_too(runtime: Runtime) -> None:
    """To the end user as to its tenant."""
    await runtime.tenants.set("tenant-a", {"end_user_nano_usd_per_day": A_DOLLAR})
    await submit(runtime, end_user="ann")
    found = await claim_one(runtime)
    await runtime.jobs.cancel(found.id, "tenant-a")
    await runtime.jobs.erase(found.id, "tenant-a")
    await runtime.jobs.charge(found.id, A_DOLLAR, tenant="tenant-a", end_user="ann")
    assert await spent(runtime, owner_of("ann")) == [A_DOLLAR]
    with pytest.raises(BudgetExceeded):
        await submit(runtime, end_user="ann")


async def test_without_a_budget_nothing_is_summed_for_an_end_user(runtime: Runtime) -> None:
    """Names are free, so each would be two more keys. What is summed has a TTL."""
    await submit_many(runtime, 2, end_user="ann")
    await end_with(runtime, await claim_one(runtime), 5)
    assert await spent(runtime, owner_of("ann")) == []
    assert await spent(runtime, TENANT) == [5, 5]
    await runtime.tenants.set("tenant-a", {"end_user_nano_usd_per_month": A_DOLLAR})
    await end_with(runtime, await claim_one(runtime), 7)
    assert await spent(runtime, owner_of("ann")) == [7]
    (name,) = [name for name in await all_keys(runtime._commands) if kind_of(name) == "spend" and "user:" in name]
    assert await ttl_ms(runtime, name) == pytest.approx(62 * 86_400_000, abs=60_000)


# Batches


async def test_items_have_their_own_end_users_or_the_batch_s(runtime: Runtime) -> None:
    """Each item's own counts. They take turns and are held back like other jobs."""
    await runtime.tenants.set("tenant-a", {"end_user_running_jobs": 1})
    items = [a_line(line, end_user=user) for line, user in enumerate(["ann", None, "bob", None, "ann"], 1)]
    begun = await start_batch(runtime, items, end_user="eve")
    jobs = [await job_of(runtime, job_id) for job_id in begun.job_ids]
    assert [job.spec.end_user for job in jobs] == ["ann", "eve", "bob", "eve", "ann"]
    assert [job.spec.custom_id for job in jobs] == [f"item-{line}" for line in range(1, 6)]
    assert users_of(await claim(runtime, 20)) == {"ann": 1, "eve": 1, "bob": 1}
    await assert_consistent(runtime)


async def test_a_batch_goes_on_though_one_of_its_end_users_has_spent_its_budget(runtime: Runtime) -> None:
    """That one's items wait for the next day."""
    await runtime.tenants.set("tenant-a", {"end_user_nano_usd_per_day": A_DOLLAR})
    await runtime.jobs.charge("job_gone", A_DOLLAR, tenant="tenant-a", end_user="ann")
    begun = await start_batch(runtime, [a_line(line, end_user=["ann", "bob"][line % 2]) for line in range(1, 7)])
    assert users_of(await claim(runtime, 20)) == {"bob": 3}
    assert [await state_of(runtime, job_id) for job_id in begun.job_ids[1::2]] == [JobState.QUEUED] * 3
    await assert_consistent(runtime)


# Many


@pytest.mark.timeout(120)  # takes seconds; a busy machine needs more
async def test_thousands_of_end_users_without_room_block_nobody(real_redis: RedisUnderTest) -> None:
    """6,000 of them have spent their budgets and have jobs that wait, all before another tenant's job. No CLAIM is slow, and
    once they are parked, CLAIM reads none of them.
    """
    async with open_runtime(load_settings(redis_url=real_redis.url), process_name="tests", timeout_s=30) as runtime:
        users = [f"user-{number}" for number in range(6_000)]
        for start in range(0, len(users), 500):
            some = users[start : start + 500]
            await asyncio.gather(
                *(runtime.jobs.submit(a_submission(end_user=user), expires_in_s=3600) for user in some)
            )
        await runtime.tenants.set("tenant-a", {"end_user_nano_usd_per_day": 1})
        for start in range(0, len(users), 500):
            await asyncio.gather(
                *(
                    runtime.jobs.charge("job_gone", 5, tenant="tenant-a", end_user=user)
                    for user in users[start : start + 500]
                )
            )
        await runtime._commands.call("SET", f"{redis_keys.SHARD}clock:normal", 10_000)
        other = await submit(runtime, tenant="tenant-b")
        await runtime._commands.call("CONFIG", "RESETSTAT")
        found: list[Claim] = []
        claims = 0
        while not found:
            found = await claim(runtime, 5)
            claims += 1
            assert claims <= 100
        assert [each.id for each in found] == [other.id]
        assert await runtime._commands.call("ZCARD", f"{redis_keys.SHARD}ready:normal") == 0
        assert await _mean_ms(runtime) < 25  # 2 ms, but the machine may be busy
        assert await claim(runtime, 5) == []


async def _mean_ms(runtime: Runtime) -> float:
    """The mean time of a script since the statistics were reset."""
    text = (await runtime._commands.call("INFO", "commandstats")).decode()
    (line,) = [line for line in text.splitlines() if line.startswith("cmdstat_evalsha:")]
    return float(line.partition("usec_per_call=")[2].partition(",")[0]) / 1000
