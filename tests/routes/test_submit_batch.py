"""``POST /v1/batches``: the response, what a batch stores, and what a repeated one finds."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import httpx2
import pytest

from api.batches import submit as submit_batch
from api.state import upload_slots as uploads
from api.state.upload_slots import MOST_UPLOADS
from shared.errors import QueueFull, StorageUnavailable
from shared.store import redis_keys
from shared.store.batches import SLICE_ITEMS, Batches, Order
from shared.store.runtime import Runtime
from tests.routes.conftest import CalledApi, StartApi, problem_of
from tests.support.batches import TENANT, run_all
from tests.support.served import Served
from tests.support.store import all_keys, kind_of
from tests.support.wait import wait_until

LINES = {"Content-Type": "application/jsonl"}


def a_request(number: int, **params: Any) -> dict[str, Any]:
    """A valid request."""
    return {"custom_id": f"row-{number}", "params": {"prompt": f"Say {number}.", **params}}


def as_lines(count: int) -> bytes:
    """``count`` valid requests, one per line."""
    return b"".join(json.dumps(a_request(number)).encode() + b"\n" for number in range(1, count + 1))


async def stored(runtime: Runtime) -> int:
    """The number of keys of jobs, batches and idempotency records; the API's loops write others."""
    names = (await runtime._commands.call("SCAN", 0, "COUNT", 100_000))[1]
    return sum(kind_of(name.decode()) in _OF_BATCHES for name in names)


_OF_BATCHES = ("job", "batch", "batch_items", "batch_invalid", "batch_ended", "idempotency")


async def _submit_json(api: CalledApi, body: Any, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.http.post("/v1/batches", json=body, headers=named)


async def _submit_lines(api: CalledApi, body: bytes, query: str = "", **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.http.post(f"/v1/batches{query}", content=body, headers=LINES | named)


async def _jobs_of(api: CalledApi, batch_id: str) -> list[Any]:
    ids = [job_id for job_id in await api.runtime.batches.item_ids(batch_id, 0, 1000) if job_id]
    return [await api.job(job_id) for job_id in ids]


async def test_a_batch_returns_202_with_the_batch_and_its_location(api: CalledApi) -> None:
    """Its items are queued already, with the options of the ``job`` member."""
    response = await _submit_json(
        api,
        {
            "job": {"timeout_s": 60, "max_attempts": 2, "metadata": {"run": "nightly"}},
            "requests": [a_request(1), a_request(2, model="a-model"), a_request(3, max_tokens=16)],
        },
    )
    assert response.status_code == 202, response.text
    batch = response.json()
    assert response.headers["location"] == f"/v1/batches/{batch['id']}"
    assert response.headers["cache-control"] == "no-store"
    assert "idempotency-replayed" not in response.headers
    assert batch["status"] == "running"
    assert batch["metadata"] == {"run": "nightly"}
    assert (batch["counts"]["total"], batch["counts"]["queued"]) == (3, 3)

    jobs = await _jobs_of(api, batch["id"])
    assert [job["custom_id"] for job in jobs] == ["row-1", "row-2", "row-3"]
    assert [job["model"] for job in jobs] == ["claude-sonnet-4-6", "a-model", "claude-sonnet-4-6"]
    for job in jobs:
        assert (job["status"], job["priority"], job["batch_id"]) == ("queued", "low", batch["id"])
        assert (job["timeout_s"], job["max_attempts"], job["metadata"]) == (60, 2, {})
    stored = await api.runtime._commands.call("HGET", redis_keys.job(jobs[2]["id"]), "request")
    assert json.loads(stored) == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "Say 3."}],
    }


@pytest.mark.parametrize(
    "content_type", ["application/jsonl", "application/x-ndjson; charset=utf-8", "Application/X-JSONLines"]
)
async def test_a_json_lines_batch_has_its_options_in_the_query(api: CalledApi, content_type: str) -> None:
    """With every content type of JSON lines."""
    response = await api.http.post(
        "/v1/batches?timeout_s=60&metadata.run=nightly",
        content=as_lines(2),
        headers={"Content-Type": content_type},
    )
    assert response.status_code == 202, response.text
    batch = response.json()
    assert batch["metadata"] == {"run": "nightly"}
    assert [job["timeout_s"] for job in await _jobs_of(api, batch["id"])] == [60, 60]


