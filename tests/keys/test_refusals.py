"""Which keys are accepted, and how others are refused: on our surface and on the Messages API's, over real HTTP."""

import asyncio
import binascii
from typing import Any, Final

import httpx2
import pytest

from api.app import create_app
from api.http.anthropic_errors import is_on_surface
from shared.api_key import ALL_SCOPES, Scope
from shared.job import JobState
from shared.settings import load_settings
from shared.store.api_keys import NewKey
from shared.store.runtime import Runtime
from tests.keys.conftest import TENANT, Serve, bearer, make_key
from tests.support.author import Author
from tests.support.served import Served
from tests.support.wait import wait_until

surfaces = pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models"], ids=["native", "messages"])


def refusal_of(response: httpx2.Response, status: int) -> str:
    """The message of a response that refuses the key, in its surface's envelope."""
    assert response.status_code == status, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    body = response.json()
    if is_on_surface(response.request.url.path):
        assert body["type"] == "error"
        assert body["error"]["type"] == {401: "authentication_error", 403: "permission_error"}[status]
        return str(body["error"]["message"])
    assert response.headers["content-type"] == "application/problem+json"
    assert body["code"] == {401: "unauthenticated", 403: "forbidden"}[status]
    return str(body["detail"])


@surfaces
async def test_both_headers_are_accepted(served: Served, http: httpx2.AsyncClient, path: str) -> None:
    """Also both at once, if they are the same. The scheme's case and surrounding spaces do not matter."""
    text = (await make_key(served.api.runtime)).text
    for headers in (
        bearer(text),
        {"x-api-key": text},
        {"authorization": f"bearer   {text}"},
        {"AUTHORIZATION": f"BEARER {text}", "X-Api-Key": text},
    ):
        assert (await http.get(path, headers=headers)).status_code == 200


@surfaces
async def test_of_two_credentials_only_a_key_of_ours_counts(
    served: Served, http: httpx2.AsyncClient, path: str
) -> None:
    """Clients send another vendor's key from their environment, or an empty one, in the header not used for ours."""
    text = (await make_key(served.api.runtime)).text
    for foreign in ("", "sk-ant-api03-of-another-vendor", "none"):
        assert (await http.get(path, headers={**bearer(text), "x-api-key": foreign})).status_code == 200, foreign
        headers = {"authorization": f"Bearer {foreign}".strip(), "x-api-key": text}
        assert (await http.get(path, headers=headers)).status_code == 200, foreign
    for authorization in ("", "Bearer", "Basic dXNlcjpwYXNz", f"Basic {text}"):
        headers = {"authorization": authorization, "x-api-key": text}
        assert (await http.get(path, headers=headers)).status_code == 200, authorization


@surfaces
async def test_two_keys_of_ours_that_differ_are_a_400_that_says_so(
    served: Served, http: httpx2.AsyncClient, path: str
) -> None:
    """A caller with two tenants' keys must not get either tenant's jobs by chance."""
    one, other = [(await make_key(served.api.runtime, tenant=tenant)).text for tenant in (TENANT, "tenant-b")]
    for headers in ({**bearer(one), "x-api-key": other}, {**bearer("ts_x"), "x-api-key": one}):
        response = await http.get(path, headers=headers)
        assert response.status_code == 400
        assert "differs from the key in Authorization" in response.text
        assert not any(text in response.text for text in (one, other))


@surfaces
async def test_an_empty_credential_counts_as_missing(http: httpx2.AsyncClient, path: str) -> None:
    """The error says that a key is missing, not that it is wrong."""
    for headers in ({"x-api-key": ""}, {"authorization": "Bearer"}, {"authorization": "Bearer", "x-api-key": ""}):
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        assert refusal_of(await http.get(path, headers=raw), 401).startswith("An API key is needed")


