"""Why a queued job waits: each reason, alone and together with others, and when it ends."""

from typing import Any

import pytest

from shared.clock import from_rfc3339, to_rfc3339
from shared.limits import CallerLimits
from shared.routes import RouteRule
from shared.store.jobs import Created
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from shared.store.upstreams import Obstacle, Verdict
from shared.waiting import (
    Budget,
    NotBefore,
    NoWorker,
    Reason,
    Retry,
    RouteShut,
    RunningJobs,
    Shut,
    Turn,
    WaitingFor,
    queue_position_of,
)
from tests.conftest import StartRuntime
from tests.support.builders import a_submission, an_id
from tests.support.limits import A_DOLLAR
from tests.support.store import (
    SUCCESS,
    claim,
    claim_one,
    finish,
    look_anew,
    make_due,
    now_ms,
    serve_queue,
    submit,
    submit_many,
)
from tests.support.upstreams import a_route, called, denied, let_pass, permitted

_DAY_MS = 86_400_000
_KEY = {"key_id": "key-1", "limits": CallerLimits(running_jobs=1, nano_usd_per_month=A_DOLLAR)}
_ROUTE = "anthropic/a-model"


async def _waits_of(runtime: Runtime, *job_ids: str, model: str = "a-model") -> list[WaitingFor | None]:
    await serve_queue(runtime)
    return await runtime.waits.of([(job_id, model) for job_id in job_ids])


async def _wait_of(runtime: Runtime, job_id: str, **how: Any) -> list[Reason]:
    (found,) = await _waits_of(runtime, job_id, **how)
    assert found is not None
    return list(found)


async def _pay(runtime: Runtime, nano_usd: int) -> None:
    """The running job of an otherwise empty queue ends, and its call has cost this much."""
    claimed = await claim_one(runtime)
    await runtime.queue.finish(claimed, Ending(SUCCESS.step, SUCCESS.result), seq=claimed.next_seq, cost=nano_usd)


async def test_a_job_that_waits_only_for_its_turn_has_a_position(runtime: Runtime) -> None:
    """Also the first one, which starts next."""
    found = await _waits_of(runtime, *await submit_many(runtime, 3))
    assert found == [(Turn(1),), (Turn(2),), (Turn(3),)]
    assert [queue_position_of(each) for each in found] == [1, 2, 3]


async def test_what_does_not_wait_has_no_reason(runtime: Runtime) -> None:
    """Jobs that run, have ended, or are unknown."""
    ended = await submit(runtime)
    await finish(runtime, await claim_one(runtime))
    running = await submit(runtime)
    await claim_one(runtime)
    assert await _waits_of(runtime, ended.id, running.id, an_id()) == [None, None, None]
    assert await runtime.waits.of([]) == []


async def test_a_job_for_later_waits_for_its_time(runtime: Runtime) -> None:
    """It has no position, and no missing worker holds it back yet."""
    due_ms = await now_ms(runtime) + 60_000
    later = await submit(runtime, not_before_ms=due_ms)
    for _ in range(2):
        (found,) = await runtime.waits.of([(later.id, "a-model")])
        assert found == (NotBefore(to_rfc3339(due_ms)),)
        assert queue_position_of(found) is None
        await serve_queue(runtime)


async def test_a_failed_attempt_waits_for_the_next(runtime: Runtime) -> None:
    """The time is that of the queue, the number that of the next `started`."""
    submission = await submit(runtime)
    claimed = await claim_one(runtime)
    before_ms = await now_ms(runtime)
    await runtime.queue.release(claimed, reason="upstream_failed", delay_s=5, failures=1, retry_event=b"{}", attempts=1)
    (retry,) = await _wait_of(runtime, submission.id)
    assert isinstance(retry, Retry)
    assert retry.attempt == 2
    assert 5_000 <= from_rfc3339(retry.until) - before_ms <= 6_000


async def test_a_job_that_is_due_has_its_place_before_a_worker_has_called(runtime: Runtime) -> None:
    """Workers that are all busy claim nothing, so nothing moves it into its flow."""
    ids = await submit_many(runtime, 3)
    (first,) = await claim(runtime)
    await runtime.queue.release(first, reason="upstream_failed", delay_s=60, failures=1)
    assert [type(each) for each in await _wait_of(runtime, ids[0])] == [Retry]
    await make_due(runtime, ids[0])
    assert await _wait_of(runtime, ids[0]) == [Turn(1)]


@pytest.mark.parametrize("of", ["tenant", "key"])
async def test_a_limit_of_running_jobs_is_named_with_its_owner(runtime: Runtime, of: Any) -> None:
    """The next job has no position, though it would be the first; the others have places after it."""
    if of == "tenant":
        await runtime.tenants.set("tenant-a", {"running_jobs": 1})
    ids = await submit_many(runtime, 3, **({} if of == "tenant" else _KEY))
    assert len(await claim(runtime, 10)) == 1
    full = RunningJobs(of, limit=1, running=1)
    assert await _waits_of(runtime, *ids) == [None, (full,), (full, Turn(2))]


