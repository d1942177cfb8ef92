"""Invalid bodies: each gets a 4xx that names the field and quotes nothing, and leaves nothing in Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.http import body as body_module
from tests.routes.conftest import A_BODY, CalledApi, StartApi, pointers_of, problem_of
from tests.support.served import Served
from tests.support.store import all_keys, kind_of
from tests.support.wait import wait_until

CANARY = "canary-4f1d"
JSON_TYPE = {"Content-Type": "application/json"}

ROUTES = ("/v1/jobs", "/complete", "/complete/stream")


def _prompt(text: bytes) -> bytes:
    return b'{"prompt":"' + CANARY.encode() + text + b'"}'


NOT_JSON = {
    "nothing": b"",
    "spaces": b" \n\t",
    "text": CANARY.encode(),
    "a broken object": b'{"prompt":"' + CANARY.encode(),
    "two objects": b'{"prompt":"a"}{"prompt":"' + CANARY.encode() + b'"}',
    "a trailing comma": b'{"prompt":"a",}',
    "single quotes": b"{'prompt':'a'}",
    "a comment": b'{"prompt":"a"}//' + CANARY.encode(),
    "NaN": b'{"prompt":"a","temperature":NaN}',
    "Infinity": b'{"prompt":"a","temperature":-Infinity}',
    "a number beyond a double": b'{"prompt":"a","temperature":1e999}',
    "an integer of 5000 digits": b'{"prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
    "a leading zero": b'{"prompt":"a","max_tokens":01}',
    "half a surrogate pair": _prompt(b"\\ud83d"),
    "the other half": _prompt(b"\\ude00"),
    "halves in the wrong order": _prompt(b"\\ude00\\ud83d"),
    "a raw surrogate": _prompt(b"\xed\xa0\x80"),
    "NUL": _prompt(b"\\u0000"),
    "NUL in a name": b'{"prompt":"a","\\u0000' + CANARY.encode() + b'":1}',
    "a raw NUL": _prompt(b"\x00"),
    "a raw line break": _prompt(b"\n"),
    "invalid UTF-8": _prompt(b"\xff"),
    "a name of invalid UTF-8": b'{"prompt":"a","\xff":1}',
    "Latin-1": _prompt("é".encode("latin-1")),
    "UTF-16": json.dumps({"prompt": CANARY}).encode("utf-16"),
    "UTF-16 without its mark": json.dumps({"prompt": CANARY}).encode("utf-16-le"),
    "UTF-32": json.dumps({"prompt": CANARY}).encode("utf-32"),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps({"prompt": CANARY}).encode(),
    "100,000 lists": b'{"prompt":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 lists without their ends": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "900 lists": b'{"prompt":"a","x":' + b"[" * 900 + b"]" * 900 + b"}",
    "129 lists": b'{"prompt":"a","x":' + b"[" * 128 + b"]" * 128 + b"}",
    "a member twice": b'{"prompt":"a","prompt":"' + CANARY.encode() + b'"}',
    "a member twice, written differently": b'{"prompt":"a","pr\\u006fmpt":"b"}',
    "a member of a member twice": b'{"prompt":"a","x":[{"'
    + CANARY.encode()
    + b' x":1,"'
    + CANARY.encode()
    + b' x":1}]}',
    "100,001 numbers": b'{"prompt":"a","x":[' + b"1," * 100_000 + b"1]}",
    "a million lists": b'{"prompt":"a","x":[' + b"[]," * 1_000_000 + b"[]]}",
    "a million texts": b'{"prompt":"a","x":[' + b'"\\"",' * 1_000_000 + b'""]}',
    "null": b"null",
    "a list": b'["' + CANARY.encode() + b'"]',
    "a text": b'"' + CANARY.encode() + b'"',
    "a number": b"1",
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_a_body_that_is_no_strict_json_object_is_400(api: CalledApi, route: str, body: bytes) -> None:
    """The pointer is the root, or the field with the error."""
    response = await api.http.post(route, content=body, headers=JSON_TYPE)
    assert all(pointer.startswith("#") for pointer in pointers_of(response))
    await _assert_no_trace(api, response.text)


WRONG_FIELDS: list[tuple[Any, list[str]]] = [
    ({}, ["#/messages"]),
    ({"prompt": ""}, ["#/prompt"]),
    ({"prompt": None}, ["#/prompt"]),
    ({"prompt": [CANARY]}, ["#/prompt"]),
    ({"prompt": CANARY, "messages": [{"role": "user", "content": "x"}]}, ["#/prompt"]),
    ({"messages": []}, ["#/messages"]),
    ({"messages": CANARY}, ["#/messages"]),
    ({"messages": [CANARY, {"role": 1, "content": {}}]}, ["#/messages/0", "#/messages/1/role", "#/messages/1/content"]),
    ({"messages": [{"role": "user"}]}, ["#/messages/0/content"]),
    ({"prompt": "x", "model": ""}, ["#/model"]),
    ({"prompt": "x", "model": None}, ["#/model"]),
    ({"prompt": "x", "model": "a\nb"}, ["#/model"]),
    ({"prompt": "x", "model": CANARY * 100}, ["#/model"]),
    ({"prompt": "x", "max_tokens": 0}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": -1}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": 1.5}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": 1e300}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": 0.0}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": True}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": "7"}, ["#/max_tokens"]),
    ({"prompt": "x", "max_completion_tokens": "7", "n": 0}, ["#/max_completion_tokens", "#/n"]),
    ({"prompt": "x", "num_predict": -1, "best_of": 129}, ["#/num_predict", "#/best_of"]),
    ({"prompt": "x", "max_tokens": None}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": 10**30}, ["#/max_tokens"]),
    ({"prompt": "x", "stream": CANARY}, ["#/stream"]),
    ({"prompt": "x", "job": None}, ["#/job"]),
    ({"prompt": "x", "job": [CANARY]}, ["#/job"]),
    ({"prompt": "x", "job": {"priority": CANARY}}, ["#/job/priority"]),
    ({"prompt": "x", "job": {"priority": ["high"]}}, ["#/job/priority"]),
    ({"prompt": "x", "job": {"timeout_s": 0}}, ["#/job/timeout_s"]),
    ({"prompt": "x", "job": {"timeout_s": 3601}}, ["#/job/timeout_s"]),
    ({"prompt": "x", "job": {"timeout_s": True}}, ["#/job/timeout_s"]),
    ({"prompt": "x", "job": {"expires_in_s": 604_801}}, ["#/job/expires_in_s"]),
    ({"prompt": "x", "job": {"max_attempts": 11}}, ["#/job/max_attempts"]),
    ({"prompt": "x", "job": {"max_attempts": 1.5}}, ["#/job/max_attempts"]),
    ({"prompt": "x", "job": {"not_before": CANARY}}, ["#/job/not_before"]),
    ({"prompt": "x", "job": {"not_before": 1}}, ["#/job/not_before"]),
    ({"prompt": "x", "job": {"not_before": "2026-11-23T14:02:11"}}, ["#/job/not_before"]),
    ({"prompt": "x", "job": {"not_before": "2026-02-30T14:02:11Z"}}, ["#/job/not_before"]),
    ({"prompt": "x", "job": {"not_before": "9999-12-31T23:59:59Z"}}, ["#/job/not_before"]),
    ({"prompt": "x", "job": {"not_before": "0001-01-01T00:00:00+23:59"}}, ["#/job/not_before"]),
    ({"prompt": "x", "job": {"metadata": [CANARY]}}, ["#/job/metadata"]),
    ({"prompt": "x", "job": {"metadata": {str(n): "" for n in range(17)}}}, ["#/job/metadata"]),
    ({"prompt": "x", "job": {"metadata": {"": "x"}}}, ["#/job/metadata"]),
    ({"prompt": "x", "job": {"metadata": {CANARY * 10: "x"}}}, ["#/job/metadata"]),
    ({"prompt": "x", "job": {"metadata": {"a": 1}}}, ["#/job/metadata/a"]),
    ({"prompt": "x", "job": {"metadata": {"a b": None}}}, ["#/job/metadata"]),
    ({"prompt": "x", "job": {"metadata": {"a": "x" * 513}}}, ["#/job/metadata/a"]),
    ({"prompt": "x", "job": {"tags": CANARY}}, ["#/job/tags"]),
    ({"prompt": "x", "job": {"tags": ["a", "", 1, CANARY * 10]}}, ["#/job/tags/1", "#/job/tags/2", "#/job/tags/3"]),
    ({"prompt": "x", "job": {"tags": [str(n) for n in range(9)]}}, ["#/job/tags"]),
    ({"prompt": "x", "job": {"tags": ["a", "b\n"]}}, ["#/job/tags/1"]),
    ({"prompt": "x", "job": {"tags": [CANARY, "a", CANARY]}}, ["#/job/tags"]),
    *(({"prompt": "x", "job": {"end_user": wrong}}, ["#/job/end_user"]) for wrong in ("", "a\n", "x" * 65, 7, None)),
    ({"prompt": "x", "job": {"webhook": {"url": "ftp://example.com"}}}, ["#/job/webhook/url"]),
    ({"prompt": "x", "job": {f"{CANARY} {CANARY}": 1}}, ["#/job"]),
    ({"prompt": 1, "max_tokens": 0, "job": {"x": 1}}, ["#/job/x", "#/max_tokens", "#/prompt"]),
]


@pytest.mark.parametrize(("body", "pointers"), WRONG_FIELDS)
async def test_each_invalid_field_is_named(api: CalledApi, body: Any, pointers: list[str]) -> None:
    """All of them at once; a name that is content is not quoted."""
    response = await api.submit(body)
    assert pointers_of(response) == pointers
    await _assert_no_trace(api, response.text)


WRONG_COMPLETIONS: list[tuple[Any, list[str]]] = [
    ({}, ["#/prompt"]),
    ({"prompt": ""}, ["#/prompt"]),
    ({"prompt": "x" * 10_001}, ["#/prompt"]),
    ({"prompt": "x", "max_tokens": 0}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": 4097}, ["#/max_tokens"]),
    ({"prompt": "x", "max_tokens": None}, ["#/max_tokens"]),
    ({"prompt": "x", "temperature": 1}, ["#/temperature"]),
    ({"prompt": "x", f"{CANARY} ": 1}, ["#"]),
]


@pytest.mark.parametrize("route", ROUTES[1:])
@pytest.mark.parametrize(("body", "pointers"), WRONG_COMPLETIONS)
async def test_each_invalid_field_of_a_completion_is_named(
    api: CalledApi, route: str, body: Any, pointers: list[str]
) -> None:
    """Its bounds are narrower than a job's."""
    response = await api.http.post(route, json=body)
    assert pointers_of(response) == pointers
    await _assert_no_trace(api, response.text)


