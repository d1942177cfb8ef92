"""A deployment of real processes on this machine that a test may kill: Redis, the simulator, APIs and workers.

Every process logs at DEBUG into its own file. The prompts and the key hold canaries, which must never be in a log.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import redis

from cli.child import Child, start_child
from cli.embedded_redis import EmbeddedRedis, free_port
from shared.api_key import new_key_text
from shared.settings import load_settings
from shared.store.runtime import Runtime, open_runtime
from tests.support.follower import Cut, ask, asking
from tests.support.wait import wait_until

CANARY_PROMPT = "kanarienvogel-prompt-7f3a"
CANARY_KEY = "sk-ant-kanarienvogel-key-91bc"
CANARY_METADATA = "kanarienvogel-metadata-5c21"
CANARY_API_KEY = new_key_text("key_" + "0" * 16, "live")
"""Sent with every job; a well-formed API key without a record."""
CANARIES = ["kanarienvogel", CANARY_API_KEY.rpartition("_")[2][:12]]
"""Must be in no log, no Redis key's name, no command line, and no response to anybody who did not send it. Each is only
the beginning of what is sent, so that a shortened copy is found too. A test may append its own."""

MODEL = "sim-t40-g20-f20"
"""Forty tokens, 20 ms apart: an answer takes 0.8 s."""

_START_S = 30
_OF_THE_DEVELOPER = ("ANTHROPIC_", "OPENAI_", "TOKENSPOOL_", "COVERAGE", "PYTEST")


class Process:
    """One process of ours and its log."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log_path = log
        self._command = command
        self._environment = dict(environment)
        with log.open("ab") as output:
            self.child: Child = start_child(name, command, output=output, environment=environment)

    @property
    def pid(self) -> int:
        """The id of the running process."""
        return self.child.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists; true also while it is stopped by SIGSTOP."""
        return self.child.exit_code is None

    @property
    def log(self) -> str:
        """The output of this process and of its predecessors with the same name."""
        return self.log_path.read_text(errors="replace")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines about one event."""
        found = []
        for line in self.log.splitlines():
            if f'"{event}"' in line:
                with contextlib.suppress(ValueError):
                    parsed = json.loads(line)
                    if parsed.get("event") == event:
                        found.append(parsed)
        return found

    def signal(self, number: signal.Signals) -> None:
        self.child.signal(number)

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end."""
        self.child.kill()

    async def ended(self, timeout_s: float) -> int:
        """Waits until it has ended by itself; returns its exit code."""
        await wait_until(lambda: not self.is_running, f"the end of {self.name}", timeout_s=timeout_s)
        return self.child.reap()

    def stop(self) -> int:
        """Ends it by SIGTERM; by SIGKILL if that does not work."""
        return self.child.stop(10)


@dataclass
class Call:
    """One call of the LLM, as the simulator saw it."""

    nonce: str
    number: int
    """Counts the calls with this nonce, from 1."""
    started_s: float
    ended: str | None
    ended_s: float | None
    client_closed_s: float | None
    tokens_sent: int


class Api(Process):
    """An API process."""

    url: str


@dataclass
class Deployment:
    """Processes that share a Redis and a simulator."""

    directory: Path
    redis: EmbeddedRedis
    settings: dict[str, str]
    """Environment variables of every process."""
    simulator_url: str = ""
    apis: list[Api] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    """All processes started so far."""
    key: str = ""
    """The API key for checking responses, if the API needs one."""
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        """The URLs of the APIs."""
        return [api.url for api in self.apis]

    def begin_api(self, *arguments: str, port: int | None = None, **settings: str) -> Api:
        """Starts an API without waiting for it. ``arguments`` are those of its command."""
        port = port or free_port()
        command = [sys.executable, "-m", "cli", "serve", "--port", str(port), *arguments]
        return self.begin_api_by(command, f"http://127.0.0.1:{port}", **settings)

    def begin_api_by(self, command: list[str], url: str, **settings: str) -> Api:
        """The same with another command, which must listen on ``url``."""
        api = self._begin(Api, "api", command, settings)
        assert isinstance(api, Api)
        api.url = url
        self.apis.append(api)
        return api

    def begin_worker(self, *arguments: str, **settings: str) -> Process:
        """Starts a worker without waiting for it."""
        worker = self._begin(Process, "worker", [sys.executable, "-m", "cli", "worker", *arguments], settings)
        self.workers.append(worker)
        return worker

    async def api_up(self, api: Api) -> None:
        """Waits until the API responds."""

        async def answers() -> bool:
            try:
                status, _, _ = await ask(api.url, "/health/live")
            except (OSError, Cut):
                assert api.is_running, api.log
                return False
            return status == 200

        await wait_until(answers, f"{api.name}", timeout_s=_START_S)

    async def worker_up(self, worker: Process) -> None:
        """Waits until the worker takes jobs."""

        def started() -> bool:
            assert worker.is_running, worker.log
            return '"worker_started"' in worker.log

        await wait_until(started, f"{worker.name}", timeout_s=_START_S)

    async def make_whole(self, *, apis: int, workers: int) -> None:
        """Restarts what the last test killed: Redis, and at least so many APIs and workers run afterwards."""
        if not self.redis.is_running:
            self.redis.restart()
        self.apis = [api for api in self.apis if api.is_running]
        self.workers = [worker for worker in self.workers if worker.is_running]
        while len(self.apis) < apis:
            self.begin_api()
        while len(self.workers) < workers:
            self.begin_worker()
        for api in self.apis:
            await self.api_up(api)
        for worker in self.workers:
            await self.worker_up(worker)

    @contextmanager
    def no_worker_up(self) -> Iterator[None]:
        """Freezes the workers, which is faster than stopping and starting them. All must be idle."""
        frozen = list(self.workers)
        for worker in frozen:
            worker.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in frozen:
                worker.signal(signal.SIGCONT)

    async def calls(self, nonce: str | None = None) -> list[Call]:
        """Every call of the LLM as the simulator recorded it; only those with the nonce, if one is given."""
        path = "/_simulator/calls" + (f"?nonce={nonce}" if nonce else "")
        async with asking(self.simulator_url, path) as response:
            lines = (await response.read()).decode().splitlines()
        calls = [json.loads(line) for line in lines]
        return [
            Call(
                nonce=call["nonce"] or "",
                number=call["nonce_call"] or 0,
                started_s=call["started_s"],
                ended=call["ended"],
                ended_s=call["ended_s"],
                client_closed_s=call["client_closed_s"],
                tokens_sent=call["tokens_sent"],
            )
            for call in calls
        ]

    @asynccontextmanager
    async def runtime(self) -> AsyncIterator[Runtime]:
        """A connection to look into Redis, or to act as a process."""
        settings = load_settings(redis_url=self.redis.url)
        async with open_runtime(settings, process_name="tests", timeout_s=30) as runtime:
            yield runtime

    def say_what_leaked(self) -> list[str]:
        """Where it found a canary: in logs (also Redis's), key names, command lines, or responses anybody can get."""
        found = [
            f"{path.name}: {line[:200]}"
            for path in sorted([*self.directory.glob("*.log"), self.redis.log_path])
            for line in path.read_text(errors="replace").splitlines()
            if _has_canary(line)
        ]
        found += [f"command line: {line}" for line in self._command_lines() if _has_canary(line)]
        found += [
            f"{url}: {text[:200]}" for url in self.urls for text in _public_texts(url, self.key) if _has_canary(text)
        ]
        if self.redis.is_running:
            found += [f"Redis: {text[:200]}" for text in _texts_of_redis(self.redis.url) if _has_canary(text)]
        return found

    def _command_lines(self) -> list[str]:
        """The command lines of our processes and their children; not their environment, which has the upstream's key."""
        lines = []
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                ours = psutil.Process(process.pid)
                lines += [f"{each.name()} {each.cmdline()}" for each in [ours, *ours.children(recursive=True)]]
        return lines

    def close(self) -> None:
        """Stops all processes at once."""
        for process in self.processes:
            if process.is_running:
                process.signal(signal.SIGCONT)
                process.kill()
        self.redis.close()

    def _begin(self, kind: type[Process], name: str, command: list[str], settings: Mapping[str, str]) -> Process:
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_OF_THE_DEVELOPER)}
        environment |= {
            "TOKENSPOOL_AUTH": "off",
            "TOKENSPOOL_LOG_LEVEL": "DEBUG",
            "TOKENSPOOL_MODEL": MODEL,
            "TOKENSPOOL_REDIS_URL": self.redis.url,
            "ANTHROPIC_API_KEY": CANARY_KEY,
            "ANTHROPIC_BASE_URL": self.simulator_url,
            **self.settings,
            **settings,
        }
        process = kind(f"{name} {number}", command, environment, self.directory / f"{name}-{number}.log")
        self.processes.append(process)
        return process


