"""``POST /v1/jobs``: the response, what a submit stores, and what a repeated one finds."""

import asyncio
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shared.job import JobState
from shared.store import redis_keys
from tests.routes.conftest import A_BODY, CalledApi, StartApi, pointers_of, problem_of
from tests.support.author import Author
from tests.support.follower import asking
from tests.support.served import Served
from tests.support.sse_frames import SseFrames
from tests.support.wait import wait_until


async def _stored_request(api: CalledApi, job_id: str) -> Any:
    return json.loads(await api.runtime._commands.call("HGET", redis_keys.job(job_id), "request"))


async def test_a_submit_returns_202_with_the_job_and_its_location(api: CalledApi) -> None:
    """Every member of the contract, in order."""
    response = await api.submit({"prompt": "Say hello.", "job": {"metadata": {"order": "8841"}}})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert list(job) == [
        "id", "type", "status", "model", "priority", "queue_position", "waiting_for", "attempts", "max_attempts", "timeout_s",
        "created_at", "not_before", "expires_at", "started_at", "ended_at", "batch_id", "custom_id", "retry_of",
        "end_user", "metadata", "tags", "webhook", "result", "usage", "cost_usd", "error", "timing", "urls",
    ]  # fmt: skip
    assert job["status"] == "queued"
    assert (job["queue_position"], job["waiting_for"]) == (None, [{"reason": "no_worker"}])
    assert job["model"] == "claude-sonnet-4-6"
    assert (job["priority"], job["timeout_s"], job["max_attempts"]) == ("normal", 600, 3)
    assert job["metadata"] == {"order": "8841"}
    assert job["timing"] == {"queued_ms": None, "first_token_ms": None, "running_ms": None, "total_ms": None}
    assert job["urls"] == {
        "self": f"/v1/jobs/{job['id']}",
        "events": f"/v1/jobs/{job['id']}/events",
        "cancel": f"/v1/jobs/{job['id']}/cancel",
    }


async def test_a_read_equals_the_response_of_the_submit(api: CalledApi) -> None:
    """That response is made without reading the record, and must not differ from it."""
    body = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "model": "a-model",
        "job": {"priority": "high", "timeout_s": 5, "expires_in_s": 60, "max_attempts": 2, "metadata": {"a": "ä"}},
    }
    job = await api.submitted(body)
    assert await api.job(job["id"]) == job


async def test_a_prompt_is_short_for_one_user_message(api: CalledApi) -> None:
    """The request to the LLM is the same."""
    job = await api.submitted({"prompt": "Say hello."})
    assert await _stored_request(api, job["id"]) == {
        "model": "claude-sonnet-4-6",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": "Say hello."}],
    }


async def test_unknown_parameters_are_passed_on_unchanged(api: CalledApi) -> None:
    """Of any type and size, and in the sender's order."""
    parameters = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "é\u2028😀\t"}], "unknown": None}],
        "model": "some/model:free",
        "max_tokens": 7,
        "temperature": 0.1,
        "metadata": {"user_id": "u1"},
        "from_the_future": {"a": [1, 2.5, None, True, -(2**70)]},
    }
    job = await api.submitted({**parameters, "stream": True, "job": {"priority": "low"}})
    stored = await _stored_request(api, job["id"])
    assert stored == parameters
    assert [name for name in stored if name not in ("model", "max_tokens")] == [
        "system", "messages", "temperature", "metadata", "from_the_future",
    ]  # fmt: skip


