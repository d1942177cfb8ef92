"""Delivers webhooks: claims what is due, signs it, sends it once, and records how that ended.

Deliveries take no slots of jobs, so a receiver that hangs delays no job. The shares of lanes and tenants in
shared/store/webhooks.py keep it from delaying the deliveries of others. Each delivery is sent at least once: if a worker dies
after an attempt, or cannot record how it ended, the lease expires and another worker sends it again.
"""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Self

from standardwebhooks.webhooks import Webhook as Signer

from shared.settings import Settings
from shared.store.webhooks import DeliveryClaim, Webhooks
from shared.telemetry import Logger
from shared.version import version
from shared.webhooks import Attempt, DeliveryState, Next, Secrets, body_of, next_of
from worker.redis_trouble import AWAY, Outage
from worker.webhooks.dns import WAIT_S
from worker.webhooks.sender import UNTRIED, Sender

_SLOTS: Final = 64
"""Attempts of one worker at once."""
_TICK_S: Final = 1.0
_LEASE_MARGIN_S: Final = WAIT_S + 10.0
"""What an attempt may take in addition to the sending: waiting for a look-up, reading the result, recording how it ended."""
_PUT_BACK: Final = Next(DeliveryState.PENDING, delay_s=5.0)
"""For a delivery that could not be attempted."""


class Deliverer:
    """One for a worker process. ``wake`` it when something may be due."""

    def __init__(
        self,
        webhooks: Webhooks,
        settings: Settings,
        outage: Outage,
        logger: Logger,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._webhooks = webhooks
        self._sender = Sender(
            settings.webhook_allow_networks,
            user_agent=f"tokenspool/{version()}",
            timeout_s=settings.webhook_timeout_s,
        )
        self._lease_s = settings.webhook_timeout_s + _LEASE_MARGIN_S
        self._retry_s = settings.webhook_retry_s
        self._outage = outage
        self._logger = logger
        self._chance = chance
        self._attempts: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self.wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Cancels the attempts under way. Their leases expire, and another worker sends them."""
        await self._stop()

    async def deliver(self) -> float:
        """Fills the free slots. Returns how many seconds to wait, unless woken. Raises StorageUnavailable, StorageFull."""
        free = _SLOTS - len(self._attempts)
        if free <= 0 or self._is_draining:
            return _TICK_S
        claimed = await self._webhooks.claim(count=free, lease_s=self._lease_s)
        for claim in claimed.claims:
            attempt = asyncio.create_task(self._attempt(claim), name=claim.delivery.id)
            self._attempts.add(attempt)
            attempt.add_done_callback(self._on_end)
        return _TICK_S if claimed.next_due_s is None else min(_TICK_S, claimed.next_due_s)

    async def drain(self, hurry: asyncio.Event) -> None:
        """Stops claiming, and lets the attempts under way end; in a ``hurry`` it cancels them. Never raises."""
        self._is_draining = True
        deadline_s = time.monotonic() + self._lease_s
        while self._attempts and not hurry.is_set() and time.monotonic() < deadline_s:
            await asyncio.wait(self._attempts, timeout=0.1)
        await self._stop()

    async def _stop(self) -> None:
        for attempt in self._attempts:
            attempt.cancel()
        if self._attempts:
            await asyncio.wait(self._attempts)

    def _on_end(self, attempt: "asyncio.Task[None]") -> None:
        self._attempts.discard(attempt)
        self.wake.set()

    async def _attempt(self, claim: DeliveryClaim) -> None:
        try:
            await self._deliver(claim)
        except AWAY as problem:
            self._outage.note(problem)  # its lease will expire
        except Exception:  # a bug of ours: its lease will expire too
            self._logger.exception("delivery_crashed", delivery_id=claim.delivery.id)

    async def _deliver(self, claim: DeliveryClaim) -> None:
        delivery = claim.delivery
        secrets = await self._webhooks.secrets(delivery.tenant)
        result = await self._webhooks.result_of(delivery) if delivery.with_result else None
        body = body_of(delivery, result)
        began_s, at_ms = time.monotonic(), time.time_ns() // 1_000_000
        headers = headers_of(delivery.id, body, secrets)
        receipt = await self._sender.post(delivery.url, headers, body, tenant=delivery.tenant)
        if receipt is UNTRIED:
            await self._webhooks.end(claim, _PUT_BACK, None)
            self._logger.info("webhook_put_back", delivery_id=delivery.id)
            return
        then = next_of(
            status=receipt.status,
            reason=receipt.reason,
            retry_after_s=receipt.retry_after_s,
            failed_before=claim.failed_before,
            retry_s=self._retry_s,
            chance=self._chance,
        )
        took_ms = int((time.monotonic() - began_s) * 1000)
        await self._webhooks.end(claim, then, Attempt(at_ms, took_ms, receipt.status, then.reason))
        self._logger.info(
            "webhook_attempted",
            delivery_id=delivery.id,
            attempt=claim.failed_before + 1,
            status=receipt.status,
            reason=then.reason,
            became=then.state,
            took_ms=took_ms,
        )


def headers_of(delivery_id: str, body: bytes, secrets: Secrets, *, now: datetime | None = None) -> dict[str, str]:
    """The headers of Standard Webhooks, with one signature for each live secret."""
    moment = now or datetime.now(UTC)
    text = body.decode()
    signatures = [Signer(secret).sign(msg_id=delivery_id, timestamp=moment, data=text) for secret in secrets.live]
    return {
        "content-type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
