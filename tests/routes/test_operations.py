"""Cancel, retry and erase by a filter: one operation that the loops of the API do in pieces."""

import asyncio
from typing import Any

import pytest

from api.jobs import operations
from shared.api_key import Caller, Scope
from shared.errors import JobError
from shared.job import JobState, Step, new_id
from shared.job_filter import EVERY_JOB
from shared.limits import CallerLimits
from shared.operation import OperationAction
from shared.store import redis_keys
from shared.store.queue import Ending
from tests.routes.conftest import CalledApi, StartApi, pointers_of, problem_of
from tests.support.batches import a_batch, run_all
from tests.support.store import claim, finish, submit_many
from tests.support.wait import wait_until

TENANT = "default"
_FAILED = Ending(Step.FAIL, error=JobError("upstream_overloaded", "The LLM was overloaded.", retryable=True))


async def _begun(api: CalledApi, action: str, body: Any, **headers: str) -> Any:
    response = await api.http.post(f"/v1/jobs/{action}", json=body, headers=headers)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/operations/{response.json()['id']}"
    return response.json()


async def _ended(api: CalledApi, operation: Any, *, status: str = "ended") -> Any:
    found = operation

    async def has_ended() -> bool:
        nonlocal found
        found = (await api.http.get(operation["urls"]["self"])).json()
        return bool(found["status"] == status)

    await wait_until(has_ended, f"the operation is {status}", timeout_s=20)
    return found


async def _failed_jobs(api: CalledApi, count: int) -> list[str]:
    ids = await submit_many(api.runtime, count, tenant=TENANT)
    while claims := await claim(api.runtime, 250):
        for claimed in claims:
            await finish(api.runtime, claimed, _FAILED)
    return ids


async def _retries(api: CalledApi) -> dict[str, list[str]]:
    """The new jobs of each that was retried."""
    found: dict[str, list[str]] = {}
    after: str | None = None
    while True:
        page = await api.runtime.jobs.list(TENANT, after=after, limit=100)
        for job in page.jobs:
            if job.spec.retry_of is not None:
                found.setdefault(job.spec.retry_of, []).append(job.id)
        after = page.next_after
        if after is None:
            return found


async def test_failed_jobs_are_retried_once_each(api: CalledApi) -> None:
    """With what became of the others; the view repeats the filter as it was sent."""
    ids = await _failed_jobs(api, 120)
    await submit_many(api.runtime, 3, tenant=TENANT)
    await run_all(api.runtime)
    asked = {"error_code": "upstream_overloaded", "created_after": "2026-01-01T00:00:00.000Z"}
    operation = await _begun(api, "retry", {"filter": asked})
    assert (operation["type"], operation["action"], operation["filter"]) == ("operation", "retry", asked)
    assert operation["status"] == "running"
    ended = await _ended(api, operation)
    assert ended["counts"] == {"matched": 120, "done": 120, "skipped": 0, "failed": 0}
    assert ended["ended_at"] is not None
    retries = await _retries(api)
    assert retries.keys() == set(ids)
    assert {len(again) for again in retries.values()} == {1}
    everything = await _ended(api, await _begun(api, "retry", {"filter": {"status": "succeeded"}}))
    assert everything["counts"] == {"matched": 3, "done": 0, "skipped": 3, "failed": 0}


async def test_a_retry_whose_process_dies_twice_retries_each_job_once(start_api: StartApi) -> None:
    """Another process repeats the piece that was begun, and finds what is done."""
    api = await start_api()
    ids = await _failed_jobs(api, 60)
    for task in asyncio.all_tasks():
        if task.get_name() == "operate":  # this test does its work
            task.cancel()
    operation_id, _ = await api.runtime.operations.create(Caller(TENANT), OperationAction.RETRY, EVERY_JOB)
    for retried in (10, 30):

        async def has_begun(retried: int = retried) -> bool:
            return len(await _retries(api)) >= retried

        working = asyncio.create_task(operations.advance(api.state))
        await wait_until(has_begun, f"{retried} retries", timeout_s=20)
        working.cancel()  # its claim stays, as after SIGKILL
        await asyncio.wait({working})
        await api.runtime._commands.call("ZADD", redis_keys.plain("due_operations"), "XX", 0, TENANT)
    assert (await api.runtime.operations.get(operation_id, TENANT)).counts.done < 60
    while await operations.advance(api.state):
        pass
    ended = (await api.http.get(f"/v1/operations/{operation_id}")).json()
    assert ended["status"] == "ended"
    assert ended["counts"] == {"matched": 60, "done": 60, "skipped": 0, "failed": 0}
    retries = await _retries(api)
    assert sorted(retries) == sorted(ids)
    assert {len(again) for again in retries.values()} == {1}