@surfaces
async def test_every_wrong_key_gets_the_same_message(served: Served, http: httpx2.AsyncClient, path: str) -> None:
    """Nobody learns which ids exist, or that a key was valid once."""
    runtime = served.api.runtime
    made, other, gone = [await make_key(runtime) for _ in range(3)]
    await runtime.api_keys.revoke(gone.key.id, TENANT)
    expired = await make_key(runtime, expires_in_s=0.001)
    of_other = made.text.replace(made.key.id[4:], other.key.id[4:])  # its checksum is wrong; it is corrected below
    wrong_secret = _with_checksum(of_other[:-6])
    unknown = _with_checksum(made.text.replace(made.key.id[4:], "0" * 16)[:-6])
    said = set()
    for headers in [
        *[bearer(text) for text in (wrong_secret, unknown, gone.text, expired.text, made.text[:-1] + "!")],
        *[bearer(text) for text in (made.text + "0", made.text[:-1], "x", "ä", made.text.upper())],
        {"x-api-key": wrong_secret},
        {"x-api-key": "sk-of-somebody-else"},
        {**bearer("sk-of-somebody-else"), "x-api-key": "sk-of-another"},
        {"authorization": f"Basic {made.text}"},
        {"authorization": made.text},
        {"authorization": "Basic x", "x-api-key": wrong_secret},
    ]:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        response = await http.get(path, headers=raw)
        said.add(refusal_of(response, 401))
        assert not any(text in response.text for text in (made.text, wrong_secret, made.key.id, other.key.id))
    assert said == {"The API key is not valid: there is no such key, or it is revoked or expired."}


@surfaces
async def test_without_a_key_the_error_says_how_to_send_it(served: Served, http: httpx2.AsyncClient, path: str) -> None:
    """A key in the URL does not count, and neither does X-Tenant."""
    text = (await make_key(served.api.runtime)).text
    query = dict.fromkeys(("key", "api_key", "x-api-key", "access_token", "token", "authorization"), text)
    for response in (
        await http.get(path),
        await http.get(path, headers={"X-Tenant": TENANT}),
        await http.get(path, params=query),
        await http.get(path, headers={"Cookie": f"x-api-key={text}", "Proxy-Authorization": f"Bearer {text}"}),
    ):
        assert refusal_of(response, 401) == "An API key is needed: send it as Authorization: Bearer or as x-api-key."
        assert text not in response.text


@surfaces
@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key"])
async def test_a_header_that_is_sent_twice_is_refused(
    served: Served, http: httpx2.AsyncClient, path: str, name: str
) -> None:
    """Even with the same key twice: a proxy may have read the other one."""
    text = (await make_key(served.api.runtime)).text
    value = f"Bearer {text}" if name == "Authorization" else text
    response = await http.get(path, headers=[(name, value), (name, value)])
    assert response.status_code == 400
    assert name in response.text
    assert text not in response.text


def _with_checksum(text: str) -> str:
    """Corrects the checksum, as a forger would."""
    number, digits = binascii.crc32(text.encode()), ""
    alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = alphabet[digit] + digits
    return text + digits


# --- scopes --------------------------------------------------------------------------------------------------------------

