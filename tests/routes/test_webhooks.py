"""Webhooks that callers ask for, and what they can read about deliveries."""

from typing import Any

import pytest

from shared.store.runtime import Runtime
from shared.webhooks import Attempt, DeliveryState, EventType, Next, Reason, delivery_id_of
from tests.routes.conftest import CalledApi, problem_of
from tests.support.builders import a_webhook
from tests.support.store import succeed

URL = "https://hooks.example.com/a-path-of-nobody"
TENANT = "default"


async def submit(api: CalledApi, webhook: Any) -> Any:
    return await api.http.post("/v1/jobs", json={"prompt": "Hello.", "job": {"webhook": webhook}})


@pytest.mark.parametrize(
    ("webhook", "pointer"),
    [
        ("x", "#/job/webhook"),
        ([URL], "#/job/webhook"),
        ({}, "#/job/webhook/url"),
        ({"url": 5}, "#/job/webhook/url"),
        ({"url": "http://hooks.example.com/a-path-of-nobody"}, "#/job/webhook/url"),
        ({"url": "https://hooks.example.com:8443/a-path-of-nobody"}, "#/job/webhook/url"),
        ({"url": "https://user:a-path-of-nobody@hooks.example.com/"}, "#/job/webhook/url"),
        ({"url": "https://127.0.0.1/a-path-of-nobody"}, "#/job/webhook/url"),
        ({"url": "https://2130706433/a-path-of-nobody"}, "#/job/webhook/url"),
        ({"url": "https://[::ffff:169.254.169.254]/a-path-of-nobody"}, "#/job/webhook/url"),
        ({"url": "https://localhost/a-path-of-nobody"}, "#/job/webhook/url"),
        ({"url": "https://hooks.example.com/" + "a-path-of-nobody" * 200}, "#/job/webhook/url"),
        ({"url": URL, "events": []}, "#/job/webhook/events"),
        ({"url": URL, "events": "job.failed"}, "#/job/webhook/events"),
        ({"url": URL, "events": ["batch.ended"]}, "#/job/webhook/events"),
        ({"url": URL, "events": ["job.failed", "job.failed"]}, "#/job/webhook/events"),
        ({"url": URL, "events": [None]}, "#/job/webhook/events"),
        ({"url": URL, "result": 1}, "#/job/webhook/result"),
        ({"url": URL, "secret": "x"}, "#/job/webhook/secret"),
        ({"url": URL, "a path of nobody": "x"}, "#/job/webhook"),
    ],
)
async def test_what_is_no_webhook_is_refused_by_name_alone(api: CalledApi, webhook: Any, pointer: str) -> None:
    response = await submit(api, webhook)
    problem = problem_of(response, 400, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert "nobody" not in response.text


async def test_a_webhook_is_shown_with_its_defaults(api: CalledApi) -> None:
    shown = (await submit(api, {"url": URL})).json()["webhook"]
    assert shown == {
        "url": URL,
        "events": ["job.cancelled", "job.expired", "job.failed", "job.succeeded"],
        "result": False,
    }
    assert (await submit(api, None)).json()["webhook"] is None


async def test_a_batch_has_one_for_all_in_both_forms(api: CalledApi) -> None:
    params = {"messages": [{"role": "user", "content": "Hello."}]}
    one = {"custom_id": "a", "params": params}
    shown = (await api.http.post("/v1/batches", json={"requests": [one], "job": {"webhook": {"url": URL}}})).json()
    assert shown["webhook"] == {"url": URL, "events": ["batch.ended"], "result": False}
    query = {"webhook.url": URL, "webhook.events": "job.failed,batch.ended", "webhook.result": "true"}
    line = b'{"custom_id": "a", "params": {"prompt": "Hello."}}\n'
    headers = {"Content-Type": "application/jsonl"}
    shown = (await api.http.post("/v1/batches", params=query, content=line, headers=headers)).json()
    assert shown["webhook"] == {"url": URL, "events": ["batch.ended", "job.failed"], "result": True}
    query["webhook.result"] = "maybe"
    refused = await api.http.post("/v1/batches", params=query, content=line, headers=headers)
    assert [error["pointer"] for error in problem_of(refused, 400, "invalid_request")["errors"]] == ["webhook.result"]


async def a_delivery(runtime: Runtime, *, tenant: str = TENANT) -> str:
    """A delivery of an ended job. Returns the job's id."""
    return (await succeed(runtime, tenant=tenant, webhook=a_webhook(URL, EventType.JOB_SUCCEEDED))).id


async def test_deliveries_are_listed_read_and_told_again(api: CalledApi) -> None:
    jobs = [await a_delivery(api.runtime) for _ in range(3)]
    claims = (await api.runtime.webhooks.claim(count=1, lease_s=60)).claims
    failed = Next(DeliveryState.FAILED, Reason.STATUS)
    await api.runtime.webhooks.end(claims[0], failed, Attempt(1_000, 20, 500, Reason.STATUS))
    page = (await api.http.get("/v1/webhooks/deliveries", params={"limit": 2})).json()
    assert [each["job_id"] for each in page["data"]] == [jobs[2], jobs[1]]
    rest = (await api.http.get("/v1/webhooks/deliveries", params={"after": page["next"]})).json()
    assert ([each["job_id"] for each in rest["data"]], rest["next"]) == ([jobs[0]], None)
    found = (await api.http.get("/v1/webhooks/deliveries", params={"status": "failed"})).json()["data"]
    assert [each["id"] for each in found] == [claims[0].delivery.id]
    assert found[0]["attempts"] == [{"at": "1970-01-01T00:00:01.000Z", "status": 500, "error": "status", "took_ms": 20}]
    path = f"/v1/webhooks/deliveries/{claims[0].delivery.id}"
    assert (await api.http.get(path)).json() == found[0]
    again = await api.http.post(f"{path}/redeliver")
    assert (again.status_code, again.json()["status"], again.json()["attempts"]) == (202, "pending", [])
    of_job = (await api.http.get("/v1/webhooks/deliveries", params={"job_id": jobs[1]})).json()["data"]
    assert [each["id"] for each in of_job] == [delivery_id_of(jobs[1])]
    assert (await api.http.get("/v1/webhooks/deliveries", params={"job_id": "x"})).json()["data"] == []
    problem_of(await api.http.get("/v1/webhooks/deliveries", params={"after": "x"}), 400, "invalid_cursor")


async def test_the_secret_is_the_tenants_and_is_rotated(api: CalledApi) -> None:
    first = await api.http.get("/v1/webhooks/secret")
    assert first.headers["cache-control"] == "no-store"
    assert first.json()["secret"].startswith("whsec_")
    assert first.json()["previous_secret_until"] is None
    other = await api.http.get("/v1/webhooks/secret", headers={"X-Tenant": "another"})
    assert other.json()["secret"] != first.json()["secret"]
    second = (await api.http.post("/v1/webhooks/secret/rotate")).json()
    assert second["secret"] != first.json()["secret"]
    assert second["previous_secret_until"] is not None
    headers = {"Content-Type": "application/json"}
    assert (await api.http.post("/v1/webhooks/secret/rotate", headers=headers)).status_code == 200
    third = (await api.http.post("/v1/webhooks/secret/rotate", json={"grace_s": 0})).json()
    assert third["previous_secret_until"] is None
    wrong: list[Any] = [[], {"grace_s": -1}, {"grace_s": True}, {"grace": 1}]
    for body in wrong:
        problem_of(await api.http.post("/v1/webhooks/secret/rotate", json=body), 400, "invalid_request")
