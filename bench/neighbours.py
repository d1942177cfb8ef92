"""`python -m bench.neighbours`: what one tenant notices while another tenant's ordinary key attacks.

The system is an API process with keys, a worker with the simulator as its upstream, and Redis with 1 GiB. Every 20 ms
a bystander lists its newest job and a stranger calls the health check; the bystander also submits jobs and waits for
them. This is measured once alone, and once with each attack of `bench/attacks.py` in its own process. On two cores the
attacker, and the work it causes in the API, take their share of the machine: p50 shows that share; p99 and the maximum
show what blocks the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import uvloop

from bench import systems
from bench.attacks import ATTACKS
from bench.connection import Connection, connect
from bench.measure import percentile
from bench.processes import free_port, python, running
from cli.embedded_redis import EmbeddedRedis

PAUSE_S = 0.02
LEAD_S = 2.0  # between the start of an attack and the measurement


@dataclass
class Felt:
    """What the bystander measured."""

    list_ms: list[float] = field(default_factory=list)
    live_ms: list[float] = field(default_factory=list)
    job_ms: list[float] = field(default_factory=list)
    refused: int = 0
    """Responses of 5xx, and broken connections."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--window-s", type=float, default=10.0, help="how long each is measured")
    parser.add_argument("--only", action="append", choices=ATTACKS, help="this attack; may be repeated")
    arguments = parser.parse_args()
    print(f"{'p50 / p99 / max, ms':14} {'list':>24} {'health/live':>24} {'a job, to its end':>26}  5xx")
    for name in arguments.only or ATTACKS:
        with system() as (port, evil, bystander):
            print(_row("alone", uvloop.run(felt_by(port, bystander, arguments.window_s / 2))), flush=True)
            attacker = subprocess.Popen([sys.executable, "-m", "bench.attacks", name, str(port), evil])
            try:
                time.sleep(LEAD_S)
                felt = uvloop.run(felt_by(port, bystander, arguments.window_s))
                if attacker.poll() is not None:
                    raise SystemExit(f"the attack {name} ended by itself")
            finally:
                attacker.terminate()
                attacker.wait(10)
            print(_row(name, felt), flush=True)
    return 0


@contextmanager
def system() -> Iterator[tuple[int, str, str]]:
    """Yields the API's port, the attacker's key and the bystander's key."""
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis(maxmemory_bytes=1 << 30))
        upstream_port = free_port()
        upstream = python("-m", "simulator", "--port", str(upstream_port))
        stack.enter_context(running(upstream, {}, ready_port=upstream_port))
        port, _ = stack.enter_context(systems.tokenspool_api(redis.url, auth="keys"))
        stack.enter_context(systems.tokenspool_worker(redis.url, systems.Upstream(upstream_port, 0)))
        yield port, systems.new_key(redis.url, "evil"), systems.new_key(redis.url, "bystander")


async def felt_by(port: int, key: str, window_s: float) -> Felt:
    """What the bystander measures in that time."""
    felt = Felt()
    end_s = time.monotonic() + window_s
    await asyncio.gather(
        _ask(port, _get("/v1/jobs?limit=1", key), felt.list_ms, felt, end_s),
        _ask(port, _get("/health/live", None), felt.live_ms, felt, end_s),
        _ask(port, _job(key), felt.job_ms, felt, end_s),
    )
    return felt


def _get(path: str, key: str | None) -> bytes:
    credential = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n".encode()


def _job(key: str) -> bytes:
    body = json.dumps({"prompt": "tokens=5 first-ms=20", "max_tokens": 5}).encode()
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nPrefer: wait=20\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _ask(port: int, request: bytes, took_ms: list[float], felt: Felt, end_s: float) -> None:
    connection: Connection | None = None
    while time.monotonic() < end_s:
        begin_s = time.monotonic()
        try:
            connection = connection if connection is not None and connection.is_open else await connect(port)
            head = await asyncio.wait_for(connection.send(request), timeout=30)
            felt.refused += head.status >= 500
            if head.status == 202:  # the job did not end within its wait
                felt.refused += 1
        except Exception:  # noqa: BLE001 - any error means that the bystander was not served
            felt.refused += 1
            connection = None
        took_ms.append((time.monotonic() - begin_s) * 1000)
        await asyncio.sleep(PAUSE_S)
    if connection is not None:
        connection.close()


def _row(name: str, felt: Felt) -> str:
    cells = [
        f"{percentile(each, 50):7.1f} /{percentile(each, 99):7.1f} /{max(each):7.1f}"
        for each in (felt.list_ms, felt.live_ms, felt.job_ms)
    ]
    return f"{name:14} {'  '.join(cells)}  {felt.refused}"


if __name__ == "__main__":
    sys.exit(main())
