"""What reaches beyond a tenant: for keys with the scope operator alone, and without what the tenants wrote."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.api_key import ALL_SCOPES, Scope
from shared.limits import CallerLimits
from shared.store.runtime import Runtime
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.wait import wait_until
from tests.tenants.table import METHODS, OF_OPERATORS, routes
from tests.tenants.victim import ATTACKER, CANARY, VICTIM, Victim, a_key, state_of_all
from tests.tenants.wire import Line, Response

_OPERATOR = "tenant-of-operators"
_NAMES = (VICTIM, ATTACKER, "nobody", "*", "a:b", "a b", "", "x" * 65, "..", f"{VICTIM}&tenant={ATTACKER}")
"""Tenants that exist, the caller's own, one that does not, and texts that are no names."""
_OF_LISTS = ("/v1/jobs", "/v1/batches", "/v1/usage", "/v1/keys", "/v1/jobs?sort=oldest_waiting")


@pytest.fixture
async def served(victim: Victim, real_redis: RedisUnderTest) -> AsyncIterator[Served]:
    """An API with a short lease, because an erasure waits for one."""
    async with serving(real_redis.url, auth="keys", lease_s=1) as running:
        yield running


@pytest.fixture
async def operator(runtime: Runtime, line: Line) -> Line:
    """The connection, with an operator's key too."""
    made = await runtime.api_keys.create(_OPERATOR, env="live", name="", scopes=ALL_SCOPES, limits=CallerLimits())
    assert made is not None
    line._keys = {**line._keys, _OPERATOR: made.text}
    return line


async def _asked(line: Line, path: str, tenant: str, method: str = "GET", body: Any = None) -> Response:
    content = None if body is None else json.dumps(body).encode()
    return await line.ask(method, path.replace(" ", "%20"), headers=line.of(tenant), body=content)


def _operator_paths() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for route in routes():
        if route.path.startswith(OF_OPERATORS):
            found.setdefault(route.path, set()).update(route.methods or ())
    return found


async def test_the_routes_of_operators_are_one_403_for_others(runtime: Runtime, victim: Victim, line: Line) -> None:
    """With every method, for every name, whatever the body: the response shows nothing of who exists."""
    paths = _operator_paths()
    assert set(paths) == {"/v1/tenants", "/v1/tenants/{name}", "/v1/workers"}
    before = await state_of_all(runtime)
    for path, methods in paths.items():
        for method in METHODS:
            body = {"queued_jobs": 1} if method in ("PUT", "PATCH", "POST") else None
            names = [name for name in _NAMES if name not in ("", "..")]
            found = {await _asked(line, path.format(name=name), ATTACKER, method, body) for name in names}
            assert len(found) == 1, (method, path)
            (answer,) = found
            taken = method in methods or (method == "HEAD" and "GET" in methods)
            assert answer.status == (403 if taken else 204 if method == "OPTIONS" else 405), (method, path)
    assert (await state_of_all(runtime)).differences_to(before) == set()


async def test_a_tenant_that_is_named_without_the_scope_is_one_403(victim: Victim, line: Line) -> None:
    """The same bytes for the caller's own name, another's, an absent one and what is no name; filters change nothing."""
    key_id = victim.ids["key"]["standing"]
    asked = [(method, f"/v1/keys/{key_id}{more}", body) for method, more, body in (
        ("GET", "", None), ("PATCH", "", {"name": "mine"}), ("POST", "/revoke", {}),
    )]  # fmt: skip
    asked += [("GET", path, None) for path in _OF_LISTS]
    for method, path, body in asked:
        joint = "&" if "?" in path else "?"
        for more in ("", "&limit=1", "&limit=abc", "&nonsense=1"):
            found = {await _asked(line, f"{path}{joint}tenant={name}{more}", ATTACKER, method, body) for name in _NAMES}
            assert {answer.status for answer in found} == {403}, (method, path)
            assert len(found) == 1, (method, path)


async def test_an_operator_lists_what_a_tenant_has_and_not_what_it_wrote(victim: Victim, operator: Line) -> None:
    """Jobs, batches and keys with their tenant; no result, metadata, tags, custom id or webhook. Single jobs are a 404."""
    jobs = json.loads((await _asked(operator, f"/v1/jobs?limit=100&tenant={VICTIM}", _OPERATOR)).body)["data"]
    assert {job["tenant"] for job in jobs} == {VICTIM}
    listed = {job["id"] for job in jobs}
    assert {victim.ids["job"][state] for state in ("succeeded", "failed", "running", "queued")} <= listed
    batches = await _asked(operator, f"/v1/batches?tenant={VICTIM}", _OPERATOR)
    assert {victim.ids["batch"][state] for state in ("ended", "running")} <= {
        batch["id"] for batch in json.loads(batches.body)["data"]
    }
    keys = await _asked(operator, f"/v1/keys?tenant={VICTIM}", _OPERATOR)
    assert set(victim.ids["key"].values()) <= {key["id"] for key in json.loads(keys.body)["data"]}
    for path in (
        *(f"/v1/jobs?limit=100&tenant={VICTIM}", f"/v1/batches?tenant={VICTIM}", "/v1/workers", "/v1/tenants"),
        *(f"/v1/jobs?tenant=*&sort={sort}" for sort in ("oldest_waiting", "longest_running")),
        *(f"/v1/usage?tenant={VICTIM}", "/v1/usage?tenant=*&group_by=tenant"),
    ):
        answer = await _asked(operator, path, _OPERATOR)
        assert answer.status == 200, path
        assert CANARY.encode() not in answer.body, path
    for kind, where in (("job", "/v1/jobs/{}"), ("job", "/v1/jobs/{}/events"), ("batch", "/v1/batches/{}/results")):
        for own_id in victim.ids[kind].values():
            assert (await _asked(operator, where.format(own_id), _OPERATOR)).status == 404