async def test_an_invalid_line_is_a_failed_item_and_the_others_run(api: CalledApi) -> None:
    """Lines are numbered as in the body, including blank ones."""
    body = as_lines(1) + b"\nsecret\r\n" + json.dumps(a_request(2)).encode()
    batch = (await _submit_lines(api, body)).json()
    assert batch["counts"] == {
        "total": 3, "queued": 2, "running": 0, "succeeded": 0, "failed": 1, "cancelled": 0, "expired": 0,
    }  # fmt: skip
    await run_all(api.runtime)
    items = await api.runtime.batches.ended_items(batch["id"], Order.SUBMITTED)
    assert [item.line for item in items] == [1, 3, 4]
    assert items[1].job_id is None
    assert items[1].invalid is not None
    assert items[1].invalid.message == "line 3 is not JSON"
    assert (await api.runtime.batches.get(batch["id"], TENANT)).has_ended


async def test_a_batch_of_only_invalid_lines_ends_at_once(api: CalledApi) -> None:
    """There is no failed state of a batch."""
    batch = (await _submit_json(api, {"requests": [1, {}, {"custom_id": "a", "params": {}}]})).json()
    assert batch["status"] == "ended"
    assert (batch["counts"]["total"], batch["counts"]["failed"]) == (3, 3)


@pytest.mark.parametrize("form", ["json", "lines"])
async def test_a_batch_of_many_slices_is_complete_and_in_order(api: CalledApi, form: str) -> None:
    """No line is lost or doubled between two slices."""
    count = 3 * SLICE_ITEMS + 1
    body = as_lines(count)
    if form == "json":
        raw = b'{"requests":[' + b",".join(body.splitlines()) + b"]}"
        response = await api.http.post("/v1/batches", content=raw, headers={"Content-Type": "application/json"})
    else:
        response = await _submit_lines(api, body)
    batch_id = response.json()["id"]
    ids = await api.runtime.batches.item_ids(batch_id, 0, count + 5)
    assert len(ids) == len(set(ids)) == count
    await api.runtime.batches.advance_all(batch_id)
    assert (await api.runtime.batches.get(batch_id, TENANT)).counts.queued == count
    last = await api.job(str(ids[-1]))
    assert last["custom_id"] == f"row-{count}"


async def test_the_same_batch_again_is_the_first_one(api: CalledApi) -> None:
    """It is not stored a second time, and the response has its current state."""
    body = {"requests": [a_request(1)], "job": {"timeout_s": 60}}
    first = await _submit_json(api, body, Idempotency_Key="a-key")
    keys_count = await stored(api.runtime)
    again = await api.http.post(
        "/v1/batches",
        content=json.dumps({"job": body["job"], "requests": body["requests"]}, indent=3),
        headers={"Idempotency-Key": '"a-key"', "Content-Type": "application/json"},
    )
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert await stored(api.runtime) == keys_count

    await run_all(api.runtime)
    ended = await _submit_json(api, body, Idempotency_Key="a-key")
    assert ended.status_code == 200
    assert ended.json()["status"] == "ended"


async def test_a_key_with_another_batch_or_a_jobs_key_is_422(api: CalledApi) -> None:
    """A key belongs to one body."""
    await _submit_json(api, {"requests": [a_request(1)]}, Idempotency_Key="a-key")
    await api.submitted(None, Idempotency_Key="a-jobs-key")
    keys_count = await stored(api.runtime)
    for body, key in (({"requests": [a_request(2)]}, "a-key"), ({"requests": [a_request(1)]}, "a-jobs-key")):
        problem_of(await _submit_json(api, body, Idempotency_Key=key), 422, "idempotency_key_reused")
    problem_of(await api.submit(None, Idempotency_Key="a-key"), 422, "idempotency_key_reused")
    assert await stored(api.runtime) == keys_count


