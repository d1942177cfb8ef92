"""Deliveries of webhooks: created together with a job's end, claimed in lanes, ended once, repeated on request."""

from typing import Any

import msgspec
import pytest

from shared.errors import JobError, NotFound
from shared.job import Step, Usage
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from shared.store.webhooks import LANE_MOST, TENANT_MOST, Claimed, DeliveryClaim
from shared.webhooks import Attempt, Delivery, DeliveryState, EventType, Next, Reason, Webhook, body_of, delivery_id_of
from tests.support.builders import a_bad_line, a_line, a_webhook
from tests.support.store import A_RESULT, claim, finish, members, now_ms, start_batch, submit, succeed, ttl_ms

TENANT = "tenant-a"
DELIVERED = Next(DeliveryState.DELIVERED)
AGAIN = Next(DeliveryState.PENDING, Reason.STATUS, 60)
FAILED = Next(DeliveryState.FAILED, Reason.STATUS)
AN_ATTEMPT = Attempt(at_ms=1, took_ms=2, status=500, reason=Reason.STATUS)


async def claimed(runtime: Runtime, count: int = 100) -> Claimed:
    return await runtime.webhooks.claim(count=count, lease_s=25)


async def claim_delivery(runtime: Runtime) -> DeliveryClaim:
    (one,) = (await claimed(runtime)).claims
    return one


async def delivery_of(runtime: Runtime, subject: str) -> Delivery:
    return await runtime.webhooks.get(delivery_id_of(subject), TENANT)


async def ended(runtime: Runtime, webhook: Webhook, *, tenant: str = TENANT) -> str:
    """A job that has succeeded and has a webhook."""
    return (await succeed(runtime, webhook=webhook, tenant=tenant)).id


async def at_its_share(runtime: Runtime) -> list[DeliveryClaim]:
    """Claims as many attempts as the tenant may have, each to another origin."""
    for number in range(TENANT_MOST):
        await ended(runtime, a_webhook(f"https://hangs{number}.example.com/"))
    hanging = (await claimed(runtime)).claims
    assert len(hanging) == TENANT_MOST
    return hanging


async def parked(runtime: Runtime, count: int) -> list[str]:
    """Jobs whose deliveries go to different origins, and wait in this order until the tenant has room."""
    jobs = []
    for number in range(count):
        jobs.append(job_id := await ended(runtime, a_webhook(f"https://waits{number}.example.com/")))
        assert (await claimed(runtime)).claims == []
        lane = await runtime._commands.call("HGET", redis_keys.delivery(delivery_id_of(job_id)), "lane")
        await runtime._commands.call("ZADD", f"{redis_keys.SHARD}parked_lanes:{TENANT}", "XX", number, lane)
    return jobs


async def make_due(runtime: Runtime, delivery: Delivery) -> None:
    """Makes its next attempt, or the end of its lease, due now."""
    call = runtime._commands.call
    lane = (await call("HGET", redis_keys.delivery(delivery.id), "lane")).decode()
    for kind in ("unsent", "sending"):
        await call("ZADD", f"{redis_keys.SHARD}{kind}:{lane}", "XX", 0, delivery.id)
    await call("ZADD", redis_keys.plain("lanes"), 0, lane)


async def left(runtime: Runtime) -> list[str]:
    """The lanes, and the deliveries that wait in them or are being sent."""
    found = [name.decode() for name in await runtime._commands.call("KEYS", f"{redis_keys.SHARD}*")]
    wanted = tuple(redis_keys.SHARD + kind for kind in ("lanes", "parked", "unsent", "sending", "tenant_sending"))
    return [name for name in found if name.startswith(wanted)]


def data_of(delivery: Delivery, result: bytes | None = None) -> Any:
    return msgspec.json.decode(body_of(delivery, result))


