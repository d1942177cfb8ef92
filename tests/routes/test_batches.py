"""Reading, listing, cancelling, retrying and erasing batches: everything but submits and streams."""

import json
from typing import Any

import pytest

from shared.batch import Batch
from shared.errors import JobError
from shared.job import Step, new_id
from shared.store import redis_keys
from shared.store.queue import Ending
from tests.routes.conftest import CalledApi, pointers_of, problem_of
from tests.support.batches import a_batch, a_result, fail, run_all, succeed
from tests.support.follower import Cut, asking
from tests.support.served import Served
from tests.support.store import all_keys, claim, claim_one, finish, kind_of
from tests.support.wait import wait_until

_COUNTS = ("queued", "running", "succeeded", "failed", "cancelled", "expired")


async def _read(api: CalledApi, batch: Batch) -> Any:
    response = await api.http.get(f"/v1/batches/{batch.id}")
    assert response.status_code == 200, response.text
    return response.json()


async def _results(api: CalledApi, batch: Batch, **query: Any) -> list[Any]:
    response = await api.http.get(f"/v1/batches/{batch.id}/results", params=query)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/jsonl"
    assert response.content == b"" or response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.splitlines()]


async def test_a_batch_is_shown_with_live_counts(api: CalledApi) -> None:
    """With the states of jobs, from its start to its end."""
    batch = await a_batch(api.runtime, 3, invalid=[2], metadata={"run": "nightly"})
    response = await api.http.get(f"/v1/batches/{batch.id}")
    assert response.headers["retry-after"] == "1"
    view = response.json()
    url = f"/v1/batches/{batch.id}"
    assert list(view) == [
        "id", "type", "status", "counts", "invalid_lines", "failures", "created_at", "expires_at", "ended_at", "retry_of",
        "metadata", "webhook", "usage", "cost_usd", "urls",
    ]  # fmt: skip
    assert view["status"] == "running"
    assert view["counts"] == {"total": 3, "queued": 2, "running": 0, **dict.fromkeys(_COUNTS[2:], 0), "failed": 1}
    assert view["metadata"] == {"run": "nightly"}
    assert (view["retry_of"], view["ended_at"], view["cost_usd"]) == (None, None, None)
    assert view["urls"] == {
        "self": url, "results": f"{url}/results", "events": f"{url}/events", "cancel": f"{url}/cancel",
    }  # fmt: skip

    claimed = await claim_one(api.runtime)
    assert (await _read(api, batch))["counts"]["running"] == 1
    await succeed(api.runtime, claimed)
    await fail(api.runtime, await claim_one(api.runtime))
    response = await api.http.get(url)
    assert "retry-after" not in response.headers
    view = response.json()
    assert (view["counts"]["failed"], view["invalid_lines"]) == (2, 1)
    assert (view["status"], view["counts"]["succeeded"], view["counts"]["failed"]) == ("ended", 1, 2)
    assert view["ended_at"] is not None


async def test_batches_are_listed_newest_first(api: CalledApi) -> None:
    """Page by page; each tenant sees its own."""
    batches = sorted([(await a_batch(api.runtime, 1)).id for _ in range(5)], reverse=True)
    await a_batch(api.runtime, 1, tenant="another")
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    page: Any = None
    for _ in range(3):
        page = (await api.http.get("/v1/batches", params=query)).json()
        seen += [batch["id"] for batch in page["data"]]
        assert page["has_more"] == (page["next"] is not None)
        query["after"] = page["next"]
    assert seen == batches
    assert page["next"] is None


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}])
async def test_a_page_has_1_to_100_batches(api: CalledApi, query: dict[str, Any]) -> None:
    assert pointers_of(await api.http.get("/v1/batches", params=query)) == ["limit"]


async def test_a_page_that_was_never_given_out_is_400(api: CalledApi) -> None:
    problem_of(await api.http.get("/v1/batches", params={"after": "job_1"}), 400, "invalid_cursor")


