"""RESERVE: limits over all workers in sliding minutes, and one row per call, however often it is repeated."""

import asyncio
import math
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.job import Usage
from shared.routes import Limits
from shared.store import redis_keys
from shared.store.runtime import Runtime
from shared.store.upstreams import LEAST_RETRIES, Denied, Obstacle, Reserved, Verdict
from shared.usage import UNMADE
from tests.support.redis_servers import on_real_redis
from tests.support.store import all_keys, now_ms, ttl_ms
from tests.support.upstreams import (
    BUCKET_MS,
    WINDOW_S,
    a_call,
    a_route,
    called,
    closed,
    denied,
    holders_of,
    let_pass,
    permitted,
    row_of,
    state_of_route,
    sums_of,
)
from tests.support.usage import read_usage

some_examples = hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Sliding minutes


async def test_a_minute_holds_as_many_calls_as_the_limit_says(runtime: Runtime) -> None:
    """One more is told when there is room, and a minute later all is free again."""
    route = a_route(requests=3)
    for _ in range(3):
        await permitted(runtime, route)
    denial = await denied(runtime, route, Obstacle.FULL)
    assert 60 <= denial.wait_s <= WINDOW_S
    await let_pass(runtime, WINDOW_S)
    for _ in range(3):
        await permitted(runtime, route)
    await denied(runtime, route, Obstacle.FULL)


async def test_a_route_without_limits_has_room_for_any_number(runtime: Runtime) -> None:
    """They are counted all the same: limits may be learned."""
    route = a_route()
    for _ in range(5):
        await permitted(runtime, route, input_estimate=1_000, output_estimate=1_000)
    assert await sums_of(runtime, route) == [5, 0, 0, 0]
    assert (await state_of_route(runtime, route)).room is None


async def test_what_is_refused_leaves_nothing_behind(runtime: Runtime) -> None:
    """No row, no count, no holder, however often it is asked for."""
    route = a_route(requests=1)
    first, _ = await permitted(runtime, route)
    before = await all_keys(runtime._commands)
    for _ in range(10):
        await denied(runtime, route, Obstacle.FULL)
    assert await all_keys(runtime._commands) == before
    assert await sums_of(runtime, route) == [1, 0, 0, 0]
    assert await holders_of(runtime, route) == [first]


async def test_routes_do_not_share_their_limits(runtime: Runtime) -> None:
    """Not even those whose names begin alike."""
    for model in ("m", "m:1", "m>n"):
        await permitted(runtime, a_route(model, requests=1))
        await denied(runtime, a_route(model, requests=1), Obstacle.FULL)


async def test_a_route_that_nobody_called_for_long_is_as_new(runtime: Runtime) -> None:
    """Seconds, minutes or hours: what is older than the window never counts."""
    route = a_route(requests=2)
    for idle_s in (61, 61.5, 100, 121.5, 122, 122.5, 180, 3599, 86_400):
        await called(runtime, route)
        await called(runtime, route)
        await denied(runtime, route, Obstacle.FULL)
        await let_pass(runtime, idle_s)
    await called(runtime, route)
    assert (await sums_of(runtime, route))[0] == 1


@pytest.mark.parametrize("back_s", [1, 30, 59, 61, 3_600, 86_400])
async def test_a_clock_that_was_set_back_neither_blocks_nor_uncounts(runtime: Runtime, back_s: int) -> None:
    """At most the calls of one window are let through twice, and none waits for longer than the clock was set back."""
    route = a_route(requests=2)
    await permitted(runtime, route)
    await let_pass(runtime, -back_s)
    answers = [await runtime.upstreams.reserve(route, a_call()) for _ in range(3)]
    assert isinstance(answers[-1], Denied)
    assert answers[-1].wait_s <= WINDOW_S + min(back_s, WINDOW_S)
    assert sum(isinstance(answer, Reserved) for answer in answers) in {1, 2}
    await sums_of(runtime, route)


