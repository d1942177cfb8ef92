"""``PATCH /v1/keys/{key_id}``: a key's name, scopes and limits change, in every process, within the rights of who asks."""

import asyncio
from typing import Any

import httpx2
import pytest

from shared.api_key import Scope
from shared.limits import CallerLimits
from shared.store.api_keys import NewKey
from tests.keys.conftest import TENANT, Serve, bearer, make_key, presented
from tests.support.author import Author
from tests.support.follower import asking
from tests.support.served import Served
from tests.support.store import submit
from tests.support.wait import wait_until

_SMALL = CallerLimits(requests_per_minute=10, nano_usd_per_day=1_000_000_000)
_ADMIN = frozenset({Scope.ADMIN, Scope.READ})


async def _changed(http: httpx2.AsyncClient, by: NewKey, key: NewKey, **body: Any) -> httpx2.Response:
    return await http.patch(f"/v1/keys/{key.key.id}", json=body, headers=bearer(by.text))


async def test_what_is_left_out_stays(served: Served, http: httpx2.AsyncClient) -> None:
    """Null removes a limit; the record keeps all else."""
    admin, key = await make_key(served.api.runtime), await make_key(served.api.runtime, limits=_SMALL)
    before = (await http.get(f"/v1/keys/{key.key.id}", headers=bearer(admin.text))).json()
    assert (await _changed(http, admin, key)).json() == before
    found = (await _changed(http, admin, key, limits={"requests_per_minute": None, "queued_jobs": 3})).json()
    limits = {**before["limits"], "requests_per_minute": None, "queued_jobs": 3}
    assert found == {**before, "limits": limits}
    found = (await _changed(http, admin, key, name="Grüße", scopes=["read"])).json()
    assert found == {**before, "limits": limits, "name": "Grüße", "scopes": ["read"]}
    assert (await served.api.runtime.api_keys.look_up(presented(key.text))) is not None


async def test_every_process_follows_a_change(serve: Serve) -> None:
    """Also one that has cached the key: a scope that it gained is let in, one that it lost is refused, in 5 s."""
    first, second = await serve(), await serve()
    admin, key = await make_key(first.api.runtime), await make_key(first.api.runtime, scopes=frozenset({Scope.READ}))
    async with httpx2.AsyncClient(base_url=first.url) as one, httpx2.AsyncClient(base_url=second.url) as other:

        async def statuses() -> list[int]:
            headers = bearer(key.text)
            submitted = [await http.post("/v1/jobs", json={"prompt": "x"}, headers=headers) for http in (one, other)]
            read = [await http.get("/v1/jobs", headers=headers) for http in (one, other)]
            return [answer.status_code for answer in (*submitted, *read)]

        async def are(*expected: list[int]) -> None:
            async def follow() -> bool:
                return await statuses() in expected

            await wait_until(follow, f"{expected}", timeout_s=5)

        assert await statuses() == [403, 403, 200, 200]
        await _changed(one, admin, key, scopes=["read", "submit"], limits={"queued_jobs": 1})
        # Both are asked in turn, so the one job may be let in by the first before the second has followed.
        await are([202, 429, 200, 200], [429, 429, 200, 200])
        assert len((await one.get("/v1/jobs", headers=bearer(key.text))).json()["data"]) == 1
        await _changed(one, admin, key, scopes=["submit"], limits={"queued_jobs": None})
        await are([202, 202, 403, 403])


