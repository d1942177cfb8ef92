"""What a process caches about keys, and for how long: while Redis works, is slow, or is away."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

import httpx2
import pytest

from api.state import key_ring
from api.state.key_ring import Credential, KeyRing
from cli.embedded_redis import EmbeddedRedis
from shared.api_key import Caller
from shared.errors import StorageUnavailable, Unauthenticated
from shared.store.api_keys import Standing
from tests.keys.conftest import TENANT, bearer, make_key
from tests.support.served import Served, serving
from tests.support.wait import wait_until

T = TypeVar("T")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. Fails if the coroutine waits for anything."""
    try:
        work.send(None)
    except StopIteration as ended:
        found: T = ended.value
        return found
    work.close()
    raise AssertionError("it waits")


def age(ring: KeyRing, by_s: float) -> None:
    """Ages all cached keys, as if they had been confirmed that long ago."""
    for credential in ring._known.values():
        credential.confirmed_s -= by_s
        credential.fresh_until_s -= by_s


async def authenticated(ring: KeyRing, text: str) -> Caller:
    """Authenticates a request with that key."""
    return await ring.authenticate({}, text.encode())


async def test_a_known_caller_costs_no_look_up_for_two_seconds(served: Served) -> None:
    """Then one look-up serves all of its requests, which do not wait for it."""
    ring = served.api.key_ring
    text = (await make_key(served.api.runtime)).text
    callers = asyncio.gather(*[authenticated(ring, text) for _ in range(50)])
    await asyncio.sleep(0)
    assert len(ring._looks) == 1
    assert len({id(caller) for caller in await callers}) == 1
    at_once(authenticated(ring, text))
    assert not ring._looks
    age(ring, 2.5)
    for _ in range(50):
        at_once(authenticated(ring, text))
    assert len(ring._looks) == 1
    await wait_until(lambda: not ring._looks, "the look")
    age(ring, 3.5)
    with pytest.raises(AssertionError, match="it waits"):
        at_once(authenticated(ring, text))


async def test_a_revoked_key_is_refused_although_it_was_cached(served: Served) -> None:
    """After 3 s its request waits for the look-up."""
    runtime, ring = served.api.runtime, served.api.key_ring
    made = await make_key(runtime)
    await authenticated(ring, made.text)
    await runtime.api_keys.revoke(made.key.id, TENANT)
    at_once(authenticated(ring, made.text))
    age(ring, 3.5)
    with pytest.raises(Unauthenticated):
        await authenticated(ring, made.text)
    assert not ring._known


async def test_an_expired_key_is_refused_without_a_look_up(served: Served) -> None:
    """Its expiry is cached with it, so Redis is not needed."""
    ring = served.api.key_ring
    made = await make_key(served.api.runtime, expires_in_s=3600)
    await authenticated(ring, made.text)
    for credential in ring._known.values():  # uvloop's clock does not move within a turn
        credential.confirm(credential.confirmed_s - 3601, Standing(3_600_000, is_retiring=False))
    with pytest.raises(Unauthenticated):
        at_once(authenticated(ring, made.text))


@pytest.mark.parametrize("is_watched", [False, True])
async def test_the_cache_learns_that_a_secret_was_replaced(served: Served, is_watched: bool) -> None:
    """Also while an open request uses it, so that the cache watches it without new requests."""
    runtime, ring = served.api.runtime, served.api.key_ring
    made = await make_key(runtime)
    assert not (await authenticated(ring, made.text)).is_retiring
    (credential,) = ring._known.values()
    with credential.held(lambda: None) if is_watched else nullcontext():
        await runtime.api_keys.rotate(made.key.id, TENANT, grace_s=3600)
        age(ring, 3.5)
        if is_watched:
            await wait_until(lambda: credential.caller.is_retiring, "a look after it")
        assert (await authenticated(ring, made.text)).is_retiring


async def test_the_cache_of_callers_is_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the most recent ones. Open requests of a forgotten caller are still watched."""
    monkeypatch.setattr(key_ring, "_MOST_KNOWN", 3)
    runtime, ring = served.api.runtime, served.api.key_ring
    made = [await make_key(runtime) for _ in range(4)]
    scope: dict[str, Any] = {}
    await ring.authenticate(scope, made[0].text.encode())
    for one in (made[1], made[2], made[0], made[3]):
        await authenticated(ring, one.text)
    assert [credential.caller.key_id for credential in ring._known.values()] == [made[i].key.id for i in (2, 0, 3)]
    credential = key_ring.credential_of(scope)
    assert isinstance(credential, Credential)
    ended = asyncio.Event()
    with credential.held(ended.set):
        for _ in range(2):
            for one in made[1:]:
                await authenticated(ring, one.text)
        await runtime.api_keys.revoke(made[0].key.id, TENANT)
        async with asyncio.timeout(15):
            await ended.wait()
    assert credential.is_over
    assert not ring._watched


async def test_a_request_whose_key_left_the_cache_and_was_revoked_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many other callers came while its body arrived, so that Redis must be asked again."""
    monkeypatch.setattr(key_ring, "_MOST_KNOWN", 1)
    runtime, ring = served.api.runtime, served.api.key_ring
    made, other = await make_key(runtime), await make_key(runtime)
    scope: dict[str, Any] = {}
    await ring.authenticate(scope, made.text.encode())
    age(ring, 3.5)
    await authenticated(ring, other.text)
    await ring.still(scope)
    await authenticated(ring, other.text)
    await runtime.api_keys.revoke(made.key.id, TENANT)
    with pytest.raises(Unauthenticated):
        await ring.still(scope)


