"""``messages.batches`` from create to delete, as the official SDK sees it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic
from anthropic.types.messages import MessageBatch

from shared.errors import JobError
from shared.job import Step
from shared.store import redis_keys
from shared.store.queue import Claim, Ending, Finished
from tests.anthropic_surface.conftest import FAST, STEADY, Serve, Surface, a_client, asked, author_of_next
from tests.anthropic_surface.test_refusals import envelope_of
from tests.support.author import TENANT
from tests.support.builders import encoded, lines
from tests.support.store import claim, finish, make_overdue, receive, start_batch
from tests.support.wait import wait_until

_PATH = "/v1/messages/batches"
_RICH = "blocks=thinking+citations+tool+text"
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


def _request(custom_id: str, said: str = "Say hello.", **params: Any) -> Any:
    return {"custom_id": custom_id, "params": {**asked(said), **params}}


def _requests(count: int) -> list[Any]:
    return [_request(f"row-{number}") for number in range(1, count + 1)]


def _counts_of(batch: MessageBatch) -> dict[str, int]:
    """The batch's counts that are not 0."""
    counts = batch.request_counts
    return {name: count for name in _COUNTS if (count := getattr(counts, name))}


async def _ended(surface: Surface, batch_id: str) -> MessageBatch:
    async def has_ended() -> bool:
        return (await surface.client.messages.batches.retrieve(batch_id)).processing_status == "ended"

    await wait_until(has_ended, "the end of the batch")
    return await surface.client.messages.batches.retrieve(batch_id)


async def _results(surface: Surface, batch_id: str) -> dict[str, Any]:
    found = await surface.client.messages.batches.results(batch_id)
    return {line.custom_id: line.result async for line in found}


async def _end(surface: Surface, claimed: Claim, ending: Ending) -> None:
    assert (await finish(surface.runtime, claimed, ending)).outcome is Finished.ENDED


async def _claimed(surface: Surface, count: int) -> list[Claim]:
    """Claims ``count`` items; returns them in the order of the batch."""
    claims = [(await author_of_next(surface.runtime)).claim for _ in range(count)]
    assert {each.tenant for each in claims} == {TENANT}
    return claims


@pytest.fixture
async def http(surface: Surface) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=surface.served.url) as client:
        yield client


