"""Invalid requests to the Messages surface and to batches: each gets the right error in its surface's envelope.

Never a 5xx, never a quote, and a refused request leaves nothing in Redis.
"""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import create_app
from api.http.anthropic_errors import is_on_surface
from shared.settings import load_settings
from tests.routes.conftest import CalledApi, StartApi, problem_of
from tests.routes.test_bad_bodies import CANARY, JSON_TYPE, NOT_JSON
from tests.routes.test_submit_batch import LINES
from tests.support.wait import wait_until

_MESSAGES = "/v1/messages"
_BATCHES = "/v1/messages/batches"
_A_BATCH = f"{_BATCHES}/msgbatch_01m84bf2k09c4x7t1r5w8n3p6v"
_PARAMS = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": CANARY}]}
_REQUESTS = {"requests": [{"custom_id": "a", "params": _PARAMS}]}

_OF_A_TENANT = [
    ("POST", _MESSAGES), ("POST", f"{_MESSAGES}/count_tokens"), ("GET", "/v1/models"), ("GET", "/v1/models/m"),
    ("POST", _BATCHES), ("GET", _BATCHES), ("GET", _A_BATCH), ("DELETE", _A_BATCH), ("GET", f"{_A_BATCH}/results"),
    ("POST", f"{_A_BATCH}/cancel"),
]  # fmt: skip

_TYPES = {
    400: {"invalid_request_error"},
    401: {"authentication_error"},
    404: {"not_found_error"},
    405: {"invalid_request_error"},
    409: {"conflict_error"},
    413: {"request_too_large"},
    415: {"invalid_request_error"},
    406: {"invalid_request_error"},
    422: {"invalid_request_error"},
}


def _refusal_of(response: httpx2.Response, status: int | None = None) -> str:
    """The message of an error response, which must be exactly the envelope, and must ask for no retry."""
    assert status in (None, response.status_code), response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"type", "error", "request_id"}
    assert set(document["error"]) == {"type", "message"}
    assert document["type"] == "error"
    assert document["error"]["type"] in _TYPES[response.status_code]
    assert document["request_id"] == response.headers["request-id"]
    assert response.headers["x-should-retry"] == "false"
    message: str = document["error"]["message"]
    assert message
    return message


def test_every_route_of_this_surface_is_known_to_these_tests() -> None:
    """A new route must be added above, so that these tests check its keys."""
    paths = create_app(load_settings(auth="off")).openapi()["paths"]
    found = {
        (method.upper(), path.format(batch_id=_A_BATCH.rpartition("/")[2], model_id="m", **_UNUSED))
        for path, operations in paths.items()
        for method in operations
    }
    assert {(method, path) for method, path in found if is_on_surface(path)} == set(_OF_A_TENANT)


_UNUSED = {"job_id": "", "code": "", "key_id": "", "delivery_id": "", "operation_id": "", "name": ""}


@pytest.mark.parametrize(("method", "path"), _OF_A_TENANT)
async def test_without_a_key_every_call_is_401(start_api: StartApi, method: str, path: str) -> None:
    """For either header, and before the body is read."""
    api = await start_api(auth="keys")
    for headers in ({}, {"Authorization": f"Bearer {CANARY}"}, {"X-Api-Key": CANARY, "X-Tenant": "default"}):
        response = await api.http.request(method, path, content=CANARY.encode(), headers=headers)
        assert CANARY not in _refusal_of(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    assert await api.keys_count() == 0


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "ä", "x" * 65, "{0}"])
@pytest.mark.parametrize(("method", "path"), _OF_A_TENANT)
async def test_an_invalid_tenant_is_400(api: CalledApi, method: str, path: str, tenant: str) -> None:
    """Its name becomes part of Redis keys."""
    headers: Any = [(b"X-Tenant", tenant.encode("latin-1"))]
    response = await api.http.request(method, path, json=_REQUESTS, headers=headers)
    assert _refusal_of(response, 400).startswith("X-Tenant: ")
    assert await api.keys_count() == 0


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (_MESSAGES, "OPTIONS, POST"),
        (f"{_MESSAGES}/count_tokens", "OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/models/m", "GET, HEAD, OPTIONS"),
        (_BATCHES, "GET, HEAD, OPTIONS, POST"),
        (_A_BATCH, "DELETE, GET, HEAD, OPTIONS"),
        (f"{_A_BATCH}/results", "GET, HEAD, OPTIONS"),
        (f"{_A_BATCH}/cancel", "OPTIONS, POST"),
    ],
)
async def test_a_wrong_method_is_405_with_the_allowed_ones(api: CalledApi, path: str, allow: str) -> None:
    """All methods of the path's routes."""
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "BREW"} - set(allow.split(", ")):
        response = await api.http.request(method, path)
        _refusal_of(response, 405)
        assert response.headers["allow"] == allow
    response = await api.http.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")


