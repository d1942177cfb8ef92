"""A follow token opens one job for a while, and nothing else; it ends with the key that made it."""

import asyncio
from typing import Any

import httpx2
import pytest

from shared.api_key import ALL_SCOPES, Scope
from shared.follow_token import new_follow_token, read_follow_token
from shared.job import JobState, new_id
from shared.store.api_keys import NewKey
from tests.keys.conftest import TENANT, Serve, bearer, make_key, presented
from tests.support.author import Author
from tests.support.follower import asking
from tests.support.served import Served
from tests.support.wait import wait_until
from tests.tenants.table import METHODS, routes

_SAY = "The follow token is not valid: it has expired, is another job's, or its API key has ended. Make a new one."


@pytest.fixture
async def author(served: Served) -> Author:
    """A running job of the tenant."""
    author = await Author.start(served.api.runtime, tenant=TENANT)
    await author.say("Hel", "lo")
    return author


async def _made(http: httpx2.AsyncClient, job_id: str, key: NewKey, **body: Any) -> Any:
    response = await http.post(f"/v1/jobs/{job_id}/follow-token", json=body, headers=bearer(key.text))
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] == "no-referrer"
    return response.json()


def _refused(response: httpx2.Response) -> None:
    assert (response.status_code, response.json()["detail"]) == (401, _SAY)


async def _followed(url: str, path: str) -> tuple[int, bytes]:
    async with asyncio.timeout(20), asking(url, path) as response:
        return response.status, await response.read()


