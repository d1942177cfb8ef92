"""What becomes of a delivery after an attempt, and what is stored of a webhook."""

import json

import pytest

from shared.webhooks import (
    LONGEST_RETRY_AFTER_S,
    DeliveryState,
    EventType,
    Next,
    Reason,
    Webhook,
    next_of,
    stored_form,
    webhook_of,
)

SCHEDULE_S = (5.0, 300.0)


def after(
    status: int | None,
    *,
    reason: Reason | None = None,
    retry_after_s: float | None = None,
    failed_before: int = 0,
    chance: float = 0,
) -> Next:
    return next_of(
        status=status,
        reason=reason,
        retry_after_s=retry_after_s,
        failed_before=failed_before,
        retry_s=SCHEDULE_S,
        chance=lambda: chance,
    )


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_2xx_delivers(status: int) -> None:
    assert after(status) == Next(DeliveryState.DELIVERED)


def test_410_ends_it_at_the_first_attempt() -> None:
    assert after(410) == Next(DeliveryState.FAILED, Reason.GONE)


@pytest.mark.parametrize(
    ("status", "reason"), [(301, Reason.REDIRECT), (404, Reason.STATUS), (500, Reason.STATUS), (101, Reason.STATUS)]
)
def test_all_else_is_tried_again(status: int, reason: Reason) -> None:
    assert after(status) == Next(DeliveryState.PENDING, reason, 5)
    assert after(status, failed_before=1) == Next(DeliveryState.PENDING, reason, 300)
    assert after(status, failed_before=2) == Next(DeliveryState.FAILED, reason)


def test_no_answer_is_tried_again_for_its_reason() -> None:
    assert after(None, reason=Reason.TIMEOUT) == Next(DeliveryState.PENDING, Reason.TIMEOUT, 5)
    assert after(None, reason=Reason.FORBIDDEN_ADDRESS, failed_before=2).state is DeliveryState.FAILED


def test_jitter_makes_it_at_most_a_tenth_longer() -> None:
    assert after(500, chance=1).delay_s == pytest.approx(5.5)


def test_retry_after_makes_it_later_never_sooner_and_by_a_day_at_most() -> None:
    assert after(503, retry_after_s=60).delay_s == 60
    assert after(503, retry_after_s=1).delay_s == 5
    assert after(503, retry_after_s=10_000_000).delay_s == LONGEST_RETRY_AFTER_S


def test_a_webhook_comes_back_as_it_was_stored() -> None:
    webhook = Webhook("https://h.example.com:443/a?b=c", (EventType.JOB_FAILED, EventType.BATCH_ENDED), result=True)
    assert webhook_of(stored_form(webhook)) == webhook
    assert stored_form(None) == b""


def test_an_origin_is_the_same_however_its_port_is_written() -> None:
    """Otherwise a receiver would get twice as many deliveries at once as it should."""

    def origin_of(url: str) -> str:
        stored = stored_form(Webhook(url, (EventType.JOB_FAILED,), result=False))
        return str(json.loads(stored)["origin"])

    assert origin_of("https://h.example.com/a") == origin_of("https://h.example.com:443/b")
    assert origin_of("http://h.example.com") == origin_of("http://h.example.com:80")
    assert len({origin_of(f"{url}.example.com") for url in ("http://h", "https://h", "https://i")}) == 3
    assert origin_of("https://h.example.com:8443") != origin_of("https://h.example.com")
