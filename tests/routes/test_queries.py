"""A query parameter that means nothing is refused, as a member of a body is: its sender takes it for a filter."""

from typing import Final

import pytest

from shared.api_key import ALL_SCOPES
from shared.limits import CallerLimits
from tests.routes.conftest import CalledApi, StartApi, pointers_of, problem_of
from tests.support.batches import a_batch

NATIVE: Final = [
    "/v1/jobs",
    "/v1/jobs/{job}",
    "/v1/jobs/{job}/events",
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
    """All of them, and those that look like content are not repeated."""
    path = await _path(api, template)
    response = await api.http.get(path, params={"tenant": "x", "filter": "failed", "<b>": ""})
    assert response.status_code == 400
    assert pointers_of(response) == ["tenant", "filter", "#"]
    assert "<b>" not in response.text
    assert (await api.http.head(path, params={"tenant": "x"})).status_code == 400


@pytest.mark.parametrize("template", MESSAGES)
async def test_on_the_surface_of_the_messages_api_too(api: CalledApi, template: str) -> None:
    """But for ``beta``, which the SDK's beta client added to each path for years."""
    path = await _path(api, template)
    for name in ("status", "tenant", "after"):
        response = await api.http.get(path, params={"beta": "true", name: "x"})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"{name}: is not known")
    assert (await api.http.get(path, params={"beta": "true"})).status_code in (200, 404)


async def test_what_a_path_takes_is_said(api: CalledApi) -> None:
    """Whoever misspelt one sees it."""
    document = problem_of(await api.http.get("/v1/jobs?states=failed"), 400, "invalid_request")
    assert document["errors"] == [
        {"pointer": "states", "detail": "is not known: this path takes after, batch_id, limit, status, tag"}
    ]


async def test_what_a_path_knows_is_taken(api: CalledApi) -> None:
    """Each parameter there is, and as before."""
    job = (await api.submitted())["id"]
    batch = (await a_batch(api.runtime, 1, tenant="default")).id
    for path in (
        f"/v1/jobs?status=queued&batch_id={batch}&limit=5",
        f"/v1/jobs/{job}?wait=0&result=false",
        "/v1/batches?limit=5",
        f"/v1/batches/{batch}/results?order=finished&status=failed",
        "/v1/usage?from=2026-01-01&to=2026-01-02&group_by=day&group_by=key",
        "/v1/webhooks/deliveries?status=failed&limit=1",
        "/v1/models?limit=1",
        "/v1/messages/batches?limit=1",
        "/health?from=a-load-balancer",
    ):
        response = await api.http.get(path)
        assert response.status_code == 200, (path, response.text)
    wrong = await api.http.get(f"/v1/jobs/{job}/events?format=xml")
    assert pointers_of(wrong) == ["format"]


async def test_health_takes_whatever_a_load_balancer_adds(start_api: StartApi) -> None:
    """And tells a key all of it."""
    api = await start_api(auth="keys")
    made = await api.runtime.api_keys.create(
        "t", env="test", name="", scopes=ALL_SCOPES, limits=CallerLimits(), expires_in_s=None
    )
    assert made is not None
    response = await api.http.get("/health?from=a-load-balancer", headers={"x-api-key": made.text})
    assert (response.status_code, "queue" in response.json()) == (200, True)
    assert (await api.http.get("/health/live?x=1")).status_code == 200


async def test_a_key_comes_before_the_query(start_api: StartApi) -> None:
    """A stranger learns nothing of what a path takes."""
    api = await start_api(auth="keys")
    problem_of(await api.http.get("/v1/jobs?tenant=x"), 401, "unauthenticated")