async def test_foreign_and_absent_batches_are_the_same_404(api: CalledApi) -> None:
    """On every route, and the foreign batch does not change."""
    foreign = (await a_batch(api.runtime, 1, tenant="another")).id
    for batch_id in (foreign, new_id("batch"), "batch_1", new_id("job")):
        url = f"/v1/batches/{batch_id}"
        for method, path in (
            ("GET", url),
            ("GET", f"{url}/results"),
            ("GET", f"{url}/events"),
            ("GET", f"{url}/events?tokens=true"),
            ("POST", f"{url}/cancel"),
            ("POST", f"{url}/retry"),
            ("DELETE", url),
        ):
            problem_of(await api.http.request(method, path), 404, "not_found")
    theirs = await api.http.get(f"/v1/batches/{foreign}", headers={"X-Tenant": "another"})
    assert theirs.json()["counts"]["queued"] == 1


async def test_results_are_the_lines_that_have_ended_so_far(api: CalledApi) -> None:
    """They are byte for byte as stored."""
    batch = await a_batch(api.runtime, 4, invalid=[2])
    first, second, third = await claim(api.runtime, 3)
    await succeed(api.runtime, first, "Grüße\n👩‍🚀")
    await fail(api.runtime, second)
    assert third.spec.custom_id == "row-4"
    found = await _results(api, batch)
    assert [line["line"] for line in found] == [1, 2, 3]
    assert list(found[0]) == ["line", "custom_id", "job_id", "status", "result", "usage", "error"]
    assert (found[0]["custom_id"], found[0]["job_id"], found[0]["status"]) == ("row-1", first.id, "succeeded")
    assert found[0]["result"] == json.loads(a_result("Grüße\n👩‍🚀"))
    assert found[0]["error"] is None
    assert found[1] == {
        "line": 2,
        "custom_id": None,
        "job_id": None,
        "status": "failed",
        "result": None,
        "usage": None,
        "error": {
            "code": "invalid_line",
            "message": "line 2 is not JSON",
            "retryable": False,
            "upstream_status": None,
        },
    }
    assert (found[2]["result"], found[2]["error"]["code"]) == (None, "upstream_error")


async def test_results_come_in_the_order_that_is_asked_for(api: CalledApi) -> None:
    batch = await a_batch(api.runtime, 4, invalid=[3])
    claims = await claim(api.runtime, 3)
    for claimed in reversed(claims):
        await succeed(api.runtime, claimed)
    assert [line["line"] for line in await _results(api, batch)] == [1, 2, 3, 4]
    assert [line["line"] for line in await _results(api, batch, order="finished")] == [3, 4, 2, 1]


async def test_results_resume_after_the_clients_last_line(api: CalledApi) -> None:
    """In either order; a line that has not ended is no cursor in the order of ends."""
    batch = await a_batch(api.runtime, 4, invalid=[3])
    for claimed in reversed((await claim(api.runtime, 3))[1:]):
        await succeed(api.runtime, claimed)
    assert [line["line"] for line in await _results(api, batch, after=2)] == [3, 4]
    assert [line["line"] for line in await _results(api, batch, after=1)] == [2, 3, 4]
    assert [line["line"] for line in await _results(api, batch, order="finished", after=3)] == [4, 2]
    assert await _results(api, batch, order="finished", after=2) == []
    url = f"/v1/batches/{batch.id}/results"
    problem_of(await api.http.get(url, params={"order": "finished", "after": 1}), 400, "invalid_cursor")
    for wrong in ("x", "-1", "1.5", "9" * 30, ""):
        problem_of(await api.http.get(url, params={"after": wrong}), 400, "invalid_cursor")


