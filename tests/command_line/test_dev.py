"""`tokenspool dev` as a whole: in a terminal, with real processes, as a new user runs it."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.embedded_redis import free_port
from tests.command_line.dev_terminal import CTRL_C, DevTerminal, kill
from tests.support.facts import Fact
from tests.support.follower import ask
from tests.support.interruptible import INTERRUPTIBLE
from tests.support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_SECRET = "sk-ant-of-the-developer"
_README = Path(__file__).parents[2] / "README.md"
_FAST_TAKEOVER = {"TOKENSPOOL_LEASE_S": "2"}


async def _job(url: str, job_id: str) -> Any:
    status, job, _ = await ask(url, f"/v1/jobs/{job_id}")
    assert status == 200
    return job


async def _command(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(*INTERRUPTIBLE, sys.executable, "-m", "cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath},
    )


async def _runs(url: str, job_id: str) -> bool:
    job = await _job(url, job_id)
    return bool(job["status"] == "running")


async def _submitted(url: str, *arguments: str) -> str:
    process = await _command("submit", *arguments, "--url", url)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    return out.decode().strip()


def _assert_gone(family: list[psutil.Process]) -> None:
    assert [" ".join(process.cmdline()) for process in family if process.is_running()] == []


async def test_a_killed_worker_a_ctrl_c_and_a_second_start_lose_nothing(tmp_path: Path, fact: Fact) -> None:
    """A follower gets the whole answer although the worker dies; Ctrl-C leaves no process, and all jobs are kept."""
    arguments = ("--simulator", "--port", "0", "--data-dir", tmp_path / "data")
    began = time.monotonic()
    async with DevTerminal(*arguments, ANTHROPIC_API_KEY=_SECRET, **_FAST_TAKEOVER) as dev:
        await dev.is_up()
        fact(f"up after {time.monotonic() - began:.1f} s")
        family = dev.family()
        _assert_the_key_is_nobodys(family)

        follower = await _command(
            *("submit", "nonce=spool", "--model", "sim-t80-g25-f10", "--follow", "--url", dev.url)
        )
        assert follower.stdout is not None
        first = await follower.stdout.readuntil(b"spool.1.9 ")
        worker = dev.pid_of("worker")
        kill(worker)
        killed = time.monotonic()
        out, err = await follower.communicate()
        fact(f"whole answer {time.monotonic() - killed:.1f} s behind the worker's death, lease 2 s")
        assert follower.returncode == 0
        job_line, reset_line = err.decode().splitlines()
        assert reset_line == "tokenspool: the text starts over (worker_lost)"
        followed = job_line.removeprefix("tokenspool: job ")
        _, answer = (first + out).decode().removesuffix("\n").split("\n")
        assert answer == "".join(f"spool.2.{index} " for index in range(80))
        job = await _job(dev.url, followed)
        assert (job["status"], job["result"]["text"], job["attempts"]) == ("succeeded", answer, 2)
        await dev.shows("worker 1 was restarted")
        assert dev.screen.count(f"worker 1 (pid {worker}) was killed by SIGKILL; restarting it") == 1
        assert dev.screen.count("was restarted") == 1

        interrupted = await _submitted(dev.url, "nonce=long", "--model", "sim-t60-g20-f1")
        await wait_until(lambda: _runs(dev.url, interrupted), "the job to run")
        family = dev.family()
        dev.type(CTRL_C)
        assert await dev.ends() == 0
        assert "stopping; the jobs are kept\n" in dev.screen
        assert "Traceback" not in dev.screen
        _assert_gone(family)

    async with DevTerminal(*arguments, **_FAST_TAKEOVER) as dev:
        await dev.is_up()
        assert (await _job(dev.url, followed))["result"]["text"] == answer
        again = await _command("follow", interrupted, "--url", dev.url)
        out, _ = await again.communicate()
        assert again.returncode == 0
        assert out.decode().endswith("".join(f"long.1.{index} " for index in range(60)) + "\n")
        family = dev.family()
        dev.close()
        await wait_until(
            lambda: not any(process.is_running() for process in family[1:]), "the end of all", timeout_s=20
        )
        assert await dev.ends() == 0
    server_log = (tmp_path / "data" / "redis" / "redis.log").read_text()
    assert "bye bye" in server_log, "Redis was not ended in order"


async def test_a_ctrl_c_is_quick_although_somebody_waits(tmp_path: Path) -> None:
    """The grace period of a deploy does not apply to a person at a terminal; waiting clients get the reason."""
    async with DevTerminal("--simulator", "--port", "0", "--data-dir", tmp_path / "data") as dev:
        await dev.is_up()
        body = {"prompt": "tokens=500 gap-ms=50"}
        calling = asyncio.create_task(ask(dev.url, "/complete", method="POST", body=body))

        async def runs() -> bool:
            _, page, _ = await ask(dev.url, "/v1/jobs")
            return [job["status"] for job in page["data"]] == ["running"]

        await wait_until(runs, "the job to run")
        began_s = time.monotonic()
        dev.type(CTRL_C)
        assert await dev.ends() == 0
        assert time.monotonic() - began_s < 8  # the grace period would be 25 s
        assert (await calling)[0] == 503


def _assert_the_key_is_nobodys(family: list[psutil.Process]) -> None:
    """With --simulator only our own process has the developer's key, and the API has no other key."""
    for process in family[1:]:
        environment = process.environ()
        assert _SECRET not in environment.values()
        if "serve" in process.cmdline():
            assert not any(name.startswith(("ANTHROPIC_", "OPENAI_")) for name in environment)


