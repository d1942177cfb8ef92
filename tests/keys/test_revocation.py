"""A revocation ends a key's streams, long polls and waits in every process within 5 s."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx2
import msgspec
import pytest

from api.batches import submit as submit_batch
from shared.api_key import REPLACED
from shared.job import JobState
from shared.store.batches import Batches
from shared.store.runtime import Runtime
from tests.keys.conftest import TENANT, Serve, bearer, make_key
from tests.support.author import Author
from tests.support.batches import a_batch
from tests.support.follower import asking
from tests.support.served import Served
from tests.support.store import all_keys, kind_of
from tests.support.wait import wait_until

A_BODY = {"prompt": "Say hello."}
A_MESSAGE = {"model": "a-model", "max_tokens": 10, "messages": [{"role": "user", "content": "Say hello."}]}
A_BATCH = {"requests": [{"custom_id": "a", "params": A_BODY}]}

_KEY_ENDED = b": the api key is not valid any more\n\n"


async def _asked(served: Served, path: str, text: str, *, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Makes one request; returns its status and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(text)
    method = "GET" if body is None else "POST"
    async with asking(served.url, path, method=method, headers=named, body=body) as response:
        return response.status, await response.read()


async def _running_job(served: Served, text: str) -> Author:
    """Claims a job of /v1/messages and begins its answer."""
    async with httpx2.AsyncClient(base_url=served.url, headers=bearer(text)) as http:
        response = await http.post("/v1/jobs", json=A_BODY)
    assert response.status_code == 202
    return await Author.claim_next(served.api.runtime)


async def test_every_open_request_of_a_revoked_key_ends_in_every_process(
    serve: Serve, fact: Callable[[str], None]
) -> None:
    """Each ends in its surface's form; requests of the tenant's other keys go on."""
    first, second = await serve(), await serve()
    runtime = first.api.runtime
    key, other = await make_key(runtime), await make_key(runtime)
    text = key.text
    async with httpx2.AsyncClient(base_url=second.url, headers=bearer(text)) as http:
        job = (await http.post("/v1/jobs", json=A_BODY)).json()
        batch = (await http.post("/v1/batches", json=A_BATCH)).json()
    a_job, a_batch = f"/v1/jobs/{job['id']}", f"/v1/batches/{batch['id']}"
    going: dict[str, Coroutine[Any, Any, tuple[int, bytes]]] = {}
    for number, served in enumerate((first, second)):
        going |= {
            f"{number} events": _asked(served, f"{a_job}/events", text),
            f"{number} batch": _asked(served, f"{a_batch}/events", text),
            f"{number} batch tokens": _asked(served, f"{a_batch}/events?tokens=true", text),
            f"{number} submit and follow": _asked(served, "/v1/jobs", text, body=A_BODY, Accept="text/event-stream"),
            f"{number} complete stream": _asked(served, "/complete/stream", text, body={"prompt": "x"}),
            f"{number} long poll": _asked(served, f"{a_job}?wait=60", text),
            f"{number} submit and wait": _asked(served, "/v1/jobs", text, body=A_BODY, Prefer="wait=60"),
            f"{number} complete": _asked(served, "/complete", text, body={"prompt": "x"}),
            f"{number} message": _asked(served, "/v1/messages", text, body=A_MESSAGE),
            f"{number} message held": _asked(served, "/v1/messages", text, body={**A_MESSAGE, "stream": True}),
        }
    tasks = {name: asyncio.create_task(one, name=name) for name, one in going.items()}
    async with asking(first.url, f"{a_job}/events", headers=bearer(other.text)) as spared:
        await wait_until(lambda: all(_is_held(served, text, 10) for served in (first, second)), "all of them")
        began_s = asyncio.get_running_loop().time()
        await runtime.api_keys.revoke(key.key.id, TENANT)
        async with asyncio.timeout(20):
            found = {name: await task for name, task in tasks.items()}
        fact(f"a revoked key: 20 streams and waits in two processes ended within {_since(began_s):.1f} s")
        assert (await spared.read_some()).startswith(b"retry: ")
        for served in (first, second):
            assert list(served.api.key_ring._watched) == ([_digest(other.text)] if served is first else [])
    for name, (status, body) in found.items():
        match name[2:]:
            case "events" | "batch" | "batch tokens" | "submit and follow":
                assert (status, body[-len(_KEY_ENDED) :]) == (200, _KEY_ENDED), name
            case "complete stream":
                assert status == 200
                assert body.startswith(b"event: error\ndata: {")
                assert b'"code":"unauthenticated"' in body
            case "long poll" | "submit and wait" | "complete":
                assert status == 401, name
                assert b'"code":"unauthenticated"' in body
            case _:
                assert status == 401, name
                assert b'"type":"authentication_error"' in body
    for served in (first, second):
        assert served.relay.follower_count <= 1
    assert (await _asked(second, "/v1/jobs", other.text))[0] == 200
    await wait_until(lambda: _have_ended(runtime, first), "the jobs that a client had waited for are cancelled")


async def test_a_stream_that_has_begun_ends_with_an_error_on_the_messages_surface(served: Served) -> None:
    """A stream that just ended would look like a success. The call to the upstream ends too."""
    runtime = served.api.runtime
    key = await make_key(runtime)
    following = asyncio.create_task(
        _asked(served, "/v1/messages", key.text, body={**A_MESSAGE, "stream": True}), name="a message"
    )

    async def is_queued() -> bool:
        return (await runtime.queue.depth())[JobState.QUEUED] == 1

    await wait_until(is_queued, "its job")
    author = await Author.claim_next(runtime)
    await author.open()
    await author.say("Hel", "lo")
    await wait_until(lambda: _is_held(served, key.text, 1), "the stream")
    await runtime.api_keys.revoke(key.key.id, TENANT)
    async with asyncio.timeout(20):
        status, body = await following
    assert status == 200
    last = body.rstrip(b"\n").split(b"\n\n")[-1]
    assert last.startswith(b'event: error\ndata: {"type":"error","error":{"type":"authentication_error"')
    job = await runtime.jobs.get(author.job_id, TENANT)
    assert job.state is JobState.CANCELLED


async def test_a_stream_ends_when_its_key_expires(served: Served) -> None:
    """No request or command is needed for that."""
    runtime = served.api.runtime
    lasting, ending = await make_key(runtime), await make_key(runtime, expires_in_s=1)
    author = await _running_job(served, lasting.text)
    async with asyncio.timeout(20):
        status, body = await _asked(served, f"/v1/jobs/{author.job_id}/events", ending.text)
    assert (status, body[-len(_KEY_ENDED) :]) == (200, _KEY_ENDED)
    assert (await runtime.jobs.get(author.job_id, TENANT)).state is JobState.RUNNING


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", A_BODY),
        ("/complete", A_BODY),
        ("/complete/stream", A_BODY),
        ("/v1/messages", A_MESSAGE),
        ("/v1/messages/count_tokens", A_MESSAGE),
        ("/v1/keys", {"scopes": ["admin"]}),
        ("/v1/keys/KEY/rotate", {"grace_s": 0}),
        ("/v1/webhooks/secret/rotate", {"grace_s": 0}),
    ],
)
async def test_a_body_whose_key_is_revoked_while_it_arrives_does_nothing(served: Served, path: str, body: Any) -> None:
    """A body may take a minute; at its end the response is a 401."""
    runtime = served.api.runtime
    key, other = await make_key(runtime), await make_key(runtime)
    raw = msgspec.json.encode(body)

    async def pieces() -> AsyncIterator[bytes]:
        yield raw[:5]
        await _revoked_behind_its_back(served, key.key.id)
        yield raw[5:]

    async with httpx2.AsyncClient(base_url=served.url) as http:
        headers = {**bearer(key.text), "Content-Type": "application/json"}
        response = await http.post(path.replace("KEY", other.key.id), content=pieces(), headers=headers)
    assert response.status_code == 401, response.text
    kinds = {kind_of(name) for name in await all_keys(runtime._commands)}
    assert not kinds & {"job", "webhook_secret"}
    assert len((await runtime.api_keys.page(TENANT, after=None, limit=5)).keys) == 2
    assert (await runtime.api_keys.get(other.key.id, TENANT)).rotated_ms is None


async def test_a_revoked_key_that_is_still_believed_makes_no_key_and_no_secret(served: Served) -> None:
    """The process still has the key in its cache."""
    runtime = served.api.runtime
    key, other = await make_key(runtime), await make_key(runtime)
    async with httpx2.AsyncClient(base_url=served.url, headers=bearer(key.text)) as http:
        assert (await http.get("/v1/keys")).status_code == 200
        await runtime.api_keys.revoke(key.key.id, TENANT)
        for path in ("/v1/keys", f"/v1/keys/{other.key.id}/rotate"):
            response = await http.post(path, json={})
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"
    assert len((await runtime.api_keys.page(TENANT, after=None, limit=5)).keys) == 2


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/keys/KEY/rotate", "/v1/webhooks/secret/rotate"])
async def test_a_secret_that_is_replaced_while_its_body_arrives_manages_nothing(served: Served, path: str) -> None:
    """It was the newest secret when the head was checked."""
    runtime = served.api.runtime
    key = await make_key(runtime)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await wait_until(lambda: bool(served.api.key_ring._known), "its key is known")
        await runtime.api_keys.rotate(key.key.id, TENANT, grace_s=3600)
        _age(served)
        yield b"}"

    async with httpx2.AsyncClient(base_url=served.url) as http:
        headers = {**bearer(key.text), "Content-Type": "application/json"}
        response = await http.post(path.replace("KEY", key.key.id), content=pieces(), headers=headers)
    assert (response.status_code, response.json()["detail"]) == (403, REPLACED)


_LINE = b'{"custom_id":"%d","params":{"prompt":"x"}}\n'
_LINES = {"Content-Type": "application/jsonl", "Idempotency-Key": "once"}


@pytest.mark.parametrize("stands", [False, True], ids=["new", "replayed"])
async def test_a_batch_whose_key_is_revoked_while_it_arrives_is_not_started(served: Served, stands: bool) -> None:
    """A body may take half an hour. The response does not show an earlier batch with its Idempotency-Key either."""
    runtime = served.api.runtime
    key, other = await make_key(runtime), await make_key(runtime)

    async def lines() -> AsyncIterator[bytes]:
        yield _LINE % 1
        await _revoked_behind_its_back(served, key.key.id)
        yield _LINE % 2

    async with httpx2.AsyncClient(base_url=served.url, headers=_LINES) as http:
        if stands:
            body = _LINE % 1 + _LINE % 2
            assert (await http.post("/v1/batches", content=body, headers=bearer(other.text))).status_code == 202
        response = await http.post("/v1/batches", content=lines(), headers=bearer(key.text))
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert len((await runtime.batches.page(TENANT, after=None, limit=5)).batches) == stands


@pytest.mark.parametrize("stands", [False, True], ids=["new", "replayed"])
async def test_a_batch_whose_key_is_revoked_is_not_read_to_its_end(
    served: Served, monkeypatch: pytest.MonkeyPatch, stands: bool
) -> None:
    """The response comes within seconds, however much was sent."""
    monkeypatch.setattr(submit_batch, "_STILL_HERE_S", 0.1)
    runtime = served.api.runtime
    key, other = await make_key(runtime), await make_key(runtime)
    if stands:
        async with httpx2.AsyncClient(base_url=served.url, headers=_LINES | bearer(other.text)) as http:
            assert (await http.post("/v1/batches", content=_LINE % 1)).status_code == 202
    address = httpx2.URL(served.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    headers = {"Host": "a", "Content-Length": "1000000", **_LINES, **bearer(key.text)}
    head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    try:
        writer.write(f"POST /v1/batches HTTP/1.1\r\n{head}\r\n".encode() + _LINE % 1)
        await _revoked_behind_its_back(served, key.key.id)
        async with asyncio.timeout(20):
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401 ")
    finally:
        writer.close()


async def test_a_batch_whose_key_is_revoked_while_it_is_retried_is_not_started(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying its requests takes a while."""
    runtime = served.api.runtime
    key = await make_key(runtime)
    batch = await a_batch(runtime, tenant=TENANT)
    await runtime.batches.cancel(batch.id, TENANT)
    await runtime.batches.advance_all(batch.id)
    add = Batches.add

    async def revoked_meanwhile(self: Batches, *arguments: Any, **named: Any) -> None:
        await _revoked_behind_its_back(served, key.key.id)
        await add(self, *arguments, **named)

    monkeypatch.setattr(Batches, "add", revoked_meanwhile)
    status, body = await _asked(served, f"/v1/batches/{batch.id}/retry", key.text, body={})
    assert (status, b'"code":"unauthenticated"' in body) == (401, True)
    assert [found.id for found in (await runtime.batches.page(TENANT, after=None, limit=5)).batches] == [batch.id]


async def _revoked_behind_its_back(served: Served, key_id: str) -> None:
    """Revokes the key after the head of its request was checked, as if that check had been 10 s ago."""
    known = served.api.key_ring._known
    await wait_until(lambda: any(found.caller.key_id == key_id for found in known.values()), "its key is known")
    await served.api.runtime.api_keys.revoke(key_id, TENANT)
    _age(served)


def _age(served: Served) -> None:
    for credential in served.api.key_ring._known.values():
        credential.confirmed_s -= 10
        credential.fresh_until_s -= 10


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _is_held(served: Served, text: str, by: int) -> bool:
    credential = served.api.key_ring._watched.get(_digest(text))
    return credential is not None and len(credential.holders) == by


def _since(began_s: float) -> float:
    return asyncio.get_running_loop().time() - began_s


async def _have_ended(runtime: Runtime, served: Served) -> bool:
    """Whether the attended ones of the 2 + 2 × 6 jobs have ended: those of /complete and /v1/messages."""
    depth = await runtime.queue.depth()
    return depth[JobState.QUEUED] == 2 + 2 * 2