@pytest.mark.parametrize(
    ("ending", "event"),
    [
        (Ending(Step.SUCCEED, A_RESULT, Usage(3, 4)), EventType.JOB_SUCCEEDED),
        (Ending(Step.FAIL, error=JobError("upstream_error", "Why.", retryable=True)), EventType.JOB_FAILED),
    ],
)
async def test_an_end_is_to_be_told_in_the_same_step(runtime: Runtime, ending: Ending, event: EventType) -> None:
    submission = await submit(runtime, webhook=a_webhook())
    (running,) = await claim(runtime)
    assert (await claimed(runtime)).claims == []
    await finish(runtime, running, ending)
    one = await claim_delivery(runtime)
    assert (one.delivery.event, one.delivery.subject, one.failed_before) == (event, submission.id, 0)
    told = data_of(one.delivery)
    assert told["type"] == event
    assert told["data"]["job_id"] == submission.id
    assert told["data"]["url"] == f"/v1/jobs/{submission.id}"
    assert told["data"]["status"] == event.removeprefix("job.")
    assert (told["data"].get("error") or {}).get("code") == (ending.error and ending.error.code)
    assert (told["data"]["usage"] is None) == (ending.usage is None)
    assert (await claimed(runtime)).claims == []
    assert await runtime.webhooks.end(one, DELIVERED, Attempt(1, 2, 204))
    assert await left(runtime) == []


async def test_a_cancelled_and_an_expired_job_are_told_too(runtime: Runtime) -> None:
    cancelled = await submit(runtime, webhook=a_webhook())
    await runtime.jobs.cancel(cancelled.id, TENANT)
    expired = await submit(runtime, webhook=a_webhook())
    await runtime._commands.call("ZADD", redis_keys.plain("waiting"), 0, expired.id)
    await runtime.jobs.expire()
    found = {one.delivery.subject: one.delivery.event for one in (await claimed(runtime)).claims}
    assert found == {cancelled.id: EventType.JOB_CANCELLED, expired.id: EventType.JOB_EXPIRED}


async def test_what_was_not_asked_for_is_not_told(runtime: Runtime) -> None:
    await succeed(runtime)
    await ended(runtime, a_webhook("https://hooks.example.com/", EventType.JOB_FAILED))
    assert await left(runtime) == []


async def test_the_webhook_is_told_back(runtime: Runtime) -> None:
    webhook = a_webhook("https://hooks.example.com/?a=1", EventType.JOB_FAILED, result=True)
    submission = await submit(runtime, webhook=webhook)
    assert (await runtime.jobs.get(submission.id, TENANT)).webhook == webhook


async def test_the_result_comes_along_if_asked_for(runtime: Runtime) -> None:
    job_id = await ended(runtime, a_webhook(result=True))
    one = await claim_delivery(runtime)
    result = await runtime.webhooks.result_of(one.delivery)
    assert result == A_RESULT
    assert data_of(one.delivery, result)["data"]["result"] == msgspec.json.decode(A_RESULT)
    await runtime._commands.call("DEL", redis_keys.result(job_id))
    assert await runtime.webhooks.result_of(one.delivery) is None


async def test_a_batch_is_told_once_with_its_counts(runtime: Runtime) -> None:
    begun = await start_batch(
        runtime,
        [a_line(1), a_bad_line(2), a_line(3)],
        webhook=a_webhook("https://h.example.com", EventType.BATCH_ENDED),
    )
    for running in await claim(runtime, count=10):
        await finish(runtime, running, Ending(Step.SUCCEED, A_RESULT, Usage(3, 4)))
    one = await claim_delivery(runtime)
    assert (one.delivery.event, one.delivery.subject) == (EventType.BATCH_ENDED, begun.id)
    data = data_of(one.delivery)["data"]
    assert data["counts"]["succeeded"] == 2
    assert data["counts"]["failed"] == 1
    assert data["counts"]["total"] == 3
    assert data["usage"]["output_tokens"] == 8
    assert (data["batch_id"], data["url"], data["status"]) == (begun.id, f"/v1/batches/{begun.id}", "ended")


