"""``GET /v1/jobs`` by what a job is and how it ended."""

import pytest

from shared.errors import JobError
from shared.job import Step
from shared.store.queue import Ending
from tests.routes.conftest import CalledApi, pointers_of
from tests.support.batches import succeed
from tests.support.store import claim_one, finish

_REJECTED = Ending(Step.FAIL, error=JobError("upstream_rejected", "The LLM refused the request.", retryable=False))


async def _found(api: CalledApi, query: str) -> list[str]:
    response = await api.http.get(f"/v1/jobs?{query}")
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["data"]]


async def test_conditions_are_combined(api: CalledApi) -> None:
    """Those of the job itself, and those of its end."""
    sent = [
        {"tags": ["red"], "metadata": {"run": "7", "a.b": "1"}},
        {"tags": ["red"], "metadata": {"run": "8"}},
        {"metadata": {"run": "7"}},
    ]
    ids = [
        (await api.submitted({"prompt": "x", "model": f"model-{number}", "job": job}))["id"]
        for number, job in enumerate(sent)
    ]
    for _ in range(2):
        await finish(api.runtime, await claim_one(api.runtime), _REJECTED)
    await succeed(api.runtime, await claim_one(api.runtime))
    for query, expected in (
        ("tag=red", [1, 0]),
        ("metadata.run=7", [2, 0]),
        ("metadata.run=7&metadata.a.b=1", [0]),
        ("metadata.run=7&tag=red", [0]),
        ("metadata.run=", []),
        ("model=model-1", [1]),
        ("error_code=upstream_rejected", [1, 0]),
        ("error_code=upstream_rejected&metadata.run=8", [1]),
        ("error_code=timeout", []),
        ("status=succeeded&metadata.run=7", [2]),
        ("status=failed&limit=1", [1]),
        ("key_id=key_0000000000000000", []),
    ):
        assert await _found(api, query) == [ids[number] for number in expected], query


async def test_a_time_divides_the_jobs(api: CalledApi) -> None:
    """What was created at that time is after it, so that two lists that meet there have each job once."""
    ids = [(await api.submitted())["id"] for _ in range(3)]
    moment = (await api.job(ids[1]))["created_at"]
    after, before = await _found(api, f"created_after={moment}"), await _found(api, f"created_before={moment}")
    assert sorted(after + before) == sorted(ids)
    assert ids[1] in after
    assert ids[2] in after
    elsewhere = moment.replace("Z", "%2B00:00")
    assert await _found(api, f"created_after={elsewhere}") == after


@pytest.mark.parametrize(
    ("query", "pointers"),
    [
        ("status=done", ["status"]),
        ("error_code=none", ["error_code"]),
        ("key_id=1", ["key_id"]),
        ("created_after=yesterday&created_before=2026-01-01", ["created_after", "created_before"]),
        ("tag=", ["tag"]),
        ("tag=a&tag=b", ["tag"]),
        ("metadata.run=1&metadata.run=2", ["metadata.run"]),
        ("metadata=1", ["metadata"]),
        ("metadata.=1", ["metadata"]),
    ],
)
async def test_a_wrong_condition_is_named(api: CalledApi, query: str, pointers: list[str]) -> None:
    """None is ignored."""
    assert pointers_of(await api.http.get(f"/v1/jobs?{query}")) == pointers