async def test_of_many_wrong_fields_the_first_are_named(api: CalledApi) -> None:
    """The response does not grow with the request."""
    response = await api.submit({"messages": [CANARY] * 90_000})
    assert len(pointers_of(response)) == 20
    await _assert_no_trace(api, response.text)


async def test_brackets_and_commas_in_texts_do_not_count_as_values(api: CalledApi) -> None:
    """A prompt may be a table of a million cells, with quotes."""
    await api.submitted({"prompt": '[{1,"\\' * 200_000})


async def test_a_prompt_over_its_limit_is_refused(start_api: StartApi) -> None:
    """The limit is in characters, not in bytes."""
    api = await start_api(max_prompt_chars=3)
    assert (await api.submit({"prompt": "äöü"})).status_code == 202
    assert pointers_of(await api.submit({"prompt": "äöüß"})) == ["#/prompt"]


async def test_a_body_at_the_limit_of_nesting_is_accepted(api: CalledApi) -> None:
    """It can be stored and read again."""
    nested: Any = []
    for _ in range(126):
        nested = [nested]
    await api.submitted(A_BODY | {"x": nested})


@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_over_the_limit_is_413_before_it_is_read(start_api: StartApi, route: str) -> None:
    """By its Content-Length."""
    api = await start_api(max_body_bytes=1024)

    was_read = False

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        yield b" "

    response = await api.http.post(route, content=pieces(), headers={**JSON_TYPE, "Content-Length": "1025"})
    problem_of(response, 413, "too_large")
    assert not was_read
    assert await api.keys_count() == 0


