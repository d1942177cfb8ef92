"""Gates and circuits: when no worker may call a route, which call is the probe, and when the route opens again."""

import pytest

from shared.routes import Route
from shared.store import redis_keys
from shared.store.runtime import Runtime
from shared.store.upstreams import LEAST_RETRIES, Obstacle, Verdict
from shared.usage import UNMADE
from tests.support.store import listening
from tests.support.upstreams import (
    a_route,
    called,
    closed,
    denied,
    let_pass,
    permitted,
    row_of,
    state_of_route,
)

ROUTE = a_route()


async def fail(runtime: Runtime, times: int, route: Route = ROUTE) -> None:
    """Lets ``times`` calls fail. They are reserved together, since the circuit may open in between."""
    calls = [(await permitted(runtime, route))[0] for _ in range(times)]
    for call_id in calls:
        await closed(runtime, route, call_id, Verdict.TROUBLE)


async def open_circuit(runtime: Runtime, route: Route = ROUTE) -> None:
    """Opens the circuit by 10 failures."""
    await fail(runtime, 10, route)
    assert (await state_of_route(runtime, route)).open_ms is not None


async def a_probe(runtime: Runtime, route: Route = ROUTE) -> str:
    """Lets the cool-down pass, so that anybody may probe; returns the call that is let through."""
    await let_pass(runtime, 5.5)
    call_id, reserved = await permitted(runtime, route)
    assert reserved.is_probe
    return call_id


async def is_open(runtime: Runtime, route: Route = ROUTE) -> bool:
    return (await state_of_route(runtime, route)).open_ms is not None


# Gates


async def test_a_retry_after_shuts_the_route_for_all(runtime: Runtime) -> None:
    """For that time and with the reason; other routes stay open."""
    await called(runtime, ROUTE, shut_s=30, code="upstream_rate_limited")
    denial = await denied(runtime, ROUTE, Obstacle.SHUT)
    assert denial.wait_s == pytest.approx(30, abs=5)
    assert denial.code == "upstream_rate_limited"
    state = await state_of_route(runtime, ROUTE)
    assert state.shut_s == pytest.approx(30, abs=5)
    assert (state.why, state.open_ms) == ("upstream_rate_limited", None)
    await permitted(runtime, a_route("another"))
    await let_pass(runtime, 30)
    await permitted(runtime, ROUTE)
    assert (await state_of_route(runtime, ROUTE)).shut_s == 0


async def test_the_longest_retry_after_applies(runtime: Runtime) -> None:
    """With its reason; a shorter one never shortens the pause."""
    calls = [(await permitted(runtime, ROUTE))[0] for _ in range(4)]
    ends = ((20, "upstream_overloaded"), (5, "upstream_error"), (40, "upstream_rate_limited"), (0, ""))
    for call_id, (shut_s, code) in zip(calls, ends, strict=True):
        await closed(runtime, ROUTE, call_id, shut_s=shut_s, code=code)
    denial = await denied(runtime, ROUTE, Obstacle.SHUT)
    assert denial.wait_s == pytest.approx(40, abs=5)
    assert denial.code == "upstream_rate_limited"


async def test_a_success_opens_no_gate(runtime: Runtime) -> None:
    """Nor does a failure shorten it: the upstream has said when to call again."""
    calls = [(await permitted(runtime, ROUTE))[0] for _ in range(12)]
    await closed(runtime, ROUTE, calls.pop(), shut_s=30, code="upstream_rate_limited")
    await closed(runtime, ROUTE, calls.pop())
    for call_id in calls:
        await closed(runtime, ROUTE, call_id, Verdict.TROUBLE)
    denial = await denied(runtime, ROUTE, Obstacle.SHUT)
    assert denial.wait_s == pytest.approx(30, abs=5)
    assert denial.code == "upstream_rate_limited"