async def test_two_of_the_same_key_at_once_make_one_batch(api: CalledApi) -> None:
    """Both begin before either is stored; the later one is erased."""
    answers = await asyncio.gather(
        *[_submit_json(api, {"requests": [a_request(1), a_request(2)]}, Idempotency_Key="a-key") for _ in range(4)]
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await api.runtime._commands.call("ZCARD", redis_keys.plain("waiting")) == 2
    assert await stored(api.runtime) == 5  # two jobs, the batch, its items, the key


async def test_another_tenants_key_is_another_key(api: CalledApi) -> None:
    """Guessing keys does not reveal another tenant's batches."""
    body = {"requests": [a_request(1)]}
    first = await _submit_json(api, body, Idempotency_Key="a-key")
    other = await _submit_json(api, body, Idempotency_Key="a-key", X_Tenant="another")
    assert first.json()["id"] != other.json()["id"]


async def test_no_item_of_a_batch_runs_before_its_body_is_complete(served: Served) -> None:
    """Although slices of it are in Redis long before."""
    going_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield as_lines(3 * SLICE_ITEMS)
        await going_on.wait()

    async with httpx2.AsyncClient(base_url=served.url) as client:
        submitting = asyncio.create_task(client.post("/v1/batches", content=body(), headers=LINES))
        commands = served.api.runtime._commands

        async def has_slices() -> bool:
            return await stored(served.api.runtime) > SLICE_ITEMS

        await wait_until(has_slices, "slices in Redis")
        assert await commands.call("ZCARD", redis_keys.plain("waiting")) == 0
        going_on.set()
        assert (await submitting).status_code == 202


async def test_a_client_that_disconnects_leaves_nothing(served: Served) -> None:
    """A part of a batch is erased."""

    async def keys_count() -> int:
        return await stored(served.api.runtime)

    before = await keys_count()

    async def body() -> AsyncIterator[bytes]:
        yield as_lines(2 * SLICE_ITEMS + 10)
        await asyncio.Event().wait()

    async with httpx2.AsyncClient(base_url=served.url) as client:
        submitting = asyncio.create_task(client.post("/v1/batches", content=body(), headers=LINES))

        async def has_slices() -> bool:
            return await keys_count() > SLICE_ITEMS

        await wait_until(has_slices, "slices in Redis")
        submitting.cancel()
        await asyncio.wait((submitting,))

    async def is_as_before() -> bool:
        return await keys_count() <= before

    await wait_until(is_as_before, "nothing left")


@pytest.mark.parametrize("lost", ["a slice", "all of it"])
async def test_lines_that_redis_lost_never_count_as_blank(served: Served, lost: str) -> None:
    """A failover loses the last writes: the batch is not started without them, and may be sent again."""
    going_on = asyncio.Event()
    runtime = served.api.runtime

    async def body() -> AsyncIterator[bytes]:
        yield as_lines(2 * SLICE_ITEMS)
        await going_on.wait()
        yield json.dumps(a_request(0)).encode()

    async with httpx2.AsyncClient(base_url=served.url) as client:
        submitting = asyncio.create_task(client.post("/v1/batches", content=body(), headers=LINES))

        async def has_a_slice() -> bool:
            return await stored(runtime) > SLICE_ITEMS

        await wait_until(has_a_slice, "a slice in Redis")
        (name,) = [key for key in await all_keys(runtime._commands) if kind_of(key) == "batch"]
        if lost == "a slice":
            await runtime._commands.call("HINCRBY", name, "total", -SLICE_ITEMS)
        else:
            await runtime._commands.call("DEL", name)
        going_on.set()
        problem_of(await submitting, 503, "storage_unavailable")


async def test_a_batch_larger_than_the_queue_is_503_and_leaves_nothing(start_api: StartApi) -> None:
    """Even if its first slices had room."""
    api = await start_api(max_queued=2 * SLICE_ITEMS)
    before = await stored(api.runtime)
    problem_of(await _submit_lines(api, as_lines(2 * SLICE_ITEMS + 1)), QueueFull.status, QueueFull.code)
    assert await stored(api.runtime) <= before
    assert (await _submit_lines(api, as_lines(2 * SLICE_ITEMS))).status_code == 202


async def test_an_api_that_reads_a_batch_serves_others_meanwhile(served: Served) -> None:
    """Parsing yields to the event loop every few milliseconds."""
    async with httpx2.AsyncClient(base_url=served.url, timeout=50) as client:
        submitting = asyncio.create_task(client.post("/v1/batches", content=as_lines(20_000), headers=LINES))
        answered = 0
        while not submitting.done():
            assert (await client.get("/health/live")).status_code == 200
            answered += 1
        assert (await submitting).json()["counts"]["total"] == 20_000
    assert answered > 5


async def test_a_batch_whose_start_got_no_reply_does_not_run_without_a_key(
    api: CalledApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller gets an error and sends it again, so it would run and be paid for twice."""
    begin = Batches.start

    async def unheard(self: Batches, *arguments: Any, **named: Any) -> str:
        await begin(self, *arguments, **named)
        raise StorageUnavailable

    monkeypatch.setattr(Batches, "start", unheard)
    assert (await _submit_lines(api, as_lines(3))).status_code == 503
    page = await api.runtime.batches.page(TENANT, after=None, limit=5)
    assert [batch.counts.cancelled for batch in page.batches] == [3]

    response = await _submit_lines(api, as_lines(3), Idempotency_Key="once")
    assert response.status_code == 503
    monkeypatch.undo()
    again = await _submit_lines(api, as_lines(3), Idempotency_Key="once")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["counts"]["queued"] == 3


def _of_bytes(size: int) -> bytes:
    """A batch of one request, a little longer than ``size``."""
    return json.dumps(a_request(1, prompt="x" * size)).encode()


_LARGE: Final = _of_bytes(submit_batch._SMALL_BYTES)


@asynccontextmanager
async def _all_places(api: CalledApi) -> AsyncIterator[AsyncExitStack]:
    """All upload slots, held by others."""
    async with AsyncExitStack() as stack:
        for number in range(MOST_UPLOADS):
            await stack.enter_async_context(api.state.uploads.place_of(f"tenant-{number}"))
        yield stack


async def test_more_uploads_than_there_are_slots_are_refused_after_a_while(
    api: CalledApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each upload needs some MB."""
    monkeypatch.setattr(uploads, "_PATIENCE_S", 0.2)
    async with _all_places(api):
        response = await _submit_lines(api, _LARGE)
        assert (response.status_code, response.json()["code"]) == (503, "queue_full")
        assert int(response.headers["Retry-After"]) > 0
    assert (await _submit_lines(api, _LARGE)).status_code == 202


@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "known"}])
async def test_an_upload_waits_for_its_slot(api: CalledApi, key: dict[str, str]) -> None:
    """Even if its key already has a batch."""
    if key:
        await _submit_lines(api, _LARGE, **key)
    async with _all_places(api) as places:
        uploading = asyncio.create_task(_submit_lines(api, _LARGE, **key))
        await asyncio.sleep(0.2)
        assert not uploading.done()
        await places.aclose()
        assert (await uploading).status_code == 202