async def test_a_batch_is_created_polled_read_and_deleted(surface: Surface, at_work: None) -> None:
    """With the asynchronous client and a real worker: results are the upstream's answers and refusals."""
    batches = surface.client.messages.batches
    born = await batches.create(
        requests=[_request("plain", "nonce=p"), _request("rich", f"nonce=r {_RICH}"), _request("refused", "fail=400")]
    )
    assert born.id.startswith("msgbatch_")
    assert (born.type, born.processing_status) == ("message_batch", "in_progress")
    assert sum(_counts_of(born).values()) == 3
    assert (born.ended_at, born.cancel_initiated_at, born.archived_at, born.results_url) == (None, None, None, None)
    assert (born.expires_at - born.created_at).total_seconds() == 86_400
    assert born.model_extra == {}

    ended = await _ended(surface, born.id)
    assert _counts_of(ended) == {"succeeded": 2, "errored": 1}
    assert ended.ended_at is not None
    assert ended.results_url == f"{_PATH}/{born.id}/results"
    results = await _results(surface, born.id)
    assert "".join(block.text for block in results["plain"].message.content) == "".join(f"p.1.{n} " for n in range(6))
    blocks = [block.type for block in results["rich"].message.content]
    assert {"thinking", "tool_use", "text"} <= set(blocks)
    assert results["refused"].error.error.type == "invalid_request_error"

    deleted = await batches.delete(born.id)
    assert (deleted.id, deleted.type) == (born.id, "message_batch_deleted")
    for call in (batches.retrieve, batches.results, batches.cancel, batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            await call(born.id)


async def test_the_synchronous_client_sees_the_same(surface: Surface, at_work: None) -> None:
    """It has its own transport, and the beta client has its own paths."""

    def live() -> None:
        with Anthropic(base_url=surface.served.url, api_key="any", max_retries=0) as client:
            for batches in (client.messages.batches, client.beta.messages.batches):
                born: Any = batches.create(requests=_requests(2))
                asyncio.run_coroutine_threadsafe(_ended(surface, born.id), loop).result(timeout=20)
                found = [(line.custom_id, line.result.type) for line in batches.results(born.id)]
                assert found == [("row-1", "succeeded"), ("row-2", "succeeded")]
                listed: list[Any] = list(batches.list(limit=1))
                assert [batch.id for batch in listed] == [born.id]
                assert batches.cancel(born.id).processing_status == "ended"
                assert batches.delete(born.id).type == "message_batch_deleted"

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(live)


async def test_unknown_members_reach_the_upstream_in_a_batch_too(surface: Surface) -> None:
    """Members of any name, even of names with a meaning elsewhere, and betas; only ``stream`` is ours."""
    extra: dict[str, Any] = {
        "job": {"priority": 3},
        "prompt": "mine",
        "new_parameter": [1, {"a": None}],
        "temperature": 0.25,
    }
    await surface.client.messages.batches.create(
        requests=[_request("a", **extra, stream=False)],
        extra_headers={"anthropic-beta": "one-1, two-2", "anthropic-version": "2031-01-01"},
    )
    (claimed,) = await _claimed(surface, 1)
    assert json.loads(claimed.request) == {**asked(), **extra}
    assert (claimed.spec.anthropic_beta, claimed.spec.anthropic_version) == ("one-1,two-2", "2031-01-01")


async def test_a_batched_request_equals_a_single_call(surface: Surface, http: httpx2.AsyncClient) -> None:
    """Byte for byte: the request to the LLM, and the message that comes back."""
    message = encoded({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "new": [{"é": None, "n": 1.50}],
        "content": [{"type": "text", "text": 'Grüße "\u2028" 🦀\n', "citations": None}], "stop_reason": "end_turn",
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 2},
    })  # fmt: skip
    success = Ending(Step.SUCCEED, b'{"text":"Gr","stop_reason":"end_turn","message":%b}' % message)
    calling = asyncio.create_task(http.post("/v1/messages", json=asked(max_tokens=7)))
    (call,) = await _claimed(surface, 1)
    await _end(surface, call, success)
    alone = await calling

    batch = await surface.client.messages.batches.create(requests=[_request("a", max_tokens=7)])
    (item,) = await _claimed(surface, 1)
    assert item.request == call.request
    await _end(surface, item, success)
    response = await http.get(f"{_PATH}/{batch.id}/results", headers={"Accept": "application/binary"})
    assert alone.content == message
    assert response.content == b'{"custom_id":"a","result":{"type":"succeeded","message":%b}}\n' % message


async def test_the_counts_are_live(surface: Surface, http: httpx2.AsyncClient) -> None:
    """So are the results, which can be read before the end."""
    batches = surface.client.messages.batches
    batch = await batches.create(requests=_requests(5))
    assert _counts_of(batch) == {"processing": 5}
    claims = await _claimed(surface, 3)
    assert _counts_of(await batches.retrieve(batch.id)) == {"processing": 5}
    await _end(surface, claims[0], Ending(Step.SUCCEED, b'{"text":"","stop_reason":null,"message":{}}'))
    await _end(surface, claims[1], Ending(Step.FAIL, error=JobError("upstream_error", "What happened.", True)))
    now = await batches.retrieve(batch.id)
    assert _counts_of(now) == {"processing": 3, "succeeded": 1, "errored": 1}
    assert (now.processing_status, now.results_url) == ("in_progress", None)
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        await batches.results(batch.id)
    so_far = await http.get(f"{_PATH}/{batch.id}/results")
    assert [json.loads(line)["custom_id"] for line in so_far.text.splitlines()] == ["row-1", "row-2"]