async def test_for_a_route_that_is_shut_and_full_the_gate_is_reported(runtime: Runtime) -> None:
    """Stand-ins depend on it. The time is when the route is open and has room."""
    route = a_route(requests=1)
    await called(runtime, route, shut_s=10, code="upstream_rate_limited")
    state = await state_of_route(runtime, route)
    assert (state.why, state.room) == ("upstream_rate_limited", 0)
    assert state.shut_s > 55
    await let_pass(runtime, 10)
    assert (await state_of_route(runtime, route)).why == "full"
    await denied(runtime, route, Obstacle.FULL)


async def test_all_workers_get_a_message_about_a_gate(runtime: Runtime) -> None:
    """And about a circuit, but not about every call that changes nothing."""
    async with listening(runtime, redis_keys.plain("gates")) as heard:
        await called(runtime, ROUTE)
        await fail(runtime, 1)
        await called(runtime, ROUTE)
        assert await heard.all() == []
        await called(runtime, ROUTE, shut_s=1, code="upstream_rate_limited")
        assert await heard.all() == [ROUTE.name.encode()]
        await let_pass(runtime, 1)
        await fail(runtime, 9)
        assert len(await heard.all()) == 2
        await runtime.upstreams.probed(ROUTE.name, await a_probe(runtime))
        assert len(await heard.all()) == 3


# The circuit opens


async def test_ten_failures_of_the_last_twenty_open_the_circuit(runtime: Runtime) -> None:
    """No call is allowed for a second. Nine failures do not, and neither do ten of twenty-one."""
    await fail(runtime, 9)
    assert not await is_open(runtime)
    for _ in range(11):
        await called(runtime, ROUTE)
    await fail(runtime, 1)  # the first of the nine has left the window
    assert not await is_open(runtime)
    await permitted(runtime, ROUTE)
    await fail(runtime, 7)
    assert not await is_open(runtime)
    await fail(runtime, 2)
    assert await is_open(runtime)
    denial = await denied(runtime, ROUTE, Obstacle.SHUT)
    assert 0 < denial.wait_s <= 1
    assert denial.code == "upstream_overloaded"


async def test_a_refusal_after_a_retry_after_opens_the_circuit(runtime: Runtime) -> None:
    """If no call was answered in between: the next calls are probes, and cost the first job in the queue no attempt."""

    async def refused() -> None:
        await called(runtime, ROUTE, Verdict.TROUBLE, shut_s=5, code="upstream_overloaded")

    calls = [(await permitted(runtime, ROUTE))[0] for _ in range(3)]
    for call_id in calls:  # they were in progress together, which counts as one refusal
        await closed(runtime, ROUTE, call_id, Verdict.TROUBLE, shut_s=5, code="upstream_overloaded")
    assert not await is_open(runtime)
    await let_pass(runtime, 5)
    await called(runtime, ROUTE)
    await refused()
    assert not await is_open(runtime)  # it has answered a call since then
    for _ in range(20):
        await let_pass(runtime, 5)
        await called(runtime, ROUTE)
    await refused()
    assert not await is_open(runtime)
    await let_pass(runtime, 5)
    await refused()
    assert await is_open(runtime)


async def test_outcomes_that_show_nothing_about_the_route_are_not_counted(runtime: Runtime) -> None:
    """Cancelled calls, timeouts, and calls that were lost or never made."""
    await fail(runtime, 9)
    for ended in ("interrupted", "lost", "timeout"):
        await called(runtime, ROUTE, Verdict.NONE, ended=ended)
    call_id, _ = await permitted(runtime, ROUTE)
    await closed(runtime, ROUTE, call_id, Verdict.TROUBLE, ended=UNMADE)
    assert not await is_open(runtime)
    await fail(runtime, 1)
    assert await is_open(runtime)


async def test_old_failures_are_forgotten(runtime: Runtime) -> None:
    """A minute after the last outcome."""
    await fail(runtime, 9)
    await let_pass(runtime, 61)
    await fail(runtime, 9)
    assert not await is_open(runtime)
    await let_pass(runtime, 58)
    await fail(runtime, 1)
    assert await is_open(runtime)