async def test_queued_jobs_are_cancelled_and_ended_ones_erased(api: CalledApi) -> None:
    """In more than one piece. Items of batches are left out."""
    ids = await submit_many(api.runtime, 130, tenant=TENANT)
    await a_batch(api.runtime, 2, tenant=TENANT)
    counts = (await _ended(api, await _begun(api, "cancel", {"filter": {"status": "queued"}})))["counts"]
    assert counts == {"matched": 130, "done": 130, "skipped": 0, "failed": 0}
    (last,) = await submit_many(api.runtime, 1, tenant=TENANT)
    counts = (await _ended(api, await _begun(api, "erase", {"all": True})))["counts"]
    assert counts == {"matched": 131, "done": 130, "skipped": 1, "failed": 0}
    assert {await api.runtime.jobs.state(job_id) for job_id in ids} == {None}
    assert await api.runtime.jobs.state(last) is JobState.QUEUED


async def test_the_items_of_a_batch_are_erased(api: CalledApi) -> None:
    """Its own list keeps their lines, so the cursor is an item that is gone."""
    batch = await a_batch(api.runtime, 120, tenant=TENANT)
    await run_all(api.runtime)
    counts = (await _ended(api, await _begun(api, "erase", {"filter": {"batch_id": batch.id}})))["counts"]
    assert counts == {"matched": 120, "done": 120, "skipped": 0, "failed": 0}


async def test_a_full_queue_makes_a_retry_wait_and_not_fail(api: CalledApi) -> None:
    """It says what for, and goes on when there is room."""
    ids = await _failed_jobs(api, 12)
    await api.runtime.tenants.set(TENANT, {"queued_jobs": 5})
    operation = await _begun(api, "retry", {"filter": {"status": "failed"}})

    async def waits() -> bool:
        found = (await api.http.get(operation["urls"]["self"])).json()
        return bool(found["waiting_for"] == "too_many_queued" and found["counts"]["done"] == 5)

    await wait_until(waits, "the operation waits", timeout_s=20)
    second = await _begun(api, "cancel", {"filter": {"tag": "none"}})
    assert (await api.http.get(second["urls"]["self"])).json()["waiting_for"] == "turn"
    await api.runtime.tenants.set(TENANT, {"queued_jobs": 0})
    await api.runtime._commands.call("ZADD", redis_keys.plain("due_operations"), "XX", 0, TENANT)
    ended = await _ended(api, operation)
    assert (ended["waiting_for"], ended["counts"]["done"]) == (None, 12)
    assert sorted(await _retries(api)) == sorted(ids)
    await _ended(api, second)


async def test_a_cancelled_operation_leaves_the_rest(api: CalledApi) -> None:
    """Cancelled again it does not change."""
    await _failed_jobs(api, 4)
    await api.runtime.tenants.set(TENANT, {"queued_jobs": 1})
    operation = await _begun(api, "retry", {"all": True})

    async def has_begun() -> bool:
        return len(await _retries(api)) == 1

    await wait_until(has_begun, "one retry", timeout_s=20)
    for _ in range(2):
        response = await api.http.post(operation["urls"]["cancel"])
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    await api.runtime.tenants.set(TENANT, {"queued_jobs": 0})
    assert len(await _retries(api)) == 1


async def test_a_dry_run_counts_and_changes_nothing(api: CalledApi) -> None:
    """No operation begins."""
    await submit_many(api.runtime, 130, tenant=TENANT)
    before = await api.keys_count()
    for action in ("cancel", "retry", "erase"):
        response = await api.http.post(f"/v1/jobs/{action}", json={"filter": {"status": "queued"}, "dry_run": True})
        assert response.json() == {
            "type": "dry_run",
            "action": action,
            "filter": {"status": "queued"},
            "matched": 130,
            "has_more": False,
        }
    assert await api.keys_count() == before


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["#/filter"]),
        ({"filter": {}}, ["#/filter"]),
        ({"filter": {"metadata": {}}}, ["#/filter"]),
        ({"all": True, "filter": {"tag": "red"}}, ["#/all"]),
        ({"filter": {"state": "failed"}}, ["#/filter/state"]),
        ({"filter": {"status": "done", "created_after": 1}}, ["#/filter/status", "#/filter/created_after"]),
        ({"all": "true"}, ["#/all"]),
        ({"status": "failed"}, ["#/status"]),
        ([], ["#"]),
    ],
)
async def test_all_jobs_must_be_said_and_a_mistake_is_named(api: CalledApi, body: Any, pointers: list[str]) -> None:
    """An empty filter is a mistake more often than a wish."""
    for action in ("cancel", "retry", "erase"):
        assert pointers_of(await api.http.post(f"/v1/jobs/{action}", json=body)) == pointers


