"""What every response has, and what an error says: always a problem document, and never content."""

import json
import re
from typing import Any

import pytest
import structlog

from api.app import create_app
from api.http.anthropic_errors import is_on_surface
from api.native import jobs
from shared.errors import JOB_ERROR_CODES, Problem
from shared.settings import load_settings
from tests.routes.conftest import A_BODY, CalledApi, StartApi, problem_of

_A_JOB = "/v1/jobs/job_01m84bdq4t7w9k2p5x8r3n6v0c"
_A_BATCH = "/v1/batches/batch_01m84bf2k09c4x7t1r5w8n3p6v"
_A_KEY = "/v1/keys/key_01m84bdq4tyw9k2p"
_A_DELIVERY = "/v1/webhooks/deliveries/evt_01m84bdq4tyw9k2p0000000000"
_AN_OPERATION = "/v1/operations/op_" + "0" * 26


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/dev/kill-worker",
        "/v1",
        "/v1/jobs/",
        "/v1/jobs/a/b/c",
        "/v1/batches/",
        "/v1/batches/a/b/c",
        "/docs",
        "/redoc",
        "/%00",
    ],
)
async def test_an_unknown_path_is_404(api: CalledApi, path: str) -> None:
    """There are no redirects, which would change a POST into a GET."""
    problem_of(await api.http.get(path), 404, "not_found")
    problem_of(await api.http.post(path, json=A_BODY), 404, "not_found")


@pytest.mark.parametrize("path", ["/v1%2fkeys", "/v1/jobs%2F", "/%2Fv1/jobs"])
async def test_an_encoded_slash_is_not_a_separator(api: CalledApi, path: str) -> None:
    """A proxy's rules do not see it as a slash, but a router would. Ids of models may contain slashes."""
    problem_of(await api.http.get(path), 404, "not_found")
    assert (await api.http.get("/v1/models/vendor%2Fmodel")).status_code == 404


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        (_A_JOB, "DELETE, GET, HEAD, OPTIONS"),
        (f"{_A_JOB}/cancel", "OPTIONS, POST"),
        ("/v1/batches", "GET, HEAD, OPTIONS, POST"),
        (_A_BATCH, "DELETE, GET, HEAD, OPTIONS"),
        (f"{_A_BATCH}/results", "GET, HEAD, OPTIONS"),
        (f"{_A_BATCH}/events", "GET, HEAD, OPTIONS"),
        (f"{_A_BATCH}/cancel", "OPTIONS, POST"),
        (f"{_A_BATCH}/retry", "OPTIONS, POST"),
        ("/complete", "OPTIONS, POST"),
        ("/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_a_path_has_not_is_405_with_those_it_has(api: CalledApi, path: str, allow: str) -> None:
    """All of them, whichever route has them; OPTIONS asks for just that."""
    for method in ("PUT", "PATCH", "TRACE", "BREW"):
        response = await api.http.request(method, path)
        problem_of(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allow
    response = await api.http.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs", "/v1/batches", "/health", "/health/live", "/problems/not_found", "/openapi.json", "/nope", _A_JOB,
        _A_BATCH, f"{_A_BATCH}/results",
    ],
)  # fmt: skip
async def test_head_answers_as_get_without_its_body(api: CalledApi, path: str) -> None:
    """Status and headers alike."""
    same_id = {"X-Request-ID": "same"}
    get, head = await api.http.get(path, headers=same_id), await api.http.head(path, headers=same_id)
    assert head.status_code == get.status_code
    assert head.headers == get.headers
    assert head.content == b""


@pytest.mark.parametrize("path", ["/v1/jobs", "/nope", "/health/live"])
async def test_a_request_goes_by_the_id_that_it_brings(api: CalledApi, path: str) -> None:
    """If that is a harmless one."""
    response = await api.http.get(path, headers={"X-Request-ID": "A-b_c.9"})
    assert response.headers["x-request-id"] == "A-b_c.9"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, 'a"b', "a\tb", "ä", "a;b"])
async def test_an_id_that_could_do_harm_is_replaced(api: CalledApi, sent: str) -> None:
    """In logs and in headers."""
    headers: Any = [(b"X-Request-ID", sent.encode("latin-1"))]
    response = await api.http.get("/health/live", headers=headers)
    assert re.fullmatch(r"req_[0-9a-z]{26}", response.headers["x-request-id"])


async def test_every_answer_forbids_guessing_its_type(api: CalledApi) -> None:
    """Errors too."""
    for path in ("/health/live", "/nope", "/problems/not_found"):
        assert (await api.http.get(path)).headers["x-content-type-options"] == "nosniff"