async def test_a_route_that_does_well_remembers_no_failure(runtime: Runtime) -> None:
    """After 20 good calls in a row."""
    await fail(runtime, 9)
    for _ in range(20):
        await called(runtime, ROUTE)
    await fail(runtime, 9)
    assert not await is_open(runtime)


# The probe


async def test_one_call_at_a_time_tries_an_open_circuit(runtime: Runtime) -> None:
    """After its cool-down; all other calls wait for its outcome."""
    await open_circuit(runtime)
    await let_pass(runtime, 1)
    assert (await state_of_route(runtime, ROUTE)).room == 1
    _, reserved = await permitted(runtime, ROUTE)
    assert reserved.is_probe
    denial = await denied(runtime, ROUTE, Obstacle.SHUT)
    assert denial.wait_s <= runtime.settings.lease_s
    assert denial.code == "upstream_overloaded"
    state = await state_of_route(runtime, ROUTE)
    assert (state.open_ms is not None, state.shut_s > 0) == (True, True)


async def test_a_probe_may_be_a_retry(runtime: Runtime) -> None:
    """However many retries were made: it is one call, and maybe only retries wait."""
    calls = [(await permitted(runtime, ROUTE, is_retry=True))[0] for _ in range(LEAST_RETRIES)]
    for call_id in calls[:9]:
        await closed(runtime, ROUTE, call_id, Verdict.TROUBLE)
    await denied(runtime, ROUTE, Obstacle.SPENT, is_retry=True)
    await closed(runtime, ROUTE, calls[9], Verdict.TROUBLE)
    await let_pass(runtime, 1)
    _, reserved = await permitted(runtime, ROUTE, is_retry=True)
    assert reserved.is_probe


@pytest.mark.parametrize("by", ["probed", "settled"])
async def test_an_answered_probe_closes_the_circuit(runtime: Runtime, by: str) -> None:
    """With its first content or at its end; earlier outcomes are forgotten."""
    await open_circuit(runtime)
    probe = await a_probe(runtime)
    if by == "probed":
        assert await runtime.upstreams.probed(ROUTE.name, probe) == 1
        assert await runtime.upstreams.probed(ROUTE.name, probe) == 0
    else:
        assert await closed(runtime, ROUTE, probe) == 1
    state = await state_of_route(runtime, ROUTE)
    assert (state.open_ms, state.shut_s) == (None, 0)
    _, reserved = await permitted(runtime, ROUTE)
    assert not reserved.is_probe
    await let_pass(runtime, 0.5)
    await fail(runtime, 9)
    assert not await is_open(runtime)


async def test_a_probe_that_is_cut_after_its_first_content_opens_nothing(runtime: Runtime) -> None:
    """It began before the circuit closed."""
    await open_circuit(runtime)
    probe = await a_probe(runtime)
    await let_pass(runtime, 0.5)
    await runtime.upstreams.probed(ROUTE.name, probe)
    await closed(runtime, ROUTE, probe, Verdict.TROUBLE)
    await fail(runtime, 9)
    assert not await is_open(runtime)


async def test_a_probe_that_fails_doubles_the_cool_down(runtime: Runtime) -> None:
    """1 s, 2 s, 4 s, then always 5 s; from 1 s again after the circuit has closed."""
    for _ in range(2):
        await open_circuit(runtime)
        for longest_s in (2, 4, 5, 5):
            await closed(runtime, ROUTE, await a_probe(runtime), Verdict.TROUBLE)
            assert await is_open(runtime)
            denial = await denied(runtime, ROUTE, Obstacle.SHUT)
            assert longest_s - 0.9 < denial.wait_s <= longest_s
        await closed(runtime, ROUTE, await a_probe(runtime))
        assert not await is_open(runtime)
        await let_pass(runtime, 0.5)