_OPEN: Final = {"/health", "/health/live", "/health/ready", "/problems/{code}"}
_NEEDED: Final = {
    "/v1/jobs": {"post": Scope.SUBMIT, "get": Scope.READ},
    "/v1/jobs/{job_id}": {"get": Scope.READ, "delete": Scope.CANCEL},
    "/v1/jobs/{job_id}/events": {"get": Scope.READ},
    "/v1/jobs/{job_id}/attempts": {"get": Scope.READ},
    "/v1/jobs/{job_id}/follow-token": {"post": Scope.READ},
    "/v1/jobs/{job_id}/cancel": {"post": Scope.CANCEL},
    "/v1/jobs/{job_id}/retry": {"post": Scope.SUBMIT},
    "/v1/jobs/cancel": {"post": Scope.CANCEL},
    "/v1/jobs/retry": {"post": Scope.SUBMIT},
    "/v1/jobs/erase": {"post": Scope.CANCEL},
    "/v1/operations": {"get": Scope.READ},
    "/v1/operations/{operation_id}": {"get": Scope.READ},
    "/v1/operations/{operation_id}/cancel": {"post": Scope.CANCEL},
    "/v1/batches": {"post": Scope.SUBMIT, "get": Scope.READ},
    "/v1/batches/{batch_id}": {"get": Scope.READ, "delete": Scope.CANCEL},
    "/v1/batches/{batch_id}/results": {"get": Scope.READ},
    "/v1/batches/{batch_id}/events": {"get": Scope.READ},
    "/v1/batches/{batch_id}/cancel": {"post": Scope.CANCEL},
    "/v1/batches/{batch_id}/retry": {"post": Scope.SUBMIT},
    "/v1/usage": {"get": Scope.READ},
    "/v1/limits": {"get": Scope.READ},
    "/v1/stats": {"get": Scope.READ},
    "/v1/live": {"get": Scope.READ},
    "/v1/keys": {"post": Scope.ADMIN, "get": Scope.ADMIN},
    "/v1/keys/{key_id}": {"get": Scope.ADMIN, "patch": Scope.ADMIN},
    "/v1/keys/{key_id}/rotate": {"post": Scope.ADMIN},
    "/v1/keys/{key_id}/revoke": {"post": Scope.ADMIN},
    "/v1/tenants": {"get": Scope.OPERATOR},
    "/v1/tenants/{name}": dict.fromkeys(("get", "put", "patch", "delete"), Scope.OPERATOR),
    "/v1/workers": {"get": Scope.OPERATOR},
    "/v1/webhooks/secret": {"get": Scope.ADMIN},
    "/v1/webhooks/secret/rotate": {"post": Scope.ADMIN},
    "/v1/webhooks/deliveries": {"get": Scope.READ},
    "/v1/webhooks/deliveries/{delivery_id}": {"get": Scope.READ},
    "/v1/webhooks/deliveries/{delivery_id}/redeliver": {"post": Scope.SUBMIT},
    "/v1/messages": {"post": Scope.SUBMIT},
    "/v1/messages/count_tokens": {"post": Scope.SUBMIT},
    "/v1/messages/batches": {"post": Scope.SUBMIT, "get": Scope.READ},
    "/v1/messages/batches/{batch_id}": {"get": Scope.READ, "delete": Scope.CANCEL},
    "/v1/messages/batches/{batch_id}/results": {"get": Scope.READ},
    "/v1/messages/batches/{batch_id}/cancel": {"post": Scope.CANCEL},
    "/v1/models": {"get": Scope.READ},
    "/v1/models/{model_id}": {"get": Scope.READ},
    "/complete": {"post": Scope.SUBMIT},
    "/complete/stream": {"post": Scope.SUBMIT},
}
_NEEDS_READ_TOO: Final = "/v1/jobs/retry"
"""It finds jobs by what they hold."""