async def test_the_same_key_and_body_begin_one_operation(api: CalledApi) -> None:
    """Another body or action is a 422."""
    body = {"filter": {"tag": "red"}}
    first = await _begun(api, "cancel", body, **{"Idempotency-Key": "k"})
    response = await api.http.post("/v1/jobs/cancel", json=body, headers={"Idempotency-Key": "k"})
    assert (response.json()["id"], response.headers["idempotency-replayed"]) == (first["id"], "true")
    for action, other in (("cancel", {"all": True}), ("erase", body)):
        response = await api.http.post(f"/v1/jobs/{action}", json=other, headers={"Idempotency-Key": "k"})
        problem_of(response, 422, "idempotency_key_reused")
    problem_of(await api.submit(idempotency_key="k"), 422, "idempotency_key_reused")


async def test_operations_are_listed_newest_first(api: CalledApi) -> None:
    """In pages, as other lists."""
    ids = []
    for _ in range(3):
        ids.append((await _begun(api, "cancel", {"filter": {"tag": "red"}}))["id"])
        await asyncio.sleep(0.002)
    page = (await api.http.get("/v1/operations?limit=2")).json()
    assert [operation["id"] for operation in page["data"]] == ids[:0:-1]
    page = (await api.http.get(f"/v1/operations?after={page['next']}")).json()
    assert ([operation["id"] for operation in page["data"]], page["next"]) == ([ids[0]], None)
    assert (await api.http.get("/v1/operations?after=op_1")).status_code == 400
    assert (await api.http.get(f"/v1/operations/{new_id('op')}")).status_code == 404


async def test_each_action_needs_its_scopes(start_api: StartApi) -> None:
    """As for one job; a retry by a filter shows what there is, so it needs ``read`` too."""
    api = await start_api(auth="keys")
    for scopes, allowed in (
        ({Scope.CANCEL}, {"cancel", "erase"}),
        ({Scope.SUBMIT}, set()),
        ({Scope.SUBMIT, Scope.READ}, {"retry"}),
        ({Scope.ADMIN, Scope.READ}, set()),
    ):
        headers = {"x-api-key": (await _key(api, scopes)).text}
        for action in ("cancel", "retry", "erase"):
            response = await api.http.post(f"/v1/jobs/{action}", json={"all": True}, headers=headers)
            assert response.status_code == (202 if action in allowed else 403), (scopes, action)


async def test_a_dry_run_needs_read_too(start_api: StartApi) -> None:
    """A count by a filter says what is in the jobs."""
    api = await start_api(auth="keys")
    for scopes, status in (({Scope.CANCEL}, 403), ({Scope.CANCEL, Scope.READ}, 200)):
        headers = {"x-api-key": (await _key(api, scopes)).text}
        for action in ("cancel", "erase"):
            body = {"all": True, "dry_run": True}
            response = await api.http.post(f"/v1/jobs/{action}", json=body, headers=headers)
            assert response.status_code == status, (scopes, action)


async def test_an_operation_ends_with_its_key(start_api: StartApi) -> None:
    """A stolen key that is revoked retries nothing more."""
    api = await start_api(auth="keys")
    made = await _key(api, {Scope.SUBMIT, Scope.READ})
    await submit_many(api.runtime, 2, tenant=TENANT)
    await api.runtime.tenants.set(TENANT, {"queued_jobs": 1})
    while claims := await claim(api.runtime, 250):
        for claimed in claims:
            await finish(api.runtime, claimed, _FAILED)
    begun = await api.http.post("/v1/jobs/retry", json={"all": True}, headers={"x-api-key": made.text})
    operation_id = begun.json()["id"]

    async def has_begun() -> bool:
        return bool((await api.runtime.operations.get(operation_id, TENANT)).counts.done)

    await wait_until(has_begun, "one retry", timeout_s=20)
    await api.runtime.api_keys.revoke(made.key.id, TENANT)
    await api.runtime.tenants.set(TENANT, {"queued_jobs": 0})
    await api.runtime._commands.call("ZADD", redis_keys.plain("due_operations"), "XX", 0, TENANT)

    async def has_ended() -> bool:
        return (await api.runtime.operations.get(operation_id, TENANT)).ended_ms is not None

    await wait_until(has_ended, "the end of the operation", timeout_s=20)
    operation = await api.runtime.operations.get(operation_id, TENANT)
    assert (operation.state, operation.counts.done) == ("cancelled", 1)


async def _key(api: CalledApi, scopes: set[Scope]) -> Any:
    made = await api.runtime.api_keys.create(
        TENANT, env="test", name="", scopes=frozenset(scopes), limits=CallerLimits(), expires_in_s=None
    )
    assert made is not None
    return made
