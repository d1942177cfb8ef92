"""Webhooks from real workers to a receiver on a real socket: on schedule, signed, at least once."""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from shared.store import redis_keys
from shared.store.webhooks import LANE_MOST
from shared.webhooks import Delivery, DeliveryState, EventType, Reason, Webhook, delivery_id_of
from tests.running.crew import TENANT, Crew, Hand
from tests.support.builders import a_webhook
from tests.support.receiver import Receiver, receiving, response
from tests.support.store import start_batch
from tests.support.wait import wait_until
from worker.webhooks.dns import LookUps

RETRY_S: Final = (0.2, 0.4, 0.3, 0.2)
REACHABLE: Final = "127.0.0.0/8"


@pytest.fixture
async def receiver(nothing_is_left_behind: None) -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def a_worker(crew: Crew, **settings: Any) -> Hand:
    """A worker that may call receivers on this machine."""
    quick: dict[str, Any] = {"webhook_allow_networks": REACHABLE, "webhook_retry_s": RETRY_S, "webhook_timeout_s": 0.5}
    return await crew.worker(**(quick | settings))


async def delivery_of(crew: Crew, subject: str) -> Delivery:
    return await crew.runtime.webhooks.get(delivery_id_of(subject), TENANT)


async def delivered(crew: Crew, subject: str, state: DeliveryState = DeliveryState.DELIVERED) -> Delivery:
    """Waits until the delivery of a job or batch is in that state."""

    async def has_ended() -> bool:
        record = await crew.runtime._commands.call("HGET", redis_keys.delivery(delivery_id_of(subject)), "state")
        return bool(record == state.encode())

    await wait_until(has_ended, f"{subject} to be {state}", timeout_s=20)
    return await delivery_of(crew, subject)


def hook(receiver: Receiver, *events: EventType, path: str = "/told", result: bool = False) -> Webhook:
    return a_webhook(receiver.url + path, *events, result=result)


async def test_the_end_of_a_job_is_delivered_signed_with_the_tenants_secret(crew: Crew, receiver: Receiver) -> None:
    await a_worker(crew)
    job_id = await crew.submit(webhook=hook(receiver, result=True))
    job = await crew.ended(job_id)
    await delivered(crew, job_id)
    (one,) = receiver.received
    secrets = await crew.runtime.webhooks.secrets(TENANT)
    body = one.verified_by(secrets.current)
    assert body["type"] == "job.succeeded"
    assert body["data"]["job_id"] == job_id
    assert body["data"]["usage"] == msgspec.to_builtins(job.usage)
    assert body["data"]["result"] == msgspec.json.decode(job.result or b"")
    assert one.id == delivery_id_of(job_id)
    assert one.headers["user-agent"].startswith("tokenspool/")
    with pytest.raises(WebhookVerificationError):
        one.verified_by((await crew.runtime.webhooks.secrets("tenant-b")).current)


async def test_the_schedule_is_as_documented_and_every_attempt_is_the_same(crew: Crew, receiver: Receiver) -> None:
    """The receiver sends 500 twice, nothing, a redirect, and then 204."""
    async with receiving() as elsewhere:
        receiver.respond_with(response(500), response(500), None, response(307, location=elsewhere.url))
        await a_worker(crew)
        job_id = await crew.submit(webhook=hook(receiver))
        delivery = await delivered(crew, job_id)
        assert elsewhere.connections == 0
    assert [(attempt.status, attempt.reason) for attempt in delivery.attempts] == [
        (500, Reason.STATUS),
        (500, Reason.STATUS),
        (None, Reason.TIMEOUT),
        (307, Reason.REDIRECT),
        (204, None),
    ]
    assert len({(one.id, one.body) for one in receiver.received}) == 1
    secrets = await crew.runtime.webhooks.secrets(TENANT)
    for one in receiver.received:
        one.verified_by(secrets.current)
    pauses_s = [
        later.at_s - sooner.at_s for sooner, later in zip(receiver.received, receiver.received[1:], strict=False)
    ]
    assert all(pause_s >= retry_s - 0.01 for pause_s, retry_s in zip(pauses_s, RETRY_S, strict=True))


async def test_after_the_last_attempt_a_delivery_has_failed_and_can_be_repeated(crew: Crew, receiver: Receiver) -> None:
    receiver.respond_with(*[response(500)] * (len(RETRY_S) + 1))
    await a_worker(crew)
    job_id = await crew.submit(webhook=hook(receiver))
    delivery = await delivered(crew, job_id, DeliveryState.FAILED)
    assert len(delivery.attempts) == len(RETRY_S) + 1 == len(receiver.received)
    await crew.runtime.webhooks.redeliver(delivery.id, TENANT)
    assert len((await delivered(crew, job_id)).attempts) == 1
    assert len({(one.id, one.body) for one in receiver.received}) == 1


async def test_410_disables_the_endpoint(crew: Crew, receiver: Receiver) -> None:
    receiver.respond_with(response(410))
    await a_worker(crew)
    first = await crew.submit(webhook=hook(receiver))
    assert (await delivered(crew, first, DeliveryState.FAILED)).attempts[-1].reason is Reason.GONE
    second = await crew.submit(webhook=hook(receiver))
    assert (await delivered(crew, second, DeliveryState.FAILED)).attempts[-1].reason is Reason.DISABLED
    other = await crew.submit(webhook=hook(receiver, path="/another"))
    await delivered(crew, other)
    assert [one.subject for one in receiver.received] == [first, other]