async def test_each_way_to_end_has_its_line(surface: Surface) -> None:
    """``succeeded``, ``errored``, ``canceled`` and ``expired``, in the order of the batch."""
    batches = surface.client.messages.batches
    wrong_request: Any = {"custom_id": "wrong", "params": {}}
    batch = await batches.create(requests=[*_requests(5), wrong_request])
    claims = await _claimed(surface, 3)
    await _end(surface, claims[0], Ending(Step.SUCCEED, b'{"text":"","stop_reason":null,"message":{"id":"msg_1"}}'))
    await _end(surface, claims[1], Ending(Step.FAIL, error=JobError("upstream_error", "What happened.", True)))
    waiting = await surface.runtime.batches.item_ids(batch.id.replace("msgbatch_", "batch_"), 3, 1)
    await make_overdue(surface.runtime, *[job_id for job_id in waiting if job_id])
    await surface.runtime.jobs.expire()
    cancelled = await batches.cancel(batch.id)
    assert cancelled.cancel_initiated_at is not None
    ended = await _ended(surface, batch.id)
    assert _counts_of(ended) == {"succeeded": 1, "errored": 2, "canceled": 2, "expired": 1}
    found = [(line.custom_id, line.result.type) async for line in await batches.results(batch.id)]
    assert found == [
        ("row-1", "succeeded"),
        ("row-2", "errored"),
        ("row-3", "canceled"),
        ("row-4", "expired"),
        ("row-5", "canceled"),
        ("wrong", "errored"),
    ]
    wrong = (await _results(surface, batch.id))["wrong"].to_dict()
    assert wrong["error"] == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "request 6 #/params/max_tokens is missing; #/params/messages is missing",
        },
        "request_id": None,
    }


_FAILURES = {
    ("upstream_rejected", 400): "invalid_request_error",
    ("upstream_rejected", 404): "not_found_error",
    ("upstream_rejected", 413): "request_too_large",
    ("upstream_rejected", 401): "invalid_request_error",
    ("upstream_auth", 401): "api_error",
    ("upstream_rate_limited", 429): "rate_limit_error",
    ("upstream_overloaded", 529): "overloaded_error",
    ("upstream_error", 500): "api_error",
    ("upstream_truncated", None): "api_error",
    ("timeout", None): "timeout_error",
    ("worker_lost", None): "api_error",
}


async def test_an_errored_line_has_the_type_that_a_call_would_have(surface: Surface) -> None:
    """With the message that the call would have."""
    batch = await surface.client.messages.batches.create(requests=_requests(len(_FAILURES)))
    claims = await _claimed(surface, len(_FAILURES))
    for claimed, (code, status) in zip(claims, _FAILURES, strict=True):
        error = JobError(code, f"What {code} says.", retryable=False, upstream_status=status)
        await _end(surface, claimed, Ending(Step.FAIL, error=error))
    results = await _results(surface, batch.id)
    found = [(result.error.error.type, result.error.error.message) for result in results.values()]
    assert found == [(error_type, f"What {code} says.") for (code, _), error_type in _FAILURES.items()]


async def test_what_is_done_stays_when_a_batch_is_cancelled(surface: Surface, at_work: None) -> None:
    """Running items are cancelled; a second cancel changes nothing."""
    batches = surface.client.messages.batches
    batch = await batches.create(requests=[_request("quick"), _request("slow", "nonce=s", model=STEADY)])

    async def one_is_done() -> bool:
        return _counts_of(await batches.retrieve(batch.id)) == {"processing": 1, "succeeded": 1}

    await wait_until(one_is_done, "the first")
    assert (await batches.cancel(batch.id)).id == batch.id
    ended = await _ended(surface, batch.id)
    assert _counts_of(ended) == {"succeeded": 1, "canceled": 1}
    assert await batches.cancel(batch.id) == ended
    assert {name: line.type for name, line in (await _results(surface, batch.id)).items()} == {
        "quick": "succeeded",
        "slow": "canceled",
    }


