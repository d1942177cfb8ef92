"""Every fault at every place, and every interruption: no cut answer counts as whole, and each call has its row.

Every test of this folder also compares the rows with the upstream's own record at its end (see ledger.py).
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from shared.job import Job, JobState
from shared.prices import OwnPrice
from shared.routes import ProviderName, RouteRule, Routes
from shared.store import redis_keys
from tests.running.crew import STEADY, TENANT, Crew, Hand, attempt_text, replace
from tests.running.ledger import Row, assert_ledger_matches, rows_of
from tests.running.providers import on_each_provider
from tests.support.limits import spent
from tests.support.usage import read_usage_by_end_user
from tests.support.wait import wait_until

TOKENS = 20
PLACES = ("head", "0", "1", "2", "10", "19", "20", "stop")
FAULTS_BY_PLACE = (
    "end={k}x1",
    "fin={k}x1",
    "rst={k}x1",
    "stall={k}x1",
    "pings={k}x1,every-ms=10",
    "error={k}x1,type=overloaded_error",
    "error={k}x1",
    "bad-chunk={k}x1",
)
ODDITIES_BY_PLACE = (
    "bad-json={k}x1",
    "restart={k}x1",
    "no-index={k}x1",
    "garbage={k}x1",
    "unknown-event={k}x1",
    "unknown-delta={k}x1",
    "big-line={k}x1,bytes=100000",
)
ANYWHERE = (
    "crlf=1",
    "slice=7",
    "slice=1 crlf=1",
    "text=emoji split-utf8=1",
    "slow-head=50",
    "no-start=1x1",
    "no-stop-reason=1x1",
    "big-line=2",
    "fail=200x1,body=html",
    *(f"fail={status}x1" for status in (500, 502, 503, 504, 529, 429)),
)
FINAL = tuple(f"fail={status}" for status in (400, 401, 403, 404, 413))
PRICES = {"sim-*": {"input": 3, "output": 15}}


def matrix() -> list[str]:
    """The scripts, without places that a fault cannot have."""
    scripts = [fault.format(k=k) for fault in FAULTS_BY_PLACE for k in PLACES if (fault[:3], k) not in _NOWHERE]
    scripts += [oddity.format(k=k) for oddity in ODDITIES_BY_PLACE for k in PLACES if k.isdigit() and k != "20"]
    return [*scripts, *ANYWHERE, *FINAL]


_NOWHERE = {("err", "head"), ("pin", "head"), ("bad", "head")}


def model_of(number: int) -> str:
    """A model with its own route, and so its own circuit."""
    return f"sim-t{TOKENS}-g2-f{number}"


@on_each_provider
async def test_no_fault_at_any_place_makes_a_part_of_an_answer_a_success(crew: Crew) -> None:
    """The result is the whole text of one attempt; the ledger has all calls and their usage."""
    limits = {"content_idle_timeout_s": 0.5, "first_token_timeout_s": 1.0, "pinged_idle_timeout_s": 1.0}
    await crew.worker(**limits, concurrency=40, prices=PRICES)
    scripts = matrix()
    job_ids = [await crew.submit(script, model=model_of(1 + number % 60)) for number, script in enumerate(scripts)]
    jobs = await crew.all_ended(job_ids)
    for script, job in zip(scripts, jobs, strict=True):
        if script in FINAL:
            assert (job.state, job.attempts) == (JobState.FAILED, 1), script
            continue
        assert job.state is JobState.SUCCEEDED, (script, job.error)
        assert job.result is not None
        text = msgspec.json.decode(bytes(job.result))["text"]
        if "text=" not in script and "big-line" not in script and "no-index" not in script:
            nonce = crew.nonce_of[job.id]
            last = crew.calls(job.id)[-1].nonce_call
            assert text == "".join(f"{nonce}.{last}.{token} " for token in range(TOKENS)), script
        assert job.cost_usd is not None
    await assert_ledger_matches(crew)


PLACES_TO_CANCEL = ("stall=head", "first-ms=5000", "stall=0", "stall=1", "", "stall=250")


@on_each_provider
async def test_a_cancelled_jobs_call_is_closed_within_a_second_and_flagged(crew: Crew) -> None:
    """Before the first token, at it, and in the middle. The job is charged for what it had used by then."""
    await crew.worker(prices=PRICES)
    for script in PLACES_TO_CANCEL:
        job_id = await crew.submit(script, model="sim-t500-g1-f1")
        await wait_until(lambda: crew.calls(job_id) != [], "the call")  # noqa: B023
        if script in {"stall=1", "", "stall=250"}:
            await crew.begun(job_id, 250 if "250" in script else 1)
        began_s = time.monotonic()
        assert await crew.runtime.jobs.cancel(job_id, TENANT)
        (call,) = crew.calls(job_id)
        await crew.simulator.until(lambda: call.ended is not None, timeout_s=1)  # noqa: B023
        assert call.ended == "client_closed"
        assert call.ended_s is not None
        assert call.ended_s - began_s < 1
        (row,) = await closed(crew, job_id)
        assert (row.ended, row.is_estimated) == ("interrupted", True)
        assert row.cost_nano_usd == 3000 * row.usage.input_tokens + 15_000 * row.usage.output_tokens > 0
        await wait_until(lambda: is_charged(crew, job_id, row), "the charge")  # noqa: B023


async def closed(crew: Crew, job_id: str) -> list[Row]:
    """Waits until no row of the job is open; returns the rows."""

    async def are_closed() -> bool:
        rows = await rows_of(crew, job_id)
        return rows != [] and None not in {row.ended for row in rows}

    await wait_until(are_closed, f"the rows of {job_id} to be closed")
    return await rows_of(crew, job_id)


async def is_charged(crew: Crew, job_id: str, *rows: Row) -> bool:
    """Whether the job's cost is the sum of these rows."""
    return await crew.field(job_id, "cost_nano_usd") == str(sum(row.cost_nano_usd or 0 for row in rows))


