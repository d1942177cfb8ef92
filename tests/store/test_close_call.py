"""CLOSE_CALL and HOLD: each call is counted once, with the best known usage."""

import asyncio
import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.job import Usage
from shared.store import redis_keys
from shared.store.queue import UNPRICED
from shared.store.runtime import Runtime
from shared.store.upstreams import CallEnd, Reserved
from shared.usage import METRICS, MOST_END_USER_ROWS_PER_DAY, MOST_ROWS_PER_DAY, OTHER, UNMADE, UsageSums
from tests.support.store import all_keys, now_ms, record_of, start, succeed, ttl_ms
from tests.support.upstreams import (
    a_call,
    a_route,
    called,
    closed,
    holders_of,
    let_pass,
    permitted,
    row_of,
    sums_of,
)
from tests.support.usage import read_usage, read_usage_by_end_user

A_USAGE = Usage(input_tokens=10, output_tokens=20, cache_creation_input_tokens=3, cache_read_input_tokens=4)


async def counted(runtime: Runtime, tenant: str = "tenant-a") -> UsageSums:
    """All that the tenant's calls add up to, around today."""
    today = datetime.fromtimestamp(await now_ms(runtime) / 1000, UTC).date()
    rows = await read_usage(runtime, tenant, today - timedelta(days=3), today + timedelta(days=1))
    return sum((row.sums for row in rows), UsageSums())


async def lose_call(runtime: Runtime, call_id: str) -> None:
    """Its worker is silent for a lease, and another finds the row."""
    await let_pass(runtime, runtime.settings.lease_s + 1)
    assert [row.call_id for row in await runtime.upstreams.hold([])] == [call_id]


async def test_a_call_that_ended_is_in_the_books(runtime: Runtime) -> None:
    """Its row is closed, and each metric counted."""
    call_id, _ = await permitted(runtime, a_route())
    assert await closed(runtime, a_route(), call_id, usage=A_USAGE, cost_nano_usd=77) == 1
    assert await counted(runtime) == UsageSums(1, 0, 10, 20, 3, 4, 77, 0)
    row = await row_of(runtime, call_id)
    assert (row["ended"], row["output_tokens"], row["cost_nano_usd"]) == ("succeeded", "20", "77")
    assert int(row["opened_ms"]) <= int(row["closed_ms"]) <= await now_ms(runtime)


async def test_a_call_is_closed_once(runtime: Runtime) -> None:
    """However often it is told; and what is told later changes nothing, be it a gate."""
    route = a_route(input_tokens=100)
    call_id, _ = await permitted(runtime, route, input_estimate=50)
    await closed(runtime, route, call_id, usage=A_USAGE, cost_nano_usd=77)
    sums, books, row = await sums_of(runtime, route), await counted(runtime), await row_of(runtime, call_id)
    for end in (
        {"usage": A_USAGE},
        {"usage": Usage(99, 99), "is_estimated": True},
        {"ended": "lost"},
        {"ended": UNMADE},
        {"shut_s": 60},
    ):
        assert await closed(runtime, route, call_id, **end) == 0
    assert (await sums_of(runtime, route), await counted(runtime), await row_of(runtime, call_id)) == (sums, books, row)
    await permitted(runtime, route)


async def test_what_nobody_knows_is_not_closed(runtime: Runtime) -> None:
    """A row that is gone, or never was: nothing is written."""
    for end in ({}, {"ended": "lost"}, {"ended": UNMADE}, {"shut_s": 60}):
        assert await closed(runtime, a_route(), "call_unknown", **end) == 0
    assert await all_keys(runtime._commands) == []


async def test_a_call_that_was_never_made_was_never_there(runtime: Runtime) -> None:
    """Its room, its row and its count are given back."""
    route = a_route(requests=2, input_tokens=100, output_tokens=100, concurrency=2)
    await permitted(runtime, route, input_estimate=7)
    sums, books, names = await sums_of(runtime, route), await counted(runtime), await all_keys(runtime._commands)
    call_id, _ = await permitted(runtime, route, input_estimate=30, output_estimate=40, is_retry=True)
    assert await closed(runtime, route, call_id, ended=UNMADE) == 1
    assert await closed(runtime, route, call_id, ended=UNMADE) == 0
    assert (await sums_of(runtime, route), await counted(runtime), await all_keys(runtime._commands)) == (
        sums,
        books,
        names,
    )
    await permitted(runtime, route, input_estimate=90)