async def test_a_batch_of_nothing_that_runs_is_told_at_its_start(runtime: Runtime) -> None:
    begun = await start_batch(runtime, [a_bad_line(1)], webhook=a_webhook())
    assert (await claim_delivery(runtime)).delivery.subject == begun.id


async def test_items_are_told_if_their_batch_asks_for_events_of_jobs(runtime: Runtime) -> None:
    begun = await start_batch(runtime, 2, webhook=a_webhook())
    for running in await claim(runtime, count=10):
        await finish(runtime, running)
    claims = (await claimed(runtime)).claims
    assert {one.delivery.subject for one in claims} == {begun.id, *begun.job_ids}
    (first,) = [one.delivery for one in claims if one.delivery.subject == begun.job_ids[0]]
    assert data_of(first)["data"]["batch_id"] == begun.id
    assert data_of(first)["data"]["custom_id"] == "item-1"
    assert (await runtime.jobs.get(begun.job_ids[0], TENANT)).webhook is None


async def test_a_failed_attempt_is_made_again_later_with_the_same_body(runtime: Runtime) -> None:
    await ended(runtime, a_webhook())
    one = await claim_delivery(runtime)
    assert await runtime.webhooks.end(one, AGAIN, AN_ATTEMPT)
    now = await claimed(runtime)
    assert now.claims == []
    assert now.next_due_s is not None
    assert 50 < now.next_due_s <= 60
    waiting = await delivery_of(runtime, one.delivery.subject)
    assert (waiting.state, waiting.attempts) == (DeliveryState.PENDING, (AN_ATTEMPT,))
    assert waiting.due_ms is not None
    await make_due(runtime, one.delivery)
    again = await claim_delivery(runtime)
    assert (again.failed_before, body_of(again.delivery)) == (1, body_of(one.delivery))


async def test_of_what_was_not_tried_nothing_is_counted(runtime: Runtime) -> None:
    await ended(runtime, a_webhook())
    one = await claim_delivery(runtime)
    assert await runtime.webhooks.end(one, Next(DeliveryState.PENDING, delay_s=5), None)
    now = await claimed(runtime)
    assert now.claims == []
    assert now.next_due_s is not None
    assert 4 < now.next_due_s <= 5
    await make_due(runtime, one.delivery)
    again = await claim_delivery(runtime)
    assert (again.failed_before, again.delivery.attempts) == (0, ())


async def test_the_end_of_a_delivery_has_a_retention(runtime: Runtime) -> None:
    for then in (DELIVERED, FAILED):
        await ended(runtime, a_webhook())
        one = await claim_delivery(runtime)
        await runtime.webhooks.end(one, then, AN_ATTEMPT)
        found = await delivery_of(runtime, one.delivery.subject)
        assert (found.state, found.due_ms) == (then.state, None)
        assert found.ended_ms is not None
        assert 604_000_000 < (await ttl_ms(runtime, redis_keys.delivery(found.id)) or 0) <= 604_800_000


async def test_a_tenants_retention_goes_before_ours(runtime: Runtime) -> None:
    await runtime.tenants.set(TENANT, {"result_retention_ms": 90_000})
    await ended(runtime, a_webhook())
    one = await claim_delivery(runtime)
    await runtime.webhooks.end(one, DELIVERED, Attempt(1, 2, 200))
    assert 80_000 < (await ttl_ms(runtime, redis_keys.delivery(one.delivery.id)) or 0) <= 90_000


