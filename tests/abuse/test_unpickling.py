"""Nothing is ever unpickled: neither what users send, nor what somebody with access to Redis stores for arq or us."""

import subprocess
from pathlib import Path

import pytest

from shared.job import new_id
from shared.store import redis_keys
from shared.store.runtime import Runtime
from tests.abuse.conftest import Watched, environment_of
from tests.abuse.hostile import CANARY, pickles
from tests.support.builders import a_submission
from tests.support.deployment import MODEL
from tests.support.follower import ask, asking
from tests.support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def test_the_hook_sees_an_unpickling(tmp_path: Path, python: str) -> None:
    """And code that is compiled or run from a known text: a hook that never fires would prove nothing."""
    noted_at = tmp_path / "noted"
    program = f"""
import os, pickle, collections
pickle.loads(pickle.dumps(collections.OrderedDict()))
compile("'{CANARY}'", "x", "eval")
os.system("true {CANARY}")
"""
    subprocess.run([python, "-c", program], env=environment_of(noted_at), check=True, timeout=30)
    events = [line.split(" ")[0] for line in noted_at.read_text().splitlines()]
    assert {"pickle.find_class", "compile", "os.system"} <= set(events)


async def _planted(runtime: Runtime, value: bytes) -> list[str]:
    """Stores the value wherever a process reads. Returns the ids of jobs with hostile records."""
    call = runtime._commands.call
    for name in ("arq:queue", "arq:queue:health-check"):
        await call("DEL", name)
    await call("ZADD", "arq:queue", 1, "hostile")
    for name in ("arq:job:hostile", "arq:result:hostile", "arq:retry:hostile", "arq:in-progress:hostile"):
        await call("SET", name, value)
    await call("SADD", redis_keys.plain("workers"), "hostile")
    await call("HSET", redis_keys.worker("hostile"), "name", value, "llm", value, "redis_problems", value)
    await call("HSET", redis_keys.plain("models"), "anthropic", value)
    ids = []
    for name in ("spec", "request", "created_ms", "timeout_ms"):
        submission = a_submission(tenant="default", model=MODEL, job_id=new_id("job"))
        await runtime.jobs.submit(submission, expires_in_s=600)
        await call("HSET", redis_keys.job(submission.id), name, value)
        ids.append(submission.id)
    await call("PUBLISH", redis_keys.events(ids[0]), value)
    for channel in ("control", "wake", "gates"):
        await call("PUBLISH", redis_keys.plain(channel), value)
    return ids


async def test_pickles_in_redis_stay_bytes(watched: Watched) -> None:
    """Those jobs fail or are skipped; the worker lives and runs all other jobs."""
    url = watched.deployment.urls[0]
    (worker,) = watched.deployment.workers
    pid = worker.pid
    async with watched.deployment.runtime() as runtime:
        for value in pickles(f"touch {watched.owned}"):
            ids = await _planted(runtime, value)
            for job_id in ids:
                async with asking(url, f"/v1/jobs/{job_id}") as response:
                    assert value not in await response.read()
            status, job, _ = await ask(
                url,
                "/v1/jobs",
                method="POST",
                body={"prompt": "tokens=2"},
                headers={"Prefer": "wait=20", "X-Tenant": "b"},
            )
            assert (status, job["status"]) == (200, "succeeded")
            await ask(url, "/health")

        async def none_waits() -> bool:
            return not await runtime._commands.call("ZCARD", redis_keys.plain("waiting"))

        await wait_until(none_waits, "an end of what waits", timeout_s=30)
    assert worker.is_running
    assert worker.pid == pid