@pytest.mark.parametrize("body", [b"", b"{}", b'{"a":1}', b"\xff{"])
async def test_a_cancel_needs_no_body(surface: Surface, http: httpx2.AsyncClient, body: bytes) -> None:
    """The SDK sends an empty body with the content type of JSON."""
    batch = await surface.client.messages.batches.create(requests=_requests(1))
    response = await http.post(f"{_PATH}/{batch.id}/cancel", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200
    assert response.json()["processing_status"] in ("canceling", "ended")


async def test_a_batch_that_has_not_ended_is_not_deleted(surface: Surface) -> None:
    """The SDK would retry a 409 twice, unless a header says that retrying is useless."""
    batch = await surface.client.messages.batches.create(requests=_requests(1))
    async with a_client(surface.served, max_retries=2) as client:
        with pytest.raises(anthropic.ConflictError) as caught:
            await client.messages.batches.delete(batch.id)
    assert caught.value.type == "conflict_error"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    envelope_of(caught.value.response, 409, "conflict_error")
    assert (await surface.client.messages.batches.retrieve(batch.id)).processing_status == "in_progress"


async def _several(surface: Surface, count: int) -> list[str]:
    """Creates ``count`` batches; returns their ids, newest first."""
    batches = surface.client.messages.batches
    return sorted([(await batches.create(requests=_requests(1))).id for _ in range(count)], reverse=True)


async def test_batches_are_listed_newest_first_by_pages(surface: Surface) -> None:
    """The SDK fetches further pages by itself; other tenants' batches are not listed."""
    batches = surface.client.messages.batches
    assert [batch.id async for batch in batches.list()] == []
    await batches.create(requests=_requests(1), extra_headers={"X-Tenant": "another"})
    ids = await _several(surface, 7)
    for limit in (1, 2, 3, 7, 1000):
        assert [batch.id async for batch in batches.list(limit=limit)] == ids
    assert [batch.id async for batch in batches.list()] == ids
    assert [batch.id async for batch in batches.list(limit=2, after_id=ids[3])] == ids[4:]
    page = await batches.list(limit=3, after_id=ids[1])
    assert [batch.id for batch in page.data] == ids[2:5]
    assert (page.has_more, page.first_id, page.last_id) == (True, ids[2], ids[4])
    last = await batches.list(limit=3, after_id=ids[6])
    assert (last.data, last.has_more, last.first_id, last.last_id) == ([], False, None, None)


async def test_a_list_can_be_paged_backwards_too(surface: Surface) -> None:
    """Each page is in the order of the list; the pages go towards the newest batch."""
    batches = surface.client.messages.batches
    ids = await _several(surface, 7)
    page = await batches.list(limit=2, before_id=ids[6])
    assert [batch.id for batch in page.data] == ids[4:6]
    assert (page.has_more, page.first_id, page.last_id) == (True, ids[4], ids[5])
    walked = [batch.id async for batch in page]
    assert walked == [*ids[4:6], *ids[2:4], *ids[0:2]]
    newest = await batches.list(limit=2, before_id=ids[2])
    assert ([batch.id for batch in newest.data], newest.has_more) == (ids[0:2], False)
    assert (await batches.list(before_id=ids[0])).data == []


async def test_a_cursor_of_a_deleted_batch_still_works(surface: Surface) -> None:
    """A client that deletes batches while it pages reaches the end."""
    batches = surface.client.messages.batches
    ids = await _several(surface, 5)
    await asyncio.gather(*[batches.cancel(batch_id) for batch_id in ids])
    seen = []
    async for batch in batches.list(limit=2):
        seen.append(batch.id)
        await batches.delete(batch.id)
    assert seen == ids
    assert (await batches.list()).data == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "limit=1e1", "limit=-1", "after_id=nope", "before_id=batch_1",
              "after_id=batch_01m84bf2k09c4x7t1r5w8n3p6v", "after_id=%00", "before_id=msgbatch_\u00e9"]
)  # fmt: skip
async def test_an_invalid_list_query_is_400(http: httpx2.AsyncClient, query: str) -> None:
    """The error names the parameter and does not quote its value."""
    message = envelope_of(await http.get(f"{_PATH}?{query}"), 400, "invalid_request_error")
    assert message.startswith(f"{query.partition('=')[0]}: must be ")


