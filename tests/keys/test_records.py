"""API keys in Redis: what is stored, for how long, and what happens to their secrets."""

import asyncio

import pytest

from shared.api_key import ALL_SCOPES, DEFAULT_SCOPES
from shared.errors import Forbidden, KeyEnded, NotFound, TooManyKeys, Unauthenticated
from shared.limits import CallerLimits
from shared.store import api_keys, redis_keys
from shared.store.api_keys import Standing
from shared.store.runtime import Runtime
from tests.keys.conftest import TENANT, make_key, presented
from tests.support.store import all_keys, keys_that_leak, now_ms, ttl_ms

_DAY_MS = 86_400_000


async def is_good(runtime: Runtime, text: str) -> bool:
    """Whether the key is valid; both ways to check must agree."""
    found = await runtime.api_keys.look_up(presented(text))
    (standing,) = await runtime.api_keys.check([presented(text)])
    assert (found is None) == (standing is None)
    if found is not None and standing is not None:
        assert found.standing.is_retiring == standing.is_retiring
    return found is not None


async def test_a_key_is_found_by_its_text_alone(runtime: Runtime) -> None:
    """With everything that was set when it was made."""
    limits = CallerLimits(requests_per_minute=3, nano_usd_per_month=7)
    made = await make_key(runtime, scopes=DEFAULT_SCOPES, limits=limits)
    found = await runtime.api_keys.look_up(presented(made.text))
    assert found is not None
    assert found.standing == Standing(None, is_retiring=False)
    assert found.key == made.key
    assert (found.key.caller.tenant, found.key.caller.limits) == (TENANT, limits)
    other = await make_key(runtime)
    wrong = presented(other.text)._replace(id=made.key.id)
    assert await runtime.api_keys.look_up(wrong) is None
    assert await runtime.api_keys.look_up(wrong._replace(id="key_0000000000000000")) is None


async def test_nothing_of_a_secret_is_in_redis(runtime: Runtime) -> None:
    """Neither in a name nor in a value of the whole database."""
    made = await make_key(runtime)
    rotated = await runtime.api_keys.rotate(made.key.id, TENANT, grace_s=60)
    assert repr(made) == f"NewKey({made.key.id})"
    secrets = [text.rpartition("_")[2].encode() for text in (made.text, rotated.text)]
    for name in await all_keys(runtime._commands):
        kind = (await runtime._commands.call("TYPE", name)).decode()
        read = {
            "hash": ("HGETALL", name),
            "zset": ("ZRANGE", name, 0, -1),
            "set": ("SMEMBERS", name),
            "string": ("GET", name),
        }
        content = repr(await runtime._commands.call(*read[kind])).encode()
        for secret in secrets:
            for part in (secret, secret[:12], secret[-12:]):
                assert part not in content + name.encode()


async def test_a_rotation_leaves_two_secrets_for_a_while(runtime: Runtime) -> None:
    """Then there is one again. A third secret ends the first."""
    first = await make_key(runtime)
    second = await runtime.api_keys.rotate(first.key.id, TENANT, grace_s=3600)
    assert await is_good(runtime, first.text)
    assert await is_good(runtime, second.text)
    found = await runtime.api_keys.look_up(presented(first.text))
    assert found is not None
    assert found.standing.is_retiring
    assert found.standing.left_ms is not None
    assert 0 < found.standing.left_ms <= 3_600_000
    await runtime.api_keys.note_use([presented(second.text)])
    third = await runtime.api_keys.rotate(first.key.id, TENANT, grace_s=3600)
    assert [await is_good(runtime, made.text) for made in (first, second, third)] == [False, True, True]
    await runtime._commands.call("HSET", redis_keys.api_key(first.key.id), "old_until_ms", await now_ms(runtime))
    assert [await is_good(runtime, made.text) for made in (second, third)] == [False, True]


async def test_a_secret_that_nobody_ever_used_is_what_a_repeated_rotation_replaces(runtime: Runtime) -> None:
    """The response with that secret was lost: the secret that callers use must survive the repetition."""
    in_use = await make_key(runtime)
    await runtime.api_keys.note_use([presented(in_use.text)])
    lost = await runtime.api_keys.rotate(in_use.key.id, TENANT, grace_s=3600)
    heard = await runtime.api_keys.rotate(in_use.key.id, TENANT, grace_s=3600)
    assert [await is_good(runtime, made.text) for made in (in_use, lost, heard)] == [True, False, True]