@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_is_413_as_soon_as_it_exceeds_the_limit(start_api: StartApi, route: str) -> None:
    """By the bytes received, whatever was announced."""
    api = await start_api(max_body_bytes=1024)
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b" " * 100

    problem_of(await api.http.post(route, content=pieces(), headers=JSON_TYPE), 413, "too_large")
    assert sent <= 1200
    assert await api.keys_count() == 0


async def test_a_body_of_exactly_the_limit_is_accepted(start_api: StartApi) -> None:
    """One more byte is refused."""
    api = await start_api(max_body_bytes=1024)
    body = json.dumps(A_BODY).encode().ljust(1024)
    assert (await api.http.post("/v1/jobs", content=body, headers=JSON_TYPE)).status_code == 202
    assert (await api.http.post("/v1/jobs", content=body + b" ", headers=JSON_TYPE)).status_code == 413


async def test_the_memory_of_all_large_bodies_is_bounded(start_api: StartApi) -> None:
    """One more large body is refused, but small ones are not; a body that ends makes room again."""
    api = await start_api(max_bodies_bytes=1 << 20)
    last = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"prompt":"' + b"a" * 1_000_000
        await last.wait()
        yield b'"}'

    held = asyncio.create_task(api.http.post("/v1/jobs", content=pieces(), headers=JSON_TYPE))
    await wait_until(lambda: api.state.bodies.bytes > 900_000, "a large body")
    refused = await api.submit({"prompt": "a" * 200_000})
    problem_of(refused, 503, "queue_full")
    assert refused.headers["retry-after"] == "5"
    await api.submitted({"prompt": "a" * 60_000})
    last.set()
    assert (await held).status_code == 202
    assert api.state.bodies.bytes == 0
    await api.submitted({"prompt": "a" * 1_000_000})


