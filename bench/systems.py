"""The measured systems, each with the processes whose CPU counts as its own.

Each context manager starts a system on free loopback ports, with the stand-in as its upstream, and ends it. The
stand-in and the load client are not part of any system.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import stream
from bench.load import Target, post
from bench.processes import free_port, python, running
from cli.embedded_redis import EmbeddedRedis

MODEL = "claude-sonnet-4-6"
PROMPT = "Why is the sky blue? Answer for a child of ten, in the pace of the stand-in."
WORKER_CONCURRENCY = 400
JOBS_PATH = b"/v1/jobs"

ARQ_REDIS_URL_VARIABLE = "BENCH_REDIS_URL"  # bench/arq_app.py reads it

# The names of the columns.
ALONE = "upstream alone"
IN_REQUEST = "LLM in the request"
TOKENSPOOL = "tokenspool"
ARQ = "arq + pub/sub"


@dataclass(frozen=True, slots=True)
class System:
    """A running system: one column of the table."""

    name: str
    target: Target
    roles: Mapping[str, Sequence[int]]  # role to process ids; empty for the upstream alone


@dataclass(frozen=True, slots=True)
class Upstream:
    port: int
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ANTHROPIC_API_KEY": "bench",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{self.port}",
        }

    def alone(self) -> System:
        def render(token_count: int) -> bytes:
            return post(b"/v1/messages", _messages_body(token_count, stream=True), accept=b"application/json")

        return System(ALONE, Target(self.port, render, stream.ANTHROPIC), {})


@contextmanager
def upstream() -> Iterator[Upstream]:
    port = free_port()
    with running(python("-m", "bench.upstream", "--port", str(port)), {}, ready_port=port) as pid:
        yield Upstream(port, pid)


@contextmanager
def in_request(upstream: Upstream) -> Iterator[System]:
    with uvicorn("bench.in_request_app:create_app", upstream.environment) as (port, pid):
        yield System(IN_REQUEST, Target(port, _render_prompt, stream.IN_REQUEST), {"app": [pid]})


def _render_prompt(token_count: int) -> bytes:
    body = {"prompt": PROMPT, "model": MODEL, "max_tokens": token_count}
    return post(b"/complete/stream", json.dumps(body).encode(), accept=b"text/event-stream")


@contextmanager
def arq(upstream: Upstream) -> Iterator[System]:
    """Redis, an API and an arq worker, with arq's defaults."""
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        environment = {**upstream.environment, ARQ_REDIS_URL_VARIABLE: redis.url}
        port, api_pid = stack.enter_context(uvicorn("bench.arq_app:create_app", environment))
        worker_pid = stack.enter_context(running(python("-m", "arq", "bench.arq_app.Worker"), environment))
        yield System(
            ARQ,
            Target(port, _render_prompt, stream.IN_REQUEST),
            {"api": [api_pid], "worker": [worker_pid], "redis": [redis.pid]},
        )


@contextmanager
def uvicorn(factory: str, environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """One uvicorn process on the API's own settings; yields its port and process id."""
    port = free_port()
    command = python(
        *("-m", "uvicorn", "--factory", factory, "--host", "127.0.0.1", "--port", str(port)),
        *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
    )
    with running(command, environment, ready_port=port) as pid:
        yield port, pid


@contextmanager
def tokenspool(upstream: Upstream) -> Iterator[System]:
    """Redis, the API and one worker, each in its own process, as the README starts them."""

    def render(token_count: int) -> bytes:
        return post(JOBS_PATH, _messages_body(token_count), accept=b"text/event-stream")

    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        api_port, api_pid = stack.enter_context(tokenspool_api(redis.url))
        worker_pid = stack.enter_context(tokenspool_worker(redis.url, upstream))
        yield System(
            TOKENSPOOL,
            Target(api_port, render, stream.TOKENSPOOL),
            {"api": [api_pid], "worker": [worker_pid], "redis": [redis.pid]},
        )


@contextmanager
def tokenspool_api(redis_url: str, auth: str = "off") -> Iterator[tuple[int, int]]:
    """`tokenspool serve` alone; yields its port and process id."""
    port = free_port()
    command = [_command(), "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**_tokenspool_environment(redis_url), "TOKENSPOOL_AUTH": auth}
    with running(command, environment, ready_port=port) as pid:
        yield port, pid


def limited_key(redis_url: str) -> bytes:
    """A new API key; every limit is set on it and on its tenant, but too high to be reached."""
    environment = {**os.environ, **_tokenspool_environment(redis_url)}
    limits = ["--requests-per-minute", "--tokens-per-minute", "--queued-jobs", "--running-jobs"]
    options = [part for limit in limits for part in (limit, "1000000000")]
    options += ["--usd-per-day", "1000000", "--usd-per-month", "1000000"]

    def told(*command: str) -> bytes:
        line = [_command(), *command, *options]
        return subprocess.run(line, env=environment, capture_output=True, check=True, timeout=30).stdout.strip()

    told("tenants", "set", "bench")
    return told("keys", "create", "--tenant", "bench")


def new_key(redis_url: str, tenant: str) -> str:
    """A new API key with the scopes to submit and read."""
    environment = {**os.environ, **_tokenspool_environment(redis_url)}
    line = [_command(), "keys", "create", "--tenant", tenant, "--scope", "submit,read"]
    return subprocess.run(line, env=environment, capture_output=True, check=True, timeout=30, text=True).stdout.strip()


@contextmanager
def tokenspool_worker(redis_url: str, upstream: Upstream) -> Iterator[int]:
    """`tokenspool worker` alone; yields its process id."""
    command = [_command(), "worker", "--concurrency", str(WORKER_CONCURRENCY)]
    environment = {**_tokenspool_environment(redis_url), **upstream.environment}
    with running(command, environment) as pid:
        yield pid


def _command() -> str:
    return str(Path(sys.executable).parent / "tokenspool")


def _tokenspool_environment(redis_url: str) -> dict[str, str]:
    return {
        "TOKENSPOOL_REDIS_URL": redis_url,
        "TOKENSPOOL_AUTH": "off",
        "TOKENSPOOL_LOG_LEVEL": "WARNING",
    }


def submit_body(*, not_before: str | None = None) -> bytes:
    """The job that the submit and memory rows send: about 170 bytes."""
    job = {} if not_before is None else {"job": {"not_before": not_before}}
    return _messages_body(256, **job)


def _messages_body(token_count: int, **more: object) -> bytes:
    return json.dumps(
        {
            "model": MODEL,
            "max_tokens": token_count,
            "messages": [{"role": "user", "content": PROMPT}],
            **more,
        }
    ).encode()