async def test_a_rotation_may_end_the_older_secrets_at_once(runtime: Runtime) -> None:
    """All older secrets, for the case that one leaked."""
    first = await make_key(runtime)
    second = await runtime.api_keys.rotate(first.key.id, None, grace_s=60)
    third = await runtime.api_keys.rotate(first.key.id, None, grace_s=0)
    assert [await is_good(runtime, made.text) for made in (first, second, third)] == [False, False, True]


async def test_a_revoked_key_is_kept_for_lists_and_has_no_secret_any_more(runtime: Runtime) -> None:
    """For 90 days. Revoking it again changes nothing."""
    made = await make_key(runtime)
    assert await ttl_ms(runtime, redis_keys.api_key(made.key.id)) is None
    revoked = await runtime.api_keys.revoke(made.key.id, TENANT)
    assert revoked.revoked_ms is not None
    assert not await is_good(runtime, made.text)
    assert await runtime._commands.call("HMGET", redis_keys.api_key(made.key.id), "digest", "old_digest") == [
        None,
        None,
    ]
    left_ms = await ttl_ms(runtime, redis_keys.api_key(made.key.id))
    assert left_ms is not None
    assert 89 * _DAY_MS < left_ms <= 90 * _DAY_MS
    assert await runtime.api_keys.revoke(made.key.id, TENANT) == revoked
    with pytest.raises(KeyEnded):
        await runtime.api_keys.rotate(made.key.id, TENANT, grace_s=60)
    assert (await runtime.api_keys.page(TENANT, after=None, limit=5)).keys == [revoked]


async def test_a_key_expires_and_is_kept_for_lists(runtime: Runtime) -> None:
    """By Redis's clock. The record's TTL is set when the key is made, since no process acts when it expires."""
    made = await make_key(runtime, expires_in_s=3600)
    assert made.key.expires_ms == made.key.created_ms + 3_600_000
    assert await is_good(runtime, made.text)
    left_ms = await ttl_ms(runtime, redis_keys.api_key(made.key.id))
    assert left_ms is not None
    assert left_ms > 90 * _DAY_MS
    await runtime._commands.call("HSET", redis_keys.api_key(made.key.id), "expires_ms", await now_ms(runtime))
    assert not await is_good(runtime, made.text)
    with pytest.raises(KeyEnded):
        await runtime.api_keys.rotate(made.key.id, TENANT, grace_s=60)


async def test_what_a_key_makes_does_not_outlive_it(runtime: Runtime) -> None:
    """Without its own expiry it has the maker's."""
    end_ms = await now_ms(runtime) + 60_000
    common = {"env": "live", "name": "", "scopes": ALL_SCOPES, "limits": CallerLimits(), "latest_end_ms": end_ms}
    without = await runtime.api_keys.create(TENANT, **common)  # type: ignore[arg-type]
    assert without is not None
    assert without.key.expires_ms == end_ms
    assert await runtime.api_keys.create(TENANT, expires_in_s=3600, **common) is None  # type: ignore[arg-type]
    shorter = await runtime.api_keys.create(TENANT, expires_in_s=30, **common)  # type: ignore[arg-type]
    assert shorter is not None


@pytest.mark.parametrize("is_revoked", [False, True])
async def test_a_key_that_has_ended_makes_no_key_and_no_secret(runtime: Runtime, is_revoked: bool) -> None:
    """The script that writes checks this itself, whatever a process has cached."""
    maker, other = await make_key(runtime), await make_key(runtime)
    if is_revoked:
        await runtime.api_keys.revoke(maker.key.id, TENANT)
    else:
        await runtime._commands.call("HSET", redis_keys.api_key(maker.key.id), "expires_ms", await now_ms(runtime))
    for key_id in (other.key.id, maker.key.id):
        with pytest.raises(Unauthenticated):
            await runtime.api_keys.rotate(key_id, TENANT, grace_s=0, maker=presented(maker.text))
    with pytest.raises(Unauthenticated):
        await make_key(runtime, maker=maker)
    assert len((await runtime.api_keys.page(TENANT, after=None, limit=5)).keys) == 2
    assert await is_good(runtime, other.text)


