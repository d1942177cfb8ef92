"""The end user of a call on the Anthropic surface: its ``metadata.user_id``."""

import json
from typing import Any

import pytest

from api.anthropic_compat.message_request import CallHeaders, message_draft_of
from shared.store import redis_keys
from tests.routes.conftest import CalledApi
from tests.support.store import claim

MESSAGES = [{"role": "user", "content": "Say hello."}]
HEADERS = CallHeaders(key=None, is_cancelled_by_leaving=False)


@pytest.mark.parametrize(
    ("metadata", "end_user"),
    [
        ({"user_id": "ann"}, "ann"),
        ({"user_id": "é" * 64}, "é" * 64),
        ({"user_id": "x" * 65}, "sha256:9537c5fdf120482f7d58d25e9ed583f5"),
        ({"user_id": "a\nb"}, "sha256:7e18f737311b2dc3b2f269dd78396b03"),
        ({"user_id": ""}, None),
        ({"user_id": None}, None),
        ({"user_id": 7}, None),
        ({"user_id": {"id": "ann"}}, None),
        ({}, None),
        (None, None),
        ("ann", None),
    ],
)
def test_every_user_id_is_taken(metadata: Any, end_user: str | None) -> None:
    """It is passed on as it came: the LLM judges it. One that is not printable or too long is hashed."""
    body = {"max_tokens": 7, "messages": MESSAGES, "metadata": metadata}
    draft, _ = message_draft_of(body, HEADERS, default_model="m")
    assert draft.options.end_user == end_user
    assert json.loads(draft.request)["metadata"] == metadata


async def test_each_request_of_a_message_batch_has_its_own(api: CalledApi) -> None:
    """They have turns of their own."""
    requests = [
        {
            "custom_id": str(number),
            "params": {"model": "m", "max_tokens": 7, "messages": MESSAGES, "metadata": {"user_id": user}},
        }
        for number, user in enumerate(["ann", "bob", "ann"])
    ]
    response = await api.http.post("/v1/messages/batches", json={"requests": requests})
    assert response.status_code == 200, response.text
    await api.runtime.tenants.set("default", {"end_user_running_jobs": 1})
    claims = await claim(api.runtime, 5)
    assert sorted(found.spec.end_user or "" for found in claims) == ["ann", "bob"]
    assert json.loads(claims[0].request)["metadata"] == {"user_id": claims[0].spec.end_user}


async def test_a_spent_budget_is_a_429_and_others_go_on(api: CalledApi) -> None:
    """The answer says when it opens."""
    await api.runtime.tenants.set("default", {"end_user_nano_usd_per_day": 5})
    await api.runtime.jobs.charge("job_gone", 5, tenant="default", end_user="ann")
    refused = await api.submit({"prompt": "x", "job": {"end_user": "ann"}})
    assert (refused.status_code, refused.json()["code"]) == (429, "budget_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    await api.submitted({"prompt": "x", "job": {"end_user": "bob"}})
    await api.submitted()


async def test_an_end_user_is_in_no_name_in_redis(api: CalledApi) -> None:
    """Nor does it reach another tenant's job of the same end user."""
    ours = await api.submitted({"prompt": "x", "job": {"end_user": "a-canary"}})
    theirs = await api.submitted({"prompt": "x", "job": {"end_user": "a-canary"}}, X_Tenant="theirs")
    names = [name.decode() for name in await api.runtime._commands.call("KEYS", "*")]
    assert not [name for name in names if "a-canary" in name]
    flows = [await api.runtime._commands.call("HGET", redis_keys.job(job["id"]), "flow") for job in (ours, theirs)]
    assert flows[0] != flows[1]
    assert (await api.http.get(f"/v1/jobs/{theirs['id']}")).status_code == 404
