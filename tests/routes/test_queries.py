"""An unknown query parameter is refused, like an unknown member of a body: its sender expects it to filter."""

from typing import Final

import pytest

from shared.api_key import ALL_SCOPES
from shared.job import new_id
from shared.limits import CallerLimits
from tests.routes.conftest import CalledApi, StartApi, pointers_of, problem_of
from tests.support.batches import a_batch

NATIVE: Final = [
    "/v1/jobs",
    "/v1/jobs/{job}",
    "/v1/jobs/{job}/events",
    "/v1/operations",
    "/v1/batches",
    "/v1/batches/{batch}",
    "/v1/batches/{batch}/results",
    "/v1/batches/{batch}/events",
    "/v1/usage",
    "/v1/webhooks/secret",
    "/v1/webhooks/deliveries",
]
MESSAGES: Final = [
    "/v1/models",
    "/v1/models/a-model",
    "/v1/messages/batches",
    "/v1/messages/batches/{message_batch}",
    "/v1/messages/batches/{message_batch}/results",
]


async def _path(api: CalledApi, template: str) -> str:
    batch = await a_batch(api.runtime, 1, tenant="default")
    job = await api.submitted()
    return template.format(job=job["id"], batch=batch.id, message_batch=f"msg{batch.id}")


@pytest.mark.parametrize("template", NATIVE)
async def test_an_unknown_parameter_of_a_get_is_400_and_named(api: CalledApi, template: str) -> None:
    """All unknown ones are named, but those that look like content are not quoted."""
    path = await _path(api, template)
    response = await api.http.get(path, params={"owner": "x", "filter": "failed", "<b>": ""})
    assert response.status_code == 400
    assert pointers_of(response) == ["owner", "filter", "#"]
    assert "<b>" not in response.text
    assert (await api.http.head(path, params={"owner": "x"})).status_code == 400


@pytest.mark.parametrize("template", MESSAGES)
async def test_on_the_surface_of_the_messages_api_too(api: CalledApi, template: str) -> None:
    """Except ``beta``, which the SDK's beta client added to each path for years."""
    path = await _path(api, template)
    for name in ("status", "tenant", "after"):
        response = await api.http.get(path, params={"beta": "true", name: "x"})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"{name}: is not known")
    assert (await api.http.get(path, params={"beta": "true"})).status_code in (200, 404)


async def test_the_error_lists_the_paths_parameters(api: CalledApi) -> None:
    """So that a misspelling is easy to find."""
    known = (
        "his path takes after, batch_id, created_after, created_before, end_user, error_code, key_id, limit, metadata.*, model, "
        "sort, status, tag, tenant"
    )
    document = problem_of(await api.http.get("/v1/jobs?states=failed&x=1"), 400, "invalid_request")
    assert document["errors"] == [
        {"pointer": "states", "detail": f"is not known: did you mean status? T{known}"},
        {"pointer": "x", "detail": f"is not known: t{known}"},
    ]


_CHANGING: Final = [
    "/v1/jobs",
    "/v1/jobs/{job}/cancel",
    "/v1/jobs/{job}/retry",
    "/v1/jobs/cancel",
    "/v1/jobs/retry",
    "/v1/jobs/erase",
    "/v1/batches",
    "/v1/batches/{batch}/cancel",
    "/v1/batches/{batch}/retry",
    "/v1/operations/op_01m84bdq4t7w9k2p5x8r3n6v0c/cancel",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/messages/batches/{message_batch}/cancel",
    "/v1/webhooks/secret/rotate",
    "/complete",
    "/complete/stream",
]


@pytest.mark.parametrize("template", _CHANGING)
async def test_an_unknown_parameter_of_a_post_is_400_and_nothing_changes(api: CalledApi, template: str) -> None:
    """``/v1/jobs/cancel?status=queued`` would cancel everything if it were ignored."""
    path = await _path(api, template)
    before = await api.keys_count()
    response = await api.http.post(path, params={"filter": "failed"}, json={"all": True, "prompt": "x", "requests": []})
    assert response.status_code == 400
    assert "filter" in response.text
    assert "is not known" in response.text
    assert await api.keys_count() == before