@pytest.mark.parametrize(
    "path",
    ["/v1/messages/", f"{_BATCHES}/", f"{_A_BATCH}/", f"{_A_BATCH}/nope", f"{_A_BATCH}/results/x", "/v1/models/"],
)
async def test_an_unknown_path_is_404(api: CalledApi, path: str) -> None:
    """There are no redirects either."""
    for method in ("GET", "POST"):
        if (method, path) != ("POST", "/v1/models/"):  # an empty name there is an unknown model
            _refusal_of(await api.http.request(method, path), 404)


@pytest.mark.parametrize("route", [_MESSAGES, f"{_MESSAGES}/count_tokens", _BATCHES])
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_a_body_that_is_no_strict_json_object_is_400(api: CalledApi, route: str, body: bytes) -> None:
    """It leaves nothing in Redis."""
    response = await api.http.post(route, content=body, headers=JSON_TYPE)
    assert CANARY not in _refusal_of(response, 400).replace(f"{CANARY}: is not known", "")
    assert await _kept(api) == 0


@pytest.mark.parametrize("route", [_MESSAGES, f"{_MESSAGES}/count_tokens", _BATCHES])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/jsonl"},
        {"Content-Type": "application/json; charset=utf-16"},
        {**JSON_TYPE, "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_plain_json_is_415(api: CalledApi, route: str, headers: dict[str, str]) -> None:
    """JSON lines are only for native batches."""
    response = await api.http.post(route, content=json.dumps(_REQUESTS).encode(), headers=headers)
    assert CANARY not in _refusal_of(response, 415)
    assert await _kept(api) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "ä"),
        ("Idempotency-Key", "x" * 256),
        ("Idempotency-Key", f'"{CANARY}'),
        ("anthropic-beta", "x" * 1025),
        ("anthropic-beta", f"{CANARY}\x80"),
        ("anthropic-version", "x" * 65),
        ("anthropic-version", f"{CANARY}\x80"),
    ],
)
@pytest.mark.parametrize("route", [_MESSAGES, _BATCHES])
async def test_an_invalid_header_is_400(api: CalledApi, route: str, name: str, value: str) -> None:
    """The error names it and does not quote it."""
    body = _REQUESTS if route == _BATCHES else _PARAMS
    headers: Any = [(name.encode(), value.encode("latin-1"))]
    message = _refusal_of(await api.http.post(route, json=body, headers=headers), 400)
    assert message.startswith(f"{name}: ")
    assert CANARY not in message
    assert await _kept(api) == 0


async def _kept(api: CalledApi) -> int:
    """The number of keys after the received part of a batch is erased."""
    for batch_id in await api.runtime.batches.due():
        await api.runtime.batches.advance_all(batch_id)
    return await api.keys_count()


# Anything at all

_names = st.sampled_from(
    ["requests", "custom_id", "params", "job", "messages", "model", "max_tokens", "stream", "role", "content", "system",
     "prompt", "timeout_s", "metadata", CANARY, f"{CANARY} x"]
) | st.text(max_size=5)  # fmt: skip
_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([CANARY, "user", "a", 5, 10**19, 1e308])
)  # fmt: skip
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4), max_leaves=12
)
_requests = st.lists(
    _values | st.fixed_dictionaries({"custom_id": st.text(max_size=3), "params": st.just(_PARAMS) | _values}),
    max_size=4,
)
_envelopes = st.fixed_dictionaries({"requests": _requests}, optional={"job": _values, CANARY: _values})
_messages = st.dictionaries(_names, _values, max_size=3).map(lambda members: {**members, **_PARAMS})
_objects = (_values | _envelopes | _messages).map(lambda value: json.dumps(value).encode())
_lines = st.lists(_values | _requests, max_size=4).map(
    lambda each: b"\n".join(json.dumps(one).encode() for one in each)
)
_damaged = st.builds(
    lambda body, place, junk: body[: place % (len(body) + 1)] + junk + body[place % (len(body) + 1) :],
    _objects, st.integers(0, 300), st.binary(max_size=3),
)  # fmt: skip
_bodies = st.one_of(_objects, _lines, _damaged, st.binary(max_size=60))
_header_values = st.one_of(
    st.sampled_from([b"", b"application/json", b"application/jsonl", b"1", b"default", b"cancel", CANARY.encode()]),
    st.binary(max_size=20).map(lambda value: value.translate(None, b"\r\n\0")),
)
_JSON_UNLESS_SAID = {False: [(b"content-type", b"application/json")], True: []}
_headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"content-type", b"content-encoding", b"idempotency-key", b"anthropic-beta", b"anthropic-version", b"accept",
             b"x-tenant", b"x-api-key", b"authorization", b"x-on-disconnect", b"x-request-id", b"prefer", b"last-event-id",
             b"x-stainless-retry-count"]
        ),
        _header_values,
    ),
    max_size=4,
).map(lambda headers: [*_JSON_UNLESS_SAID[b"content-type" in dict(headers)], *headers])  # fmt: skip
_some = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def _assert_answered(response: httpx2.Response, path: str) -> None:
    """The request was accepted, or refused in its surface's envelope."""
    if response.status_code in (200, 202):
        return
    assert 400 <= response.status_code < 500, response.text
    assert "Traceback" not in response.text
    if is_on_surface(path):
        message = _refusal_of(response)
    else:
        problem_of(response, response.status_code, response.json()["code"])
        message = json.dumps([response.json()["detail"], response.json().get("errors")])
    # A member's name may be quoted if it looks like a name, but not its value.
    assert CANARY not in message.replace(f"#/{CANARY}", "").replace(f"{CANARY}: ", "").replace(f"({CANARY})", "")