async def test_both_directions_at_once_are_400(surface: Surface, http: httpx2.AsyncClient) -> None:
    """The query that last year's beta client adds to each path is ignored."""
    first, second = await _several(surface, 2)
    query = f"before_id={second}&after_id={first}"
    envelope_of(await http.get(f"{_PATH}?{query}"), 400, "invalid_request_error")
    assert (await http.get(f"{_PATH}?beta=true&limit=1")).json()["last_id"] == first


_ABSENT = "msgbatch_01m84bf2k09c4x7t1r5w8n3p6v"


@pytest.mark.parametrize(("method", "below"), [("GET", ""), ("DELETE", ""), ("GET", "/results"), ("POST", "/cancel")])
async def test_absent_and_foreign_batches_get_the_same_404(
    surface: Surface, http: httpx2.AsyncClient, method: str, below: str
) -> None:
    """Byte for byte, whether or not the id is well formed."""
    batch = await surface.client.messages.batches.create(requests=_requests(1))
    started = await start_batch(surface.runtime, lines(1), tenant=TENANT)
    arriving = await receive(surface.runtime, tenant=TENANT)
    headers = {"X-Request-ID": "same", "X-Tenant": "another"}
    expected = await http.request(method, f"{_PATH}/{_ABSENT}{below}", headers=headers)
    envelope_of(expected, 404, "not_found_error")
    own = [
        arriving.id.replace("batch_", "msgbatch_"),
        started.id,
        "msgbatch_none",
        "x",
        "%00",
        "msgbatch_",
        _ABSENT.upper(),
    ]
    own += [f"{_ABSENT}%0a", f"{_ABSENT}x", "msgbatch_" + "0" * 4000, "%f0%9f%a6%80", "a%20b", "*", "{batch_id}", "~"]
    for batch_id, tenant in [(batch.id, "another"), *[(batch_id, TENANT) for batch_id in own]]:
        response = await http.request(method, f"{_PATH}/{batch_id}{below}", headers={**headers, "X-Tenant": tenant})
        assert (response.status_code, response.content) == (404, expected.content), batch_id
        assert _without_time(response) == _without_time(expected)
    assert (await surface.client.messages.batches.retrieve(batch.id)).processing_status == "in_progress"


def _without_time(response: httpx2.Response) -> list[tuple[str, str]]:
    return [(name, value) for name, value in response.headers.items() if name != "date"]


async def test_a_batch_of_the_native_surface_is_the_same_batch(surface: Surface, http: httpx2.AsyncClient) -> None:
    """Each surface has its own form of the id."""
    born = (await http.post("/v1/batches", json={"requests": [_request("a")]})).json()
    found = await surface.client.messages.batches.retrieve(born["id"].replace("batch_", "msgbatch_"))
    assert _counts_of(found) == {"processing": 1}
    envelope_of(await http.get(f"{_PATH}/{born['id']}"), 404, "not_found_error")


# What a batch is made of


async def test_a_key_makes_one_batch_however_often_it_is_sent(surface: Surface, http: httpx2.AsyncClient) -> None:
    """With the same JSON, whatever its spacing. With another body it is refused, and the SDK does not retry."""
    key = {"Idempotency-Key": "a-key"}
    client = surface.client.with_options(max_retries=2)
    raw = [
        await client.messages.batches.with_raw_response.create(requests=_requests(3), extra_headers=key)
        for _ in range(2)
    ]
    first, second = [await each.parse() for each in raw]
    assert (first.id, first.created_at) == (second.id, second.created_at)
    assert [each.headers.get("idempotency-replayed") for each in raw] == [None, "true"]
    spaced = json.dumps({"requests": _requests(3)}, indent=3)
    again = await http.post(_PATH, content=spaced, headers={**key, "Content-Type": "application/json"})
    assert (again.status_code, again.json()["id"]) == (200, first.id)
    with pytest.raises(anthropic.UnprocessableEntityError) as caught:
        await client.messages.batches.create(requests=_requests(2), extra_headers=key)
    envelope_of(caught.value.response, 422, "invalid_request_error")
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    assert [batch.id async for batch in surface.client.messages.batches.list()] == [first.id]
    theirs = await client.messages.batches.create(requests=_requests(2), extra_headers={**key, "X-Tenant": "another"})
    assert theirs.id != first.id


