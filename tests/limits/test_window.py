"""Requests and tokens per minute: in any 60 s exactly the limit is available, no more and no less."""

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.errors import BudgetExceeded, InvalidRequest, RateLimited
from shared.job import JobKind, Step, Usage
from shared.limits import CallerLimits, LimitState, Measured
from shared.settings import load_settings
from shared.store import redis_keys
from shared.store.jobs import Created, Replayed
from shared.store.queue import Ending
from shared.store.runtime import Runtime, open_runtime
from tests.support.builders import a_submission
from tests.support.limits import BUCKET_MS, KEY, TENANT, WINDOW_MS, age, counted
from tests.support.redis_servers import RedisUnderTest
from tests.support.store import (
    A_RESULT,
    all_keys,
    begin,
    claim_one,
    finish,
    kind_of,
    lose,
    make_overdue,
    receive,
    record_of,
    submit,
    ttl_ms,
)

THREE = CallerLimits(requests_per_minute=3)


async def admitted(runtime: Runtime, **members: object) -> Created:
    """The reply to a submit that must be accepted."""
    reply = await runtime.jobs.submit(a_submission(**members), expires_in_s=3600)  # type: ignore[arg-type]
    assert isinstance(reply, Created)
    return reply


async def test_a_key_may_submit_up_to_its_limit_in_a_minute(runtime: Runtime) -> None:
    """Each reply has what is left; the refusal has the time until there is room again."""
    for left in (2, 1, 0):
        told = (await admitted(runtime, key_id="key-1", limits=THREE)).limits
        assert told == (LimitState(Measured.REQUESTS, 3, left, WINDOW_MS),)
    before = await all_keys(runtime._commands)
    with pytest.raises(RateLimited) as refused:
        await admitted(runtime, key_id="key-1", limits=THREE)
    assert refused.value.limits[0][:3] == (Measured.REQUESTS, 3, 0)
    assert refused.value.retry_after_s is not None
    assert 55 <= refused.value.retry_after_s <= 61
    assert await all_keys(runtime._commands) == before  # nothing was stored
    assert 0 < (await ttl_ms(runtime, redis_keys.pace(KEY)) or 0) <= 120_000
    await admitted(runtime)  # other keys are not limited
    await age(runtime, redis_keys.pace(KEY), refused.value.retry_after_s * 1000)
    await admitted(runtime, key_id="key-1", limits=THREE)


async def test_the_tighter_limit_of_key_and_tenant_applies_and_is_reported(runtime: Runtime) -> None:
    """A tenant's keys share its limit, and a changed limit applies to the next submit."""
    await runtime.tenants.set("tenant-a", {"requests_per_minute": 4})
    assert (await admitted(runtime, key_id="key-1", limits=THREE)).limits[0][:3] == (Measured.REQUESTS, 3, 2)
    await admitted(runtime, key_id="key-2", limits=THREE)
    assert (await admitted(runtime, key_id="key-2", limits=THREE)).limits[0][:3] == (Measured.REQUESTS, 4, 1)
    await admitted(runtime)
    with pytest.raises(RateLimited):
        await admitted(runtime, key_id="key-1", limits=THREE)
    await runtime.tenants.set("tenant-a", {"requests_per_minute": 0})
    await admitted(runtime, key_id="key-1", limits=THREE)


async def test_refused_and_repeated_submits_are_not_counted(runtime: Runtime) -> None:
    """A replay finds its job even over the limit; a submit that the budget refuses uses no request."""
    await admitted(runtime, key_id="key-1", limits=THREE, idempotency_key="k")
    for _ in range(5):
        again = a_submission(key_id="key-1", limits=THREE, idempotency_key="k")
        assert isinstance(await runtime.jobs.submit(again, expires_in_s=60), Replayed)
    broke = CallerLimits(requests_per_minute=3, tokens_per_minute=100, nano_usd_per_day=1)
    claimed = await claim_one(runtime)
    await runtime.queue.finish(claimed, Ending(Step.SUCCEED, A_RESULT), seq=claimed.next_seq, cost=2)
    with pytest.raises(BudgetExceeded):
        await admitted(runtime, key_id="key-1", limits=broke, tokens=50)
    assert await counted(runtime, KEY) == (1, 0)