async def test_results_can_be_of_one_status(api: CalledApi) -> None:
    """Invalid lines count as failed ones."""
    batch = await a_batch(api.runtime, 4, invalid=[3])
    first, second, _ = await claim(api.runtime, 3)
    await succeed(api.runtime, first)
    await fail(api.runtime, second)
    await api.http.post(f"/v1/batches/{batch.id}/cancel")
    for status, lines in {"succeeded": [1], "failed": [2, 3], "cancelled": [4], "expired": []}.items():
        assert [line["line"] for line in await _results(api, batch, status=status)] == lines
    url = f"/v1/batches/{batch.id}/results"
    assert pointers_of(await api.http.get(url, params={"status": "running"})) == ["status"]
    assert pointers_of(await api.http.get(url, params={"order": "random"})) == ["order"]


async def test_a_thousand_results_of_all_sizes_are_whole_and_in_order(api: CalledApi) -> None:
    """On more than one page, and some larger than a portion."""
    batch = await a_batch(api.runtime, 1000, invalid=[1, 500, 1000])
    sizes = {20: 3 << 20, 21: 1, 300: 2 << 20, 301: 2 << 20}
    while claims := await claim(api.runtime, 250):
        for claimed in claims:
            number = int((claimed.spec.custom_id or "").removeprefix("row-"))
            await succeed(api.runtime, claimed, f"{number} " + "x" * sizes.get(number, 10))
    found = await _results(api, batch)
    assert [line["line"] for line in found] == list(range(1, 1001))
    for line in found:
        if line["job_id"] is not None:
            expected = f"{line['line']} " + "x" * sizes.get(line["line"], 10)
            assert line["result"]["text"] == expected


async def test_erased_items_are_left_out(api: CalledApi) -> None:
    batch = await a_batch(api.runtime, 3)
    job_ids = await run_all(api.runtime)
    await api.http.delete(f"/v1/jobs/{job_ids[1]}")
    assert [line["line"] for line in await _results(api, batch)] == [1, 3]


async def test_a_batch_without_ends_has_no_lines(api: CalledApi) -> None:
    assert await _results(api, await a_batch(api.runtime, 2)) == []


async def test_cancel_ends_the_items_that_have_not_ended(api: CalledApi) -> None:
    """Ended items stay as they are; a second cancel changes nothing."""
    batch = await a_batch(api.runtime, 300)
    claims = await claim(api.runtime, 2)
    await succeed(api.runtime, claims[0])
    response = await api.http.post(f"/v1/batches/{batch.id}/cancel")
    assert response.status_code == 200
    view = response.json()
    assert view["status"] == "ended"
    assert (view["counts"]["succeeded"], view["counts"]["cancelled"]) == (1, 299)
    again = await api.http.post(f"/v1/batches/{batch.id}/cancel")
    assert (again.status_code, again.json()) == (200, view)


async def test_retry_is_a_new_batch_of_items_that_did_not_succeed(api: CalledApi) -> None:
    """With the same options, metadata and custom ids; invalid lines are left out."""
    requests = [b'{"model":"a-model","number":%d}' % number for number in range(600)]
    options: dict[str, Any] = {
        "timeout_s": 77,
        "first_token_timeout_s": 5,
        "anthropic_beta": "one-1",
        "anthropic_version": "2031-01-01",
    }
    batch = await a_batch(
        api.runtime, 600, invalid=[7], requests=requests, metadata={"run": "nightly"}, expires_in_s=500, **options
    )
    await succeed(api.runtime, await claim_one(api.runtime))
    await fail(api.runtime, await claim_one(api.runtime))
    url = f"/v1/batches/{batch.id}"
    problem_of(await api.http.post(f"{url}/retry"), 409, "not_ended")
    await api.http.post(f"{url}/cancel")

    response = await api.http.post(f"{url}/retry", headers={"Idempotency-Key": "again"})
    assert response.status_code == 202, response.text
    again = response.json()
    assert response.headers["location"] == f"/v1/batches/{again['id']}"
    assert (again["retry_of"], again["metadata"]) == (batch.id, {"run": "nightly"})
    assert (again["counts"]["total"], again["counts"]["queued"]) == (598, 598)
    claims = await claim(api.runtime, 500)
    assert {one.spec.batch_id for one in claims} == {again["id"]}
    assert [one.spec.custom_id for one in claims[:6]] == ["row-2", "row-3", "row-4", "row-5", "row-6", "row-8"]
    assert [one.request for one in claims[:2]] == requests[1:3]
    assert claims[0].spec.priority == "low"
    assert {name: getattr(claims[0].spec, name) for name in options} == options

    repeated = await api.http.post(f"{url}/retry", headers={"Idempotency-Key": "again"})
    assert repeated.headers["idempotency-replayed"] == "true"
    assert (repeated.status_code, repeated.json()["id"]) == (202, again["id"])
    other = await a_batch(api.runtime, 1)
    reused = await api.http.post(f"/v1/batches/{other.id}/retry", headers={"Idempotency-Key": "again"})
    problem_of(reused, 422, "idempotency_key_reused")