async def test_a_secret_that_was_replaced_makes_no_key_and_no_secret(runtime: Runtime) -> None:
    """Nor does an expired secret, or one of another tenant's key. The newest secret does."""
    older, stranger = await make_key(runtime), await make_key(runtime, tenant="tenant-b")
    newer = await runtime.api_keys.rotate(older.key.id, TENANT, grace_s=3600, maker=presented(older.text))
    for maker, refusal in ((older, Forbidden), (stranger, Unauthenticated)):
        with pytest.raises(refusal):
            await runtime.api_keys.rotate(older.key.id, TENANT, grace_s=0, maker=presented(maker.text))
        with pytest.raises(refusal):
            await make_key(runtime, maker=maker)
    assert await is_good(runtime, newer.text)
    assert await make_key(runtime, maker=newer)
    await runtime.api_keys.rotate(older.key.id, TENANT, grace_s=0, maker=presented(newer.text))
    for gone in (older, newer):
        with pytest.raises(Unauthenticated):
            await make_key(runtime, maker=gone)


async def test_a_foreign_key_looks_like_an_absent_one(runtime: Runtime) -> None:
    """Also in the script that writes."""
    made = await make_key(runtime)
    for key_id, tenant in ((made.key.id, "tenant-b"), ("key_0000000000000000", TENANT)):
        for call in (
            runtime.api_keys.get(key_id, tenant),
            runtime.api_keys.rotate(key_id, tenant, grace_s=60),
            runtime.api_keys.revoke(key_id, tenant),
        ):
            with pytest.raises(NotFound):
                await call
    assert await is_good(runtime, made.text)


async def test_use_is_written_down_and_never_brings_a_key_back(runtime: Runtime) -> None:
    """A deleted record stays deleted."""
    made = await make_key(runtime)
    gone = await make_key(runtime)
    await runtime._commands.call("DEL", redis_keys.api_key(gone.key.id))
    await runtime.api_keys.note_use([presented(made.text), presented(gone.text)])
    assert (await runtime.api_keys.get(made.key.id, TENANT)).last_used_ms is not None
    assert not await runtime._commands.call("EXISTS", redis_keys.api_key(gone.key.id))
    assert (await runtime.api_keys.page(TENANT, after=None, limit=5)).keys == [
        await runtime.api_keys.get(made.key.id, TENANT)
    ]
    assert await runtime._commands.call("ZCARD", redis_keys.api_keys(TENANT)) == 1
    assert await keys_that_leak(runtime._commands) == []


async def test_lists_are_paged_newest_first_and_per_tenant(runtime: Runtime) -> None:
    """The last page has no `next`, even if it is full."""
    made = [await make_key(runtime) for _ in range(4)]
    await make_key(runtime, tenant="tenant-b")
    ids = sorted((one.key.id for one in made), reverse=True)
    first = await runtime.api_keys.page(TENANT, after=None, limit=2)
    second = await runtime.api_keys.page(TENANT, after=first.next_after, limit=2)
    assert [key.id for key in (*first.keys, *second.keys)] == ids
    assert second.next_after is None
    assert await runtime.api_keys.tenants() == [TENANT, "tenant-b"]
    await runtime._commands.call("DEL", redis_keys.api_keys("tenant-b"))
    assert await runtime.api_keys.tenants() == [TENANT]


async def test_a_tenants_keys_make_so_many_at_most(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recently ended keys count. The operator's command line has no limit; otherwise a stolen key could lock it out."""
    monkeypatch.setattr(api_keys, "MOST_KEYS", 3)
    maker = await make_key(runtime)
    made = await asyncio.gather(*[make_key(runtime, maker=maker) for _ in range(2)])
    await runtime.api_keys.revoke(made[0].key.id, TENANT)
    with pytest.raises(TooManyKeys):
        await make_key(runtime, maker=maker)
    await make_key(runtime, tenant="tenant-b", maker=await make_key(runtime, tenant="tenant-b"))
    by_operator = await make_key(runtime)
    for gone in (made[0], by_operator):
        await runtime._commands.call("DEL", redis_keys.api_key(gone.key.id))
    await make_key(runtime, maker=maker)


async def test_many_keys_are_checked_in_few_calls(runtime: Runtime) -> None:
    """The replies come in the keys' order."""
    made = await make_key(runtime)
    ending = await make_key(runtime, expires_in_s=60)
    pairs = [presented(made.text), presented(ending.text), presented(made.text)._replace(digest="0" * 64)] * 200
    standings = await runtime.api_keys.check(pairs)
    assert standings[0::3] == [Standing(None, is_retiring=False)] * 200
    assert all(one is not None and one.left_ms is not None and 0 < one.left_ms <= 60_000 for one in standings[1::3])
    assert standings[2::3] == [None] * 200