async def test_a_batch_is_one_request_and_can_be_refused_before_and_after_its_body(runtime: Runtime) -> None:
    """OPEN counts nothing; START decides."""
    one = CallerLimits(requests_per_minute=1, tokens_per_minute=10)
    key = {"key_id": "key-1", "key_limits": one}
    first, second = await receive(runtime, 3, **key), await receive(runtime, 3, **key)  # type: ignore[arg-type]
    assert await begin(runtime, first, **key) == first.id  # type: ignore[arg-type]
    with pytest.raises(RateLimited):
        await begin(runtime, second, **key)  # type: ignore[arg-type]
    with pytest.raises(RateLimited):
        await receive(runtime, 1, **key)  # type: ignore[arg-type]
    assert await counted(runtime, KEY) == (1, 0)


# Tokens

TOKENS = CallerLimits(tokens_per_minute=100)


async def test_reserved_tokens_are_replaced_by_used_ones(runtime: Runtime) -> None:
    """For the key and its tenant, in the bucket of the submit."""
    await runtime.tenants.set("tenant-a", {"tokens_per_minute": 1000})
    told = (await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=60)).limits
    assert told[0][:3] == (Measured.TOKENS, 100, 40)
    with pytest.raises(RateLimited):
        await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=41)
    used = Usage(input_tokens=3, output_tokens=5, cache_creation_input_tokens=1, cache_read_input_tokens=1)
    await finish(runtime, await claim_one(runtime), Ending(Step.SUCCEED, A_RESULT, used))
    assert [(await counted(runtime, owner))[1] for owner in (KEY, TENANT)] == [10, 10]
    await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=90)


async def test_a_job_that_never_started_gives_its_tokens_back(runtime: Runtime) -> None:
    """It was cancelled or it expired, so no call was made."""
    for end in ("cancel", "expire"):
        job = await submit(runtime, key_id="key-1", limits=TOKENS, tokens=60)
        assert (await counted(runtime, KEY))[1] == 60
        if end == "cancel":
            await runtime.jobs.cancel(job.id, "tenant-a")
        else:
            await make_overdue(runtime, job.id)
            await runtime.jobs.expire()
        assert (await counted(runtime, KEY))[1] == 0


async def test_tokens_of_a_started_call_without_known_usage_stay_reserved_once(runtime: Runtime) -> None:
    """A job that was cancelled while it ran, failed, or was taken over and then done: never twice, never lost."""
    job = await submit(runtime, key_id="key-1", limits=TOKENS, tokens=20)
    await claim_one(runtime)
    await runtime.jobs.cancel(job.id, "tenant-a")
    await submit(runtime, key_id="key-1", limits=TOKENS, tokens=20)
    await finish(runtime, await claim_one(runtime), Ending(Step.FAIL))
    await submit(runtime, key_id="key-1", limits=TOKENS, tokens=20)
    await lose(runtime, await claim_one(runtime))
    assert (await counted(runtime, KEY))[1] == 60
    await finish(runtime, await claim_one(runtime), Ending(Step.SUCCEED, A_RESULT, Usage(1, 1)))
    assert (await counted(runtime, KEY))[1] == 42


async def test_usage_in_a_minute_that_is_over_is_not_counted_again(runtime: Runtime) -> None:
    """The submit's bucket has left the window, and is not created again."""
    job = await submit(runtime, key_id="key-1", limits=TOKENS, tokens=60)
    await age(runtime, redis_keys.pace(KEY), WINDOW_MS)
    bucket, amounts = (await record_of(runtime, job.id))[b"reserved"].split(b" ", 1)
    await runtime._commands.call("HSET", redis_keys.job(job.id), "reserved", b"%d %b" % (int(bucket) - 121, amounts))
    await submit(runtime, key_id="key-1", limits=TOKENS, tokens=30)
    await finish(runtime, await claim_one(runtime), Ending(Step.SUCCEED, A_RESULT, Usage(500, 500)))
    assert (await counted(runtime, KEY))[1] == 30
    assert [kind_of(name) for name in await all_keys(runtime._commands)].count("pace") == 1


async def test_a_request_that_can_never_fit_gets_no_429(runtime: Runtime) -> None:
    """The caller would retry without end; the 400 names max_tokens."""
    with pytest.raises(InvalidRequest) as refused:
        await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=120, max_tokens=101)
    assert [error.pointer for error in refused.value.errors] == ["#/max_tokens"]