async def test_a_batch_without_anything_to_retry_is_409(api: CalledApi) -> None:
    """All items succeeded or were invalid; the attempt leaves nothing."""
    for invalid in ([], [1, 2]):
        batch = await a_batch(api.runtime, 3, invalid=invalid)
        await run_all(api.runtime)
        before = await api.http.get("/v1/batches")
        document = problem_of(await api.http.post(f"/v1/batches/{batch.id}/retry"), 409, "not_ended")
        assert "retried" in document["detail"]
        assert (await api.http.get("/v1/batches")).json() == before.json()
        names = await all_keys(api.runtime._commands)
        assert {name for name in names if kind_of(name) == "batch"} <= {
            redis_keys.batch(view["id"]) for view in before.json()["data"]
        }


async def test_only_a_batch_that_has_ended_is_erased(api: CalledApi) -> None:
    """With all its items; nothing of it is left."""
    batch = await a_batch(api.runtime, 3, invalid=[3])
    url = f"/v1/batches/{batch.id}"
    problem_of(await api.http.delete(url), 409, "not_ended")
    job_ids = await run_all(api.runtime)
    response = await api.http.delete(url)
    assert (response.status_code, response.content) == (204, b"")
    problem_of(await api.http.get(url), 404, "not_found")
    problem_of(await api.http.get(f"/v1/jobs/{job_ids[0]}"), 404, "not_found")
    assert (await api.http.get("/v1/batches")).json()["data"] == []
    assert await api.runtime._commands.call("EXISTS", redis_keys.batch(batch.id), redis_keys.job(job_ids[0])) == 0


async def test_the_items_of_a_batch_are_jobs(api: CalledApi) -> None:
    """Each has its batch's id."""
    batch = await a_batch(api.runtime, 2)
    page = (await api.http.get("/v1/jobs", params={"batch_id": batch.id})).json()
    assert sorted(job["custom_id"] for job in page["data"]) == ["row-1", "row-2"]
    assert {(job["batch_id"], job["priority"]) for job in page["data"]} == {(batch.id, "low")}


async def test_a_response_that_cannot_be_completed_never_looks_complete(served: Served) -> None:
    """Redis dies in the middle: the connection is cut, and the lines before are valid."""
    runtime = served.api.runtime
    batch = await a_batch(runtime, 40)
    await run_all(runtime, "x" * (500 << 10))
    async with asking(served.url, f"/v1/batches/{batch.id}/results", receive_buffer=4096) as answer:
        assert answer.status == 200
        await answer.read_some(100)
        await runtime._commands.call("CLIENT", "PAUSE", 3000, "ALL")
        with pytest.raises(Cut):
            await answer.read()
    await wait_until(runtime.ping, "Redis to be back")


@pytest.mark.parametrize("order", ["submitted", "finished"])
async def test_results_of_a_batch_that_is_erased_meanwhile_never_look_complete(served: Served, order: str) -> None:
    """The connection is cut."""
    runtime = served.api.runtime
    batch = await a_batch(runtime, 300)
    await run_all(runtime, "x" * (64 << 10))
    url = f"/v1/batches/{batch.id}/results?order={order}"
    async with asking(served.url, url, receive_buffer=4096) as answer:
        assert answer.status == 200
        await answer.read_some(100)
        await runtime.batches.erase(batch.id, batch.tenant)
        await runtime.batches.advance_all(batch.id)
        with pytest.raises(Cut):
            await answer.read()