class _Minutes:
    """What was permitted, by a clock that goes on while ``let_pass`` is called."""

    def __init__(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.passed_ms = 0
        self.permitted: list[tuple[int, int, int, int]] = []

    def note(self, reserved: Reserved, need: tuple[int, int]) -> None:
        moment = reserved.opened_ms + self.passed_ms
        caps = (self.limits.get("input_tokens", 0), self.limits.get("output_tokens", 0))
        self.permitted.append((moment, 1, min(need[0], caps[0]), min(need[1], caps[1])))

    def check(self) -> None:
        """No sliding minute holds more than a limit."""
        for moment, *_ in self.permitted:
            minute = [call for call in self.permitted if moment <= call[0] < moment + 60_000]
            for place, name in enumerate(("requests", "input_tokens", "output_tokens"), start=1):
                if name in self.limits:
                    assert sum(call[place] for call in minute) <= self.limits[name]


@some_examples
@given(
    limits=st.fixed_dictionaries(
        {}, optional={name: st.integers(1, 8) for name in ("requests", "input_tokens", "output_tokens")}
    ),
    steps=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 1, 7, 59, 60, 61, 100, 121, 122, 123, 250]),
            st.integers(0, 12),
            st.integers(0, 12),
        ),
        max_size=14,
    ),
)
async def test_no_sliding_minute_holds_more_than_the_limits(
    runtime: Runtime, limits: dict[str, int], steps: list[tuple[int, int, int]]
) -> None:
    """Whatever is asked for, and whenever; and who waits as long as told gets through, but nobody earlier."""
    await runtime._commands.call("FLUSHDB")
    route, minutes = a_route("a-model", **limits), _Minutes(limits)

    async def ask(need: tuple[int, int]) -> Reserved | Denied:
        call = a_call(input_estimate=need[0], output_estimate=need[1])
        answer = await runtime.upstreams.reserve(route, call)
        if isinstance(answer, Reserved):
            minutes.note(answer, need)
        return answer

    async def wait(buckets: int) -> None:
        await let_pass(runtime, buckets * BUCKET_MS / 1000)
        minutes.passed_ms += buckets * BUCKET_MS

    for buckets, *need in steps:
        await wait(buckets)
        before_ms = await now_ms(runtime) + minutes.passed_ms
        answer = await ask((need[0], need[1]))
        # Several limits may be reached: each is told in its turn.
        for _ in range(3):
            if isinstance(answer, Reserved):
                break
            due_ms = before_ms + answer.wait_s * 1000
            await wait(max(0, math.floor(answer.wait_s * 1000 / BUCKET_MS) - 1))
            answer = await ask((need[0], need[1]))
            if isinstance(answer, Reserved):  # the machine was slow
                assert minutes.permitted[-1][0] >= due_ms
                break
            await wait(2)
            before_ms = await now_ms(runtime) + minutes.passed_ms
            answer = await ask((need[0], need[1]))
        assert isinstance(answer, Reserved)
        sums = await sums_of(runtime, route)
        for limit, place in (("requests", 0), ("input_tokens", 2), ("output_tokens", 3)):
            assert sums[place] <= limits.get(limit, 10_000)
    minutes.check()


# Tokens


async def test_tokens_are_reserved_as_estimated(runtime: Runtime) -> None:
    """Input and output tokens, each by its own limit."""
    route = a_route(input_tokens=100, output_tokens=50)
    await permitted(runtime, route, input_estimate=60, output_estimate=10)
    await denied(runtime, route, Obstacle.FULL, input_estimate=41, output_estimate=1)
    await permitted(runtime, route, input_estimate=40, output_estimate=10)
    await denied(runtime, route, Obstacle.FULL, input_estimate=0, output_estimate=31)
    await permitted(runtime, route, input_estimate=0, output_estimate=30)
    assert await sums_of(runtime, route) == [3, 0, 100, 50]


@pytest.mark.parametrize(("used", "left"), [(0, 100), (10, 90), (60, 40), (99, 1), (100, 0), (500, -400)])
async def test_used_tokens_replace_reserved_ones(runtime: Runtime, used: int, left: int) -> None:
    """Whether fewer or more."""
    route = a_route(input_tokens=100, output_tokens=100)
    call_id, _ = await permitted(runtime, route, input_estimate=60, output_estimate=60)
    await closed(runtime, route, call_id, usage=Usage(input_tokens=used, output_tokens=used))
    assert await sums_of(runtime, route) == [1, 0, used, used]
    for more in (max(0, left) + 1, 100):
        if used:
            await denied(runtime, route, Obstacle.FULL, input_estimate=more, output_estimate=0)
            await denied(runtime, route, Obstacle.FULL, input_estimate=0, output_estimate=more)
    if left > 0:
        await permitted(runtime, route, input_estimate=left, output_estimate=left)
    await let_pass(runtime, WINDOW_S)
    await permitted(runtime, route, input_estimate=100, output_estimate=100)


