"""A Redis user with the rights listed in docs/operations.md can do all that we do; a missing right is named."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from cli.embedded_redis import EmbeddedRedis
from simulator.app import running
from tests.support.failover import asking
from tests.support.follower import Follower, ask
from tests.support.served import Served, serving
from tests.support.wait import wait_until
from tests.support.working import working

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
MODEL = "sim-t6-g5-f1"


def documented_rights() -> list[str]:
    """The rights that an operator copies from the document."""
    found = re.search(r"^ACL SETUSER tokenspool on >\S+ (.+)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].split()


@asynccontextmanager
async def run_as(server: EmbeddedRedis, rights: list[str]) -> AsyncIterator[Served]:
    """An API and a worker whose Redis user has only these rights."""
    with asking(server) as client:
        client.execute_command("ACL", "SETUSER", "tokenspool", "reset", "on", ">made-up", *rights)
        client.execute_command("ACL", "LOG", "RESET")
    url = server.url.replace("redis://", "redis://tokenspool:made-up@")
    async with (
        running() as simulator,
        serving(url, model=MODEL) as served,
        working(url, simulator.url, model=MODEL),
    ):
        yield served


async def health_of(served: Served) -> Any:
    _, report, _ = await ask(served.url, "/health")
    return report


async def test_the_documented_rights_are_enough(own_server: EmbeddedRedis) -> None:
    """For everything that callers, operators and both processes' loops do; Redis's ACL LOG stays empty."""
    async with run_as(own_server, documented_rights()) as served:

        async def call(method: str, path: str, body: Any = None, **headers: str) -> Any:
            status, found, _ = await ask(served.url, path, method=method, body=body, headers=headers)
            assert status < 300, (path, status, found)
            return found

        job = await call("POST", "/v1/jobs", {"prompt": "tokens=6"}, **{"Idempotency-Key": "a"})
        assert await call("POST", "/v1/jobs", {"prompt": "tokens=6"}, **{"Idempotency-Key": "a"})
        follower = await Follower([served.url], job["id"]).follow()
        assert follower.frames[-1].event == "succeeded"
        long = await call("POST", "/v1/jobs", {"prompt": "tokens=2000 gap-ms=10"})
        await call("POST", f"/v1/jobs/{long['id']}/cancel")
        again = await call("POST", f"/v1/jobs/{long['id']}/retry")
        await call("POST", f"/v1/jobs/{again['id']}/cancel")
        await call("DELETE", f"/v1/jobs/{job['id']}")
        await call("POST", "/complete", {"prompt": "tokens=3"})
        await call("POST", "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "tokens=3"}]})
        batch = await call("POST", "/v1/batches", {"requests": [{"custom_id": "x", "params": {"prompt": "tokens=3"}}]})

        async def ended() -> bool:
            found = await call("GET", f"/v1/batches/{batch['id']}")
            return bool(found["status"] == "ended")

        await wait_until(ended, "the batch")
        for path in (
            "/v1/jobs",
            "/v1/batches",
            "/v1/usage",
            "/v1/limits",
            "/v1/models",
            "/v1/webhooks/secret",
            "/v1/webhooks/deliveries",
        ):
            await call("GET", path)
        await served.api.runtime.api_keys.tenants()
        await served.api.runtime.tenants.set("acme", {"running_jobs": 3})
        await served.api.runtime.jobs.sweep(0)
        await asyncio.sleep(2.1)  # each loop has run once
        report = await health_of(served)
        assert (report["status"], report["redis"], report["redis_problems"]) == ("ok", "ok", [])
    with asking(own_server) as client:
        assert client.acl_log() == []


async def test_missing_channel_rights_are_named(own_server: EmbeddedRedis) -> None:
    """In the log and in ``/health``: otherwise submits would be accepted but no job would run."""
    with structlog.testing.capture_logs() as lines:
        async with run_as(
            own_server, ["~ts:*", "resetchannels", "+@all", "-@admin", "-@dangerous", "+info", "+client|setname"]
        ) as served:
            assert (await ask(served.url, "/v1/jobs", method="POST", body={"prompt": "tokens=6"}))[0] == 202

            async def is_named() -> bool:
                report = await health_of(served)
                return any("channels (&ts:*)" in problem["detail"] for problem in report["redis_problems"])

            await wait_until(is_named, "the missing right")
            report = await health_of(served)
            assert (report["status"], report["redis"]) == ("degraded", "refusing")
    found = [line for line in lines if line["event"] == "redis_problem" and line["code"] == "no_permission"]
    assert any("channels (&ts:*) (NOPERM)" in line["detail"] for line in found)
    assert len(found) <= 4, "once a process, not with each try"


async def test_a_refused_info_is_logged_once(own_server: EmbeddedRedis) -> None:
    """Jobs still run, but the memory check does not work."""
    with structlog.testing.capture_logs() as lines:
        async with run_as(
            own_server, ["~ts:*", "resetchannels", "&ts:*", "+@all", "-@admin", "-@dangerous", "+client|setname"]
        ) as served:
            await asyncio.sleep(2.5)  # the checks go on
            report = await health_of(served)
            assert (report["status"], report["redis"]) == ("ok", "ok")
            assert [problem["code"] for problem in report["redis_problems"]] == ["info_refused"]
    assert [line["code"] for line in lines if line["event"] == "redis_problem"] == ["info_refused"]


async def test_an_api_that_cannot_log_in_says_so(own_server: EmbeddedRedis) -> None:
    """It says so in its log and in ``/health``, but not to callers who submit."""
    url = own_server.url.replace("redis://", "redis://:unmistakable@")
    with asking(own_server) as client:
        client.config_set("requirepass", "another")
        with structlog.testing.capture_logs() as lines:
            async with serving(url) as served:
                status, report, _ = await ask(served.url, "/health")
                _, refused, _ = await ask(served.url, "/v1/jobs", method="POST", body={"prompt": "x"})
        client.config_set("requirepass", "")
    assert (status, report["redis"]) == (503, "unavailable")
    assert [problem["code"] for problem in report["redis_problems"]] == ["login_refused"]
    assert refused["detail"] == "The storage does not reply."
    said = [line for line in lines if line["event"] in ("redis_problem", "loop_interrupted")]
    assert {"redis_problem", "loop_interrupted"} == {line["event"] for line in said}
    assert all("refuses the user or the password" in line["detail"] for line in said)
    assert "unmistakable" not in f"{lines}{report}"