async def test_a_lost_call_counts_with_what_its_worker_says_after_all(runtime: Runtime) -> None:
    """Once, in the books and in the limits; on the day that it was counted for."""
    route = a_route(input_tokens=1_000, output_tokens=1_000)
    call_id, _ = await permitted(runtime, route, input_estimate=100, output_estimate=100)
    await lose_call(runtime, call_id)
    guess: dict[str, Any] = {"usage": Usage(100, 5), "is_estimated": True, "cost_nano_usd": None}
    assert await closed(runtime, route, call_id, ended="lost", **guess) == 1
    assert await counted(runtime) == UsageSums(1, 1, 100, 5, 0, 0, 0, 1)
    assert await sums_of(runtime, route) == [1, 0, 100, 5]
    assert await closed(runtime, route, call_id, usage=A_USAGE, cost_nano_usd=77) == 1
    assert await counted(runtime) == UsageSums(1, 0, 10, 20, 3, 4, 77, 0)
    assert await sums_of(runtime, route) == [1, 0, 13, 20]
    assert (await row_of(runtime, call_id))["ended"] == "succeeded"
    for end in ({"usage": A_USAGE}, {"ended": "lost", "usage": Usage(1, 1)}):
        assert await closed(runtime, route, call_id, **end) == 0
    assert (await counted(runtime)).calls == 1


async def test_a_call_is_lost_once(runtime: Runtime) -> None:
    """Two that find it close it with the same guess, or with another: the sums follow the row."""
    call_id, _ = await permitted(runtime, a_route())
    await lose_call(runtime, call_id)
    for output_tokens in (5, 5, 9):
        await closed(runtime, a_route(), call_id, ended="lost", usage=Usage(1, output_tokens), is_estimated=True)
    assert await counted(runtime) == UsageSums(1, 1, 1, 9)


async def test_a_lost_call_that_was_never_made_is_taken_out_of_the_books(runtime: Runtime) -> None:
    """Its worker was cut off from Redis, and knows better; not even which day it was it needs to know."""
    route = a_route(requests=2, input_tokens=1_000, output_tokens=1_000)
    await permitted(runtime, route, input_estimate=1)
    call_id, _ = await permitted(runtime, route, input_estimate=100, output_estimate=100, is_retry=True)
    sums = [1, 0, 1, 1]
    await let_pass(runtime, runtime.settings.lease_s + 1)
    await runtime.upstreams.hold([])
    guess: dict[str, Any] = {"usage": Usage(100, 5), "is_estimated": True, "cost_nano_usd": None}
    await closed(runtime, route, call_id, ended="lost", **guess)
    unmade = CallEnd(UNMADE, Usage(), is_estimated=False, cost_nano_usd=0)
    assert await runtime.upstreams.close_call(route.name, call_id, 0, unmade) == 1
    assert await counted(runtime) == UsageSums()
    assert await sums_of(runtime, route) == sums
    assert await row_of(runtime, call_id) == {}


async def test_usage_is_of_the_day_on_which_the_call_began(runtime: Runtime) -> None:
    """As it is priced; also if a lost call is closed after midnight by somebody who has another day in mind."""
    call_id, _ = await permitted(runtime, a_route())
    end = CallEnd("lost", Usage(1, 1), is_estimated=True, cost_nano_usd=1)
    await runtime.upstreams.close_call(a_route().name, call_id, 1_795_390_000_000, end)
    end = CallEnd("succeeded", Usage(2, 3), is_estimated=False, cost_nano_usd=4)
    await runtime.upstreams.close_call(a_route().name, call_id, 1_795_392_000_000 + 10, end)
    (row,) = await read_usage(runtime, "tenant-a", date(2026, 11, 20), date(2026, 11, 25))
    assert (row.day, row.sums) == (date(2026, 11, 22), UsageSums(1, 0, 2, 3, 0, 0, 4, 0))


