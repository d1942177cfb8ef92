"""Values that encoders write in several forms: whole numbers as floats, and null for an absent member."""

import json
from typing import Any

from api.anthropic_compat.message_request import CallHeaders, message_draft_of
from api.native.complete import completion_draft_of
from shared.api_key import ALL_SCOPES
from shared.job import JobState
from shared.limits import CallerLimits
from shared.store import redis_keys
from tests.routes.conftest import CalledApi, StartApi
from tests.support.store import claim_one, state_of

_MESSAGES = [{"role": "user", "content": "Say hello."}]


async def _request_of(api: CalledApi, job_id: str) -> Any:
    return json.loads(await api.runtime._commands.call("HGET", redis_keys.job(job_id), "request"))


async def test_a_whole_number_may_come_as_a_float(api: CalledApi) -> None:
    """1024.0 is 1024, and is sent so to the LLM; also in our own options."""
    options = {"timeout_s": 60.0, "expires_in_s": 6e1, "max_attempts": 2.0, "first_token_timeout_s": 5.0}
    job = await api.submitted({"prompt": "x", "max_tokens": 1024.0, "job": options})
    assert (job["timeout_s"], job["max_attempts"]) == (60, 2)
    assert str((await _request_of(api, job["id"]))["max_tokens"]) == "1024"
    record = await claim_one(api.runtime)
    other = await api.submitted({"prompt": "x", "max_completion_tokens": 5.0, "n": 1.0})
    found = await _request_of(api, other["id"])
    assert [str(found[name]) for name in ("max_completion_tokens", "n")] == ["5", "1"]
    assert (record.timeout_ms, record.spec.first_token_timeout_s) == (60_000, 5)


async def test_in_a_batch_too(api: CalledApi) -> None:
    """On both surfaces, in each item and in the options for all items."""
    native = {"custom_id": "a", "params": {"prompt": "x", "max_tokens": 7.0}}
    theirs = {"custom_id": "a", "params": {"model": "m", "messages": _MESSAGES, "max_tokens": 7.0}}
    for path, body in (
        ("/v1/batches", {"requests": [native], "job": {"timeout_s": 9.0}}),
        ("/v1/messages/batches", {"requests": [theirs]}),
    ):
        response = await api.http.post(path, json=body)
        assert response.status_code in (200, 202), response.text
        item = await claim_one(api.runtime)
        assert b'"max_tokens":7,' in item.request.replace(b"}", b",")
        assert item.timeout_ms in (9_000, 600_000)


def test_in_a_call_that_waits_too() -> None:
    """A null `stream` asks for no stream."""
    body: dict[str, Any] = {"messages": _MESSAGES, "max_tokens": 7.0, "stream": None}
    headers = CallHeaders(key=None, is_cancelled_by_leaving=True)
    draft, is_streamed = message_draft_of(body, headers, default_model="m")
    assert (json.loads(draft.request), is_streamed) == ({"model": "m", "messages": _MESSAGES, "max_tokens": 7}, False)
    assert b"7.0" not in draft.request
    assert b'"max_tokens":7,' in completion_draft_of({"prompt": "x", "max_tokens": 7.0}, model="m").request


async def test_a_null_stream_counts_as_absent(api: CalledApi) -> None:
    """In every body that may have it."""
    job = await api.submitted({"prompt": "x", "stream": None})
    assert "stream" not in await _request_of(api, job["id"])
    await claim_one(api.runtime)
    params = {"messages": _MESSAGES, "max_tokens": 7, "stream": None}
    batch = await api.http.post("/v1/messages/batches", json={"requests": [{"custom_id": "a", "params": params}]})
    assert batch.json()["request_counts"]["errored"] == 0
    item = await claim_one(api.runtime)
    assert b"stream" not in item.request
    assert await state_of(api.runtime, item.id) is JobState.RUNNING


async def test_numbers_of_keys_may_be_floats_too(start_api: StartApi) -> None:
    """Their expiry, limits and grace; and the grace of the webhook secret."""
    api = await start_api(auth="keys")
    made = await api.runtime.api_keys.create(
        "t", env="test", name="", scopes=ALL_SCOPES, limits=CallerLimits(), expires_in_s=None
    )
    assert made is not None
    headers = {"x-api-key": made.text}
    body = {"expires_in_s": 3600.0, "limits": {"requests_per_minute": 60.0}}
    key = await api.http.post("/v1/keys", json=body, headers=headers)
    assert key.status_code == 201, key.text
    assert key.json()["limits"]["requests_per_minute"] == 60
    for path in (f"/v1/keys/{key.json()['id']}/rotate", "/v1/webhooks/secret/rotate"):
        assert (await api.http.post(path, json={"grace_s": 10.0}, headers=headers)).status_code == 200
        assert (await api.http.post(path, json={"grace_s": 10.5}, headers=headers)).status_code == 400