async def test_every_route_asks_for_its_scope(served: Served, http: httpx2.AsyncClient) -> None:
    """403 with all other scopes, before anything else is checked; with it alone neither 401 nor 403."""
    runtime = served.api.runtime
    only = {scope: (await make_key(runtime, scopes=frozenset({scope}))).text for scope in Scope}
    without = {scope: (await make_key(runtime, scopes=ALL_SCOPES - {scope})).text for scope in Scope}
    submit_and_read = (await make_key(runtime, scopes=frozenset({Scope.SUBMIT, Scope.READ}))).text
    ids = {
        "job_id": "job_01m84bdq4t7w9k2p5x8r3n6v0c",
        "batch_id": "batch_01m84bdq4t7w9k2p5x8r3n6v0c",
        "key_id": "key_01m84bdq4tyw9k2p",
        "operation_id": "op_01m84bdq4t7w9k2p5x8r3n6v0c",
        "model_id": "a-model",
        "name": "a-tenant",
        "delivery_id": "evt_01m84bdq4t7w9k2p5x8r3n6v0c",
    }
    paths: dict[str, Any] = create_app(load_settings(auth="off")).openapi()["paths"]
    assert paths.keys() - _OPEN == _NEEDED.keys()
    for path, scopes in _NEEDED.items():
        assert set(paths[path]) == set(scopes)
        for method, scope in scopes.items():
            where = path.format(**ids)
            refused = await http.request(method, where, headers=bearer(without[scope]), content=b"not JSON")
            assert refusal_of(refused, 403) == f"The key lacks the scope {scope}."
            key = submit_and_read if path == _NEEDS_READ_TOO else only[scope]
            # No stream: one of them would not end by itself.
            headers = bearer(key) | {"Accept": "application/json"}
            let_in = await http.request(method, where, headers=headers, content=b"not JSON")
            assert let_in.status_code not in (401, 403), (method, path, let_in.text)


async def test_a_replay_shows_a_result_only_to_keys_that_may_read(served: Served, http: httpx2.AsyncClient) -> None:
    """Otherwise a key that may only submit could read another key's job by its Idempotency-Key, or by a retry."""
    runtime = served.api.runtime
    owner, submitter = await make_key(runtime), await make_key(runtime, scopes=frozenset({Scope.SUBMIT}))
    body = {"prompt": "a", "job": {"metadata": {"secret": "s3cret"}, "tags": ["s3cret"], "end_user": "s3cret"}}
    first = await http.post("/v1/jobs", json=body, headers=bearer(owner.text) | {"Idempotency-Key": "k"})
    author = await Author.claim_next(runtime)
    await author.fail()
    for key in (owner, submitter):
        replay = await http.post("/v1/jobs", json=body, headers=bearer(key.text) | {"Idempotency-Key": "k"})
        assert (replay.status_code, replay.headers["idempotency-replayed"]) == (200, "true")
        assert ("result" in replay.json(), "s3cret" in replay.text) == (key is owner, key is owner)
    followed = bearer(submitter.text) | {"Idempotency-Key": "k", "Accept": "text/event-stream"}
    assert (await http.post("/v1/jobs", json=body, headers=followed)).status_code == 403
    retry = f"/v1/jobs/{first.json()['id']}/retry"
    for _ in range(2):
        retried = await http.post(retry, headers=bearer(submitter.text) | {"Idempotency-Key": "r"})
        assert retried.status_code == 202
        assert "s3cret" not in retried.text
    author = await Author.claim_next(runtime)
    await author.say("Hello.")
    await author.succeed()
    retried = await http.post(retry, headers=bearer(submitter.text) | {"Idempotency-Key": "r"})
    assert retried.status_code == 200
    assert "Hello" not in retried.text


async def test_a_key_that_submitted_sees_its_own_result(served: Served, http: httpx2.AsyncClient) -> None:
    """It sent the prompt, and may have lost its connection before the answer came."""
    submitter = await make_key(served.api.runtime, scopes=frozenset({Scope.SUBMIT}))
    headers = bearer(submitter.text) | {"Idempotency-Key": "k"}
    await http.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    author = await Author.claim_next(served.api.runtime)
    await author.say("Hello.")
    await author.succeed()
    assert (await http.post("/v1/jobs", json={"prompt": "a"}, headers=headers)).json()["result"]["text"] == "Hello."


async def test_a_replayed_message_is_shown_only_to_keys_that_may_read(served: Served, http: httpx2.AsyncClient) -> None:
    """That holds for another key's call; a key's own message is shown to it."""
    runtime = served.api.runtime
    owner, submitter = [await make_key(runtime, scopes=frozenset({Scope.SUBMIT})) for _ in range(2)]
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}

    async def sent(key: NewKey) -> httpx2.Response:
        return await http.post("/v1/messages", json=body, headers=bearer(key.text) | {"Idempotency-Key": "k"})

    first = asyncio.create_task(sent(owner))
    await wait_until_waiting(runtime)
    author = await Author.claim_next(runtime)
    await author.say("Hello.")
    await author.succeed()
    assert (await first).status_code == 200
    assert [(await sent(key)).status_code for key in (owner, submitter)] == [200, 403]