async def test_input_from_a_cache_does_not_count(runtime: Runtime) -> None:
    """Tokens written to a cache do count, as for the upstream."""
    route = a_route(input_tokens=100)
    call_id, _ = await permitted(runtime, route, input_estimate=100)
    usage = Usage(input_tokens=10, cache_creation_input_tokens=20, cache_read_input_tokens=70)
    await closed(runtime, route, call_id, usage=usage)
    assert await sums_of(runtime, route) == [1, 0, 30, 0]


async def test_a_call_that_is_larger_than_the_limit_waits_for_an_empty_window(runtime: Runtime) -> None:
    """Then it is permitted; otherwise it would wait without end."""
    route = a_route(input_tokens=100, output_tokens=100)
    await permitted(runtime, route, input_estimate=1, output_estimate=1)
    denial = await denied(runtime, route, Obstacle.FULL, input_estimate=5_000, output_estimate=7_000)
    assert 60 <= denial.wait_s <= WINDOW_S
    await let_pass(runtime, WINDOW_S)
    call_id, _ = await permitted(runtime, route, input_estimate=5_000, output_estimate=7_000)
    assert await sums_of(runtime, route) == [1, 0, 100, 100]
    await denied(runtime, route, Obstacle.FULL, input_estimate=1, output_estimate=0)
    await closed(runtime, route, call_id, usage=Usage(input_tokens=5_000, output_tokens=10))
    assert await sums_of(runtime, route) == [1, 0, 5_000, 10]


async def test_a_call_that_outlives_its_window_changes_no_later_one(runtime: Runtime) -> None:
    """Its tokens left the window with their bucket."""
    route = a_route(input_tokens=100)
    old, _ = await permitted(runtime, route, input_estimate=50)
    await let_pass(runtime, WINDOW_S)
    new, _ = await permitted(runtime, route, input_estimate=30)
    await closed(runtime, route, old, usage=Usage(input_tokens=90))
    assert await sums_of(runtime, route) == [1, 0, 30, 0]
    await let_pass(runtime, 2 * WINDOW_S)
    await closed(runtime, route, new, ended=UNMADE)
    assert await sums_of(runtime, route) in ([0, 0, 0, 0], [1, 0, 30, 0])  # nobody looked at what is over
    assert (await state_of_route(runtime, route)).room is None


# What the upstream reports


async def test_limits_are_learned(runtime: Runtime) -> None:
    """From any call's end, for all later calls; only the reported limits."""
    route = a_route()
    await called(runtime, route, learned=Limits(requests=2, output_tokens=100))
    await permitted(runtime, route, output_estimate=60)
    await denied(runtime, route, Obstacle.FULL)
    assert (await state_of_route(runtime, route)).room == 0
    await let_pass(runtime, WINDOW_S)
    await permitted(runtime, route, output_estimate=60, input_estimate=10_000)
    await denied(runtime, route, Obstacle.FULL, output_estimate=60)
    record_ms = await ttl_ms(runtime, f"{redis_keys.GLOBAL}route:{route.name}")
    assert record_ms is not None


async def test_limits_of_the_settings_override_learned_ones(runtime: Runtime) -> None:
    """Whether those are lower or higher."""
    await called(runtime, a_route(), learned=Limits(requests=1, input_tokens=10))
    for _ in range(2):
        await permitted(runtime, a_route(requests=3), input_estimate=4)
    await denied(runtime, a_route(requests=3), Obstacle.FULL)
    await denied(runtime, a_route(requests=2), Obstacle.FULL)
    await denied(runtime, a_route(requests=100), Obstacle.FULL, input_estimate=3)


async def test_learned_limits_are_kept_while_the_route_is_called(runtime: Runtime) -> None:
    """Workers report them once; each call extends their TTL by a day."""
    route = a_route()
    await called(runtime, route, learned=Limits(requests=10))
    key = f"{redis_keys.GLOBAL}route:{route.name}"
    await runtime._commands.call("EXPIRE", key, 100)
    await called(runtime, route)
    assert (await ttl_ms(runtime, key) or 0) > 80_000_000


# Concurrency