async def test_a_small_batch_needs_no_slot(api: CalledApi) -> None:
    """It counts towards the bound of all bodies; one of unknown length may be large."""
    async with _all_places(api):
        assert (await _submit_lines(api, as_lines(100))).status_code == 202
        assert api.state.bodies.bytes == 0

        async def pieces() -> AsyncIterator[bytes]:
            yield as_lines(1)

        uploading = asyncio.create_task(api.http.post("/v1/batches", content=pieces(), headers=LINES))
        await asyncio.sleep(0.2)
        assert not uploading.done()
        uploading.cancel()
        await asyncio.wait((uploading,))


async def test_a_tenants_batches_at_once_are_all_accepted(api: CalledApi) -> None:
    """Small or large: those without a slot wait for one."""
    bodies = [as_lines(20)] * 12 + [_LARGE] * 6
    responses = await asyncio.gather(*[_submit_lines(api, body) for body in bodies])
    assert {response.status_code for response in responses} == {202}


async def test_small_batches_count_towards_the_bound_of_bodies(start_api: StartApi) -> None:
    """Together with all other bodies that are being read."""
    api = await start_api(max_bodies_bytes=1024)
    response = await _submit_lines(api, _of_bytes(100 << 10))
    assert (response.status_code, response.json()["code"]) == (503, "queue_full")
    assert (await _submit_lines(api, as_lines(1))).status_code == 202
    assert api.state.bodies.bytes == 0


async def test_a_tenant_cannot_keep_others_from_uploading(api: CalledApi) -> None:
    """However many uploads it begins, there is a slot for the next tenant."""
    async with AsyncExitStack() as stack:
        for others, places in (("evil", 4), ("as-evil", 2), ("evil-too", 1)):
            for _ in range(places):
                await stack.enter_async_context(api.state.uploads.place_of(others))
            assert not api.state.uploads._may_hold(others)
        assert (await _submit_lines(api, _LARGE)).status_code == 202


async def test_a_batchs_body_must_arrive_at_a_least_rate(api: CalledApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slower one loses its slot."""
    monkeypatch.setattr(submit_batch, "_SILENCE_S", 0.3)

    async def trickling() -> AsyncIterator[bytes]:
        while True:
            yield b"\n"
            await asyncio.sleep(0.1)

    response = await api.http.post("/v1/batches", content=trickling(), headers=LINES)
    assert (response.status_code, response.json()["detail"]) == (400, "The body did not arrive in time.")