async def test_what_nobody_expected_is_500_and_logged_without_content(
    api: CalledApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its type and place alone: its message may quote the prompt."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("canary-4f1d")

    monkeypatch.setattr(jobs, "draft_of", fail)
    with structlog.testing.capture_logs() as lines:
        response = await api.submit({"prompt": "canary-4f1d"})
    assert "canary" not in problem_of(response, 500, "internal_error")["detail"]
    assert "canary" not in response.text
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["request_id"] == response.headers["x-request-id"]
    error = line.pop("exc_info")
    assert isinstance(error, ValueError)  # which the log writes as type and place: see shared/telemetry.py
    assert "canary" not in json.dumps(line)


def _codes() -> list[str]:
    def below(kind: type[Problem]) -> set[str]:
        return {kind.code}.union(*(below(child) for child in kind.__subclasses__()))

    return sorted(below(Problem) | set(JOB_ERROR_CODES))


@pytest.mark.parametrize("code", _codes())
async def test_every_code_has_its_page(api: CalledApi, code: str) -> None:
    """It is what ``type`` points to, and it loads nothing from elsewhere."""
    response = await api.http.get(f"/problems/{code}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert f"<code>{code}</code>" in response.text
    assert "``" not in response.text
    assert "http" not in response.text


async def test_there_is_no_page_for_a_code_that_is_none(api: CalledApi) -> None:
    """And the answer does not repeat it."""
    response = await api.http.get("/problems/canary-4f1d")
    problem_of(response, 404, "not_found")
    assert "canary" not in response.text


_SOME_TENANT = "/v1/tenants/acme"
_OF_A_TENANT = [
    ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", _A_JOB), ("DELETE", _A_JOB), ("GET", f"{_A_JOB}/events"),
    ("POST", f"{_A_JOB}/follow-token"),
    ("POST", "/v1/jobs/cancel"), ("POST", "/v1/jobs/retry"), ("POST", "/v1/jobs/erase"),
    ("GET", "/v1/operations"), ("GET", _AN_OPERATION), ("POST", f"{_AN_OPERATION}/cancel"),
    ("GET", f"{_A_JOB}/attempts"), ("POST", f"{_A_JOB}/cancel"), ("POST", f"{_A_JOB}/retry"), ("POST", "/complete"),
    ("POST", "/complete/stream"), ("GET", "/v1/usage"), ("GET", "/v1/limits"), ("GET", "/v1/stats"),
    ("GET", "/v1/live"), ("POST", "/v1/batches"),
    ("GET", "/v1/batches"), ("GET", _A_BATCH), ("DELETE", _A_BATCH), ("GET", f"{_A_BATCH}/results"), ("GET", f"{_A_BATCH}/events"),
    ("POST", f"{_A_BATCH}/cancel"), ("POST", f"{_A_BATCH}/retry"),
    ("POST", "/v1/keys"), ("GET", "/v1/keys"), ("GET", _A_KEY), ("PATCH", _A_KEY), ("POST", f"{_A_KEY}/rotate"),
    ("POST", f"{_A_KEY}/revoke"), ("GET", "/v1/tenants"), ("GET", _SOME_TENANT), ("PUT", _SOME_TENANT),
    ("PATCH", _SOME_TENANT), ("DELETE", _SOME_TENANT), ("GET", "/v1/workers"),
    ("GET", "/v1/webhooks/secret"), ("POST", "/v1/webhooks/secret/rotate"), ("GET", "/v1/webhooks/deliveries"),
    ("GET", _A_DELIVERY), ("POST", f"{_A_DELIVERY}/redeliver"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), _OF_A_TENANT)
async def test_while_keys_are_asked_for_every_call_of_a_tenant_is_401(
    start_api: StartApi, method: str, path: str
) -> None:
    """Nothing is open by accident, whatever the caller sends."""
    api = await start_api(auth="keys")
    headers = {"Authorization": "Bearer anything", "X-Tenant": "default"}
    response = await api.http.request(method, path, json=A_BODY, headers=headers)
    problem_of(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    assert await api.keys_count() == 0


def test_every_route_of_a_tenant_is_known_to_these_tests() -> None:
    """A new one must be added above, and so be asked for its key."""
    paths = create_app(load_settings(auth="off")).openapi()["paths"]
    found = {
        (
            method.upper(),
            path.format(
                job_id=_A_JOB.rpartition("/")[2],
                batch_id=_A_BATCH.rpartition("/")[2],
                key_id=_A_KEY.rpartition("/")[2],
                delivery_id=_A_DELIVERY.rpartition("/")[2],
                operation_id=_AN_OPERATION.rpartition("/")[2],
                name="acme",
                code="",
                model_id="",
            ),
        )
        for path, operations in paths.items()
        for method in operations
    }
    found = {(method, path) for method, path in found if not is_on_surface(path)}  # see tests/anthropic_surface
    open_to_all = {("GET", "/health"), ("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/problems/")}
    assert found - open_to_all == set(_OF_A_TENANT)


@pytest.mark.parametrize("tenant", ["", " ", "a b", "a:b", "ä", "x" * 65, "a/b", "{0}"])
@pytest.mark.parametrize(("method", "path"), _OF_A_TENANT)
async def test_a_tenant_that_cannot_be_one_is_400(api: CalledApi, method: str, path: str, tenant: str) -> None:
    """Its name becomes part of keys in Redis."""
    headers: Any = [(b"X-Tenant", tenant.encode("latin-1"))]
    response = await api.http.request(method, path, json=A_BODY, headers=headers)
    document = problem_of(response, 400, "invalid_request")
    assert [error["pointer"] for error in document["errors"]] == ["X-Tenant"]
    assert await api.keys_count() == 0


def test_a_wrong_setting_stops_the_start_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where uvicorn is the main: it names the variable, what was expected and what it was."""
    monkeypatch.setenv("TOKENSPOOL_AUTH", "perhaps")
    with pytest.raises(SystemExit, match=r"^TOKENSPOOL_AUTH must be .*, but is 'perhaps'\.$"):
        create_app()


async def test_a_base_url_with_or_without_v1_is_told_apart(api: CalledApi) -> None:
    """Some clients add it themselves and some do not: what is wrong is said."""
    for path, hint in (
        ("/v1/v1/messages", " Remove /v1 from the base URL: the client adds it."),
        ("/messages", " Append /v1 to the base URL."),
        ("/models", " Append /v1 to the base URL."),
        ("/v1/nothing", ""),
    ):
        document = problem_of(await api.http.post(path, json={}), 404, "not_found")
        assert document["detail"] == f"This path is not served: see /openapi.json for those that are.{hint}"