async def test_a_silent_worker_s_calls_are_found_once(runtime: Runtime) -> None:
    """Whoever finds them has a lease of time to close them; then they are found again."""
    route = a_route()
    facts: dict[str, Any] = {
        "tenant": "tenant-b",
        "key_id": "key_7",
        "job_id": "job_7",
        "epoch": 9,
        "attempt": 2,
        "model": "m",
        "input_estimate": 4,
    }
    call_id, _ = await permitted(runtime, route, **facts)
    held, _ = await permitted(runtime, route)
    closed_one, _ = await permitted(runtime, route)
    await closed(runtime, route, closed_one)
    await let_pass(runtime, runtime.settings.lease_s + 1)
    (row,) = await runtime.upstreams.hold([(route.name, held)])
    assert row[:9] == (call_id, route.name, "tenant-b", "key_7", "job_7", 9, 2, "m", 4)
    assert row.opened_ms == int((await row_of(runtime, call_id))["opened_ms"])
    assert await runtime.upstreams.hold([(route.name, held)]) == []
    await let_pass(runtime, runtime.settings.lease_s + 1)
    assert [row.call_id for row in await runtime.upstreams.hold([(route.name, held)])] == [call_id]


async def test_many_silent_calls_are_found_in_portions(runtime: Runtime) -> None:
    """20 at once, over all routes."""
    for number in range(5):
        await asyncio.gather(*(permitted(runtime, a_route(f"m-{number}")) for _ in range(9)))
    await let_pass(runtime, runtime.settings.lease_s + 1)
    found = [await runtime.upstreams.hold([]) for _ in range(4)]
    assert [len(rows) for rows in found] == [20, 20, 5, 0]
    assert len({row.call_id for rows in found for row in rows}) == 45


async def test_a_row_that_is_gone_holds_no_place(runtime: Runtime) -> None:
    """Past its retention nobody can close it."""
    route = a_route(concurrency=1)
    call_id, _ = await permitted(runtime, route)
    await runtime._commands.call("DEL", f"{redis_keys.GLOBAL}call:{call_id}")
    await let_pass(runtime, runtime.settings.lease_s + 1)
    assert await runtime.upstreams.hold([]) == []
    assert await holders_of(runtime, route) == []


async def test_calls_are_found_after_a_night_without_workers(runtime: Runtime) -> None:
    """Their route was not called for an hour, and looked at all the same; it is forgotten when they are closed."""
    route = a_route()
    call_id, _ = await permitted(runtime, route)
    await let_pass(runtime, 10 * 3_600)
    assert [state.name for state in await runtime.upstreams.look()] == [route.name]
    assert [row.call_id for row in await runtime.upstreams.hold([])] == [call_id]
    await closed(runtime, route, call_id, ended="lost")
    assert await runtime.upstreams.look() == []


async def test_calls_of_rarely_called_routes_are_found_too(runtime: Runtime) -> None:
    """However many others are called all the time."""
    rare, _ = await permitted(runtime, a_route("rare"))
    await let_pass(runtime, runtime.settings.lease_s + 1)
    await asyncio.gather(*(called(runtime, a_route(f"m-{number}")) for number in range(120)))
    assert [row.call_id for row in await runtime.upstreams.hold([])] == [rare]


# What a day adds up to

_SOME = st.integers(0, 5)
_USAGES = st.builds(
    Usage,
    input_tokens=_SOME,
    output_tokens=_SOME,
    cache_creation_input_tokens=_SOME,
    cache_read_input_tokens=_SOME,
)
_ENDS = st.fixed_dictionaries(
    {
        "ended": st.sampled_from(["succeeded", "interrupted", "lost", "lost", UNMADE, "upstream_overloaded"]),
        "usage": _USAGES,
        "is_estimated": st.booleans(),
        "cost_nano_usd": st.none() | _SOME,
    }
)
_END: Any = {"ended": "succeeded", "usage": Usage(1, 2, 3, 4), "is_estimated": False, "cost_nano_usd": 5}
_MODELS: Any = ["m\nn", "n", "m", "%0A\t"]
_CALLS = st.tuples(
    st.sampled_from(["tenant-a", "tenant-b"]),
    st.sampled_from(_MODELS),
    st.sampled_from(["", "", "ann", "bob: 1 2", OTHER]),
    st.integers(0, 2),
    st.lists(_ENDS, max_size=4),
)


@hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(calls=[("tenant-a", model, "ann", 0, [_END]) for model in _MODELS], order=random.Random(1))
@given(calls=st.lists(_CALLS, max_size=6), order=st.randoms(use_true_random=False))
async def test_the_sums_are_those_of_the_rows(runtime: Runtime, calls: list[Any], order: Any) -> None:
    """By tenant, day, model and end user, for any history; and the window's tokens are those of the calls that were made."""
    await runtime._commands.call("FLUSHDB")
    route = a_route(input_tokens=10_000, output_tokens=10_000)
    today_ms = await now_ms(runtime)
    steps, made = [], {}
    for tenant, model, end_user, day, ends in calls:
        call = a_call(tenant=tenant, model=model, end_user=end_user, input_estimate=3, output_estimate=4)
        assert isinstance(await runtime.upstreams.reserve(route, call), Reserved)
        made[call.id] = (tenant, model, day)
        steps.append([(call.id, day, end) for end in ends])
    while steps := [left for left in steps if left]:
        call_id, day, end = order.choice(steps).pop(0)
        await runtime.upstreams.close_call(route.name, call_id, today_ms - day * 86_400_000, CallEnd(**end))

    expected: dict[tuple[str, str, int], UsageSums] = {}
    expected_by_user: dict[tuple[str, str, int, str | None], UsageSums] = {}
    window = [0, 0, 0, 0]
    for call_id, (tenant, _, day) in made.items():
        row = await row_of(runtime, call_id)
        if not row:
            continue
        is_closed = "ended" in row
        window[0] += 1
        window[2] += int(row["input_tokens"]) + int(row["cache_creation_input_tokens"]) if is_closed else 3
        window[3] += int(row["output_tokens"]) if is_closed else 4
        if is_closed:
            counts = {"calls": 1, "estimated_calls": int(row["estimated"]), "unpriced_calls": int(row["unpriced"])}
            sums = UsageSums(**counts, **{metric: int(row[metric]) for metric in METRICS if metric not in counts})
            name = (tenant, row["counted"], day)
            expected[name] = expected.get(name, UsageSums()) + sums
            name_by_user = (*name, row.get("counted_user"))
            expected_by_user[name_by_user] = expected_by_user.get(name_by_user, UsageSums()) + sums
    assert await sums_of(runtime, route) == window

    today = datetime.fromtimestamp(today_ms / 1000, UTC).date()
    found = {
        (tenant, usage.model, (today - usage.day).days): usage.sums
        for tenant in ("tenant-a", "tenant-b")
        for usage in await read_usage(runtime, tenant, today - timedelta(days=3), today)
        if usage.sums != UsageSums()
    }
    assert found == expected
    found_by_user = {
        (tenant, usage.model, (today - usage.day).days, usage.end_user): usage.sums
        for tenant in ("tenant-a", "tenant-b")
        for usage in await read_usage_by_end_user(runtime, tenant, today - timedelta(days=3), today)
    }
    assert found_by_user == {name: sums for name, sums in expected_by_user.items() if sums != UsageSums()}


async def test_a_day_s_usage_lives_as_long_as_the_settings_say(runtime: Runtime) -> None:
    """From its first call on."""
    await called(runtime, a_route(), usage=A_USAGE)
    (name,) = [key for key in await all_keys(runtime._commands) if key.startswith(f"{redis_keys.GLOBAL}usage:")]
    assert await ttl_ms(runtime, name) == pytest.approx(runtime.settings.usage_retention_s * 1000, abs=60_000)


# CHARGE


async def test_a_job_pays_for_calls_that_ended_behind_its_back(runtime: Runtime) -> None:
    """Running or ended; a job that is gone stays so."""
    running = await start(runtime)
    await runtime.jobs.charge(running.id, 5, tenant="tenant-a")
    await runtime.jobs.charge(running.id, 7, tenant="tenant-a")
    assert (await record_of(runtime, running.id))[b"cost_nano_usd"] == b"12"
    await runtime.jobs.cancel(running.id, running.tenant)
    ended = await succeed(runtime)
    before_ms = await ttl_ms(runtime, redis_keys.job(ended.id))
    await runtime.jobs.charge(ended.id, UNPRICED, tenant="tenant-a")
    assert (await record_of(runtime, ended.id))[b"unpriced"] == b"1"
    assert (await ttl_ms(runtime, redis_keys.job(ended.id)) or 0) <= (before_ms or 0)
    await runtime.jobs.charge("job_gone", 5, tenant="tenant-a")
    assert not await runtime._commands.call("EXISTS", redis_keys.job("job_gone"))


async def test_a_name_of_a_call_that_used_nothing_is_not_counted(runtime: Runtime) -> None:
    """Callers invent names, and what an upstream refuses is free; once the model was used, its failures are its own."""
    for model in ("invented-1", "invented-2", "m"):
        await called_as(runtime, model)
    await called_as(runtime, "m", usage=A_USAGE)
    await called_as(runtime, "m")
    assert await calls_by_model(runtime) == {OTHER: 3, "m": 2}