async def test_the_smaller_limit_is_named_for_a_request_that_can_never_fit(runtime: Runtime) -> None:
    """Of the key's and the tenant's limit: a caller that obeys it succeeds."""
    await runtime.tenants.set("tenant-a", {"tokens_per_minute": 1000})
    await admitted(runtime, tokens=980)
    with pytest.raises(InvalidRequest) as refused:
        await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=2000, max_tokens=2000)
    assert "at most 100," in refused.value.errors[0].detail


async def test_an_estimate_above_the_limit_reserves_a_whole_minute(runtime: Runtime) -> None:
    """An image of a megabyte looks like a quarter of a million tokens, but is a few thousand."""
    await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=250_050, max_tokens=50)
    assert (await counted(runtime, KEY))[1] == 100
    with pytest.raises(RateLimited):
        await admitted(runtime, key_id="key-1", limits=TOKENS, tokens=1)
    await finish(runtime, await claim_one(runtime), Ending(Step.SUCCEED, A_RESULT, Usage(20, 10)))
    assert (await counted(runtime, KEY))[1] == 30


async def test_a_count_of_tokens_is_a_request_without_tokens(runtime: Runtime) -> None:
    """The upstream charges nothing for it."""
    limits = CallerLimits(requests_per_minute=1, tokens_per_minute=10)
    await admitted(runtime, key_id="key-1", limits=limits, tokens=1000, kind=JobKind.COUNT_TOKENS)
    with pytest.raises(RateLimited):
        await admitted(runtime, key_id="key-1", limits=limits, kind=JobKind.COUNT_TOKENS)


# Any history

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 40)),
        st.tuples(st.just("pass"), st.sampled_from([BUCKET_MS, 7_000, 29_500, 31_000, 59_500, 60_500, 130_000])),
    ),
    min_size=5,
    max_size=40,
)


@pytest.mark.timeout(120)
def test_no_sixty_seconds_have_more_than_the_limit(real_redis: RedisUnderTest) -> None:
    """Each refused submit would have exceeded it. Retry-After is long enough, and at most the length of a window."""
    most = CallerLimits(requests_per_minute=5, tokens_per_minute=100)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opened = open_runtime(load_settings(redis_url=real_redis.url), process_name="tests", timeout_s=10)
        runtime = runner.run(stack.enter_async_context(opened))

        async def check(steps: list[tuple[str, int]]) -> None:
            await runtime._commands.call("FLUSHDB")
            moved_ms = 0
            history: list[tuple[int, int]] = []
            for what, amount in steps:
                if what == "pass":
                    await age(runtime, redis_keys.pace(KEY), amount)
                    moved_ms += amount
                    continue
                seconds, micros = await runtime._commands.call("TIME")
                now_ms = moved_ms + int(seconds) * 1000 + int(micros) // 1000
                recent = [(at, tokens) for at, tokens in history if at > now_ms - WINDOW_MS - 50]
                try:
                    created = await admitted(runtime, key_id="key-1", limits=most, tokens=amount)
                except RateLimited as refused:
                    assert len(recent) + 1 > 5 or sum(tokens for _, tokens in recent) + amount > 100
                    wait_s = refused.retry_after_s or 0
                    await age(runtime, redis_keys.pace(KEY), wait_s * 1000)
                    moved_ms += wait_s * 1000
                    assert 1 <= wait_s <= 61
                    created = await admitted(runtime, key_id="key-1", limits=most, tokens=amount)
                history.append((created.created_ms + moved_ms, amount))
                within = [tokens for at, tokens in history if at >= history[-1][0] - 60_000]
                assert len(within) <= 5
                assert sum(within) <= 100

        @hypothesis_settings(max_examples=30, deadline=None)
        @given(steps=_STEPS)
        def any_history(steps: list[tuple[str, int]]) -> None:
            runner.run(check(steps))

        try:
            any_history()
        finally:
            runner.run(stack.aclose())


def test_a_submission_carries_an_estimate_of_its_tokens() -> None:
    """Four bytes of the request are a token; to these comes the bound of the answer."""
    from shared.limits import reservation_of

    request = msgspec.json.encode({"max_tokens": 50, "messages": [{"role": "user", "content": "x" * 400}]})
    assert reservation_of(request) == (50 + len(request) // 4 + 1, 50)
