"""Reading, waiting for, listing, cancelling, retrying and erasing jobs."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from shared.clock import from_rfc3339
from shared.job import JobKind, JobState, new_id
from shared.store import redis_keys
from tests.routes.conftest import A_BODY, CalledApi, StartApi, pointers_of, problem_of
from tests.support.author import Author
from tests.support.store import make_overdue, serve_queue, submit
from tests.support.wait import wait_until


async def _ended(api: CalledApi, how: str, **headers: str) -> Any:
    """A job in one of the four terminal states."""
    job = await api.submitted(**headers)
    if how == "cancelled":
        await api.http.post(f"/v1/jobs/{job['id']}/cancel", headers=headers)
    elif how == "expired":
        await make_overdue(api.runtime, job["id"])
    else:
        author = await Author.claim_next(api.runtime)
        await author.say("Hel", "lo.")
        await (author.succeed() if how == "succeeded" else author.fail())
    return job


async def test_a_job_that_succeeded_has_its_result_and_its_timing(api: CalledApi) -> None:
    """The response has no Retry-After."""
    job = await _ended(api, "succeeded")
    response = await api.http.get(f"/v1/jobs/{job['id']}")
    assert "retry-after" not in response.headers
    ended = response.json()
    assert ended["status"] == "succeeded"
    assert ended["result"]["text"] == "Hello."
    assert ended["result"]["stop_reason"] == "end_turn"
    assert ended["error"] is None
    assert ended["queue_position"] is None
    created, started, end = (from_rfc3339(ended[name]) for name in ("created_at", "started_at", "ended_at"))
    assert created <= started <= end
    assert ended["timing"]["queued_ms"] == started - created
    assert ended["timing"]["running_ms"] == end - started
    assert ended["timing"]["total_ms"] == end - created


async def test_a_job_that_failed_says_why(api: CalledApi) -> None:
    """With the four members of an error."""
    job = await _ended(api, "failed")
    failed = await api.job(job["id"])
    assert failed["status"] == "failed"
    assert failed["result"] is None
    assert failed["error"] == {
        "code": "upstream_error", "message": "The LLM failed.", "retryable": True, "upstream_status": None,
    }  # fmt: skip


async def test_a_read_of_an_overdue_job_ends_it_first(api: CalledApi) -> None:
    """It needs neither a loop nor a worker."""
    job = await _ended(api, "expired")
    assert (await api.job(job["id"]))["status"] == "expired"


async def test_result_false_leaves_the_result_out(api: CalledApi) -> None:
    """The member is absent: null would mean that there is no result."""
    job = await _ended(api, "succeeded")
    assert "result" not in await api.job(job["id"], result="false")
    assert (await api.job(job["id"], result="true"))["result"]["text"] == "Hello."


async def test_a_queued_job_has_its_position_and_retry_after(api: CalledApi) -> None:
    """Positions count from 1."""
    first, second = await api.submitted(), await api.submitted()
    await serve_queue(api.runtime)
    assert (await api.job(first["id"]))["queue_position"] == 1
    response = await api.http.get(f"/v1/jobs/{second['id']}")
    assert response.json()["queue_position"] == 2
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"


async def test_a_long_poll_returns_when_the_job_ends(api: CalledApi) -> None:
    """Not before, and with the ended job."""
    job = await api.submitted()
    polling = asyncio.create_task(api.http.get(f"/v1/jobs/{job['id']}", params={"wait": 1000}))
    await wait_until(lambda: api.state.relay.follower_count == 1, "the long poll")
    author = await Author.claim_next(api.runtime)
    await author.say("Hello.")
    assert not polling.done()
    await author.succeed()
    response = await polling
    assert response.json()["status"] == "succeeded"
    assert response.headers["preference-applied"] == "wait=60"
    assert api.state.relay.follower_count == 0


async def test_a_long_poll_of_an_ended_job_returns_at_once(api: CalledApi) -> None:
    """There is nothing to wait for."""
    job = await _ended(api, "cancelled")
    async with asyncio.timeout(5):
        assert (await api.job(job["id"], wait=60))["status"] == "cancelled"


async def test_a_long_poll_ends_with_the_server(api: CalledApi) -> None:
    """With the job's current state: the caller repeats the request, and another process serves it."""
    job = await api.submitted()
    polling = asyncio.create_task(api.http.get(f"/v1/jobs/{job['id']}", params={"wait": 60}))
    await wait_until(lambda: api.state.relay.follower_count == 1, "the long poll")
    api.state.stop()
    assert (await polling).json() == await api.job(job["id"])


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("wait=-1", "wait"),
        ("wait=soon", "wait"),
        ("wait=1.5", "wait"),
        ("wait=" + "9" * 5000, "wait"),
        ("result=maybe", "result"),
    ],
)
async def test_an_invalid_query_is_400(api: CalledApi, query: str, name: str) -> None:
    """The error names the parameter and does not quote its value."""
    job = await api.submitted()
    response = await api.http.get(f"/v1/jobs/{job['id']}?{query}")
    assert pointers_of(response) == [name]
    assert query.partition("=")[2] not in response.text