async def test_the_limit_of_all_tenants_counts_too(start_runtime: StartRuntime) -> None:
    """It holds for a tenant without one of its own."""
    runtime = await start_runtime(tenant_running_jobs=1)
    ids = await submit_many(runtime, 2)
    await claim(runtime, 10)
    assert await _wait_of(runtime, ids[1]) == [RunningJobs("tenant", limit=1, running=1)]


@pytest.mark.parametrize(("field", "period"), [("nano_usd_per_day", "day"), ("nano_usd_per_month", "month")])
async def test_a_spent_budget_is_named_with_its_end(runtime: Runtime, field: str, period: Any) -> None:
    """It ends with the day or the month in UTC."""
    ids = await submit_many(runtime, 2)
    await _pay(runtime, A_DOLLAR * 3 // 2)
    await runtime.tenants.set("tenant-a", {field: A_DOLLAR})
    (budget,) = await _wait_of(runtime, ids[1])
    assert isinstance(budget, Budget)
    assert budget == Budget("tenant", period, limit_usd=1, spent_usd=1.5, held_usd=0, until=budget.until)
    assert budget.until is not None
    assert budget.until.endswith("T00:00:00.000Z")
    left_ms = from_rfc3339(budget.until) - await now_ms(runtime)
    assert 0 < left_ms <= _DAY_MS * (1 if period == "day" else 31)
    if period == "month":
        assert budget.until[8:10] == "01"


async def test_a_budget_that_running_jobs_hold_has_no_end(runtime: Runtime) -> None:
    """The end of such a job may cost less than was held for it."""
    await runtime.tenants.set("tenant-a", {"nano_usd_per_day": A_DOLLAR})
    ids = await submit_many(runtime, 2)
    for job_id in ids:
        await runtime._commands.call("HSET", f"ts:{{0}}:job:{job_id}", "estimate", A_DOLLAR)
    assert len(await claim(runtime, 10)) == 1
    assert await _wait_of(runtime, ids[1]) == [
        Budget("tenant", "day", limit_usd=1, spent_usd=0, held_usd=1, until=None),
    ]


async def test_a_route_that_asked_for_a_pause_is_named_with_its_end(runtime: Runtime) -> None:
    """The same time at each look, until the pause is over."""
    submission = await submit(runtime)
    before_ms = await now_ms(runtime)
    await called(runtime, a_route(), Verdict.NONE, shut_s=30, code="upstream_rate_limited")
    (shut,) = await _wait_of(runtime, submission.id)
    assert isinstance(shut, RouteShut)
    assert (shut.route, shut.because, shut.since) == (_ROUTE, Shut.RETRY_AFTER, None)
    assert shut.until is not None
    assert 29_500 <= from_rfc3339(shut.until) - before_ms <= 31_000
    assert await _wait_of(runtime, submission.id) == [shut]
    await let_pass(runtime, 31)
    assert await _wait_of(runtime, submission.id) == [Turn(1)]


async def test_an_open_circuit_is_named_with_its_beginning(runtime: Runtime) -> None:
    """Also between two probes."""
    submission = await submit(runtime)
    for _ in range(10):
        await called(runtime, a_route(), Verdict.TROUBLE)
    (state,) = await runtime.upstreams.look()
    assert state.open_ms is not None
    shut = RouteShut(_ROUTE, Shut.CIRCUIT, None, to_rfc3339(state.open_ms))
    assert await _wait_of(runtime, submission.id) == [shut]
    await let_pass(runtime, 1)
    (state,) = await runtime.upstreams.look()
    assert (state.shut_s, state.open_ms is not None) == (0, True)
    assert [type(each) for each in await _wait_of(runtime, submission.id)] == [RouteShut]


async def test_a_full_minute_is_named_with_its_end(start_runtime: StartRuntime) -> None:
    """The end is when one more call fits, as the permit says."""
    runtime = await start_runtime(routes={"a-model": RouteRule(requests_per_minute=1)})
    submission = await submit(runtime)
    await permitted(runtime, a_route(requests=1))
    denial = await denied(runtime, a_route(requests=1), Obstacle.FULL)
    before_ms = await now_ms(runtime)
    (shut,) = await _wait_of(runtime, submission.id)
    assert isinstance(shut, RouteShut)
    assert (shut.because, shut.since) == (Shut.MINUTE_FULL, None)
    assert shut.until is not None
    assert from_rfc3339(shut.until) - before_ms == pytest.approx(denial.wait_s * 1000, abs=500)


async def test_a_route_with_all_its_calls_under_way_has_no_end(start_runtime: StartRuntime) -> None:
    """Nobody knows when one ends."""
    runtime = await start_runtime(routes={"a-model": RouteRule(concurrency=1)})
    submission = await submit(runtime)
    await permitted(runtime, a_route(concurrency=1))
    assert await _wait_of(runtime, submission.id) == [RouteShut(_ROUTE, Shut.FULL, None, None)]


async def test_a_fallback_that_may_be_called_holds_nothing_back(start_runtime: StartRuntime) -> None:
    """If it is shut too, the route that opens first is named."""
    runtime = await start_runtime(routes={"a-model": RouteRule(fallback=("b-model",))})
    submission = await submit(runtime)
    await called(runtime, a_route(), Verdict.NONE, shut_s=30, code="upstream_overloaded")
    assert await _wait_of(runtime, submission.id) == [Turn(1)]
    await called(runtime, a_route("b-model"), Verdict.NONE, shut_s=10, code="upstream_overloaded")
    (shut,) = await _wait_of(runtime, submission.id)
    assert isinstance(shut, RouteShut)
    assert shut.route == "anthropic/b-model"


async def test_without_a_worker_nothing_starts(runtime: Runtime) -> None:
    """One that drains takes nothing new."""
    ids = await submit_many(runtime, 2)
    pairs = [(job_id, "a-model") for job_id in ids]
    assert await runtime.waits.of(pairs) == [(NoWorker(),), (NoWorker(), Turn(2))]
    await serve_queue(runtime, draining=1)
    assert await runtime.waits.of(pairs) == [(NoWorker(),), (NoWorker(), Turn(2))]
    await serve_queue(runtime, worker="worker-2")
    assert await runtime.waits.of(pairs) == [(Turn(1),), (Turn(2),)]
    await runtime.workers.withdraw("worker-2")
    await look_anew(runtime)
    assert await runtime.waits.of(pairs[:1]) == [(NoWorker(),)]


async def test_two_reasons_come_with_the_one_that_lasts_longest_first(runtime: Runtime) -> None:
    """A budget that is spent until tomorrow, a pause of 30 s, a limit that may have room at any moment, and its turn."""
    ids = await submit_many(runtime, 4)
    await _pay(runtime, A_DOLLAR)
    await claim_one(runtime)
    await runtime.tenants.set("tenant-a", {"nano_usd_per_month": A_DOLLAR, "running_jobs": 1})
    await called(runtime, a_route(), Verdict.NONE, shut_s=30, code="upstream_rate_limited")
    for job_id, expected in ((ids[2], []), (ids[3], [Turn])):
        found = await _wait_of(runtime, job_id)
        assert [type(each) for each in found] == [Budget, RouteShut, RunningJobs, *expected]


async def test_a_job_for_later_names_only_what_lasts_longer(runtime: Runtime) -> None:
    """A budget that opens before its time does not hold it back; nor does a limit that may have room by then."""
    await submit(runtime)
    await _pay(runtime, A_DOLLAR)
    soon = await submit(runtime, not_before_ms=await now_ms(runtime) + 1_000)
    late = await submit(runtime, not_before_ms=await now_ms(runtime) + 29 * _DAY_MS)
    await submit(runtime)
    await claim_one(runtime)
    await runtime.tenants.set("tenant-a", {"nano_usd_per_day": A_DOLLAR, "running_jobs": 1})
    assert [type(each) for each in await _wait_of(runtime, soon.id)] == [Budget, NotBefore]
    assert [type(each) for each in await _wait_of(runtime, late.id)] == [NotBefore]


async def test_a_submit_knows_whether_its_flow_is_parked(runtime: Runtime) -> None:
    """Only then it must ask why: the other submits know their place without another command."""
    await runtime.tenants.set("tenant-a", {"running_jobs": 1})
    await submit_many(runtime, 2)
    await claim(runtime, 10)
    await serve_queue(runtime)
    created = await runtime.jobs.submit(submission := a_submission(), expires_in_s=60)
    assert isinstance(created, Created)
    assert created.position == 0
    born = await runtime.jobs.get(submission.id, "tenant-a")
    assert await runtime.waits.of_new(born, created.position) == (RunningJobs("tenant", 1, 1), Turn(2))


async def test_jobs_of_many_tenants_and_models_are_told_apart(runtime: Runtime) -> None:
    """In one command, whose reply is in the order of the jobs."""
    await runtime.tenants.set("tenant-b", {"running_jobs": 1})
    theirs = await submit_many(runtime, 2, tenant="tenant-b")
    await claim(runtime, 1)
    await called(runtime, a_route("b-model"), Verdict.NONE, shut_s=30, code="upstream_rate_limited")
    ours = await submit(runtime, model="b-model")
    plain = await submit(runtime, tenant="tenant-c")
    await serve_queue(runtime)
    found = await runtime.waits.of(
        [(ours.id, "b-model"), (theirs[1], "a-model"), (plain.id, "a-model"), (ours.id, "b-model")]
    )
    kinds = [[type(each) for each in waiting_for or ()] for waiting_for in found]
    assert kinds[0] == kinds[3] == [RouteShut, Turn]
    assert kinds[1] == [RunningJobs, Turn]
    assert kinds[2] == [Turn]