async def test_a_worker_that_died_loses_its_claim(runtime: Runtime) -> None:
    await ended(runtime, a_webhook())
    dead = await claim_delivery(runtime)
    await make_due(runtime, dead.delivery)
    heir = await claim_delivery(runtime)
    assert heir.epoch == dead.epoch + 1
    assert not await runtime.webhooks.end(dead, DELIVERED, Attempt(1, 2, 200))
    assert (await delivery_of(runtime, dead.delivery.subject)).state is DeliveryState.PENDING
    assert await runtime.webhooks.end(heir, DELIVERED, Attempt(1, 2, 200))
    assert not await runtime.webhooks.end(heir, FAILED, AN_ATTEMPT)
    assert await left(runtime) == []


async def test_a_lane_takes_no_more_than_its_share(runtime: Runtime) -> None:
    for _ in range(LANE_MOST + 3):
        await ended(runtime, a_webhook("https://hangs.example.com/"))
    hanging = (await claimed(runtime)).claims
    assert len(hanging) == LANE_MOST
    other = await ended(runtime, a_webhook("https://answers.example.com/"))
    assert (await claim_delivery(runtime)).delivery.subject == other
    for one in hanging:
        await runtime.webhooks.end(one, AGAIN, AN_ATTEMPT)
    assert len((await claimed(runtime)).claims) == 3


async def test_a_tenant_takes_no_more_than_its_share(runtime: Runtime) -> None:
    """Further deliveries wait until another ends, and are not polled meanwhile."""
    hanging = await at_its_share(runtime)
    waiting = await parked(runtime, 3)
    theirs = await ended(runtime, a_webhook(), tenant="tenant-b")
    found = await claimed(runtime)
    assert [one.delivery.subject for one in found.claims] == [theirs]
    assert found.next_due_s is not None
    assert found.next_due_s > 10
    told = []
    for one in hanging[:3]:
        await runtime.webhooks.end(one, AGAIN, AN_ATTEMPT)
        told.append((await claim_delivery(runtime)).delivery.subject)
    assert sorted(told) == sorted(waiting)


async def test_a_lane_with_much_to_tell_leaves_room_to_those_that_wait(runtime: Runtime) -> None:
    for _ in range(2 * LANE_MOST):
        await ended(runtime, a_webhook("https://busy.example.com/"))
    for number in range(TENANT_MOST - LANE_MOST):
        await ended(runtime, a_webhook(f"https://hangs{number}.example.com/"))
    busy = [one for one in (await claimed(runtime)).claims if "busy" in one.delivery.url]
    waiting = await parked(runtime, 2)
    told = []
    for one in busy[:3]:
        await runtime.webhooks.end(one, DELIVERED, Attempt(1, 2, 200))
        told.append(await claim_delivery(runtime))
    assert sorted(one.delivery.subject for one in told[:2]) == sorted(waiting)
    assert "busy" in told[2].delivery.url


async def test_what_is_erased_while_it_is_told_or_waits_leaves_its_room_to_others(runtime: Runtime) -> None:
    hanging = await at_its_share(runtime)
    *erased, last = await parked(runtime, 4)
    for job_id in (*erased, hanging[0].delivery.subject):
        await runtime.jobs.erase(job_id, TENANT)
    one = await claim_delivery(runtime)
    assert one.delivery.subject == last
    for under_way in (one, *hanging[1:]):
        assert await runtime.webhooks.end(under_way, DELIVERED, Attempt(1, 2, 200))
    for lane in await members(runtime, redis_keys.plain("lanes")):
        await runtime._commands.call("ZADD", redis_keys.plain("lanes"), 0, lane)
    assert (await claimed(runtime)).claims == []
    assert await left(runtime) == []


async def test_a_lane_that_has_nothing_to_tell_leaves_its_room_to_the_next(runtime: Runtime) -> None:
    await ended(runtime, a_webhook("https://waits0.example.com/"))
    gone = Next(DeliveryState.FAILED, Reason.GONE)
    await runtime.webhooks.end(await claim_delivery(runtime), gone, Attempt(1, 2, 410, Reason.GONE))
    hanging = await at_its_share(runtime)
    disabled, other = await parked(runtime, 2)
    await runtime.webhooks.end(hanging[0], AGAIN, AN_ATTEMPT)
    found = await claimed(runtime)
    assert (found.claims, found.next_due_s) == ([], 0)
    assert (await delivery_of(runtime, disabled)).state is DeliveryState.FAILED
    assert (await claim_delivery(runtime)).delivery.subject == other