async def test_the_receivers_retry_after_is_obeyed(crew: Crew, receiver: Receiver) -> None:
    receiver.respond_with(response(503, retry_after="600"))
    await a_worker(crew)
    job_id = await crew.submit(webhook=hook(receiver))
    await crew.ended(job_id)

    async def has_failed_once() -> bool:
        return len((await delivery_of(crew, job_id)).attempts) == 1

    await wait_until(has_failed_once, "an attempt")
    delivery = await delivery_of(crew, job_id)
    assert delivery.due_ms is not None
    assert delivery.due_ms - delivery.created_ms >= 599_000


async def test_both_secrets_sign_while_one_is_rotated(crew: Crew, receiver: Receiver) -> None:
    old = await crew.runtime.webhooks.secrets(TENANT)
    new = await crew.runtime.webhooks.rotate(TENANT, grace_s=60)
    await a_worker(crew)
    await delivered(crew, await crew.submit(webhook=hook(receiver)))
    (one,) = receiver.received
    assert one.verified_by(old.current) == one.verified_by(new.current)


async def test_an_attempt_whose_worker_died_is_made_by_another(crew: Crew, receiver: Receiver) -> None:
    receiver.respond_with(None)
    dead = await a_worker(crew, webhook_timeout_s=30)
    job_id = await crew.submit(webhook=hook(receiver))
    await wait_until(lambda: bool(receiver.received), "the first attempt")
    await dead.killed()
    await a_worker(crew)
    call = crew.runtime._commands.call
    lane = (await call("HGET", redis_keys.delivery(delivery_id_of(job_id)), "lane")).decode()
    assert await call("ZADD", f"{redis_keys.SHARD}sending:{lane}", "XX", "CH", 0, delivery_id_of(job_id)) == 1
    await call("ZADD", redis_keys.plain("lanes"), 0, lane)
    await delivered(crew, job_id)
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)


async def test_a_worker_that_drains_ends_its_attempts(crew: Crew, receiver: Receiver) -> None:
    receiver.respond_with(None)
    worker = await a_worker(crew, webhook_timeout_s=1)
    job_id = await crew.submit(webhook=hook(receiver))
    await wait_until(lambda: bool(receiver.received), "the first attempt")
    await worker.drained()
    assert [attempt.reason for attempt in (await delivery_of(crew, job_id)).attempts] == [Reason.TIMEOUT]


async def test_a_hanging_receiver_delays_no_other(crew: Crew, receiver: Receiver) -> None:
    """While it hangs, deliveries of other tenants and of the same tenant to other receivers go on."""
    async with receiving() as hanging:
        hanging.respond_to = lambda _: None
        await a_worker(crew, webhook_timeout_s=30)
        for _ in range(3 * LANE_MOST):
            await crew.submit(webhook=hook(hanging))
        await wait_until(lambda: len(hanging.received) == LANE_MOST, "a full lane")
        own = await crew.submit(webhook=hook(receiver))
        theirs = await crew.submit(webhook=hook(receiver), tenant="tenant-b")
        await wait_until(lambda: {one.subject for one in receiver.received} == {own, theirs}, "the other deliveries")
        assert len(hanging.received) == LANE_MOST


async def test_a_delivery_without_a_free_look_up_slot_is_put_back(
    crew: Crew, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attempt is counted, since the receiver was not called."""

    async def no_room(*_: str) -> None:
        return None

    monkeypatch.setattr(LookUps, "begin", no_room)
    hand = await a_worker(crew, webhook_retry_s=())
    job_id = await crew.submit(webhook=a_webhook(receiver.url.replace("127.0.0.1", "localhost")))
    await wait_until(lambda: bool(hand.log.named("webhook_put_back")), "the delivery to be put back")
    delivery = await delivery_of(crew, job_id)
    assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, ())
    assert delivery.due_ms is not None
    assert delivery.due_ms - delivery.created_ms >= 5000


async def test_a_batch_is_delivered_once_and_its_items_too_if_asked(crew: Crew, receiver: Receiver) -> None:
    begun = await start_batch(crew.runtime, 3, webhook=hook(receiver), tenant=TENANT)
    await crew.runtime.batches.cancel(begun.id, TENANT)
    await crew.runtime.batches.advance_all(begun.id)
    await a_worker(crew)
    await delivered(crew, begun.id)
    await wait_until(lambda: len(receiver.received) >= 4, "all deliveries")
    assert sorted(one.subject for one in receiver.received) == sorted([begun.id, *begun.job_ids])


async def test_a_forbidden_address_is_never_called_and_nothing_is_logged_of_it(crew: Crew, receiver: Receiver) -> None:
    hand = await a_worker(crew, webhook_allow_networks="", webhook_retry_s=(0.05,))
    secret_path = "/a-path-that-is-nobodys"
    job_id = await crew.submit(webhook=hook(receiver, path=secret_path))
    delivery = await delivered(crew, job_id, DeliveryState.FAILED)
    assert {attempt.reason for attempt in delivery.attempts} == {Reason.FORBIDDEN_ADDRESS}
    assert receiver.connections == 0
    assert secret_path not in repr(hand.log.lines)
    assert "whsec_" not in repr(hand.log.lines)
