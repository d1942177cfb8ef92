"""Batches that are refused as a whole: each gets a 4xx that quotes nothing, and leaves nothing in Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.batches import submit as submit_batch
from shared.store.batches import SLICE_ITEMS
from tests.routes.conftest import CalledApi, StartApi, pointers_of, problem_of
from tests.routes.test_submit_batch import LINES, a_request, as_lines, stored
from tests.support.served import Served

CANARY = "canary-4f1d"
JSON_TYPE = {"Content-Type": "application/json"}

ONE = json.dumps(a_request(1)).encode()
MANY = b'{"requests":[' + b",".join(as_lines(2 * SLICE_ITEMS + 5).splitlines())


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"", "#"),
        (b'["' + CANARY.encode() + b'"]', "#"),
        (b"{}", "#/requests"),
        (b'{"requests":[]}', "#/requests"),
        (b'{"requests":{}}', "#/requests"),
        (b'{"requests":[' + ONE + b'],"' + CANARY.encode() + b'":1}', f"#/{CANARY}"),
        (b'{"requests":[' + ONE + b'],"' + CANARY.encode() + b' ":1}', "#"),
        (b'{"requests":[' + ONE + b'],"requests":[' + ONE + b"]}", "#"),
        (b'{"requests":[' + ONE + b'],"metadata":{}}', "#/metadata"),
        (b'{"requests":[' + ONE + b'],"job":1}', "#/job"),
        (b'{"requests":[' + ONE + b'],"job":{"timeout_s":0}}', "#/job/timeout_s"),
        (b'{"job":{"priority":"normal"},"requests":[' + ONE + b"]}", "#/job/priority"),
        (b'{"requests":[' + ONE + b'],"job":{"a":1,"a":2}}', "#/job"),
        (b'{"requests":[' + ONE + b'],"job":{]}', "#/job"),
        (MANY, "#"),
        (MANY + b',{"' + CANARY.encode(), "#"),
        (MANY + b",]}", "#"),
        (MANY + b'],"job":{"max_attempts":99}}', "#/job/max_attempts"),
    ],
)
async def test_an_invalid_envelope_is_400_for_the_whole_batch(api: CalledApi, body: bytes, pointer: str) -> None:
    """Even if a thousand of its requests are already in Redis."""
    before = await stored(api.runtime)
    response = await api.http.post("/v1/batches", content=body, headers=JSON_TYPE)
    assert pointers_of(response) == [pointer]
    assert CANARY not in response.text or pointer == f"#/{CANARY}"
    assert await stored(api.runtime) <= before


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n \n"])
async def test_lines_that_are_all_blank_are_400(api: CalledApi, body: bytes) -> None:
    """Such a batch would have no requests."""
    before = await stored(api.runtime)
    problem_of(await api.http.post("/v1/batches", content=body, headers=LINES), 400, "invalid_request")
    assert await stored(api.runtime) <= before


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 415),
        ({"Content-Type": "text/plain"}, "", 415),
        ({"Content-Type": "application/jsonl; charset=latin-1"}, "", 415),
        (LINES | {"Content-Encoding": "gzip"}, "", 415),
        (LINES | {"Content-Encoding": "identity"}, "", 202),
        (LINES, "?timeout=5", 400),
        (LINES, "?timeout_s=5&timeout_s=5", 400),
        (LINES | {"Idempotency-Key": "ä"}, "", 400),
    ],
)
async def test_errors_in_the_head_of_a_batch_are_reported_before_its_body_is_read(
    api: CalledApi, headers: dict[str, str], query: str, status: int
) -> None:
    """Nothing is stored."""
    encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    response = await api.http.post(f"/v1/batches{query}", content=as_lines(1), headers=encoded)
    assert response.status_code == status, response.text


async def test_options_in_the_query_of_a_json_body_are_400(api: CalledApi) -> None:
    """They would be ignored: the body has a member for them."""
    response = await api.http.post("/v1/batches?timeout_s=5", json={"requests": [a_request(1)]})
    assert pointers_of(response) == ["timeout_s"]


@pytest.mark.parametrize("announced", [True, False])
async def test_a_batch_of_too_many_bytes_is_413_and_leaves_nothing(start_api: StartApi, announced: bool) -> None:
    """At once if its length is announced."""
    api = await start_api(max_batch_bytes=65_536)
    before = await stored(api.runtime)
    body = as_lines(5_000)

    async def stream() -> AsyncIterator[bytes]:
        for place in range(0, len(body), 10_000):
            yield body[place : place + 10_000]

    content: Any = body if announced else stream()
    problem_of(await api.http.post("/v1/batches", content=content, headers=LINES), 413, "too_large")
    assert await stored(api.runtime) <= before


@pytest.mark.parametrize("body", [as_lines(300), b"\n" * 300 + as_lines(1)], ids=["requests", "blank lines"])
async def test_a_batch_of_too_many_lines_is_413_and_leaves_nothing(start_api: StartApi, body: bytes) -> None:
    """Blank lines have the same limit."""
    api = await start_api(max_batch_requests=299)
    before = await stored(api.runtime)
    problem_of(await api.http.post("/v1/batches", content=body, headers=LINES), 413, "too_large")
    assert await stored(api.runtime) <= before


async def test_a_line_that_is_too_long_is_a_failed_item(start_api: StartApi) -> None:
    """The other lines run."""
    api = await start_api(max_batch_line_bytes=1024)
    long = json.dumps({"custom_id": "long", "params": {"prompt": CANARY * 1000}}).encode()
    response = await api.http.post("/v1/batches", content=long + b"\n" + ONE, headers=LINES)
    assert response.status_code == 202
    assert (response.json()["counts"]["queued"], response.json()["counts"]["failed"]) == (1, 1)


async def test_a_body_that_stops_coming_is_400_and_leaves_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of a silent client is closed after a while."""
    monkeypatch.setattr(submit_batch, "_SILENCE_S", 0.2)
    before = await stored(served.api.runtime)

    address = httpx2.URL(served.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = b"POST /v1/batches HTTP/1.1\r\nHost: a\r\nContent-Type: application/jsonl\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head + as_lines(2 * SLICE_ITEMS + 5))
    answer = await reader.readuntil(b"\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert await stored(served.api.runtime) <= before


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*(bytes([byte]) for byte in b'{}[],:"\\ \n\0\xff1'), b'"requests"', ONE]), max_size=20),
    st.sampled_from([JSON_TYPE, LINES]),
)
async def test_no_bytes_are_more_than_a_400_or_a_batch(
    api: CalledApi, parts: list[bytes], form: dict[str, str]
) -> None:
    """There is never a 500."""
    response = await api.http.post("/v1/batches", content=b"".join(parts), headers=form)
    assert response.status_code in (202, 400), response.text