async def test_a_body_that_comes_too_slowly_is_400(api: CalledApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte a second cannot hold its connection for a year."""
    monkeypatch.setattr(body_module, "_SLOWEST_S", 0.05)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    problem_of(await api.http.post("/v1/jobs", content=pieces(), headers=JSON_TYPE), 400, "invalid_request")
    assert await api.keys_count() == 0


async def test_a_client_that_leaves_in_its_body_leaves_nothing_behind(served: Served) -> None:
    """Nothing in Redis, and no error in the log."""
    host, port = served.url.removeprefix("http://").split(":")
    with structlog.testing.capture_logs() as lines:
        reader, writer = await asyncio.open_connection(host, int(port))
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n"
        )
        writer.write(head.encode() + b'{"prompt":"' + b"a" * 70_000)
        await wait_until(lambda: served.api.bodies.bytes > 0, "the request")
        writer.transport.abort()
        await wait_until(lambda: not served.server.server_state.tasks, "the end of the request")
        assert served.api.bodies.bytes == 0
        del reader
    # At its start the API warns about the tests' Redis, which has no append-only file.
    assert {line["event"] for line in lines if line["log_level"] in ("warning", "error")} <= {"redis_problem"}
    # Without the keys that the process's own loops write.
    names = await all_keys(served.api.runtime._commands)
    assert {kind_of(name) for name in names} <= {"attendants", "spared", "figures"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/jsonl"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
)
async def test_a_body_that_is_not_plain_json_is_415(api: CalledApi, route: str, headers: dict[str, str]) -> None:
    """A page of another site can send only types that are refused here."""
    response = await api.http.post(route, content=_prompt(b""), headers=headers)
    problem_of(response, 415, "unsupported_media_type")
    await _assert_no_trace(api, response.text)


@pytest.mark.parametrize(
    "content_type", ["application/json", 'Application/JSON ; charset="UTF-8"', "application/json;charset=utf8"]
)
async def test_json_may_say_that_it_is_utf_8(api: CalledApi, content_type: str) -> None:
    """In any usual form."""
    response = await api.http.post("/v1/jobs", content=_prompt(b""), headers={"Content-Type": content_type})
    assert response.status_code == 202


_names = st.sampled_from(
    ["prompt", "messages", "model", "max_tokens", "stream", "job", "role", "content", "priority", "timeout_s",
     "expires_in_s", "max_attempts", "not_before", "metadata", CANARY, f"{CANARY} x"]
) | st.text(max_size=5)  # fmt: skip
_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([CANARY, "user", "high", "2026-11-23T14:02:11Z", "9999-12-31T23:59:59-23:59", 1e308, 10**19])
)  # fmt: skip
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4), max_leaves=12
)
_bodies = st.dictionaries(_names, _values, max_size=6).map(lambda body: json.dumps(body).encode())
_damaged = st.builds(
    lambda body, place, junk: body[: place % (len(body) + 1)] + junk + body[place % (len(body) + 1) :],
    _bodies, st.integers(0, 200), st.binary(max_size=3),
)  # fmt: skip


@pytest.mark.timeout(120)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(_bodies, _damaged, st.binary(max_size=60)), route=st.sampled_from(ROUTES[:1]))
async def test_no_body_makes_a_5xx_or_is_repeated(api: CalledApi, body: bytes, route: str) -> None:
    """Every body makes a job, or a problem that leaves nothing."""
    before = await api.keys_count()
    response = await api.http.post(route, content=body, headers=JSON_TYPE)
    if response.status_code == 202:
        assert (await api.http.get(response.headers["location"])).json() == response.json()
        return
    problem_of(response, 400, "invalid_request")
    assert CANARY not in response.text.replace(f"/{CANARY}", "").replace(
        f"({CANARY})", ""
    )  # a member's name that looks like one
    assert await api.keys_count() == before


async def _assert_no_trace(api: CalledApi, answer: str) -> None:
    assert CANARY not in answer
    assert await api.keys_count() == 0