async def test_an_unknown_parameter_of_a_delete_is_400_and_nothing_is_erased(api: CalledApi) -> None:
    """``?dry_run=true`` must not erase."""
    job = await api.submitted()
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    for path in (
        f"/v1/jobs/{job['id']}",
        f"/v1/batches/{new_id('batch')}",
        f"/v1/messages/batches/msg{new_id('batch')}",
    ):
        response = await api.http.delete(path, params={"dry_run": "true"})
        assert response.status_code == 400
        assert "dry_run: is not known" in response.text or pointers_of(response) == ["dry_run"]
    assert (await api.job(job["id"]))["status"] == "cancelled"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs",
        "/v1/operations",
        "/v1/batches",
        "/v1/webhooks/deliveries",
        "/v1/usage",
        "/v1/models",
        "/v1/messages/batches",
    ],
)
async def test_a_limit_is_of_digits(api: CalledApi, path: str) -> None:
    """Not all that Python reads as a number; its bounds are those of the list."""
    assert (await api.http.get(f"{path}?limit=05")).status_code == 200
    for limit in ("5.0", "%2B5", "1_0", "%205", "5%20", "-5", "00005", "%D9%A5", ""):
        response = await api.http.get(f"{path}?limit={limit}")
        assert response.status_code == 400
        assert "must be a whole number of 1 to 4 digits" in response.text
    for limit, detail in (("0", "must be at least 1"), ("1001", "must be at most 100")):
        assert detail in (await api.http.get(f"{path}?limit={limit}")).text


async def test_every_known_parameter_is_accepted(api: CalledApi) -> None:
    """Each parameter of each path."""
    job = (await api.submitted())["id"]
    batch = (await a_batch(api.runtime, 1, tenant="default")).id
    for path in (
        f"/v1/jobs?status=queued&batch_id={batch}&limit=5",
        "/v1/jobs?model=m&tag=t&metadata.run=7&metadata.a.b=1&key_id=key_0000000000000000&error_code=timeout",
        "/v1/jobs?created_after=2026-01-01T00:00:00Z&created_before=2026-02-01T00:00:00Z",
        "/v1/operations?limit=5",
        f"/v1/jobs/{job}?wait=0&result=false",
        "/v1/batches?limit=5&tenant=default",
        f"/v1/batches/{batch}/results?order=finished&status=failed&custom_id=row-1&custom_id=row-2",
        "/v1/usage?from=2026-01-01&to=2026-01-02&group_by=day&group_by=key",
        "/v1/webhooks/deliveries?status=failed&limit=1",
        "/v1/jobs?tenant=*&sort=oldest_waiting&limit=1",
        "/v1/tenants?limit=1&after=a",
        "/v1/models?limit=1",
        "/v1/messages/batches?limit=1",
        "/health?from=a-load-balancer",
    ):
        response = await api.http.get(path)
        assert response.status_code == 200, (path, response.text)
    wrong = await api.http.get(f"/v1/jobs/{job}/events?format=xml")
    assert pointers_of(wrong) == ["format"]
    wrong = await api.http.post("/v1/jobs?format=xml", json={"prompt": "Not followed."})
    assert pointers_of(wrong) == ["format"]


async def test_health_accepts_any_query_of_a_load_balancer(start_api: StartApi) -> None:
    """A request with a key gets all details."""
    api = await start_api(auth="keys")
    made = await api.runtime.api_keys.create(
        "t", env="test", name="", scopes=ALL_SCOPES, limits=CallerLimits(), expires_in_s=None
    )
    assert made is not None
    response = await api.http.get("/health?from=a-load-balancer", headers={"x-api-key": made.text})
    assert (response.status_code, "queue" in response.json()) == (200, True)
    assert (await api.http.get("/health/live?x=1")).status_code == 200


async def test_the_key_is_checked_before_the_query(start_api: StartApi) -> None:
    """A request without a key does not learn a path's parameters."""
    api = await start_api(auth="keys")
    problem_of(await api.http.get("/v1/jobs?tenant=x"), 401, "unauthenticated")
