"""A job that ends without success keeps what its followers were shown; while it runs, the same can be read."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.clock import from_rfc3339
from shared.job import JobState
from shared.store import redis_keys
from tests.running.crew import STEADY, TENANT, Crew
from tests.running.providers import on_each_provider
from tests.running.test_takeover import is_confirmed
from tests.support.follower import Follower, ask, following
from tests.support.served import Served, serving
from tests.support.wait import wait_until

LEASE_S = 0.6
MINE = {"X-Tenant": TENANT}


@pytest.fixture
async def served(crew: Crew) -> AsyncIterator[Served]:
    """An API on the crew's Redis."""
    async with serving(crew.runtime.settings.redis_url) as running:
        yield running


async def read(served: Served, job_id: str, query: str = "") -> Any:
    """The job as its tenant reads it."""
    status, job, _ = await ask(served.url, f"/v1/jobs/{job_id}{query}", headers=MINE)
    assert status == 200, job
    return job


async def follow(served: Served, job_id: str) -> "asyncio.Task[Follower]":
    return await following(Follower([served.url], job_id, tenant=TENANT), is_waiting=True)


async def until_stored(crew: Crew, job_id: str) -> None:
    """Waits until a worker has folded the job's log."""

    async def is_stored() -> bool:
        return bool(await crew.runtime._commands.call("EXISTS", redis_keys.result(job_id)))

    await wait_until(is_stored, "the partial answer to be stored")


async def assert_kept(crew: Crew, served: Served, job_id: str, follower: Follower) -> Any:
    """The partial answer is what the follower shows, before and after it was stored. Returns the job."""
    job = await read(served, job_id)
    assert job["partial"]["text"] == follower.text != ""
    assert job["result"] is None
    assert from_rfc3339(job["started_at"]) <= from_rfc3339(job["partial"]["last_token_at"])
    assert from_rfc3339(job["partial"]["last_token_at"]) <= from_rfc3339(job["ended_at"]) + 20
    await until_stored(crew, job_id)
    await crew.runtime._commands.call("DEL", redis_keys.log(job_id))
    assert await read(served, job_id) == job
    return job


@on_each_provider
async def test_a_cancelled_job_keeps_what_was_shown(crew: Crew, served: Served) -> None:
    """Its worker reports when the last token came."""
    hand = await crew.worker()
    job_id = await crew.submit(model=STEADY)
    watching = await follow(served, job_id)
    await crew.begun(job_id, 20)
    status, cancelled, _ = await ask(served.url, f"/v1/jobs/{job_id}/cancel", method="POST", headers=MINE)
    follower = await watching
    assert (status, cancelled["partial"]["text"]) == (200, follower.text)
    await hand.is_idle()

    async def is_reported() -> bool:
        return await crew.field(job_id, "last_token_ms") is not None

    await wait_until(is_reported, "the worker's report")
    job = await assert_kept(crew, served, job_id, follower)
    assert len(follower.text.split()) >= 20
    assert from_rfc3339(job["ended_at"]) - from_rfc3339(job["partial"]["last_token_at"]) < 500


@on_each_provider
@pytest.mark.parametrize(
    ("script", "options", "code"),
    [
        ("stall=5", {"timeout_s": 1}, "timeout"),
        ("error=5", {"max_attempts": 1}, "upstream_error"),
        ("end=5", {"max_attempts": 2}, "upstream_truncated"),
        ("end=5", {"may_start_over": False}, "upstream_truncated"),
    ],
    ids=["timeout", "refusal after content", "a reset before the last attempt", "no second attempt"],
)
async def test_a_failed_job_keeps_what_was_shown(
    crew: Crew, served: Served, script: str, options: dict[str, Any], code: str
) -> None:
    await crew.worker()
    job_id = await crew.submit(f"gap-ms=20 {script}", **options)
    follower = await (await follow(served, job_id))
    job = await assert_kept(crew, served, job_id, follower)
    assert job["error"]["code"] == code
    assert job["partial"]["content"] == [{"type": "text", "text": follower.text}]
    assert follower.last is not None
    assert "partial" not in json.loads(follower.last.data)


async def test_what_was_reset_is_not_kept(crew: Crew, served: Served) -> None:
    """The last attempt brought nothing."""
    await crew.worker()
    job_id = await crew.submit("end=3x1 fail=400x2")
    follower = await (await follow(served, job_id))
    assert follower.text == ""
    assert (await read(served, job_id))["partial"] is None


async def test_input_that_was_cut_is_not_parsed(crew: Crew, served: Served) -> None:
    await crew.worker()
    job_id = await crew.submit("blocks=text+tool tokens=4 end=5", max_attempts=1)
    await crew.ended(job_id)
    text, tool = (await read(served, job_id))["partial"]["content"]
    assert text["type"] == "text"
    assert tool["type"] == "tool_use"
    assert "input" not in tool
    assert tool["partial_json"].startswith("{")


async def test_workers_that_die_leave_what_followers_still_show(crew: Crew, served: Served) -> None:
    """Between two claims too. The next claim's reset discards it."""
    job_id = await crew.submit(model=STEADY)
    watching = await follow(served, job_id)
    shown = ""
    for claims in (1, 2):
        hand = await crew.worker(lease_s=LEASE_S)
        await wait_until(lambda: len(crew.calls(job_id)) == claims, f"call {claims}")  # noqa: B023
        await wait_until(lambda: is_confirmed(crew, job_id), "the confirmation")
        await crew.begun(job_id, 5)
        await hand.killed()
        before = await read(served, job_id, "?partial=true")
        assert before["status"] == "running"
        shown = before["partial"]["text"]
        assert shown.split()[0] == f"{crew.nonce_of[job_id]}.{claims}.0"
    reaper = await crew.worker(lease_s=LEASE_S)
    reaper.stop_claiming()

    async def is_back() -> bool:
        return await crew.state(job_id) is JobState.QUEUED

    await wait_until(is_back, "the job to be back", timeout_s=5)
    assert (await read(served, job_id, "?partial=true"))["partial"]["text"] == shown
    assert await crew.runtime.jobs.cancel(job_id, TENANT)
    follower = await watching
    job = await read(served, job_id)
    assert job["partial"]["text"] == follower.text == shown


async def test_a_running_job_shows_what_came_if_asked(crew: Crew, served: Served) -> None:
    """With the time of the newest content, which its worker reports with its leases."""
    await crew.worker(lease_s=1)
    job_id = await crew.submit("gap-ms=10 tokens=150")
    assert (await read(served, job_id, "?partial=true"))["partial"] is None
    await crew.begun(job_id, 3)
    assert "partial" not in await read(served, job_id)
    texts: list[str] = []
    times_ms: list[int] = []
    while (job := await read(served, job_id, "?partial=true"))["status"] == "running":
        texts.append(job["partial"]["text"])
        if job["partial"]["last_token_at"]:
            times_ms.append(from_rfc3339(job["partial"]["last_token_at"]))
        await asyncio.sleep(0.05)
    assert job["partial"] is None, "it succeeded: the result has it"
    whole = job["result"]["text"]
    assert len(set(texts)) > 5
    assert all(later.startswith(earlier) for earlier, later in zip(texts, [*texts[1:], whole], strict=True))
    assert times_ms == sorted(times_ms)
    assert len(set(times_ms)) > 2