async def test_a_stream_ends_when_its_key_may_not_read_any_more(served: Served, http: httpx2.AsyncClient) -> None:
    """Within 5 s, as after a revocation. A change that takes no scope ends nothing."""
    admin, key = await make_key(served.api.runtime), await make_key(served.api.runtime)
    author = await Author.start(served.api.runtime, tenant=TENANT)
    async with asking(served.url, f"/v1/jobs/{author.job_id}/events", headers=bearer(key.text)) as stream:
        await stream.read_some()
        await _changed(http, admin, key, limits={"queued_jobs": 5}, scopes=[*Scope][:4])

        async def has_followed() -> bool:
            (credential,) = served.api.key_ring._watched.values()
            return credential.changes == 1

        await wait_until(has_followed, "the change", timeout_s=5)
        await author.say("Hello.")
        while b"Hello." not in await stream.read_some():
            pass
        await _changed(http, admin, key, scopes=["submit"])
        async with asyncio.timeout(6):
            assert b"not valid any more" in await stream.read()


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": ["admin", "read", "submit"]},
        {"limits": {"requests_per_minute": 11}},
        {"limits": {"requests_per_minute": None}},
        {"limits": {"usd_per_day": 1.000000001}},
        {"scopes": ["read", "operator"]},
    ],
)
async def test_a_key_makes_none_that_may_do_more_than_itself(
    served: Served, http: httpx2.AsyncClient, body: Any
) -> None:
    """Not even itself."""
    admin = await make_key(served.api.runtime, scopes=_ADMIN, limits=_SMALL)
    other = await make_key(served.api.runtime, scopes=_ADMIN, limits=_SMALL)
    for key in (admin, other):
        response = await _changed(http, admin, key, **body)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert await served.api.runtime.api_keys.get(key.key.id, TENANT) == key.key


async def test_a_key_changes_none_that_has_more_or_lives_longer(served: Served, http: httpx2.AsyncClient) -> None:
    """Otherwise a lesser key could take rights away, and a thief's could make a lasting one strong."""
    runtime = served.api.runtime
    admin = await make_key(runtime, scopes=_ADMIN, limits=_SMALL, expires_in_s=3600)
    for other in (
        await make_key(runtime, limits=_SMALL, expires_in_s=60),
        await make_key(runtime, scopes=_ADMIN, expires_in_s=60),
        await make_key(runtime, scopes=_ADMIN, limits=_SMALL),
    ):
        assert (await _changed(http, admin, other, name="mine")).status_code == 403
    lesser = await make_key(runtime, scopes=_ADMIN, limits=_SMALL, expires_in_s=60)
    assert (await _changed(http, admin, lesser, name="mine")).json()["name"] == "mine"


async def test_a_key_that_has_ended_or_is_anothers_does_not_change(served: Served, http: httpx2.AsyncClient) -> None:
    """409, and the 404 of an absent one."""
    runtime = served.api.runtime
    admin, ended = await make_key(runtime), await make_key(runtime)
    await runtime.api_keys.revoke(ended.key.id, TENANT)
    assert (await _changed(http, admin, ended, name="x")).json()["code"] == "key_ended"
    theirs = await make_key(runtime, tenant="tenant-b")
    assert (await _changed(http, admin, theirs, name="x")).status_code == 404
    assert (await runtime.api_keys.get(theirs.key.id, None)).name == "of a test"


async def test_two_changes_at_once_are_each_checked_against_the_other(served: Served) -> None:
    """The second one sees what the first one made of the key."""
    runtime = served.api.runtime
    key = await make_key(runtime, limits=_SMALL)
    seen = []

    def by(change: dict[str, int]) -> Any:
        def changed(found: Any) -> Any:
            seen.append(found.changes)
            return type(found)(**{**_fields(found), "limits": CallerLimits(**change)})

        return changed

    async def change(**limits: int) -> None:
        await runtime.api_keys.change(key.key.id, TENANT, by(limits), maker=None, maker_tenant=TENANT)

    await asyncio.gather(change(queued_jobs=1), change(queued_jobs=2))
    assert sorted(seen) == [0, 0, 1]
    assert (await runtime.api_keys.get(key.key.id, TENANT)).changes == 2


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__struct_fields__}


async def test_waiting_jobs_follow_their_keys_new_limit(served: Served, http: httpx2.AsyncClient) -> None:
    """Those of a key that had a limit when they were submitted: no further submit is needed."""
    runtime = served.api.runtime
    admin, key = await make_key(runtime), await make_key(runtime, limits=CallerLimits(running_jobs=1))
    for _ in range(3):
        await submit(runtime, tenant=TENANT, key_id=key.key.id, limits=key.key.limits)

    async def claimed() -> int:
        claims, _ = await runtime.queue.claim("worker-1", count=5, low_count=5, takes_suspect=True)
        return len(claims)

    assert await claimed() == 1
    assert await claimed() == 0
    await _changed(http, admin, key, limits={"running_jobs": 3})
    assert await claimed() == 2