async def test_a_deferred_job_has_no_position_in_the_queue(api: CalledApi) -> None:
    """``not_before`` moves the expiry too."""
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(days=20)
    sent = due.astimezone(timezone(timedelta(hours=1))).isoformat()
    job = await api.submitted(A_BODY | {"job": {"not_before": sent, "expires_in_s": 60}})
    assert job["not_before"] == due.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert job["expires_at"] == (due + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert (job["queue_position"], job["waiting_for"]) == (None, [{"reason": "not_before", "until": job["not_before"]}])
    assert await api.job(job["id"]) == job


async def test_the_same_key_and_body_find_the_first_job(api: CalledApi) -> None:
    """Spacing and the order of members make no other body; quotes around the key make no other key."""
    first = await api.submit({"prompt": "Say hello.", "max_tokens": 5}, Idempotency_Key='"a key"')
    again = await api.http.post(
        "/v1/jobs",
        content=b'{ "max_tokens" : 5,\n "prompt":"Say \\u0068ello." }',
        headers={"Content-Type": "application/json; charset=utf-8", "Idempotency-Key": "a key"},
    )
    assert again.status_code == 202
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len((await api.http.get("/v1/jobs")).json()["data"]) == 1


async def test_a_replay_returns_the_jobs_current_state(api: CalledApi) -> None:
    """Not its state at the submit."""
    job = await api.submitted(Idempotency_Key="k")
    author = await Author.claim_next(api.runtime)
    await author.say("Hello.")
    await author.succeed()
    again = await api.submit(Idempotency_Key="k")
    assert again.status_code == 200
    assert again.json()["id"] == job["id"]
    assert again.json()["status"] == "succeeded"
    assert again.json()["result"]["text"] == "Hello."
    assert "retry-after" not in again.headers


async def test_a_key_with_another_body_is_422_and_makes_no_job(api: CalledApi) -> None:
    """The job of the first body does not change."""
    job = await api.submitted(Idempotency_Key="k")
    count = await api.keys_count()
    problem_of(await api.submit({"prompt": "Say goodbye."}, Idempotency_Key="k"), 422, "idempotency_key_reused")
    assert await api.keys_count() == count
    assert await api.job(job["id"]) == job


async def test_a_key_belongs_to_its_tenant(api: CalledApi) -> None:
    """Another tenant's equal key is another key."""
    mine = await api.submitted(Idempotency_Key="k", X_Tenant="mine")
    theirs = await api.submitted({"prompt": "Other."}, Idempotency_Key="k", X_Tenant="theirs")
    assert mine["id"] != theirs["id"]


async def test_fifty_submits_of_one_key_at_once_make_one_job(api: CalledApi) -> None:
    """Each response has that job."""
    responses = await asyncio.gather(*[api.submit(Idempotency_Key="k") for _ in range(50)])
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert sum("idempotency-replayed" in response.headers for response in responses) == 49


@pytest.mark.parametrize("key", ["", '""', '"open', "x" * 256, "tab\there", "ümlaut", '"a"b"', '"a\\b"'])
async def test_an_invalid_key_is_refused(api: CalledApi, key: str) -> None:
    """No job is made for it."""
    response = await api.http.post("/v1/jobs", json=A_BODY, headers=[(b"Idempotency-Key", key.encode("latin-1"))])
    assert pointers_of(response) == ["Idempotency-Key"]
    assert await api.keys_count() == 0


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Tenant", "Content-Type"])
async def test_a_repeated_header_is_refused(api: CalledApi, name: str) -> None:
    """It is ambiguous."""
    response = await api.http.post(
        "/v1/jobs", content=b'{"prompt":"x"}', headers=[("Content-Type", "application/json"), (name, "a"), (name, "b")]
    )
    assert pointers_of(response) == [name]


async def test_an_invalid_cursor_is_refused_even_if_the_submit_does_not_follow(api: CalledApi) -> None:
    """An invalid header is a 400, whether or not it would be used."""
    problem_of(await api.submit(Last_Event_ID="rubbish"), 400, "invalid_cursor")
    assert await api.keys_count() == 0


async def test_prefer_wait_returns_200_if_the_job_ends_in_time(api: CalledApi) -> None:
    """In the requested time; more than a minute counts as a minute."""
    waiting = asyncio.create_task(api.submit(Prefer="respond-async, wait=100"))
    author = await _first_claim(api)
    await author.say("Hello.")
    await author.succeed()
    response = await waiting
    assert response.status_code == 200
    assert response.json()["result"]["text"] == "Hello."
    assert response.headers["preference-applied"] == "wait=60"
    assert response.headers["location"] == f"/v1/jobs/{author.job_id}"


async def test_prefer_wait_returns_202_when_the_time_is_over(api: CalledApi) -> None:
    """With the job's current state."""
    response = await api.submit(Prefer="wait=1")
    assert response.status_code == 202
    assert response.json()["status"] == "queued"
    assert response.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize(
    "preference", ["wait=0", "wait=soon", "wait", "return=minimal", "wait=-1", "wait=" + "9" * 5000]
)
async def test_an_invalid_preference_is_ignored(api: CalledApi, preference: str) -> None:
    """As RFC 7240 requires."""
    response = await api.submit(Prefer=preference)
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_a_full_queue_is_503_and_stores_nothing(start_api: StartApi) -> None:
    """Waiting jobs are not affected, and a replay still finds its job."""
    api = await start_api(max_queued=2)
    first = await api.submitted(Idempotency_Key="k")
    await api.submitted()
    count = await api.keys_count()
    response = await api.submit()
    problem_of(response, 503, "queue_full")
    assert int(response.headers["retry-after"]) > 0
    assert await api.keys_count() == count
    assert (await api.submitted(Idempotency_Key="k"))["id"] == first["id"]


async def test_a_redis_above_its_high_water_mark_is_503_and_stores_nothing(start_api: StartApi) -> None:
    """So that running jobs have the memory to finish. A replay needs none."""
    api = await start_api()
    first = await api.submitted(Idempotency_Key="k")
    count = await api.keys_count()
    api.state.runtime.memory.is_full = True
    for headers in ({}, {"Idempotency_Key": "another"}):
        response = await api.submit(**headers)
        problem_of(response, 503, "storage_full")
        assert int(response.headers["retry-after"]) > 0
    assert await api.keys_count() == count
    assert (await api.submitted(Idempotency_Key="k"))["id"] == first["id"]


async def test_accept_event_stream_submits_and_follows_in_one_request(served: Served) -> None:
    """From ``queued`` on, with the job's Location in the head."""
    headers = {"Accept": "text/event-stream"}
    await served.api.runtime.waits.look()
    async with asking(served.url, "/v1/jobs", method="POST", headers=headers, body=A_BODY) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        author = await Author.claim_next(served.api.runtime)
        assert answer.headers["location"] == f"/v1/jobs/{author.job_id}"
        await author.say("Hel", "lo.")
        await author.succeed()
        frames = SseFrames().feed(await answer.read())
    assert [frame.event for frame in frames] == ["queued", "started", "delta", "delta", "succeeded"]
    waiting_for = [{"reason": "no_worker"}]
    assert json.loads(frames[0].data) == {"job_id": author.job_id, "queue_position": None, "waiting_for": waiting_for}
    assert json.loads(frames[-1].data)["result"]["text"] == "Hello."


async def test_a_repeated_submit_resumes_after_the_last_event(served: Served) -> None:
    """Some clients repeat their POST after a lost connection; after the last event the response is a 204."""
    headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}
    async with asking(served.url, "/v1/jobs", method="POST", headers=headers, body=A_BODY):
        pass
    author = await Author.claim_next(served.api.runtime)
    await author.say("Hel")
    seen = str((await author.log())[-1].id)
    await author.say("lo.")
    await author.succeed()
    end = str((await author.log())[-1].id)
    again = headers | {"Last-Event-ID": seen}
    async with asking(served.url, "/v1/jobs", method="POST", headers=again, body=A_BODY) as answer:
        assert answer.headers["idempotency-replayed"] == "true"
        frames = SseFrames().feed(await answer.read())
    assert [frame.event for frame in frames] == ["delta", "succeeded"]
    again["Last-Event-ID"] = end
    async with asking(served.url, "/v1/jobs", method="POST", headers=again, body=A_BODY) as answer:
        assert answer.status == 204


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        ("*/*", "application/json"),
        ("application/json, text/event-stream", "application/json"),
        ("text/event-stream;q=0.5, application/json", "application/json"),
        ("application/*", "application/json"),
        ("text/event-stream, */*", "text/event-stream"),
        ("text/*", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
    ],
)
async def test_accept_decides_between_json_and_a_stream(served: Served, accept: str, type_: str) -> None:
    """By its weights; a wildcard does not ask for a stream."""
    async with asking(served.url, "/v1/jobs", method="POST", headers={"Accept": accept}, body=A_BODY) as answer:
        assert answer.headers["content-type"].startswith(type_)


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*, text/html"])
async def test_an_accept_with_neither_is_406_and_makes_no_job(api: CalledApi, accept: str) -> None:
    """It is refused before anything is stored."""
    problem_of(await api.submit(Accept=accept), 406, "not_acceptable")
    assert await api.keys_count() == 0


async def _first_claim(api: CalledApi) -> Author:
    async def is_waiting() -> bool:
        return (await api.runtime.queue.depth())[JobState.QUEUED] > 0

    await wait_until(is_waiting, "the job in the queue")
    return await Author.claim_next(api.runtime)