async def test_a_client_that_disconnects_ends_the_reading(served: Served) -> None:
    """The API reads no more from Redis for it."""
    runtime = served.api.runtime
    batch = await a_batch(runtime, 40)
    await run_all(runtime, "x" * (500 << 10))
    async with asking(served.url, f"/v1/batches/{batch.id}/results", receive_buffer=4096) as answer:
        await answer.read_some(100)
    await wait_until(lambda: not served.server.server_state.connections, "the close of its connection")
    await wait_until(lambda: not served.server.server_state.tasks, "the end of its answer")


async def test_results_can_be_of_some_custom_ids(api: CalledApi) -> None:
    """One or several, in either order; reading stops at the last of them."""
    batch = await a_batch(api.runtime, 600, invalid=[2])
    await run_all(api.runtime)
    for wanted in (["row-1"], ["row-599", "row-3"], ["row-1", "none"], ["none"]):
        for order in ("submitted", "finished"):
            found = await _results(api, batch, custom_id=wanted, order=order)
            assert sorted(line["custom_id"] for line in found) == sorted({*wanted} - {"none"})
            assert all(line["result"]["text"] == "Hello." for line in found)
    assert await _results(api, batch, custom_id=["row-1", "row-3"], status="failed") == []
    many = "&".join(f"custom_id={number}" for number in range(101))
    assert pointers_of(await api.http.get(f"/v1/batches/{batch.id}/results?{many}")) == ["custom_id"]


async def _ended_in_each_way(api: CalledApi) -> Batch:
    batch = await a_batch(api.runtime, 7, invalid=[2])
    for code, retryable in (("upstream_rejected", False), ("upstream_overloaded", True), ("upstream_overloaded", True)):
        error = JobError(code, "The LLM failed.", retryable)
        await finish(api.runtime, await claim_one(api.runtime), Ending(Step.FAIL, error=error))
    await succeed(api.runtime, await claim_one(api.runtime))
    await api.http.post(f"/v1/batches/{batch.id}/cancel")
    return batch


async def test_failures_are_counted_by_code(api: CalledApi) -> None:
    """Lines that could not run too; cancelled items have no error."""
    batch = await _ended_in_each_way(api)
    found = await _read(api, batch)
    assert found["failures"] == {"upstream_rejected": 1, "upstream_overloaded": 2, "invalid_line": 1}
    assert sum(found["failures"].values()) == found["counts"]["failed"]
    assert (await _read(api, await a_batch(api.runtime, 1)))["failures"] == {}


async def test_a_retry_can_be_of_the_retryable_items_alone(api: CalledApi) -> None:
    """Neither rejected nor cancelled ones. With the same key, a retry of all is another request."""
    batch = await _ended_in_each_way(api)
    path, headers = f"/v1/batches/{batch.id}/retry", {"Idempotency-Key": "again"}
    again = await api.http.post(f"{path}?retryable=true", headers=headers)
    assert (again.status_code, again.json()["counts"]["total"]) == (202, 2)
    ids = await api.runtime.batches.item_ids(again.json()["id"], 0, 10)
    jobs = [await api.job(job_id or "") for job_id in ids]
    assert [job["custom_id"] for job in jobs] == ["row-3", "row-4"]
    repeated = await api.http.post(f"{path}?retryable=true", headers=headers)
    assert repeated.json()["id"] == again.json()["id"]
    problem_of(await api.http.post(path, headers=headers), 422, "idempotency_key_reused")
    assert (await api.http.post(path)).json()["counts"]["total"] == 5
    await run_all(api.runtime)
    problem_of(await api.http.post(f"/v1/batches/{again.json()['id']}/retry?retryable=true"), 409, "not_ended")
    assert pointers_of(await api.http.post(f"{path}?retryable=maybe")) == ["retryable"]
