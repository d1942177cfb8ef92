"""``/v1/keys``: keys that make, read, rotate and revoke keys, and never give more rights than they have."""

from typing import Any

import httpx2
import pytest

from api.http.rotation import DEFAULT_GRACE_S
from shared.api_key import ALL_SCOPES, REPLACED, Scope
from shared.limits import CallerLimits
from tests.keys.conftest import TENANT, bearer, make_key
from tests.support.served import Served
from tests.support.wait import wait_until

_NO_LIMITS = {
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "running_jobs": None,
    "queued_jobs": None,
    "usd_per_day": None,
    "usd_per_month": None,
}


@pytest.fixture
async def admin(served: Served, http: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """A client whose key has all scopes."""
    made = await make_key(served.api.runtime)
    http.headers.update(bearer(made.text))
    return http


async def _created(client: httpx2.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/keys", json=body)
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["location"] == f"/v1/keys/{response.json()['id']}"
    return response.json()


async def test_a_key_is_shown_once(admin: httpx2.AsyncClient) -> None:
    """Only the response that creates a key has its text."""
    made = await _created(admin, name="Grüße", limits={"usd_per_day": 0.25, "queued_jobs": 3})
    text = made.pop("key")
    assert text.startswith(f"ts_live_{made['id'].removeprefix('key_')}_")
    assert made["limits"] == {**_NO_LIMITS, "usd_per_day": 0.25, "queued_jobs": 3}
    assert (made["scopes"], made["status"], made["name"]) == (["submit", "read", "cancel"], "active", "Grüße")
    assert (await admin.get(f"/v1/keys/{made['id']}")).json() == made
    listed = (await admin.get("/v1/keys", params={"limit": 1})).json()
    assert listed["data"] == [made]
    assert listed["has_more"]
    rest = (await admin.get("/v1/keys", params={"after": listed["next"]})).json()
    assert (len(rest["data"]), rest["has_more"], rest["next"]) == (1, False, None)
    assert (await admin.get("/v1/jobs", headers=bearer(text))).status_code == 200
    assert (await admin.get("/v1/keys", headers=bearer(text))).status_code == 403


async def test_a_key_says_which_key_made_it(served: Served, http: httpx2.AsyncClient) -> None:
    """So an operator finds all keys that a stolen key made. For keys made by the command line there is none."""
    runtime = served.api.runtime
    by_operator = await make_key(runtime)
    http.headers.update(bearer(by_operator.text))
    made = await _created(http)
    assert made["made_by"] == by_operator.key.id
    await http.post(f"/v1/keys/{made['id']}/rotate")
    listed = (await http.get("/v1/keys")).json()["data"]
    assert {key["id"]: key["made_by"] for key in listed} == {made["id"]: by_operator.key.id, by_operator.key.id: None}


async def test_a_key_revokes_none_that_may_do_more(served: Served, admin: httpx2.AsyncClient) -> None:
    """Otherwise a key that only manages keys could lock out the whole tenant."""
    keeper = await make_key(served.api.runtime, scopes=frozenset({Scope.ADMIN}))
    made, equal = await _created(admin), await make_key(served.api.runtime, scopes=frozenset({Scope.ADMIN}))
    headers = bearer(keeper.text)
    assert (await admin.post(f"/v1/keys/{made['id']}/revoke", headers=headers)).status_code == 403
    assert (await admin.get(f"/v1/keys/{made['id']}")).json()["status"] == "active"
    assert (await admin.post(f"/v1/keys/{equal.key.id}/revoke", headers=headers)).json()["status"] == "revoked"


async def test_a_rotation_shows_the_new_secret_once(admin: httpx2.AsyncClient) -> None:
    """Both secrets are valid until the grace is over; without a grace the old one is refused once caches expire."""
    made = await _created(admin)
    rotated = (await admin.post(f"/v1/keys/{made['id']}/rotate")).json()
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert rotated["old_secret_until"] > rotated["rotated_at"]
    assert DEFAULT_GRACE_S == 86_400
    for text in (made["key"], rotated["key"]):
        assert (await admin.get("/v1/jobs", headers=bearer(text))).status_code == 200
    last = (await admin.post(f"/v1/keys/{made['id']}/rotate", json={"grace_s": 0})).json()
    assert last["old_secret_until"] is None

    async def is_refused() -> bool:
        return (await admin.get("/v1/jobs", headers=bearer(made["key"]))).status_code == 401

    await wait_until(is_refused, "the older secret is refused")
    assert (await admin.get("/v1/jobs", headers=bearer(last["key"]))).status_code == 200


async def test_a_secret_that_is_being_replaced_manages_nothing(served: Served, admin: httpx2.AsyncClient) -> None:
    """Its holder must not make a key that lasts, or take over the new secret. It submits and reads as before."""
    runtime = served.api.runtime
    older = await make_key(runtime)
    newer = await runtime.api_keys.rotate(older.key.id, TENANT, grace_s=3600)
    other = await _created(admin)
    for method, path in (
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys"),
        ("POST", f"/v1/keys/{older.key.id}/rotate"),
        ("POST", f"/v1/keys/{other['id']}/rotate"),
        ("POST", f"/v1/keys/{newer.key.id}/revoke"),
        ("GET", "/v1/webhooks/secret"),
        ("POST", "/v1/webhooks/secret/rotate"),
    ):
        response = await admin.request(method, path, json={}, headers=bearer(older.text))
        assert (response.status_code, response.json()["code"]) == (403, "forbidden"), path
        assert response.json()["detail"] == REPLACED
    for text in (older.text, newer.text):
        assert (await admin.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(text))).status_code == 202
        assert (await admin.get("/v1/jobs", headers=bearer(text))).status_code == 200
    assert (await admin.get("/v1/keys", headers=bearer(newer.text))).status_code == 200


async def test_a_revoked_key_stays_revoked_and_listed(admin: httpx2.AsyncClient) -> None:
    """Its record is kept for 90 days; it gets no new secret."""
    made = await _created(admin)
    revoked = (await admin.post(f"/v1/keys/{made['id']}/revoke")).json()
    assert revoked["status"] == "revoked"
    assert revoked["revoked_at"] is not None
    assert "key" not in revoked
    assert (await admin.post(f"/v1/keys/{made['id']}/revoke")).json() == revoked
    response = await admin.post(f"/v1/keys/{made['id']}/rotate", json={})
    assert (response.status_code, response.json()["code"]) == (409, "key_ended")


@pytest.mark.parametrize("path", ["", "/rotate", "/revoke"])
async def test_foreign_and_absent_keys_are_the_same_404(served: Served, admin: httpx2.AsyncClient, path: str) -> None:
    """The responses are equal byte for byte."""
    theirs = (await make_key(served.api.runtime, tenant="tenant-b")).key.id
    method = "POST" if path else "GET"
    answers = [
        await admin.request(method, f"/v1/keys/{key_id}{path}", headers={"X-Request-ID": "same"})
        for key_id in (theirs, "key_0000000000000000", "nonsense")
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert (await served.api.runtime.api_keys.get(theirs, None)).revoked_ms is None


_OF_A_DAY = CallerLimits(requests_per_minute=10, nano_usd_per_day=1_000_000_000)


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": ["submit"]},
        {},
        {"scopes": ["admin"], "limits": {"requests_per_minute": 11}},
        {"scopes": ["admin"], "limits": {"requests_per_minute": None}},
        {"scopes": ["admin"], "limits": {"usd_per_day": 1.000000001}},
        {"scopes": ["admin"], "expires_in_s": 7200},
    ],
)
async def test_a_key_gives_no_more_than_it_has(served: Served, http: httpx2.AsyncClient, body: Any) -> None:
    """No further scope, limit or time; nor can it rotate a key that has more."""
    runtime = served.api.runtime
    admin_alone = frozenset({Scope.ADMIN})
    small = await make_key(runtime, scopes=admin_alone, limits=_OF_A_DAY, expires_in_s=3600)
    headers = bearer(small.text)
    response = await http.post("/v1/keys", json=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    for other in (
        await make_key(runtime),
        await make_key(runtime, scopes=admin_alone, limits=_OF_A_DAY),
        await make_key(runtime, scopes=admin_alone, expires_in_s=60),
        await make_key(runtime, scopes=ALL_SCOPES, limits=_OF_A_DAY, expires_in_s=60),
    ):
        rotated = await http.post(f"/v1/keys/{other.key.id}/rotate", headers=headers)
        assert (rotated.status_code, rotated.json()["code"]) == (403, "forbidden")
        revoked = await http.post(f"/v1/keys/{other.key.id}/revoke", headers=headers)
        assert revoked.status_code == (200 if other.key.scopes == admin_alone else 403)


async def test_omitted_fields_are_those_of_the_maker(served: Served, http: httpx2.AsyncClient) -> None:
    """The limits and the expiry."""
    small = await make_key(served.api.runtime, limits=_OF_A_DAY, expires_in_s=3600)
    http.headers.update(bearer(small.text))
    made = await _created(http, limits={"requests_per_minute": 5})
    assert made["limits"] == {**_NO_LIMITS, "requests_per_minute": 5, "usd_per_day": 1.0}
    assert (await served.api.runtime.api_keys.get(made["id"], TENANT)).expires_ms == small.key.expires_ms
    assert (await http.post(f"/v1/keys/{made['id']}/rotate")).status_code == 200


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ([], {"#"}),
        ({"nme": "x", "a b": 1}, {"#", "#/nme"}),
        ({"name": 1, "env": "LIVE", "scopes": [], "expires_in_s": 0, "limits": 5},
         {"#/name", "#/env", "#/scopes", "#/expires_in_s", "#/limits"}),
        ({"name": "x" * 129, "env": "", "scopes": ["read", "write"], "expires_in_s": 1.5}, {"#/name", "#/env", "#/scopes", "#/expires_in_s"}),
        ({"name": "a\nb", "env": None, "scopes": "read", "expires_in_s": True}, {"#/name", "#/env", "#/scopes", "#/expires_in_s"}),
        ({"limits": {"queued_jobs": 0, "running_jobs": True, "usd_per_day": 0, "usd_per_month": 1e300, "x": 1}},
         {"#/limits/queued_jobs", "#/limits/running_jobs", "#/limits/usd_per_day", "#/limits/usd_per_month", "#/limits/x"}),
        ({"limits": {"usd_per_day": 1e-10, "tokens_per_minute": 1.5, "requests_per_minute": "5"}},
         {"#/limits/usd_per_day", "#/limits/tokens_per_minute", "#/limits/requests_per_minute"}),
        ({"limits": {"usd_per_day": -1e308, "usd_per_month": -1}}, {"#/limits/usd_per_day", "#/limits/usd_per_month"}),
        ({"scopes": [["read"], {}, None]}, {"#/scopes"}),
    ],
)  # fmt: skip
async def test_every_field_that_is_not_valid_is_named(admin: httpx2.AsyncClient, body: Any, pointers: set[str]) -> None:
    """The response quotes no values."""
    response = await admin.post("/v1/keys", json=body)
    assert response.status_code == 400, response.text
    assert {error["pointer"] for error in response.json()["errors"]} == pointers
    listed = (await admin.get("/v1/keys")).json()
    assert len(listed["data"]) == 1


@pytest.mark.parametrize("body", [[], {"grace_s": -1}, {"grace_s": 2_592_001}, {"grace_s": "1"}, {"grace": 1}])
async def test_an_invalid_grace_is_refused(admin: httpx2.AsyncClient, body: Any) -> None:
    """Nothing is rotated then."""
    made = await _created(admin)
    assert (await admin.post(f"/v1/keys/{made['id']}/rotate", json=body)).status_code == 400
    assert (await admin.get(f"/v1/keys/{made['id']}")).json()["rotated_at"] is None


async def test_an_idempotency_key_is_refused_where_nothing_could_be_repeated(admin: httpx2.AsyncClient) -> None:
    """If it were ignored, callers would rely on it."""
    response = await admin.post("/v1/keys", json={}, headers={"Idempotency-Key": "a"})
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "Idempotency-Key"