async def test_the_use_of_keys_is_written_in_the_background(served: Served, http: httpx2.AsyncClient) -> None:
    """One write serves many requests."""
    runtime = served.api.runtime
    made = await make_key(runtime)
    for _ in range(3):
        assert (await http.get("/v1/jobs", headers=bearer(made.text))).status_code == 200
    assert len(served.api.key_ring._used) <= 1

    async def is_known() -> bool:
        return (await runtime.api_keys.get(made.key.id, TENANT)).last_used_ms is not None

    await wait_until(is_known, "when it was used")


async def test_while_redis_is_away_known_callers_are_accepted_and_others_get_503(
    own_server: EmbeddedRedis,
) -> None:
    """Both get the error that the storage is away; a known caller does not wait for its key."""
    async with serving(own_server.url, auth="keys") as served, httpx2.AsyncClient(base_url=served.url) as http:
        ring = served.api.key_ring
        known, unknown = [(await make_key(served.api.runtime)).text for _ in range(2)]
        assert (await http.get("/v1/jobs", headers=bearer(known))).status_code == 200
        own_server.kill()
        await wait_until(lambda: not served.api.runtime._urgent.is_connected, "the loss of Redis")
        age(ring, 30)
        assert at_once(authenticated(ring, known)).tenant == TENANT
        for text, status in ((known, 503), (unknown, 503), (unknown[:-1], 401)):
            response = await http.get("/v1/jobs", headers=bearer(text))
            assert response.status_code == status, response.text
            assert response.json()["code"] == ("storage_unavailable" if status == 503 else "unauthenticated")
        response = await http.post("/v1/messages", json={}, headers={"x-api-key": unknown})
        assert (response.status_code, response.json()["error"]["type"]) == (503, "api_error")
        assert (await http.get("/health", headers=bearer(known))).status_code == 503
        age(ring, 31)
        with pytest.raises(StorageUnavailable):
            at_once(authenticated(ring, known))
        own_server.restart()
        await wait_until(lambda: served.api.runtime._urgent.is_connected, "Redis")
        for text in (known, unknown):
            assert (await http.get("/v1/jobs", headers=bearer(text))).status_code == 200


async def test_requests_wait_only_once_for_a_redis_that_hangs(own_server: EmbeddedRedis) -> None:
    """All requests wait together; later ones do not wait."""
    async with serving(own_server.url, auth="keys", redis_timeout_s=0.3) as served:
        ring = served.api.key_ring
        text = (await make_key(served.api.runtime)).text
        await authenticated(ring, text)
        age(ring, 10)
        os.kill(own_server.child.pid, signal.SIGSTOP)
        try:
            callers = await asyncio.gather(*[authenticated(ring, text) for _ in range(20)])
            assert {caller.tenant for caller in callers} == {TENANT}
            at_once(authenticated(ring, text))
        finally:
            os.kill(own_server.child.pid, signal.SIGCONT)


async def test_a_late_look_up_does_not_count_as_an_absent_redis(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revoked key's own load may delay it: the cached key is accepted for 5 s, and then gets 503."""
    ring = served.api.key_ring
    text = (await make_key(served.api.runtime)).text
    await authenticated(ring, text)
    looks = 0

    async def late(_presented: object) -> None:
        nonlocal looks
        looks += 1
        raise StorageUnavailable

    monkeypatch.setattr(ring._keys, "look_up", late)
    age(ring, 4)
    assert (await authenticated(ring, text)).tenant == TENANT
    assert looks == 1
    at_once(authenticated(ring, text))
    age(ring, 1.1)
    with pytest.raises(StorageUnavailable):
        at_once(authenticated(ring, text))
    ring._late_s -= 1
    with pytest.raises(StorageUnavailable):
        await authenticated(ring, text)
    assert looks == 2
    monkeypatch.undo()
    ring._late_s -= 1
    assert (await authenticated(ring, text)).tenant == TENANT


async def test_without_a_cache_nobody_is_accepted_while_redis_is_away(own_server: EmbeddedRedis) -> None:
    """TOKENSPOOL_AUTH_CACHE_S=0."""
    async with serving(own_server.url, auth="keys", auth_cache_s=0, redis_timeout_s=0.3) as served:
        ring = served.api.key_ring
        text = (await make_key(served.api.runtime)).text
        await authenticated(ring, text)
        own_server.kill()
        await wait_until(lambda: not served.api.runtime._urgent.is_connected, "the loss of Redis")
        age(ring, 4)
        with pytest.raises(StorageUnavailable):
            await authenticated(ring, text)


async def test_an_api_starts_without_redis_and_says_later_that_there_are_no_keys(own_server: EmbeddedRedis) -> None:
    """The start does not wait for Redis."""
    own_server.kill()
    async with serving(own_server.url, auth="keys", redis_timeout_s=0.3) as served:
        assert not served.api.key_ring._has_hinted
        own_server.restart()
        await wait_until(lambda: served.api.key_ring._has_hinted, "the hint")