async def test_a_day_counts_a_bounded_number_of_models(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes beyond is one row more; what has a row goes on in it."""
    day = datetime.fromtimestamp(await now_ms(runtime) / 1000, UTC).date().isoformat()
    await called_as(runtime, "m-1", usage=A_USAGE)
    await runtime._commands.call("HSET", redis_keys.usage("tenant-a", day), "\n\nrows", MOST_ROWS_PER_DAY - 1)
    for number in (2, 3, 4, 2, 1):
        await called_as(runtime, f"m-{number}", usage=A_USAGE)
    assert await calls_by_model(runtime) == {"m-1": 2, "m-2": 2, OTHER: 2}
    assert (await counted(runtime)).output_tokens == 6 * A_USAGE.output_tokens


async def test_a_call_that_was_lost_moves_to_its_own_row(runtime: Runtime) -> None:
    """It used something after all."""
    route = a_route()
    call_id, _ = await permitted(runtime, route, model="m")
    await lose_call(runtime, call_id)
    await closed(runtime, route, call_id, ended="lost", is_estimated=True)
    assert await calls_by_model(runtime) == {OTHER: 1}
    await closed(runtime, route, call_id, usage=A_USAGE, cost_nano_usd=77)
    assert await calls_by_model(runtime) == {"m": 1}
    assert await counted(runtime) == UsageSums(1, 0, 10, 20, 3, 4, 77, 0)


async def test_end_users_beyond_a_day_s_bound_are_others(runtime: Runtime) -> None:
    """So are new ones whose calls used nothing. Who has a row goes on in it; the models' rows are complete all the same."""
    day = datetime.fromtimestamp(await now_ms(runtime) / 1000, UTC).date()
    by_user = redis_keys.end_user_usage("tenant-a", day.isoformat())
    await called_as(runtime, "m", "user-0")
    assert await calls_by_end_user(runtime) == {OTHER: 1}
    await called_as(runtime, "m", "user-1", usage=A_USAGE)
    await runtime._commands.call("HSET", by_user, "", MOST_END_USER_ROWS_PER_DAY - 1)
    for user in ("user-2", "user-3", "user-4", "user-2", "user-1", ""):
        await called_as(runtime, "m", user, usage=A_USAGE)
    await called_as(runtime, "n", "user-1", usage=A_USAGE)
    assert await calls_by_end_user(runtime) == {"user-1": 2, "user-2": 2, OTHER: 4, None: 1}
    assert await calls_by_model(runtime) == {"m": 7, "n": 1, OTHER: 1}
    assert await ttl_ms(runtime, by_user) == pytest.approx(runtime.settings.usage_retention_s * 1000, abs=60_000)
    of_one = [row async for rows in runtime.usage.days_of_end_user("tenant-a", "user-1", day, day) for row in rows]
    assert [(row.model, row.end_user, row.sums.calls) for row in of_one] == [("m", "user-1", 2)]


async def test_a_lost_call_s_end_user_is_found(runtime: Runtime) -> None:
    """By whoever closes it: its budget pays too."""
    call_id, _ = await permitted(runtime, a_route(), end_user="ann")
    await let_pass(runtime, runtime.settings.lease_s + 1)
    assert [(row.call_id, row.end_user) for row in await runtime.upstreams.hold([])] == [(call_id, "ann")]


async def calls_by_end_user(runtime: Runtime) -> dict[str | None, int]:
    today = datetime.fromtimestamp(await now_ms(runtime) / 1000, UTC).date()
    found: dict[str | None, int] = {}
    for row in await read_usage_by_end_user(runtime, "tenant-a", today, today):
        found[row.end_user] = found.get(row.end_user, 0) + row.sums.calls
    return found


async def called_as(runtime: Runtime, model: str, end_user: str = "", **end: Any) -> None:
    call_id, _ = await permitted(runtime, a_route(), model=model, end_user=end_user)
    assert await closed(runtime, a_route(), call_id, **end) == 1


async def calls_by_model(runtime: Runtime) -> dict[str, int]:
    today = datetime.fromtimestamp(await now_ms(runtime) / 1000, UTC).date()
    rows = await read_usage(runtime, "tenant-a", today, today)
    return {row.model: row.sums.calls for row in rows}