_ON_A_JOB = [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry")]


@pytest.mark.parametrize(("method", "what"), _ON_A_JOB)
async def test_absent_and_foreign_jobs_are_the_same_404(api: CalledApi, method: str, what: str) -> None:
    """Byte for byte, except for the request's id."""
    job = await _ended(api, "failed", X_Tenant="theirs")
    before = await api.runtime._commands.call("HGETALL", redis_keys.job(job["id"]))
    answers = []
    for job_id in (job["id"], new_id("job"), "job_1", "job_" + "U" * 26, "%00", "job_%0d%0a"):
        response = await api.http.request(method, f"/v1/jobs/{job_id}{what}", headers={"X-Request-ID": "same"})
        problem_of(response, 404, "not_found")
        answers.append((response.content, sorted(response.headers.raw)))
    assert len({content for content, _ in answers}) == 1
    assert all(headers == answers[0][1] for _, headers in answers)
    assert await api.runtime._commands.call("HGETALL", redis_keys.job(job["id"])) == before


async def test_a_cancel_ends_the_job_and_returns_it(api: CalledApi) -> None:
    """Whether it waits or runs."""
    waiting = await api.submitted()
    response = await api.http.post(f"/v1/jobs/{waiting['id']}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    running = await api.submitted()
    await Author.claim_next(api.runtime)
    response = await api.http.post(f"/v1/jobs/{running['id']}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled", "expired"])
async def test_a_cancel_of_an_ended_job_changes_nothing(api: CalledApi, how: str) -> None:
    """It returns the job with its result."""
    job = await _ended(api, how)
    ended = await api.job(job["id"])
    response = await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert response.status_code == 200
    assert response.json() == ended
    assert await api.job(job["id"]) == ended


@pytest.mark.parametrize("how", ["failed", "cancelled", "expired"])
async def test_a_retry_is_a_new_job_with_the_same_request(api: CalledApi, how: str) -> None:
    """With the old job's options, and its id in `retry_of`."""
    options = {"priority": "high", "timeout_s": 7, "expires_in_s": 99, "max_attempts": 2, "metadata": {"a": "b"}}
    job = await api.submitted(A_BODY | {"model": "a-model", "temperature": 1, "job": options})
    if how == "cancelled":
        await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    elif how == "expired":
        await make_overdue(api.runtime, job["id"])
    else:
        await (await Author.claim_next(api.runtime)).fail()
    response = await api.http.post(f"/v1/jobs/{job['id']}/retry")
    assert response.status_code == 202
    again = response.json()
    assert response.headers["location"] == f"/v1/jobs/{again['id']}"
    assert again["id"] != job["id"]
    assert again["retry_of"] == job["id"]
    assert again["status"] == "queued"
    for member in ("model", "priority", "timeout_s", "max_attempts", "metadata"):
        assert again[member] == job[member]
    if how != "expired":  # make_overdue moved that time
        assert from_rfc3339(again["expires_at"]) - from_rfc3339(again["created_at"]) == 99_000
    old, new = [
        json.loads(await api.runtime._commands.call("HGET", redis_keys.job(one["id"]), "request"))
        for one in (job, again)
    ]
    assert old == new
    assert await api.job(again["id"]) == again


async def test_a_retry_keeps_what_its_caller_said_in_headers_and_its_own_timers(api: CalledApi) -> None:
    """Otherwise it would be another call, to a version of the API that may refuse it."""
    options = {"connect_timeout_s": 3, "first_token_timeout_s": 5, "content_idle_timeout_s": 6}
    kept: dict[str, Any] = {"anthropic_beta": "one-1,two-2", "anthropic_version": "2031-01-01", **options}
    job = await submit(api.runtime, tenant="default", **kept)
    await (await Author.claim_next(api.runtime)).fail()
    response = await api.http.post(f"/v1/jobs/{job.id}/retry")
    assert response.status_code == 202, response.text
    again = (await Author.claim_next(api.runtime)).claim
    assert again.id == response.json()["id"]
    assert {name: getattr(again.spec, name) for name in kept} == kept


async def test_a_count_of_tokens_is_not_retried(api: CalledApi) -> None:
    """It costs nothing and is not listed; retried as a message without max_tokens it would pass every limit."""
    job = await submit(api.runtime, tenant="default", kind=JobKind.COUNT_TOKENS)
    await (await Author.claim_next(api.runtime)).fail()
    problem_of(await api.http.post(f"/v1/jobs/{job.id}/retry"), 404, "not_found")
    assert await api.runtime.queue.depth() == {JobState.QUEUED: 0, JobState.RUNNING: 0}


async def test_a_retry_with_a_key_makes_one_job(api: CalledApi) -> None:
    """However often it is sent; the key cannot be used for anything else."""
    job = await _ended(api, "failed")
    responses = [await api.http.post(f"/v1/jobs/{job['id']}/retry", headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert len({response.json()["id"] for response in responses}) == 1
    assert [response.headers.get("idempotency-replayed") for response in responses] == [None, "true", "true"]
    problem_of(await api.submit(Idempotency_Key="k"), 422, "idempotency_key_reused")


async def test_only_a_job_that_ended_without_success_can_be_retried(api: CalledApi) -> None:
    """A job that succeeded has its answer, and one that has not ended may still get one."""
    for job in (await _ended(api, "succeeded"), await api.submitted()):
        problem_of(await api.http.post(f"/v1/jobs/{job['id']}/retry"), 409, "not_ended")
    assert len((await api.http.get("/v1/jobs")).json()["data"]) == 2


async def test_an_erased_job_is_gone(api: CalledApi) -> None:
    """Prompt, events and result are deleted; its Idempotency-Key still makes no second job."""
    job = await _ended(api, "succeeded", Idempotency_Key="k")
    response = await api.http.delete(f"/v1/jobs/{job['id']}")
    assert (response.status_code, response.content) == (204, b"")
    problem_of(await api.http.get(f"/v1/jobs/{job['id']}"), 404, "not_found")
    problem_of(await api.http.delete(f"/v1/jobs/{job['id']}"), 404, "not_found")
    assert (await api.http.get("/v1/jobs")).json()["data"] == []
    for name in (redis_keys.job(job["id"]), redis_keys.log(job["id"]), redis_keys.result(job["id"])):
        assert await api.runtime._commands.call("EXISTS", name) == 0
    problem_of(await api.submit(Idempotency_Key="k"), 404, "not_found")


async def test_a_job_that_has_not_ended_cannot_be_erased(api: CalledApi) -> None:
    """Whether it waits or runs."""
    job = await api.submitted()
    problem_of(await api.http.delete(f"/v1/jobs/{job['id']}"), 409, "not_ended")
    await Author.claim_next(api.runtime)
    problem_of(await api.http.delete(f"/v1/jobs/{job['id']}"), 409, "not_ended")
    assert (await api.job(job["id"]))["status"] == "running"


async def test_a_list_shows_the_newest_first_page_by_page(api: CalledApi) -> None:
    """Every job once, without its result."""
    ids = [(await api.submitted())["id"] for _ in range(5)]
    ids = sorted(ids, reverse=True)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    for expected in (2, 2, 1):
        page = (await api.http.get("/v1/jobs", params=query)).json()
        assert list(page) == ["data", "has_more", "next"]
        assert len(page["data"]) == expected
        assert all("result" not in job for job in page["data"])
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] == (len(seen) < 5)
        query["after"] = page["next"]
    assert query["after"] is None
    assert seen == ids


async def test_a_list_shows_each_job_as_a_read_does(api: CalledApi) -> None:
    """Including its position in the queue."""
    await _ended(api, "succeeded")
    await api.submitted()
    await api.submitted()
    for job in (await api.http.get("/v1/jobs")).json()["data"]:
        assert job == await api.job(job["id"], result="false")


async def test_a_list_can_be_of_one_status(api: CalledApi) -> None:
    """By the states of a job."""
    ended = await _ended(api, "cancelled")
    waiting = await api.submitted()
    for status, expected in (("cancelled", [ended["id"]]), ("queued", [waiting["id"]]), ("running", [])):
        page = (await api.http.get("/v1/jobs", params={"status": status})).json()
        assert [job["id"] for job in page["data"]] == expected
    assert (await api.http.get("/v1/jobs", params={"batch_id": "batch_1"})).json()["data"] == []


async def test_a_list_can_be_of_one_tag(api: CalledApi) -> None:
    """Also of the items of a batch, in either form; and an untagged job has none."""
    tagged = await api.submitted({"prompt": "x", "job": {"tags": ["nightly", "a b", "é"]}})
    assert (tagged["tags"], (await api.submitted())["tags"]) == (["nightly", "a b", "é"], [])
    other = await api.submitted({"prompt": "x", "job": {"tags": ["nightly"]}})
    for tag, expected in (("nightly", [other["id"], tagged["id"]]), ("é", [tagged["id"]]), ("night", [])):
        page = (await api.http.get("/v1/jobs", params={"tag": tag, "status": "queued"})).json()
        assert [job["id"] for job in page["data"]] == expected
        assert (await api.http.get("/v1/jobs", params={"tag": tag})).json()["data"] == page["data"]
    line = b'{"custom_id":"a","params":{"prompt":"x"}}'
    headers = {"Content-Type": "application/jsonl"}
    batch = await api.http.post("/v1/batches?tags=blue,red", content=line, headers=headers)
    query = {"tag": "red", "batch_id": batch.json()["id"]}
    (item,) = (await api.http.get("/v1/jobs", params=query)).json()["data"]
    assert (item["tags"], item["metadata"]) == (["blue", "red"], {})
    assert (await api.http.get("/v1/jobs", params=query | {"tag": "nightly"})).json()["data"] == []


async def test_a_rare_tag_is_found_on_the_first_page(api: CalledApi) -> None:
    """However short the page is."""
    tagged = await api.submitted({"prompt": "x", "job": {"tags": ["rare"]}})
    for _ in range(61):
        await api.submitted()
    page = (await api.http.get("/v1/jobs?limit=1&tag=rare")).json()
    assert ([job["id"] for job in page["data"]], page["next"]) == ([tagged["id"]], None)


async def test_a_retried_job_keeps_its_tags(api: CalledApi) -> None:
    """Like its other options."""
    job = await api.submitted({"prompt": "x", "job": {"tags": ["nightly"], "timeout_s": 7}})
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    again = (await api.http.post(f"/v1/jobs/{job['id']}/retry")).json()
    assert (again["tags"], again["timeout_s"], again["retry_of"]) == (["nightly"], 7, job["id"])


async def test_a_job_has_its_end_user(api: CalledApi) -> None:
    """Null without one. A retry keeps it."""
    job = await api.submitted({"prompt": "x", "job": {"end_user": "ann: é/1"}})
    assert (job["end_user"], (await api.submitted())["end_user"]) == ("ann: é/1", None)
    assert (await api.job(job["id"]))["end_user"] == "ann: é/1"
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert (await api.http.post(f"/v1/jobs/{job['id']}/retry")).json()["end_user"] == "ann: é/1"


@pytest.mark.parametrize("is_json", [True, False])
async def test_each_item_of_a_batch_may_have_an_end_user(api: CalledApi, is_json: bool) -> None:
    """Without its own it has the batch's, wherever that stands in the body. A retry keeps them."""
    lines: list[Any] = [
        {"custom_id": str(number), "params": {"prompt": "x"}} | ({"end_user": user} if user else {})
        for number, user in enumerate(["ann", None, "bob"])
    ]
    lines.append({"custom_id": "3", "params": {"prompt": "x"}, "end_user": "\n"})
    if is_json:
        response = await api.http.post("/v1/batches", json={"requests": lines, "job": {"end_user": "eve"}})
    else:
        content = b"\n".join(map(msgspec.json.encode, lines))
        headers = {"Content-Type": "application/jsonl"}
        response = await api.http.post("/v1/batches?end_user=eve", content=content, headers=headers)
    assert response.status_code == 202, response.text
    batch = response.json()
    assert batch["counts"]["failed"] == 1

    async def users_of(batch_id: str) -> list[str]:
        page = (await api.http.get("/v1/jobs", params={"batch_id": batch_id})).json()
        return [job["end_user"] for job in page["data"]][::-1]

    assert await users_of(batch["id"]) == ["ann", "eve", "bob"]
    await api.http.post(f"/v1/batches/{batch['id']}/cancel")
    await api.runtime.batches.advance_all(batch["id"])
    again = await api.http.post(f"/v1/batches/{batch['id']}/retry")
    assert again.status_code == 202, again.text
    assert await users_of(again.json()["id"]) == ["ann", "eve", "bob"]


async def test_a_list_is_of_one_tenant(api: CalledApi) -> None:
    """Whatever another has."""
    await api.submitted(X_Tenant="theirs")
    assert (await api.http.get("/v1/jobs")).json() == {"data": [], "has_more": False, "next": None}


@pytest.mark.parametrize(
    ("query", "name"), [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("status=done", "status")]
)
async def test_an_invalid_list_query_is_400(api: CalledApi, query: str, name: str) -> None:
    """It is named."""
    assert pointers_of(await api.http.get(f"/v1/jobs?{query}")) == [name]


@pytest.mark.parametrize("after", ["x", "-", "+", "[a", "batch_01m84bdq4t7w9k2p5x8r3n6v0c", ""])
async def test_an_invalid_list_cursor_is_400(api: CalledApi, after: str) -> None:
    """It is never passed to Redis."""
    problem_of(await api.http.get("/v1/jobs", params={"after": after}), 400, "invalid_cursor")


async def test_jobs_that_wait_too_long_expire_without_a_worker(start_api: StartApi) -> None:
    """An API process ends them, without a read."""
    api = await start_api()
    job = await api.submitted(A_BODY | {"job": {"expires_in_s": 1}})

    async def has_expired() -> bool:
        return bool(await api.runtime._commands.call("HGET", redis_keys.job(job["id"]), "state") == b"expired")

    await wait_until(has_expired, "the job's end")