@pytest.mark.parametrize("name", ["", "a:b", "a b", "x" * 65, "../x", "%C3%A4"])
async def test_an_operator_names_only_what_may_be_a_name(victim: Victim, operator: Line, name: str) -> None:
    """The names of Redis keys are made from it."""
    for path in _OF_LISTS:
        answer = await _asked(operator, f"{path}{'&' if '?' in path else '?'}tenant={name}", _OPERATOR)
        assert answer.status == 400, path
    assert (await _asked(operator, "/v1/jobs?tenant=*", _OPERATOR)).status == 400  # only with sort


async def test_a_tenant_is_created_changed_listed_and_erased(
    runtime: Runtime, victim: Victim, operator: Line, served: Served
) -> None:
    """Over HTTP, with everything that it has; the name is free afterwards."""
    made = await _asked(operator, "/v1/tenants/acme", _OPERATOR, "PUT", {"queued_jobs": 5, "usd_per_day": 1.5})
    assert made.status == 201
    assert json.loads(made.body)["settings"]["queued_jobs"] == 5
    changed = await _asked(operator, "/v1/tenants/acme", _OPERATOR, "PATCH", {"log_retention_s": 0.5})
    settings = json.loads(changed.body)["settings"]
    assert (settings["queued_jobs"], settings["usd_per_day"], settings["log_retention_s"]) == (5, 1.5, 0.5)
    again = await _asked(operator, "/v1/tenants/acme", _OPERATOR, "PUT", {})
    assert again.status == 200
    assert set(json.loads(again.body)["settings"].values()) == {None}
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await _asked(operator, f"/v1/tenants?limit=1{'&after=' + after if after else ''}", _OPERATOR)
        content = json.loads(page.body)
        names += [tenant["name"] for tenant in content["data"]]
        after = content["next"]
    assert names == sorted({"acme", VICTIM, ATTACKER, _OPERATOR})
    for method, body in (("GET", None), ("PATCH", {}), ("DELETE", None)):
        assert (await _asked(operator, "/v1/tenants/nobody", _OPERATOR, method, body)).status == 404
    assert (await _asked(operator, f"/v1/tenants/{_OPERATOR}", _OPERATOR, "DELETE")).status == 403

    erased = await _asked(operator, f"/v1/tenants/{VICTIM}", _OPERATOR, "DELETE")
    assert erased.status == 202
    assert json.loads(erased.body)["erasure"]["since"]
    refused = await _asked(operator, f"/v1/tenants/{VICTIM}", _OPERATOR, "PUT", {})
    assert json.loads(refused.body)["code"] == "tenant_being_erased"

    async def is_gone() -> bool:
        return (await _asked(operator, f"/v1/tenants/{VICTIM}", _OPERATOR)).status == 404

    await wait_until(is_gone, "the end of the erasure", timeout_s=30)
    left = {
        name for name, (value, _) in (await state_of_all(runtime)).items() if VICTIM in name or VICTIM in str(value)
    }
    assert left == set()
    assert (await _asked(operator, f"/v1/tenants/{VICTIM}", _OPERATOR, "PUT", {})).status == 201
    assert json.loads((await _asked(operator, f"/v1/jobs?tenant={VICTIM}", _OPERATOR)).body)["data"] == []


async def test_no_key_gives_the_scope_to_another(runtime: Runtime, victim: Victim, operator: Line) -> None:
    """Neither to a new key nor to an old one, whoever asks; what a key lost it does not get back."""
    own = await a_key(runtime, _OPERATOR)
    for tenant in (_OPERATOR, ATTACKER):
        made = await _asked(operator, "/v1/keys", tenant, "POST", {"scopes": ["read", "operator"]})
        assert made.status == 403
    for where in (f"/v1/keys/{own.key.id}", f"/v1/keys/{victim.ids['key']['standing']}?tenant={VICTIM}"):
        answer = await _asked(operator, where, _OPERATOR, "PATCH", {"scopes": ["read", "operator"]})
        assert (answer.status, json.loads(answer.body)["code"]) == (403, "forbidden")
        assert b"command line" in answer.body
    theirs = await runtime.api_keys.get(victim.ids["key"]["standing"], VICTIM)
    assert Scope.OPERATOR not in theirs.scopes


async def test_an_operator_changes_and_revokes_a_tenants_key(runtime: Runtime, victim: Victim, operator: Line) -> None:
    """Only if it names the tenant; it never makes one, or a secret for one."""
    key_id = victim.ids["key"]["standing"]
    body = {"limits": {"queued_jobs": 7}, "scopes": ["read"]}
    assert (await _asked(operator, f"/v1/keys/{key_id}", _OPERATOR, "PATCH", body)).status == 404
    assert (await _asked(operator, f"/v1/keys/{key_id}?tenant={ATTACKER}", _OPERATOR, "PATCH", body)).status == 404
    changed = await _asked(operator, f"/v1/keys/{key_id}?tenant={VICTIM}", _OPERATOR, "PATCH", body)
    assert changed.status == 200
    key = await runtime.api_keys.get(key_id, VICTIM)
    assert (key.limits.queued_jobs, key.scopes, key.name) == (7, frozenset({Scope.READ}), CANARY)
    assert (await _asked(operator, f"/v1/keys/{key_id}/rotate?tenant={VICTIM}", _OPERATOR, "POST", {})).status == 400
    revoked = await _asked(operator, f"/v1/keys/{key_id}/revoke?tenant={VICTIM}", _OPERATOR, "POST", {})
    assert json.loads(revoked.body)["status"] == "revoked"
    assert (await _asked(operator, f"/v1/keys/{key_id}?tenant={VICTIM}", _OPERATOR, "PATCH", {})).status == 409