async def test_idempotency_keys_of_calls_and_batches_are_separate(surface: Surface) -> None:
    """A call with a batch's key must not find the batch."""
    key = {"Idempotency-Key": "a-key"}
    calling = asyncio.create_task(surface.client.messages.create(**asked(), extra_headers=key))
    (claimed,) = await _claimed(surface, 1)
    await _end(surface, claimed, Ending(Step.SUCCEED, b'{"text":"","stop_reason":null,"message":{}}'))
    await calling
    with pytest.raises(anthropic.UnprocessableEntityError):
        await surface.client.messages.batches.create(requests=_requests(1), extra_headers=key)
    await surface.client.messages.batches.create(requests=_requests(1), extra_headers={"Idempotency-Key": "other"})
    with pytest.raises(anthropic.UnprocessableEntityError):
        await surface.client.messages.create(**asked(), extra_headers={"Idempotency-Key": "other"})


@asynccontextmanager
async def _cutting(url: str, *, responses: int) -> AsyncIterator[str]:
    """A proxy to the API that drops the first ``responses`` responses."""
    lost = 0
    address = httpx2.URL(url)
    carrying: set[asyncio.Task[None]] = set()

    async def there(reader: asyncio.StreamReader, to_api: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65_536):
            to_api.write(piece)
        to_api.close()

    async def back(from_api: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        while piece := await from_api.read(65_536):
            if lost < responses:
                lost += 1
                writer.transport.abort()
                return
            writer.write(piece)
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_api, to_api = await asyncio.open_connection(address.host, address.port)
        carrying.update(asyncio.create_task(way) for way in (there(reader, to_api), back(from_api, writer)))

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*carrying), 10)  # the client has closed, so both directions end
    assert lost == responses


async def test_a_create_whose_response_is_lost_is_retried_and_makes_one_batch(surface: Surface) -> None:
    """The SDK itself retries twice, with its caller's key."""
    async with (
        _cutting(surface.served.url, responses=2) as url,
        a_client(surface.served, base_url=url, max_retries=2) as client,
    ):
        raw = await client.messages.batches.with_raw_response.create(
            requests=_requests(300), extra_headers={"Idempotency-Key": "a-key"}
        )
    batch = await raw.parse()
    assert raw.headers["idempotency-replayed"] == "true"
    assert raw.http_response.request.headers["x-stainless-retry-count"] == "2"
    assert _counts_of(batch) == {"processing": 300}
    assert [each.id async for each in surface.client.messages.batches.list()] == [batch.id]
    assert len(await claim(surface.runtime, 500)) == 300


async def test_invalid_requests_are_errored_results(surface: Surface) -> None:
    """The other requests run; the errors quote nothing."""
    canary = "canary-4f1d"
    wrong: dict[str, Any] = {
        "request 2 #/custom_id is that of an earlier request": _request("a"),
        "request 3 #/custom_id must be a text of 1 to 64 printable characters": _request("x" * 65),
        "request 4 #/custom_id is missing": {"params": asked(canary)},
        "request 5 #/params must be an object": {"custom_id": "five", "params": [canary]},
        "request 6 #/params is missing": {"custom_id": "six"},
        "request 7 must be a JSON object": canary,
        "request 8 #/params/max_tokens is missing": {
            "custom_id": "eight",
            "params": {"model": FAST, "messages": asked(canary)["messages"]},
        },
        "request 9 #/params/messages is missing": {"custom_id": "nine", "params": {"max_tokens": 1, "prompt": canary}},
        "request 10 #/params/messages/0/content must be a text or a list of blocks": {
            "custom_id": "ten",
            "params": {"max_tokens": 1, "messages": [{"role": "user", "content": 1}]},
        },
        "request 11 #/params/stream must be true or false": _request("eleven", stream=canary),
        "request 12 has a member that is not known": {**_request("twelve"), f"{canary} ": 1},
    }
    batch = await surface.client.messages.batches.create(requests=[_request("a"), *wrong.values()])
    assert _counts_of(batch) == {"processing": 1, "errored": len(wrong)}
    (claimed,) = await _claimed(surface, 1)
    assert claimed.spec.custom_id == "a"
    await _end(surface, claimed, Ending(Step.SUCCEED, b'{"text":"","stop_reason":null,"message":{}}'))
    raw = await surface.client.messages.batches.with_raw_response.retrieve(batch.id)
    async with httpx2.AsyncClient(base_url=surface.served.url) as http:
        body = (await http.get((await raw.parse()).results_url or "")).text
    assert canary not in body
    found = [json.loads(line) for line in body.splitlines()]
    assert found[0]["custom_id"] == "a"
    assert [line["result"]["error"]["error"]["message"] for line in found[1:]] == list(wrong)
    assert {line["result"]["error"]["error"]["type"] for line in found[1:]} == {"invalid_request_error"}
    named = [line["custom_id"] for line in found[1:]]
    assert named == ["", "", "", "five", "six", "", "eight", "nine", "ten", "eleven", "twelve"]