async def test_the_limit_of_concurrent_calls(runtime: Runtime) -> None:
    """A call that has ended makes room, but only once."""
    route = a_route(concurrency=2)
    first, _ = await permitted(runtime, route)
    second, _ = await permitted(runtime, route)
    await denied(runtime, route, Obstacle.FULL)
    assert (await state_of_route(runtime, route)).room == 0
    assert await closed(runtime, route, first) == 1
    assert await closed(runtime, route, first) == 0
    third, _ = await permitted(runtime, route)
    await denied(runtime, route, Obstacle.FULL)
    assert sorted(await holders_of(runtime, route)) == sorted([second, third])


async def test_a_call_whose_worker_is_silent_makes_room(runtime: Runtime) -> None:
    """After a lease; a held call still counts."""
    route = a_route(concurrency=2)
    lease_s = runtime.settings.lease_s
    held, _ = await permitted(runtime, route)
    await permitted(runtime, route)
    await let_pass(runtime, lease_s / 2)
    assert await runtime.upstreams.hold([(route.name, held)]) == []
    await let_pass(runtime, lease_s / 2 + 1)
    assert (await state_of_route(runtime, route)).room == 1
    await permitted(runtime, route)
    await denied(runtime, route, Obstacle.FULL)


async def test_a_closed_call_cannot_be_held(runtime: Runtime) -> None:
    """A worker that closes and holds a call at the same time does not recreate it."""
    route = a_route(concurrency=1)
    call_id, _ = await permitted(runtime, route)
    await closed(runtime, route, call_id)
    await runtime.upstreams.hold([(route.name, call_id)])
    assert await holders_of(runtime, route) == []
    await permitted(runtime, route)


# Repeated


async def test_a_repeated_reserve_gets_the_same_reply(runtime: Runtime) -> None:
    """The first reply was lost. One row, one count, one holder, even if the limit is reached or the gate shut now."""
    route = a_route(requests=1, input_tokens=10, concurrency=1)
    call_id, first = await permitted(runtime, route, input_estimate=5)
    await let_pass(runtime, 1)
    await runtime._commands.call(
        "HSET", f"{redis_keys.GLOBAL}route:{route.name}", "shut_ms", await now_ms(runtime) + 60_000
    )
    await runtime._commands.call("EXPIRE", f"{redis_keys.GLOBAL}route:{route.name}", 60)
    await denied(runtime, route, Obstacle.SHUT)
    for _ in range(2):
        _, again = await permitted(runtime, route, call_id, input_estimate=5)
        assert again == first._replace(opened_ms=first.opened_ms - 1_000)  # let_pass moved it
    assert await sums_of(runtime, route) == [1, 0, 5, 0]
    assert await holders_of(runtime, route) == [call_id]


async def test_a_repeated_reserve_of_a_probe_is_still_the_probe(runtime: Runtime) -> None:
    """Otherwise its outcome would not be reported."""
    route = a_route()
    for _ in range(10):
        await called(runtime, route, Verdict.TROUBLE)
    await let_pass(runtime, 5)
    call_id, first = await permitted(runtime, route)
    assert first.is_probe
    _, again = await permitted(runtime, route, call_id)
    assert again == first


async def test_a_call_that_is_reserved_again_after_a_lease_is_held_again(runtime: Runtime) -> None:
    """Redis was away that long, and the call still runs."""
    route = a_route(concurrency=1)
    call_id, _ = await permitted(runtime, route)
    await let_pass(runtime, runtime.settings.lease_s + 1)
    (row,) = await runtime.upstreams.hold([])
    assert row.call_id == call_id
    assert await closed(runtime, route, call_id, ended="lost") == 1
    await permitted(runtime, route, call_id)
    assert await holders_of(runtime, route) == [call_id]
    await denied(runtime, route, Obstacle.FULL)


# Retries


async def test_a_few_retries_a_minute_are_always_permitted(runtime: Runtime) -> None:
    """However many calls of the route fail; this limit does not apply to first calls."""
    route = a_route()
    await called(runtime, route, Verdict.TROUBLE)
    for _ in range(LEAST_RETRIES):
        await permitted(runtime, route, is_retry=True)
    denial = await denied(runtime, route, Obstacle.SPENT, is_retry=True)
    assert denial.wait_s <= WINDOW_S
    await permitted(runtime, route)
    await let_pass(runtime, WINDOW_S)
    await called(runtime, route, Verdict.TROUBLE)
    await permitted(runtime, route, is_retry=True)


