"""A retry of many jobs by a filter, while the processes that do it are killed: each job is retried once."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from shared.errors import JobError
from shared.job import JobState, Step
from shared.job_filter import EVERY_JOB, JobFilter
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.deployment import Deployment
from tests.support.facts import Fact
from tests.support.follower import ask
from tests.support.store import claim, submit_many
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

_TENANT = "default"
_JOBS = 20_000
_FAILED = Ending(Step.FAIL, error=JobError("upstream_overloaded", "The LLM was overloaded.", retryable=True))


async def _failed_jobs(runtime: Runtime) -> list[str]:
    ids = await submit_many(runtime, _JOBS, tenant=_TENANT)
    while claims := await claim(runtime, 250):
        await asyncio.gather(*(runtime.queue.finish(claimed, _FAILED, seq=claimed.next_seq) for claimed in claims))
    return ids


async def _asked(url: str, path: str, body: Any = None) -> Any:
    status, answer, _ = await ask(url, path, method="GET" if body is None else "POST", body=body)
    assert status in (200, 202), answer
    return answer


async def _retries(runtime: Runtime) -> Counter[str]:
    """How many new jobs there are of each."""
    found: Counter[str] = Counter()
    after: str | None = None
    while True:
        page = await runtime.jobs.list(_TENANT, JobFilter(status=JobState.QUEUED), after=after, limit=500)
        found.update(job.spec.retry_of for job in page.jobs if job.spec.retry_of is not None)
        after = page.next_after
        if after is None:
            return found


async def test_20000_failed_jobs_are_retried_once_though_two_processes_are_killed(
    empty: Deployment, fact: Fact
) -> None:
    """The API that does it is killed in the middle of a piece, and so is the one that goes on."""
    async with empty.runtime() as runtime:
        ids = await _failed_jobs(runtime)
        first = empty.begin_api()
        await empty.api_up(first)
        operation = await _asked(first.url, "/v1/jobs/retry", {"filter": {"error_code": "upstream_overloaded"}})
        begun_s, api = time.monotonic(), first

        async def done() -> int:
            return (await runtime.operations.get(operation["id"], _TENANT)).counts.done

        for killed_at in (_JOBS // 4, _JOBS // 2):

            async def is_so_far(killed_at: int = killed_at) -> bool:
                return await done() >= killed_at

            await wait_until(is_so_far, f"{killed_at} retries", timeout_s=120)
            api.kill()
            api = empty.begin_api()
            await empty.api_up(api)

        async def has_ended() -> bool:
            return (await runtime.operations.get(operation["id"], _TENANT)).ended_ms is not None

        await wait_until(has_ended, "the end of the operation", timeout_s=180)
        took_s = time.monotonic() - begun_s
        ended = await _asked(api.url, operation["urls"]["self"])
        assert ended["status"] == "ended"
        assert ended["counts"] == {"matched": _JOBS, "done": _JOBS, "skipped": 0, "failed": 0}
        retries = await _retries(runtime)
        assert retries.keys() == set(ids)
        assert set(retries.values()) == {1}
        page = await runtime.jobs.list(_TENANT, EVERY_JOB, after=None, limit=1)
        assert len(page.jobs) == 1
        await runtime._commands.call("FLUSHALL")
    fact(f"{_JOBS:,} failed jobs retried once each by one operation, its process killed twice: {took_s:.0f} s")