@pytest.mark.timeout(120)
@_some
@given(body=_bodies, path=st.sampled_from([_BATCHES, "/v1/batches"]))
async def test_no_body_of_a_batch_makes_a_5xx_or_is_repeated(api: CalledApi, body: bytes, path: str) -> None:
    """If it is accepted, its object and results are JSON; if it is refused, it leaves nothing."""
    before = await _kept(api)
    response = await api.http.post(path, content=body, headers=JSON_TYPE)
    _assert_answered(response, path)
    if response.status_code < 300:
        await _assert_whole(api, path, response.json()["id"])
    else:
        assert await _kept(api) == before


@pytest.mark.timeout(120)
@_some
@given(body=_bodies)
async def test_no_lines_of_a_batch_make_a_5xx_or_are_repeated(api: CalledApi, body: bytes) -> None:
    """The same as JSON lines."""
    response = await api.http.post("/v1/batches", content=body, headers=LINES)
    _assert_answered(response, "/v1/batches")
    if response.status_code == 202:
        await _assert_whole(api, "/v1/batches", response.json()["id"])


async def _assert_whole(api: CalledApi, path: str, batch_id: str) -> None:
    batch = await api.http.get(f"{path}/{batch_id}")
    assert batch.status_code == 200
    results = await api.http.get(f"{path}/{batch_id}/results")
    for line in results.content.splitlines():
        json.loads(line)
    assert (await api.http.post(f"{path}/{batch_id}/cancel")).status_code == 200


async def test_no_name_inside_an_unknown_member_is_repeated(api: CalledApi) -> None:
    """What is in it is the caller's own: only the member itself is named."""
    for inside in ({"requests": "\0"}, [{CANARY: "\0"}], {CANARY: {"a": "\0"}}):
        for path in (_MESSAGES, "/v1/jobs"):
            response = await api.http.post(path, json={CANARY: inside, "model": "m"})
            _assert_answered(response, path)
            assert response.status_code == 400


@pytest.mark.timeout(120)
@_some
@given(body=_bodies)
async def test_no_body_of_a_message_makes_a_5xx_or_is_repeated(api: CalledApi, body: bytes) -> None:
    """An accepted message waits for a worker, but there is none; then its client disconnects."""
    response = await _answer(api, api.http.post(_MESSAGES, content=body, headers=JSON_TYPE))
    if response is not None:
        _assert_answered(response, _MESSAGES)


@pytest.mark.timeout(120)
@_some
@given(headers=_headers, path=st.sampled_from([_MESSAGES, _BATCHES, "/v1/batches"]), body=_objects)
async def test_no_headers_make_a_5xx_or_are_repeated(
    api: CalledApi, headers: list[tuple[bytes, bytes]], path: str, body: bytes
) -> None:
    """Every header that we read, once or several times."""
    response = await _answer(api, api.http.post(path, content=body, headers=headers))
    if response is not None:
        _assert_answered(response, path)


async def _answer(api: CalledApi, call: Coroutine[Any, Any, httpx2.Response]) -> httpx2.Response | None:
    """The response; None if the call was accepted, since its client then disconnects."""
    calling = asyncio.create_task(call)
    await wait_until(lambda: calling.done() or api.state.relay.follower_count > 0, "an answer, or the job of the call")
    if calling.done():
        return await calling
    calling.cancel()
    await asyncio.wait((calling,))
    assert api.state.relay.follower_count == 0
    return None


@_some
@given(
    text=st.text(max_size=30) | st.sampled_from([CANARY, "msgbatch_" + CANARY]),
    below=st.sampled_from(["", "/results", "/cancel"]),
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    surface=st.sampled_from([_BATCHES, "/v1/batches"]),
)
async def test_no_id_makes_a_5xx_or_is_repeated(
    api: CalledApi, text: str, below: str, method: str, surface: str
) -> None:
    """No such object exists: every response is 404 or 405."""
    path = f"{surface}/{httpx2.URL('http://a', params={'x': text}).query.decode()[2:]}x{below}"
    response = await api.http.request(method, path)
    assert response.status_code in (404, 405), response.text
    _assert_answered(response, surface)


@_some
@given(
    query=st.dictionaries(
        st.sampled_from(["limit", "after_id", "before_id", "after", "order", "status", "beta", f"{CANARY} {CANARY}"]),
        st.text(max_size=8) | st.sampled_from([CANARY, "1", "20", "msgbatch_" + CANARY, "true"]),
        max_size=3,
    ),
    path=st.sampled_from([_BATCHES, "/v1/models", "/v1/batches"]),
)
async def test_no_query_makes_a_5xx_or_is_repeated(api: CalledApi, query: dict[str, str], path: str) -> None:
    """The response is a page, or an error."""
    _assert_answered(await api.http.get(path, params=query), path)