async def test_a_killed_process_is_restarted_at_its_address(tmp_path: Path) -> None:
    """The API, Redis and the LLM in turn: each is restarted and reported once, and nothing else ends."""
    arguments = ("--simulator", "--port", "0", "--workers", "0", "--data-dir", tmp_path / "data")
    async with DevTerminal(*arguments) as dev:
        await dev.is_up()
        job_id = await _submitted(dev.url, "Why?")
        for row, name in (("Redis", "Redis"), ("API", "the API"), ("LLM", "the simulator")):
            pid = dev.pid_of(row)
            kill(pid)
            await dev.shows(f"{name} was restarted")
            assert dev.screen.count(f"{name} (pid {pid}) was killed by SIGKILL; restarting it") == 1
            process = await _command("follow", job_id, "--url", dev.url)
            assert process.stderr is not None
            line = await process.stderr.readuntil(b"\n")
            assert b"no worker is running" in line
            process.send_signal(signal.SIGINT)
            await process.communicate()
            assert process.returncode == 130
        assert dev.screen.count("was restarted") == 3
        family = dev.family()
        dev.process.send_signal(signal.SIGTERM)
        assert await dev.ends() == 0
        _assert_gone(family)


async def test_it_runs_in_a_folder_that_has_packages_of_the_same_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user's own application may well have packages named `api` and `shared`."""
    for name in ("api", "cli", "shared", "simulator", "worker"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    async with DevTerminal("--simulator", "--port", "0") as dev:
        await dev.is_up()
        assert (tmp_path / ".tokenspool").is_dir()
        dev.type(CTRL_C)
        assert await dev.ends() == 0


async def test_the_keys_block_of_the_readme_works_as_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a second terminal and the same directory: a key, limits, an API that asks for the key, and a job that runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (block,) = re.findall(r"```sh\n(export [^`]*keys create[^`]*)```", _README.read_text(encoding="utf-8"))
    pasted = f"{block.replace('8001', str(free_port()))}\nkill $!\nwait\n"
    async with DevTerminal("--simulator", "--port", "0") as dev:
        await dev.is_up()
        second = await asyncio.create_subprocess_exec(
            *("sh", "-c", pasted),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath},
        )
        out, err = await second.communicate()
        assert b"does not reply" not in err, err
        limits, answer = out.decode().split("\n", 1)
        assert limits.startswith("acme requests_per_minute=600")
        job = json.loads(answer)

        async def succeeded() -> bool:
            _, found, _ = await ask(dev.url, f"/v1/jobs/{job['id']}", headers={"X-Tenant": "acme"})
            return bool(found["status"] == "succeeded")

        await wait_until(succeeded, "the job")
        dev.type(CTRL_C)
        assert await dev.ends() == 0


async def test_a_ctrl_c_while_it_starts_is_obeyed(tmp_path: Path) -> None:
    """At any moment after its first line."""
    misspelt = {"TOKENSPOOL_LEASE": "2"}
    async with DevTerminal("--simulator", "--port", "0", "--data-dir", tmp_path / "data", **misspelt) as dev:
        await dev.shows("starting the simulator")
        assert "TOKENSPOOL_LEASE is not a setting and has no effect: did you mean TOKENSPOOL_LEASE_S?\n" in dev.screen
        family = dev.family()
        dev.type(CTRL_C)
        assert await dev.ends() == 0
        assert "Traceback" not in dev.screen
        _assert_gone(family)