async def test_a_probe_s_retry_after_outlasts_the_cool_down(runtime: Runtime) -> None:
    """The longer of the two applies."""
    await open_circuit(runtime)
    await closed(runtime, ROUTE, await a_probe(runtime), Verdict.TROUBLE, shut_s=20)
    denial = await denied(runtime, ROUTE, Obstacle.SHUT)
    assert denial.wait_s > 10
    await let_pass(runtime, 20.5)
    _, reserved = await permitted(runtime, ROUTE)
    assert reserved.is_probe


async def test_probes_are_spread_over_tenants(runtime: Runtime) -> None:
    """The tenant of the last probe leaves the next one to others for half a second; after that it may probe."""
    await open_circuit(runtime)
    await closed(runtime, ROUTE, await a_probe(runtime), Verdict.TROUBLE)
    await let_pass(runtime, 2)
    denial = await denied(runtime, ROUTE, Obstacle.OTHERS)
    assert denial.wait_s <= 0.5
    call_id, reserved = await permitted(runtime, ROUTE, tenant="tenant-b")
    assert reserved.is_probe
    await closed(runtime, ROUTE, call_id, Verdict.TROUBLE)
    await let_pass(runtime, 4)
    assert (await permitted(runtime, ROUTE))[1].is_probe


async def test_a_job_with_short_limits_is_no_probe_while_others_may_be(runtime: Runtime) -> None:
    """Its own limits might end the probe. After five seconds it is better than none."""
    await open_circuit(runtime)
    await let_pass(runtime, 2)
    assert (await denied(runtime, ROUTE, Obstacle.OTHERS, may_probe=False)).wait_s <= 5
    call_id, reserved = await permitted(runtime, ROUTE)
    assert reserved.is_probe
    await closed(runtime, ROUTE, call_id, Verdict.TROUBLE)
    await let_pass(runtime, 7)
    assert (await permitted(runtime, ROUTE, may_probe=False, tenant="tenant-b"))[1].is_probe


@pytest.mark.parametrize("ended", ["interrupted", "timeout", UNMADE])
async def test_a_probe_that_shows_nothing_makes_room_for_the_next(runtime: Runtime, ended: str) -> None:
    """At once, with a message to all workers."""
    await open_circuit(runtime)
    probe = await a_probe(runtime)
    async with listening(runtime, redis_keys.plain("gates")) as heard:
        await closed(runtime, ROUTE, probe, Verdict.NONE, ended=ended)
        assert await heard.all() == [ROUTE.name.encode()]
    assert await is_open(runtime)
    _, reserved = await permitted(runtime, ROUTE)
    assert reserved.is_probe


async def test_a_dead_probe_is_replaced(runtime: Runtime) -> None:
    """When its lease ends. If it lives after all, its outcome does not count, and neither does its loss."""
    await open_circuit(runtime)
    dead = await a_probe(runtime)
    await let_pass(runtime, runtime.settings.lease_s + 0.5)
    second, reserved = await permitted(runtime, ROUTE)
    assert reserved.is_probe
    assert await runtime.upstreams.probed(ROUTE.name, dead) == 0
    await closed(runtime, ROUTE, dead, ended="lost")
    await closed(runtime, ROUTE, dead, Verdict.OK)
    assert await is_open(runtime)
    await denied(runtime, ROUTE, Obstacle.SHUT)
    await closed(runtime, ROUTE, second)
    assert not await is_open(runtime)


async def test_a_slow_probe_stays_the_probe(runtime: Runtime) -> None:
    """As long as its worker holds it."""
    await open_circuit(runtime)
    probe = await a_probe(runtime)
    for _ in range(4):
        await let_pass(runtime, runtime.settings.lease_s - 2)
        assert await runtime.upstreams.hold([(ROUTE.name, probe)]) == []
        await denied(runtime, ROUTE, Obstacle.SHUT)