def _has_canary(text: str) -> bool:
    return any(canary in text for canary in CANARIES)


def _public_texts(url: str, key: str) -> Iterator[str]:
    """Responses that do not belong to one tenant."""
    headers = {"X-Api-Key": key} if key else {}
    for path in ("/health", "/health/ready", "/metrics", "/openapi.json"):
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may have been killed, or stopped
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=2)
            try:
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                assert answer.status != 401, f"{path} told nothing"
                yield f"{answer.getheaders()} {answer.read().decode(errors='replace')}"
            finally:
                connection.close()


def _texts_of_redis(url: str) -> Iterator[str]:
    """The names of all keys, running commands and slow commands; not the values, which do hold content."""
    with contextlib.suppress(redis.exceptions.ConnectionError), redis.Redis.from_url(url, socket_timeout=10) as client:
        for name in client.scan_iter(count=1000):
            yield name.decode(errors="replace")
        for command in ("CLIENT LIST", "SLOWLOG GET 128", "INFO everything"):
            yield str(client.execute_command(*command.split()))


@contextmanager
def a_simulator(directory: Path) -> Iterator[str]:
    """Yields its URL. Several deployments can share it: nonces distinguish their calls."""
    log = directory / "simulator.out"
    with log.open("wb") as output:
        child = start_child("simulator", [sys.executable, "-m", "simulator", "--port", "0"], output=output)
    try:
        deadline_s = time.monotonic() + _START_S
        while "listening on " not in log.read_text():
            assert child.exit_code is None, log.read_text()
            assert time.monotonic() < deadline_s, "the simulator does not start"
            time.sleep(0.01)
        yield log.read_text().split("listening on ")[1].strip()
    finally:
        child.kill()


@contextmanager
def a_deployment(simulator_url: str, **settings: str) -> Iterator[Deployment]:
    """A Redis, and the processes started on it. The directory of logs is kept if a canary was found in one."""
    directory = Path(tempfile.mkdtemp(prefix="tokenspool-chaos-"))
    redis = EmbeddedRedis()
    redis.start()
    deployment = Deployment(directory, redis, settings, simulator_url)
    try:
        yield deployment
    finally:
        leaked = deployment.say_what_leaked()
        deployment.close()
        if not leaked:
            shutil.rmtree(directory, ignore_errors=True)
    assert leaked == [], leaked


async def away(redis: EmbeddedRedis, seconds: float) -> None:
    """Kills Redis with SIGKILL, waits, and starts it again on the same files."""
    redis.kill()
    await asyncio.sleep(seconds)  # the fault itself
    redis.restart()