async def test_lanes_that_wait_for_a_dead_worker_are_told_in_the_end(runtime: Runtime) -> None:
    dead = await at_its_share(runtime)
    jobs = {one.delivery.subject for one in dead} | set(await parked(runtime, 3))
    for one in dead:
        await make_due(runtime, one.delivery)
    told = set()
    while claims := (await claimed(runtime)).claims:
        for one in claims:
            told.add(one.delivery.subject)
            await runtime.webhooks.end(one, DELIVERED, Attempt(1, 2, 200))
    assert told == jobs
    assert await left(runtime) == []


async def test_a_lane_that_waits_and_is_called_for_waits_on(runtime: Runtime) -> None:
    """By a new delivery, or a repeated one."""
    hanging = await at_its_share(runtime)
    (waiting,) = await parked(runtime, 1)
    (another,) = await parked(runtime, 1)
    await runtime.webhooks.redeliver(delivery_id_of(waiting), TENANT)
    assert (await claimed(runtime)).claims == []
    for one in hanging[:2]:
        await runtime.webhooks.end(one, DELIVERED, Attempt(1, 2, 200))
    assert {one.delivery.subject for one in (await claimed(runtime)).claims} == {waiting, another}
    assert (await claimed(runtime)).claims == []


async def test_a_lane_that_nobody_unparks_is_looked_at_after_a_minute(runtime: Runtime) -> None:
    await at_its_share(runtime)
    (waiting,) = await parked(runtime, 1)
    call = runtime._commands.call
    lane = (await call("HGET", redis_keys.delivery(delivery_id_of(waiting)), "lane")).decode()
    look_ms = int(await call("ZSCORE", redis_keys.plain("lanes"), lane)) - await now_ms(runtime)
    assert 50_000 < look_ms <= 60_000
    await call("DEL", f"{redis_keys.SHARD}tenant_sending:{TENANT}")
    await call("ZADD", redis_keys.plain("lanes"), 0, lane)
    assert (await claim_delivery(runtime)).delivery.subject == waiting


async def test_a_claim_of_few_leaves_the_rest_to_the_next(runtime: Runtime) -> None:
    for number in range(5):
        await ended(runtime, a_webhook(f"https://h{number % 2}.example.com/"))
    assert len((await claimed(runtime, 2)).claims) == 2
    assert len((await claimed(runtime, 2)).claims) == 2
    assert len((await claimed(runtime, 2)).claims) == 1


async def test_who_says_gone_is_told_nothing_more_until_a_redelivery_arrives(runtime: Runtime) -> None:
    gone = a_webhook("https://gone.example.com/a")
    first = await ended(runtime, gone)
    one = await claim_delivery(runtime)
    await runtime.webhooks.end(one, Next(DeliveryState.FAILED, Reason.GONE), Attempt(1, 2, 410, Reason.GONE))
    second = await ended(runtime, gone)
    other = await ended(runtime, a_webhook("https://gone.example.com/b"))
    assert (await claim_delivery(runtime)).delivery.subject == other
    unsent = await delivery_of(runtime, second)
    assert (unsent.state, [attempt.reason for attempt in unsent.attempts]) == (DeliveryState.FAILED, [Reason.DISABLED])
    await runtime.webhooks.redeliver(delivery_id_of(first), TENANT)
    again = await claim_delivery(runtime)
    assert (again.delivery.subject, again.failed_before) == (first, 0)
    await runtime.webhooks.end(again, DELIVERED, Attempt(1, 2, 200))
    third = await ended(runtime, gone)
    assert (await claim_delivery(runtime)).delivery.subject == third