async def test_calls_begun_before_the_circuit_opened_do_not_count(runtime: Runtime) -> None:
    """They neither close it nor, after it has closed, open it again."""
    old = [(await permitted(runtime, ROUTE))[0] for _ in range(12)]
    await open_circuit(runtime)
    await closed(runtime, ROUTE, old.pop())
    await closed(runtime, ROUTE, old.pop(), Verdict.TROUBLE)
    assert await is_open(runtime)
    await closed(runtime, ROUTE, await a_probe(runtime))
    for call_id in old:
        await closed(runtime, ROUTE, call_id, Verdict.TROUBLE)
    assert not await is_open(runtime)
    assert all([(await row_of(runtime, call_id))["ended"] == "succeeded" for call_id in old])


async def test_limits_apply_to_a_probe_too(runtime: Runtime) -> None:
    """It waits for room like any call, and does not count as made meanwhile."""
    route = a_route(requests=10)
    await open_circuit(runtime, route)
    await let_pass(runtime, 5)
    await denied(runtime, route, Obstacle.FULL)
    await let_pass(runtime, 61)
    _, reserved = await permitted(runtime, route)
    assert reserved.is_probe


# LOOK


async def test_look_returns_all_routes_that_were_called_within_the_hour(runtime: Runtime) -> None:
    """Newest first, with what their limits leave, if the caller knows the limits."""
    await called(runtime, a_route("old"))
    await let_pass(runtime, 3_601)
    await called(runtime, a_route("a"))
    await let_pass(runtime, 1)
    await permitted(runtime, a_route("b"))
    assert [state.name for state in await runtime.upstreams.look()] == ["anthropic/b", "anthropic/a"]
    states = await runtime.upstreams.look([a_route("b", requests=5, concurrency=3), a_route("unheard", requests=1)])
    assert [(state.name, state.room) for state in states] == [("anthropic/b", 2), ("anthropic/a", None)]
    assert await runtime.upstreams.look() != []


async def test_a_route_in_trouble_is_returned_even_after_many_newer_ones(runtime: Runtime) -> None:
    """However many names callers invent, but only as long as it is in trouble."""
    troubled, shut = a_route("important"), a_route("limited")
    for _ in range(10):
        await called(runtime, troubled, Verdict.TROUBLE)
    await called(runtime, shut, shut_s=30, code="upstream_rate_limited")
    for number in range(150):
        await called(runtime, a_route(f"invented-{number}"))
    seen = {state.name: state for state in await runtime.upstreams.look()}
    assert seen[troubled.name].open_ms is not None
    assert seen[shut.name].shut_s > 0
    assert len(seen) == 102
    await let_pass(runtime, 31)
    await called(runtime, troubled)
    for number in range(150):
        await called(runtime, a_route(f"invented-{number}"))
    seen = {state.name: state for state in await runtime.upstreams.look()}
    assert troubled.name not in seen
    assert shut.name not in seen


async def test_look_without_routes_is_empty(runtime: Runtime) -> None:
    """It writes nothing."""
    assert await runtime.upstreams.look([a_route(requests=1)]) == []
    assert await runtime._commands.call("DBSIZE") == 0


async def test_look_returns_when_tokens_are_free_again(runtime: Runtime) -> None:
    """None are left, so no job starts until then."""
    route = a_route(input_tokens=10, output_tokens=10)
    await permitted(runtime, route, input_estimate=4, output_estimate=10)
    state = await state_of_route(runtime, route)
    assert (state.why, state.room) == ("full", 0)
    assert 60 <= state.shut_s <= 61
    await let_pass(runtime, 61)
    assert (await state_of_route(runtime, route)).room is None


async def test_one_worker_at_a_time_checks_idle_upstreams(runtime: Runtime) -> None:
    """The workers take turns."""
    assert await runtime.upstreams.is_checker(60)
    assert not await runtime.upstreams.is_checker(60)