async def test_a_url_alone_follows_the_job_to_its_end(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """Without any header."""
    made = await _made(http, author.job_id, await make_key(served.api.runtime))
    assert made["url"] == f"/v1/jobs/{author.job_id}/events?token={made['token']}"
    async with asking(served.url, f"{made['url']}&format=text") as response:
        assert response.status == 200
        seen = await response.read_some()
        await author.succeed()
        async with asyncio.timeout(20):
            while piece := await response.read_some():
                seen += piece
    assert b'{"text":"Hel"}' in seen
    assert b"event: succeeded\n" in seen
    end_id = (await served.api.runtime.jobs.get(author.job_id, TENANT)).end_id
    async with asking(served.url, made["url"], headers={"Last-Event-ID": str(end_id)}) as response:
        assert response.status == 204


async def test_it_is_refused_for_every_other_job(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """For one of its own tenant, for another tenant's, for none: the same 401."""
    runtime = served.api.runtime
    token = (await _made(http, author.job_id, await make_key(runtime), cancel=True))["token"]
    own = await Author.start(runtime, tenant=TENANT)
    foreign = await Author.start(runtime, tenant="tenant-b")
    for job_id in (own.job_id, foreign.job_id, new_id("job"), "job_x"):
        _refused(await http.get(f"/v1/jobs/{job_id}/events", params={"token": token}))
        _refused(await http.post(f"/v1/jobs/{job_id}/cancel", params={"token": token}))
    for spared in (own, foreign):
        assert (await runtime.jobs.get(spared.job_id, spared.claim.tenant)).state is JobState.RUNNING


async def test_it_is_a_credential_on_two_paths_only(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """Everywhere else it does not count, by any method. It is no API key in a header either."""
    token = (await _made(http, author.job_id, await make_key(served.api.runtime), cancel=True))["token"]
    paths = {route.path.replace("{job_id}", author.job_id) for route in routes() if route.path.startswith("/v1/")}
    paths = {path for path in paths if "{" not in path} | {f"/v1/batches/{new_id('batch')}/events"}
    takes = {("GET", f"/v1/jobs/{author.job_id}/events"), ("POST", f"/v1/jobs/{author.job_id}/cancel")}
    assert len(paths) > 15
    for path in paths:
        for method in METHODS:
            if method != "OPTIONS" and (method.replace("HEAD", "GET"), path) not in takes:
                response = await http.request(method, path, params={"token": token})
                assert response.status_code in (401, 405), (method, path)
        assert (await http.get(path, headers=bearer(token))).status_code in (401, 405)
    assert (await served.api.runtime.jobs.get(author.job_id, TENANT)).state is JobState.RUNNING


async def test_an_altered_or_foreign_token_is_refused(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """Nothing of it can be changed, and nobody signs one without the digest of the key."""
    runtime = served.api.runtime
    key = await make_key(runtime)
    text = (await _made(http, author.job_id, key, expires_in_s=5))["token"]
    token = read_follow_token(text)
    assert token is not None
    later, read = token.expires_ms + 1, frozenset({Scope.READ})
    other = await make_key(runtime, tenant="tenant-b")
    for forged in (
        *("", "x", text[:-1], f"{text}A", text.upper(), key.text, text.replace("~events~", "~events-cancel~")),
        text.replace(str(token.expires_ms), str(later)),
        text.replace(key.key.id, other.key.id),
        *(new_follow_token(key.key.id, read, later, author.job_id, digest) for digest in ("", "0" * 64, "None")),
        new_follow_token(TENANT, read, later, author.job_id, ""),
        new_follow_token("key_0000000000000000", read, later, author.job_id, "0" * 64),
    ):
        _refused(await http.get(f"/v1/jobs/{author.job_id}/events", params={"token": forged}))
    # Another tenant can sign with its own key, for a job whose id it knows: that job does not exist for it.
    own = new_follow_token(other.key.id, read, later, author.job_id, presented(other.text).digest)
    assert (await http.get(f"/v1/jobs/{author.job_id}/events", params={"token": own})).status_code == 404


async def test_it_expires(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """By Redis's clock, and never after its key."""
    runtime = served.api.runtime
    made = await _made(http, author.job_id, await make_key(runtime), expires_in_s=1)
    assert (await _first_status(served, made["url"])) == 200
    await asyncio.sleep(1.1)
    _refused(await http.get(made["url"]))
    short = await make_key(runtime, expires_in_s=300)
    token = read_follow_token((await _made(http, author.job_id, short, expires_in_s=3600))["token"])
    assert token is not None
    assert token.expires_ms == short.key.expires_ms


async def _first_status(served: Served, path: str) -> int:
    async with asking(served.url, path) as response:
        return response.status


async def test_a_revocation_ends_its_streams_and_refuses_it(
    served: Served, http: httpx2.AsyncClient, author: Author
) -> None:
    """In the process that has just seen it, too."""
    runtime = served.api.runtime
    key = await make_key(runtime)
    made = await _made(http, author.job_id, key, cancel=True)
    following = asyncio.create_task(_followed(served.url, made["url"]), name="a follower")
    await wait_until(lambda: bool(served.api.key_ring._watched), "the stream")
    await runtime.api_keys.revoke(key.key.id, TENANT)
    _refused(await http.get(made["url"]))
    _refused(await http.post(made["url"].replace("/events", "/cancel")))
    status, body = await following
    assert (status, body.endswith(b": the api key is not valid any more\n\n")) == (200, True)
    assert (await runtime.jobs.get(author.job_id, TENANT)).state is JobState.RUNNING


@pytest.mark.parametrize("grace_s", [0, 3600])
async def test_it_lasts_as_long_as_the_secret_that_made_it(
    served: Served, http: httpx2.AsyncClient, author: Author, grace_s: int
) -> None:
    """After a rotation: for its grace."""
    runtime = served.api.runtime
    key = await make_key(runtime)
    url = (await _made(http, author.job_id, key))["url"]
    await runtime.api_keys.rotate(key.key.id, TENANT, grace_s=grace_s)
    assert await _first_status(served, url) == (200 if grace_s else 401)


async def test_it_allows_what_was_chosen(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """And what its key allows: without ``cancel`` a key makes no token that cancels."""
    runtime = served.api.runtime
    key, reader = await make_key(runtime), await make_key(runtime, scopes=frozenset({Scope.READ}))
    events = (await _made(http, author.job_id, key))["url"]
    assert (await http.post(events.replace("/events", "/cancel"))).status_code == 403
    cancel = (await _made(http, author.job_id, key, events=False, cancel=True))["url"]
    assert "/cancel?token=" in cancel
    assert (await http.get(cancel.replace("/cancel", "/events"))).status_code == 403
    path = f"/v1/jobs/{author.job_id}/follow-token"
    for scopes, body, status in (
        ({Scope.READ}, {"cancel": True}, 403),
        (ALL_SCOPES - {Scope.READ}, {}, 403),
        (ALL_SCOPES, {"events": False}, 400),
        (ALL_SCOPES, {"expires_in_s": 3601}, 400),
        (ALL_SCOPES, {"expires_in_s": 0}, 400),
        (ALL_SCOPES, {"cancel": 1}, 400),
        (ALL_SCOPES, {"until": 1}, 400),
    ):
        maker = await make_key(runtime, scopes=frozenset(scopes))
        assert (await http.post(path, json=body, headers=bearer(maker.text))).status_code == status, body
    assert (await http.post(path, headers=bearer(reader.text))).status_code == 201
    await author.succeed()
    ended = await http.post(cancel)
    assert (ended.status_code, ended.json()["status"]) == (200, "succeeded")
    assert "result" not in ended.json()  # it does not read
    both = (await _made(http, author.job_id, key, cancel=True))["url"].replace("/events", "/cancel")
    assert (await http.post(both)).json()["result"]["text"] == "Hello"


async def test_it_cancels_a_running_job(served: Served, http: httpx2.AsyncClient, author: Author) -> None:
    """By its URL alone."""
    made = await _made(http, author.job_id, await make_key(served.api.runtime), cancel=True)
    cancelled = await http.post(made["url"].replace("/events", "/cancel"))
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")


async def test_another_unknown_query_parameter_is_still_refused(
    served: Served, http: httpx2.AsyncClient, author: Author
) -> None:
    """The 400 names the token as one that the path takes, and does not repeat it."""
    made = await _made(http, author.job_id, await make_key(served.api.runtime))
    response = await http.get(f"{made['url']}&tail=1")
    assert response.status_code == 400
    assert response.json()["errors"][0]["detail"] == "is not known: this path takes after, format, token"
    assert made["token"] not in response.text


async def test_no_response_and_no_log_repeats_it(
    served: Served, http: httpx2.AsyncClient, author: Author, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever becomes of the request."""
    runtime = served.api.runtime
    key = await make_key(runtime)
    made = await _made(http, author.job_id, key, cancel=True)
    token = made["token"]
    for path in (made["url"], f"/v1/jobs?token={token}", f"/v1/jobs/{new_id('job')}/events?token={token}"):
        for method in METHODS:
            async with asking(served.url, path, method=method) as response:
                assert token not in str(response.headers)
                if method != "HEAD":
                    assert token.encode() not in await response.read_some()
    out, errors = capfd.readouterr()
    assert token not in out + errors


async def test_without_keys_it_names_its_tenant(serve: Serve) -> None:
    """With TOKENSPOOL_AUTH=off; a token that was made under keys counts for nothing there, and the other way round."""
    served, keyed = await serve(auth="off"), await serve()
    author = await Author.start(served.api.runtime, tenant="tenant-c")
    events = f"/v1/jobs/{author.job_id}/events"
    async with httpx2.AsyncClient(base_url=served.url) as http, httpx2.AsyncClient(base_url=keyed.url) as strict:
        path = f"/v1/jobs/{author.job_id}/follow-token"
        assert (await http.post(path)).status_code == 404
        made = (await http.post(path, json={"expires_in_s": 1}, headers={"X-Tenant": "tenant-c"})).json()
        assert await _first_status(served, made["url"]) == 200
        assert (await http.post(made["url"].replace("/events", "/cancel"))).status_code == 403
        _refused(await strict.get(made["url"]))
        key = await make_key(keyed.api.runtime, tenant="tenant-c")
        other = await _made(strict, author.job_id, key)
        _refused(await http.get(other["url"]))
        await asyncio.sleep(1.1)
        _refused(await http.get(made["url"]))
        assert events in made["url"]


async def test_an_unknown_key_is_refused_by_the_same_work(served: Served) -> None:
    """Nobody learns from the time which ids of keys exist."""
    runtime = served.api.runtime
    key, revoked = await make_key(runtime), await make_key(runtime)
    await runtime.api_keys.revoke(revoked.key.id, TENANT)
    for key_id in (key.key.id, revoked.key.id, "key_0000000000000000"):
        _, digests = await runtime.api_keys.signers(key_id)
        assert [len(digest) for digest in digests] == [64, 64]
    _, digests = await runtime.api_keys.signers(key.key.id)
    assert presented(key.text).digest in digests