async def test_a_redelivery_begins_anew_and_lives_until_it_ends(runtime: Runtime) -> None:
    job_id = await ended(runtime, a_webhook())
    one = await claim_delivery(runtime)
    being_told = await runtime.webhooks.redeliver(one.delivery.id, TENANT)
    assert being_told.state is DeliveryState.PENDING
    await runtime.webhooks.end(one, FAILED, AN_ATTEMPT)
    again = await runtime.webhooks.redeliver(one.delivery.id, TENANT)
    assert (again.state, again.attempts, again.ended_ms) == (DeliveryState.PENDING, (), None)
    assert await ttl_ms(runtime, redis_keys.delivery(one.delivery.id)) is None
    claim_again = await claim_delivery(runtime)
    assert (claim_again.delivery.subject, claim_again.failed_before) == (job_id, 0)
    await runtime.webhooks.end(claim_again, DELIVERED, Attempt(1, 2, 200))
    with pytest.raises(NotFound):
        await runtime.webhooks.redeliver(one.delivery.id, "tenant-b")
    with pytest.raises(NotFound):
        await runtime.webhooks.get(one.delivery.id, "tenant-b")


async def test_what_is_erased_is_told_to_nobody(runtime: Runtime) -> None:
    job_id = await ended(runtime, a_webhook())
    one = await claim_delivery(runtime)
    await runtime.jobs.erase(job_id, TENANT)
    assert not await runtime.webhooks.end(one, AGAIN, AN_ATTEMPT)
    begun = await start_batch(runtime, 2, webhook=a_webhook())
    for running in await claim(runtime, count=10):
        await finish(runtime, running)
    await runtime.batches.erase(begun.id, TENANT)
    await runtime.batches.advance_all(begun.id)
    assert (await claimed(runtime)).claims == []
    assert await left(runtime) == []
    assert await runtime._commands.call("KEYS", f"{redis_keys.SHARD}delivery*") == []


async def test_the_list_is_the_tenants_and_filtered(runtime: Runtime) -> None:
    jobs = [await ended(runtime, a_webhook()) for _ in range(5)]
    await ended(runtime, a_webhook(), tenant="tenant-b")
    for one in (await claimed(runtime)).claims:
        if one.delivery.subject in jobs[:2]:
            await runtime.webhooks.end(one, FAILED, AN_ATTEMPT)

    async def subjects(**how: Any) -> list[str]:
        page = await runtime.webhooks.page(TENANT, **{"after": None, "limit": 10, **how})
        return [one.subject for one in page.deliveries]

    assert await subjects() == jobs[::-1]
    assert await subjects(state=DeliveryState.FAILED) == [jobs[1], jobs[0]]
    assert await subjects(job_id=jobs[3]) == [jobs[3]]
    assert await subjects(job_id=jobs[3], state=DeliveryState.FAILED) == []
    assert await subjects(batch_id="batch_none") == []
    first = await runtime.webhooks.page(TENANT, after=None, limit=2)
    assert first.next_after == first.deliveries[-1].id
    rest = await runtime.webhooks.page(TENANT, after=first.next_after, limit=10)
    assert [one.subject for one in first.deliveries + rest.deliveries] == jobs[::-1]
    assert rest.next_after is None


async def test_two_secrets_live_through_a_rotation(runtime: Runtime) -> None:
    first = await runtime.webhooks.secrets(TENANT)
    assert first == await runtime.webhooks.secrets(TENANT)
    assert (await runtime.webhooks.secrets("tenant-b")).current != first.current
    second = await runtime.webhooks.rotate(TENANT, grace_s=60)
    assert second.live == (second.current, first.current)
    assert first.current not in repr(second)
    third = await runtime.webhooks.rotate(TENANT, grace_s=0)
    assert third.live == (third.current,) == (await runtime.webhooks.secrets(TENANT)).live
