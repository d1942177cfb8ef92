"""A killed worker is noticed by its lost subscription. Nobody else is taken for dead."""

import contextlib
from collections.abc import AsyncIterator

from shared.store import redis_keys
from shared.store.presence import Presence
from shared.store.runtime import Runtime
from shared.store.subscriber import Subscriber
from tests.support.redis_servers import on_real_redis
from tests.support.store import claim_one, confirm, now_ms, submit
from tests.support.wait import wait_until

pytestmark = on_real_redis

VICTIM = "worker-1"


@contextlib.asynccontextmanager
async def _up(runtime: Runtime) -> AsyncIterator[Subscriber]:
    """A worker that announced itself and is subscribed."""
    await runtime.workers.announce(VICTIM, {})
    async with runtime.subscriber(on_message=lambda *_: None, on_confirmed=lambda _: None) as subscriber:
        subscriber.subscribe(redis_keys.presence(VICTIM))
        await wait_until(lambda: subscriber.stands(redis_keys.presence(VICTIM)), "the subscription")
        yield subscriber


async def _is_later(runtime: Runtime, than_ms: int) -> bool:
    return await now_ms(runtime) > than_ms


async def _looks(presence: Presence, count: int) -> list[str]:
    return [name for _ in range(count) for name in await presence.look()]


async def test_a_worker_without_a_subscription_is_dead_at_the_third_look(runtime: Runtime) -> None:
    """Its leases end, and REAP takes the job."""
    await submit(runtime)
    async with _up(runtime):
        claimed = await claim_one(runtime, worker=VICTIM)
        await confirm(runtime, claimed)
        assert await _looks(runtime.presence, 3) == []
    assert await _looks(runtime.presence, 2) == []
    assert (await runtime.queue.reap()).back == []
    assert await _looks(runtime.presence, 1) == [VICTIM]
    assert (await runtime.queue.reap()).back == [claimed.id]


async def test_only_the_dead_workers_leases_end(runtime: Runtime) -> None:
    """The others keep theirs, also on pages that BURY reads."""
    for _ in range(2):
        await submit(runtime)
    async with _up(runtime):
        lost = await claim_one(runtime, worker=VICTIM)
        await claim_one(runtime, worker="worker-2")
        await _looks(runtime.presence, 1)
    assert await _looks(runtime.presence, 3) == [VICTIM]
    assert (await runtime.queue.reap()).back == [lost.id]


async def test_a_worker_that_announces_itself_meanwhile_lives(runtime: Runtime) -> None:
    """Its subscription is only being made again."""
    await submit(runtime)
    async with _up(runtime):
        await claim_one(runtime, worker=VICTIM)
        await _looks(runtime.presence, 1)
    await _looks(runtime.presence, 2)
    await runtime.workers.announce(VICTIM, {})
    assert await _looks(runtime.presence, 5) == []
    assert (await runtime.queue.reap()).back == []


async def test_a_worker_that_renewed_meanwhile_keeps_the_lease(runtime: Runtime) -> None:
    await submit(runtime)
    async with _up(runtime):
        claimed = await claim_one(runtime, worker=VICTIM)
        await _looks(runtime.presence, 1)
    await _looks(runtime.presence, 2)
    seen_ms = await now_ms(runtime)
    await wait_until(lambda: _is_later(runtime, seen_ms), "the next millisecond")
    await confirm(runtime, claimed)
    assert await _looks(runtime.presence, 1) == []
    assert (await runtime.queue.reap()).back == []


async def test_a_worker_that_never_was_subscribed_is_not_missed(runtime: Runtime) -> None:
    """An older release has no such channel."""
    await submit(runtime)
    await runtime.workers.announce(VICTIM, {})
    await claim_one(runtime, worker=VICTIM)
    assert await _looks(runtime.presence, 5) == []


async def test_what_was_seen_before_a_reconnect_does_not_count(runtime: Runtime) -> None:
    """Redis may have been restarted: then all subscriptions ended, and nobody died."""
    await submit(runtime)
    async with _up(runtime):
        await claim_one(runtime, worker=VICTIM)
        await _looks(runtime.presence, 1)
    await _looks(runtime.presence, 2)
    connections = runtime._commands.connection_number
    with contextlib.suppress(Exception):
        await runtime._commands.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
    await wait_until(lambda: runtime._commands.connection_number > connections, "a new connection")
    assert await _looks(runtime.presence, 5) == []
    assert (await runtime.queue.reap()).back == []