@on_real_redis
async def test_retries_are_a_tenth_of_all_calls(runtime: Runtime) -> None:
    """For a busy route in trouble, so that retries do not multiply a storm."""
    route = a_route()
    await called(runtime, route, Verdict.TROUBLE)
    await asyncio.gather(*(permitted(runtime, route) for _ in range(LEAST_RETRIES * 12)))
    retries = 0
    while isinstance(await runtime.upstreams.reserve(route, a_call(is_retry=True)), Reserved):
        retries += 1
    calls, counted, *_ = await sums_of(runtime, route)
    assert counted == retries == math.ceil(calls / 10)


async def test_retries_are_not_limited_while_the_route_is_well(runtime: Runtime) -> None:
    """At most a tenth of its last calls failed, or there were none."""
    route = a_route()
    for _ in range(LEAST_RETRIES + 2):
        await permitted(runtime, route, is_retry=True)
    await called(runtime, route, Verdict.TROUBLE)
    await denied(runtime, route, Obstacle.SPENT, is_retry=True)
    for _ in range(8):
        await called(runtime, route)
    await denied(runtime, route, Obstacle.SPENT, is_retry=True)
    await called(runtime, route)
    await permitted(runtime, route, is_retry=True)


async def test_old_failures_do_not_limit_retries(runtime: Runtime) -> None:
    """Failures more than a minute ago do not count."""
    route = a_route()
    for _ in range(5):
        await called(runtime, route, Verdict.TROUBLE)
    await let_pass(runtime, 61)
    for _ in range(LEAST_RETRIES + 5):
        await permitted(runtime, route, is_retry=True)


# The row


async def test_the_row_says_what_the_call_is_for(runtime: Runtime) -> None:
    """Before the call is made, so that another worker can close the row if this one dies."""
    route = a_route()
    facts: dict[str, Any] = {
        "tenant": "tenant-b",
        "job_id": "job_7",
        "epoch": 9,
        "attempt": 2,
        "model": "m",
        "input_estimate": 4,
    }
    call_id, reserved = await permitted(runtime, route, **facts)
    row = await row_of(runtime, call_id)
    assert row | {"job": "job_7", "input_estimate": "4", "opened_ms": str(reserved.opened_ms)} == row
    assert (row["tenant"], row["epoch"], row["attempt"], row["model"], row["route"]) == (
        "tenant-b",
        "9",
        "2",
        "m",
        route.name,
    )
    assert await ttl_ms(runtime, f"{redis_keys.GLOBAL}call:{call_id}") == pytest.approx(86_400_000, abs=60_000)


@pytest.mark.parametrize(
    "model",
    ["a\nb", "a>b", "a:b", "'\"\\", "{0}", "日本 🙂", " ", "a\x00b", "%d%s", "-1", "x" * 256, ">", "anthropic/a"],
)
async def test_a_model_may_be_called_anything(runtime: Runtime, model: str) -> None:
    """It is counted, gated, held, found and summed like any other, and affects no other."""
    other, route = a_route("a", requests=1), a_route(model, requests=3)
    call_id, _ = await permitted(runtime, route, model=model)
    await closed(
        runtime,
        route,
        call_id,
        Verdict.TROUBLE,
        usage=Usage(input_tokens=3),
        shut_s=2,
        code="upstream_rate_limited",
        learned=Limits(requests=9),
    )
    assert (await denied(runtime, route, Obstacle.SHUT)).code == "upstream_rate_limited"
    state = await state_of_route(runtime, route)
    assert (state.name, state.why, state.room) == (route.name, "upstream_rate_limited", 2)
    await let_pass(runtime, 2)
    lost, opened = await permitted(runtime, route, model=model)
    await let_pass(runtime, runtime.settings.lease_s + 1)
    (row,) = await runtime.upstreams.hold([])
    assert (row.call_id, row.route, row.model) == (lost, route.name, model)
    assert await closed(runtime, route, lost, ended="lost", usage=Usage(output_tokens=1)) == 1
    day = _day_of(opened.opened_ms)
    (usage,) = await read_usage(runtime, "tenant-a", day, day)
    assert (usage.model, usage.sums.calls, usage.sums.input_tokens, usage.sums.output_tokens) == (model, 2, 3, 1)
    await permitted(runtime, other)


def _day_of(moment_ms: int) -> date:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).date()