async def wait_until_waiting(runtime: Runtime) -> None:
    async def waits() -> bool:
        return (await runtime.queue.depth())[JobState.QUEUED] == 1

    await wait_until(waits, "the job")


async def test_a_cancel_shows_a_result_only_to_keys_that_may_read(served: Served, http: httpx2.AsyncClient) -> None:
    """Otherwise every answer of the tenant could be read by cancelling ended jobs."""
    runtime = served.api.runtime
    author = await Author.start(runtime, tenant=TENANT)
    await author.say("Hello.")
    await author.succeed()
    canceller = await make_key(runtime, scopes=frozenset({Scope.CANCEL}))
    reader = await make_key(runtime, scopes=frozenset({Scope.CANCEL, Scope.READ}))
    url = f"/v1/jobs/{author.job_id}/cancel"
    cancelled = (await http.post(url, headers=bearer(canceller.text))).json()
    assert cancelled["status"] == "succeeded"
    assert "result" not in cancelled
    assert (await http.post(url, headers=bearer(reader.text))).json()["result"]["text"] == "Hello."


def test_every_route_but_the_open_ones_declares_its_keys() -> None:
    """In the OpenAPI document, with both headers."""
    document = create_app(load_settings(auth="off")).openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path not in _OPEN:
                assert operation["security"] == [{"bearer": []}, {"x-api-key": []}], path
                assert {"401", "403"} <= set(operation["responses"]), path


async def test_health_shows_its_details_only_to_keys_that_may_read(served: Served, http: httpx2.AsyncClient) -> None:
    """Others see only whether all is well. Load balancers and restart checks need no key."""
    runtime = served.api.runtime
    reader = await make_key(runtime, scopes=frozenset({Scope.READ}))
    submitter = await make_key(runtime, scopes=frozenset({Scope.SUBMIT}))
    for headers in ({}, bearer(submitter.text), bearer("x")):
        response = await http.get("/health", headers=headers)
        assert (response.status_code, response.json()) == (200, {"status": "degraded"})
    assert (await http.get("/health", headers=bearer(reader.text))).json()["redis"] == "ok"
    for path in ("/health/live", "/health/ready", "/openapi.json", "/problems/unauthenticated"):
        assert (await http.get(path)).status_code == 200


async def test_a_key_is_its_tenant_whatever_x_tenant_says(served: Served, http: httpx2.AsyncClient) -> None:
    """Also if X-Tenant is invalid."""
    runtime = served.api.runtime
    mine, theirs = await make_key(runtime), await make_key(runtime, tenant="tenant-b")
    headers = {**bearer(mine.text), "X-Tenant": "tenant-b"}
    job = (await http.post("/v1/jobs", json={"prompt": "Hello."}, headers=headers)).json()
    for tenant in ("tenant-b", "not valid!"):
        response = await http.get(f"/v1/jobs/{job['id']}", headers={**bearer(mine.text), "X-Tenant": tenant})
        assert response.status_code == 200
    assert (await http.get(f"/v1/jobs/{job['id']}", headers=bearer(theirs.text))).status_code == 404
    spec = (await runtime.jobs.get(job["id"], TENANT)).spec
    assert spec.key_id == mine.key.id


async def test_while_auth_is_off_nobody_can_make_keys(serve: Serve) -> None:
    """A key made by anybody now would still be valid after authentication is turned on."""
    served = await serve(auth="off")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        response = await http.post("/v1/keys", json={})
    assert "TOKENSPOOL_AUTH=keys" in refusal_of(response, 403)
