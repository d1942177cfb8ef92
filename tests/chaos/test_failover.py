"""A failover of Redis that leaves old connections open: none of our processes needs a restart."""

import asyncio
import time

import pytest

from tests.chaos.conftest import HistoryOf
from tests.support.deployment import Deployment
from tests.support.facts import Fact
from tests.support.failover import a_pair, asking
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]


async def test_jobs_go_on_at_the_new_primary_and_nothing_is_restarted(
    empty: Deployment, history_of: HistoryOf, fact: Fact
) -> None:
    """Jobs stream, wait and arrive. The demoted Redis keeps its connections, serves reads and refuses writes."""
    own = empty.redis
    async with a_pair() as pair:
        empty.settings["TOKENSPOOL_REDIS_URL"] = pair.url
        empty.redis = pair.primary
        try:
            await empty.make_whole(apis=1, workers=1)
            pids = [process.pid for process in empty.processes]
            history = history_of(empty)
            jobs = await history.submit_many(10, "tokens=200 gap-ms=20")
            tasks = [history.follow(job, form=("text", "messages")[number % 2]) for number, job in enumerate(jobs)]
            await wait_until(lambda: all(follower.text for follower in history.followers), "text everywhere")

            await pair.fail_over(is_replicated_back=False)
            empty.redis = pair.primary
            began_s = time.monotonic()

            async def accepted() -> bool:
                return await history.submit("tokens=3 gap-ms=1") is not None

            await wait_until(accepted, "a submit", timeout_s=3)
            submitted_s = time.monotonic() - began_s
            with asking(pair.replica) as demoted:
                await wait_until(
                    lambda: not [each for each in demoted.client_list() if each["name"].startswith("tokenspool")],
                    "the end of every old connection",
                    timeout_s=3,
                )
            await asyncio.gather(*tasks)
            ended = await history.check()
            assert {(job["status"], job["attempts"]) for job in ended.values()} == {("succeeded", 1)}
            assert [process.pid for process in empty.processes] == pids
            assert all(process.is_running for process in empty.processes)
            assert {len(follower.connections) for follower in history.followers} == {1}
            fact(f"failover with 10 jobs streaming: a submit was taken {submitted_s:.2f} s later, 0 lost, 0 run twice")
        finally:
            empty.close()
            empty.redis = own