@on_each_provider
@pytest.mark.parametrize("by_the_job", [False, True], ids=["the settings' limit", "the job's own"])
async def test_a_stall_is_noticed_at_the_idle_limit(crew: Crew, by_the_job: bool) -> None:
    """It is then retried, and followers get a `reset` for the five tokens."""
    limits: dict[str, Any] = {"content_idle_timeout_s": 1}
    await crew.worker(**({} if by_the_job else limits))
    job_id = await crew.submit("stall=5x1 tokens=10", **(limits if by_the_job else {}))
    job = await crew.ended(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
    first, _ = crew.calls(job_id)
    assert first.client_closed_s is not None
    assert first.first_token_s is not None
    assert 1 <= first.client_closed_s - first.first_token_s < 2
    assert [name for name, _ in await crew.ours(job_id)] == ["started", "retry", "reset", "succeeded"]


@on_each_provider
async def test_a_jobs_own_first_token_limit_beats_the_settings(crew: Crew) -> None:
    """A longer one and a shorter one at the same time."""
    await crew.worker(first_token_timeout_s=1.5)
    hasty = await crew.submit("first-ms=1300", first_token_timeout_s=1, max_attempts=1)
    patient = await crew.submit("first-ms=2000", first_token_timeout_s=3)
    first, second = await crew.all_ended([hasty, patient])
    assert first.error is not None
    assert (first.error.code, second.state) == ("upstream_error", JobState.SUCCEEDED)


@on_each_provider
async def test_a_day_to_wait_fails_a_job_that_cannot_and_holds_no_slot(crew: Crew) -> None:
    """The first job fails at once. Later ones stay in the queue without an attempt until they expire."""
    hand = await crew.worker(concurrency=1)
    first = await crew.ended(await crew.submit("fail=429,retry-after=86400"))
    assert first.error is not None
    assert (first.state, first.error.code, first.attempts) == (JobState.FAILED, "upstream_rate_limited", 1)
    assert "retry in 86400 s" in first.error.message
    behind = [await crew.submit(expires_in_s=1) for _ in range(3)]
    other = await crew.ended(await crew.submit(model=model_of(1)))
    assert other.state is JobState.SUCCEEDED
    assert [await crew.state(job_id) for job_id in behind] == [JobState.QUEUED] * 3
    assert not hand.running
    for job in await crew.all_ended(behind):
        assert (job.state, job.attempts) == (JobState.EXPIRED, 0)
        assert await crew.names(job.id) in ([], ["expired"])
        assert crew.calls(job.id) == []


# Workers that die, sleep or drain


async def test_a_killed_workers_row_is_closed_by_another(crew: Crew) -> None:
    """It counts the tokens in the log."""
    dying = await crew.worker(lease_s=0.6, prices=PRICES)
    job_id = await crew.submit("stall=3x1")
    await crew.begun(job_id, 3)
    await crew.worker(lease_s=0.6, prices=PRICES)
    fall_silent(dying)
    await dying.killed()
    assert (await crew.ended(job_id)).state is JobState.SUCCEEDED
    lost, succeeded = await closed(crew, job_id)
    assert (lost.ended, lost.is_estimated, succeeded.ended) == ("lost", True, "succeeded")
    assert lost.usage.input_tokens == crew.calls(job_id)[0].input_tokens
    await wait_until(lambda: is_charged(crew, job_id, lost, succeeded), "the charge")


def fall_silent(hand: Hand) -> None:
    """Blocks calls that are sent without being awaited, which would otherwise still go out before the end."""
    never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    replace(hand.runtime.upstreams, "close_call", lambda *_: never)
    replace(hand.runtime.jobs, "charge", lambda *_, **__: never)


async def test_a_worker_that_was_only_asleep_corrects_rows_that_others_closed_as_lost(crew: Crew) -> None:
    """It corrects the tenant's usage too: nothing is counted twice."""
    hand = await crew.worker(lease_s=600, prices=PRICES)
    job_id = await crew.submit("tokens=150 gap-ms=10")
    await crew.begun(job_id, 3)
    stop_ticking(hand)
    (row,) = await rows_of(crew, job_id)
    await crew.runtime._commands.call("ZADD", f"{redis_keys.GLOBAL}calls:{row.route}", "XX", 1, row.id)
    await crew.worker(lease_s=600, prices=PRICES)
    await wait_until(lambda: is_lost(crew, job_id), "the row to be closed as lost", timeout_s=3)
    job = await crew.ended(job_id)
    (row,) = await closed(crew, job_id)
    assert (row.ended, row.is_estimated, row.usage) == ("succeeded", False, job.usage)


def stop_ticking(hand: Hand) -> None:
    """It reports nothing about its calls until one ends."""

    async def do_nothing() -> None:
        pass

    replace(hand.worker._context.governor, "tick", do_nothing)


async def is_lost(crew: Crew, job_id: str) -> bool:
    return [row.ended for row in await rows_of(crew, job_id)] == ["lost"]


async def test_a_job_cancelled_while_its_call_is_reserved_leaves_no_row(crew: Crew) -> None:
    hand = await crew.worker()
    real_reserve = hand.runtime.upstreams.reserve
    is_reserved, may_answer = asyncio.Event(), asyncio.Event()

    async def reserve_late(*arguments: Any) -> Any:
        answer = await real_reserve(*arguments)
        is_reserved.set()
        await may_answer.wait()
        return answer

    replace(hand.runtime.upstreams, "reserve", reserve_late)
    job_id = await crew.submit()
    await is_reserved.wait()
    assert len(await rows_of(crew, job_id)) == 1
    assert await crew.runtime.jobs.cancel(job_id, TENANT)
    await hand.is_idle()
    may_answer.set()

    async def has_none() -> bool:
        return await rows_of(crew, job_id) == []

    await wait_until(has_none, "the row to go")
    assert crew.calls(job_id) == []


# Stand-ins

FIRST, STAND_IN = model_of(1), model_of(2)
WITH_STAND_IN = {FIRST: RouteRule(fallback=(STAND_IN,))}


def model_in(job: Job) -> str:
    """The model that answered."""
    assert job.result is not None
    model: str = msgspec.json.decode(bytes(job.result))["message"]["model"]
    return model


@on_each_provider
@pytest.mark.parametrize("failure", ["fail=529x1", "fail=429x1,retry-after=60", "error=3x1,type=overloaded_error"])
async def test_a_stand_in_is_asked_at_once(crew: Crew, failure: str) -> None:
    if crew.provider is ProviderName.OPENAI:
        failure = failure.replace("type=overloaded_error", "type=engine_overloaded")
    await crew.worker(routes=WITH_STAND_IN, upstream_retry_base_s=30)
    job_id = await crew.submit(failure, model=FIRST)
    job = await crew.ended(job_id, timeout_s=3)
    assert (job.state, job.attempts, model_in(job)) == (JobState.SUCCEEDED, 2, STAND_IN)
    assert [call.model for call in crew.calls(job_id)] == [FIRST, STAND_IN]
    resets = ["reset"] if failure.startswith("error") else []
    assert [name for name, _ in await crew.ours(job_id)] == ["started", "retry", *resets, "succeeded"]
    assert attempt_text(await crew.events(job_id)).startswith(crew.nonce_of[job_id])


@pytest.mark.parametrize(
    ("failure", "models"), [("fail=500x1", [FIRST, FIRST]), ("fail=400", [FIRST])], ids=["500", "400"]
)
async def test_what_no_stand_in_would_do_better_does_not_divert(crew: Crew, failure: str, models: list[str]) -> None:
    await crew.worker(routes=WITH_STAND_IN)
    job_id = await crew.submit(failure, model=FIRST)
    await crew.ended(job_id)
    assert [call.model for call in crew.calls(job_id)] == models


async def test_while_the_first_route_is_shut_jobs_go_straight_to_its_stand_in(crew: Crew) -> None:
    """If all routes are shut, the jobs wait."""
    await crew.worker(routes=WITH_STAND_IN)
    crew.runtime.jobs._routes = Routes(WITH_STAND_IN, ProviderName.ANTHROPIC)  # a submit knows the routes too
    await crew.ended(await crew.submit("fail=429x1,retry-after=60", model=FIRST))
    straight = await crew.ended(await crew.submit(model=FIRST))
    assert (straight.attempts, model_in(straight)) == (1, STAND_IN)
    refused = await crew.submit("fail=429x1,retry-after=60", model=STAND_IN)
    await wait_until(lambda: crew.calls(refused) != [], "the refusal")
    await wait_until(lambda: is_deferred(crew, refused), "the wait")
    waiting = await crew.submit(model=FIRST, expires_in_s=1)
    job = await crew.ended(waiting)
    assert (job.state, crew.calls(waiting)) == (JobState.EXPIRED, [])


async def is_deferred(crew: Crew, job_id: str) -> bool:
    return await crew.runtime._commands.call("ZSCORE", redis_keys.plain("deferred"), job_id) is not None


# Costs


@on_each_provider
async def test_a_jobs_cost_is_that_of_all_its_calls(crew: Crew) -> None:
    """Including failed attempts, whose tokens were paid for."""
    await crew.worker(prices={FIRST: OwnPrice(input=Decimal(3), output=Decimal(15))})
    priced = await crew.submit("fail=500x1 end=5x2 fin=19x3", model=FIRST, max_attempts=4)
    unpriced = await crew.submit(model=STAND_IN)
    job, other = await crew.all_ended([priced, unpriced])
    rows = await rows_of(crew, priced)
    assert len(rows) == job.attempts == len(crew.calls(priced))
    costs = [3000 * row.usage.input_tokens + 15_000 * row.usage.output_tokens for row in rows]
    assert [row.cost_nano_usd for row in rows] == costs
    assert costs[0] == 0
    assert job.cost_usd == sum(costs) / 1e9
    assert other.cost_usd is None


async def test_an_end_user_pays_for_its_calls(crew: Crew) -> None:
    """Also for one whose worker was killed, and for one that was cancelled. Usage and budget agree."""
    await crew.runtime.tenants.set(TENANT, {"end_user_nano_usd_per_day": 10**15})
    dying = await crew.worker(lease_s=0.6, prices=PRICES)
    lost_once = await crew.submit("stall=3x1", end_user="ann")
    await crew.begun(lost_once, 3)
    await crew.worker(lease_s=0.6, prices=PRICES)
    fall_silent(dying)
    await dying.killed()
    await crew.ended(lost_once)
    cut = await crew.submit("stall=3", end_user="ann")
    await crew.begun(cut, 3)
    await crew.runtime.jobs.cancel(cut, TENANT)
    rows = await closed(crew, lost_once) + await closed(crew, cut)
    cost = sum(row.cost_nano_usd or 0 for row in rows)
    assert cost > 0

    async def is_paid() -> bool:
        return await spent(crew.runtime, f"user:{redis_keys.user_of(TENANT, 'ann')}") == [cost]

    await wait_until(is_paid, "the charges")
    today = datetime.now(UTC).date()
    usage = await read_usage_by_end_user(crew.runtime, TENANT, today - timedelta(days=1), today)
    assert {row.end_user for row in usage} == {"ann"}
    assert sum(row.sums.cost_nano_usd for row in usage) == cost


@on_each_provider
async def test_a_model_without_a_price_has_no_cost_even_when_it_was_cut(crew: Crew) -> None:
    await crew.worker()
    job_id = await crew.submit(model=STEADY)
    await crew.begun(job_id)
    await crew.runtime.jobs.cancel(job_id, TENANT)
    (row,) = await closed(crew, job_id)
    assert row.cost_nano_usd is None
    assert (await crew.job(job_id)).cost_usd is None