async def test_no_requests_are_400(surface: Surface) -> None:
    """An empty batch is refused, and the SDK does not retry."""
    async with a_client(surface.served, max_retries=2) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.batches.create(requests=[])
    assert caught.value.api_message == "requests: must have at least one request"
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"


_LIMITS: Sequence[tuple[dict[str, int], int, int]] = [
    ({"max_batch_bytes": 65_536}, 2, 40_000),
    ({"max_batch_requests": 299}, 300, 1),
]


@pytest.mark.parametrize(("limits", "count", "size"), _LIMITS)
async def test_a_batch_over_a_limit_is_413(serve: Serve, limits: dict[str, int], count: int, size: int) -> None:
    """It leaves nothing in Redis."""
    served = await serve(**limits)
    requests = [_request(f"row-{number}", "x" * size) for number in range(count)]
    async with a_client(served, max_retries=2) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.batches.create(requests=requests)
        envelope_of(caught.value.response, 413, "request_too_large")
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert (await client.messages.batches.list()).data == []
    assert await claim(served.api.runtime, 500) == []


async def test_a_request_over_its_limit_is_an_errored_result(serve: Serve) -> None:
    """The other requests run."""
    served = await serve(max_batch_line_bytes=2048)
    async with a_client(served) as client:
        batch = await client.messages.batches.create(requests=[_request("long", "x" * 3000), _request("short")])
    assert _counts_of(batch) == {"processing": 1, "errored": 1}


async def test_a_full_queue_is_529_and_leaves_nothing(serve: Serve) -> None:
    """Whether it was full before, or this batch would exceed it. The SDK would retry."""
    served = await serve(max_queued=2)
    async with a_client(served) as client:
        for count in (3, 2, 1):
            if count == 2:
                await client.messages.batches.create(requests=_requests(count))
                continue
            with pytest.raises(anthropic.APIStatusError) as caught:
                await client.messages.batches.create(requests=_requests(count))
            envelope_of(caught.value.response, 529, "overloaded_error")
            assert caught.value.response.headers["retry-after"] == "10"
        assert len((await client.messages.batches.list()).data) == 1


async def test_deleting_a_batch_deletes_all_its_data(surface: Surface) -> None:
    """Its requests, logs and results."""
    batches = surface.client.messages.batches
    batch = await batches.create(requests=_requests(3))
    await batches.cancel(batch.id)
    own_id = batch.id.replace("msgbatch_", "batch_")
    job_ids = await surface.runtime.batches.item_ids(own_id, 0, 3)
    await batches.delete(batch.id)
    gone = [
        redis_keys.batch(own_id),
        redis_keys.batch_items(own_id),
        *[redis_keys.job(job_id or "") for job_id in job_ids],
    ]
    assert [await surface.runtime._commands.call("EXISTS", key) for key in gone] == [0] * len(gone)
