"""`python -m bench.slow_clients`: what other clients notice while slowhttptest attacks one API process.

The attacks are slow heads (-H), slow bodies (-B) and slow reading (-X), up to a thousand connections each, a hundred
more each second. The same load runs in turns: alone, while a bystander server is attacked, and while the API is
attacked. The latencies of all rounds are pooled. The attacker needs a core too, and there are two at most: the attack
on the bystander shows what it costs the machine, and the rest is the API's share. API keys are off, which is the harder
case: with keys a slow body is refused before it is read.

Needs `slowhttptest` (a package of that name on Debian and Homebrew); nothing else in the bench does.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvloop

from bench import systems
from bench.connection import Connection, connect
from bench.load import post
from bench.measure import FAR_FUTURE, percentile
from bench.processes import free_port, python, running
from cli.child import start_child
from cli.embedded_redis import EmbeddedRedis

CLIENTS = 20
PAUSE_S = 0.1  # between a response and the client's next request: some 200 requests a second in all
SLOW_CONNECTIONS = 1000
SLOW_CONNECTIONS_PER_S = 100
LEAD_S = 0.5  # between the start of an attack and the measurement, so that its new connections are measured too
ATTACKS = {
    "-H slow heads": ["-H", "-i", "5", "-x", "24", "-t", "GET"],
    "-B slow bodies": ["-B", "-i", "5", "-x", "10", "-s", "8192", "-t", "POST", "-f", "application/json"],
    "-X slow reading": ["-X", "-n", "5", "-z", "32", "-w", "256", "-y", "512", "-k", "1"],
}
PATHS = {"-H slow heads": "/v1/jobs", "-B slow bodies": "/v1/jobs", "-X slow reading": "/openapi.json"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.slow_clients", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=4, help="of each attack")
    parser.add_argument("--window-s", type=float, default=8.0, help="how long each is measured")
    arguments = parser.parse_args()
    program = shutil.which("slowhttptest")
    if program is None:
        print(
            "slowhttptest is not installed: apt-get install slowhttptest, or brew install slowhttptest", file=sys.stderr
        )
        return 1
    print(f"{'p50 / p99, ms':16} {'alone':>14} {'bystander':>14} {'attacked':>14}   p99, to alone and to bystander")
    bystander_port = free_port()
    bystander = python("-m", "bench.bystander", "--port", str(bystander_port))
    with EmbeddedRedis() as redis, running(bystander, {}, bystander_port):
        for name, options in ATTACKS.items():
            alone: list[float] = []
            on_bystander: list[float] = []
            attacked: list[float] = []
            for _ in range(arguments.rounds):
                with systems.tokenspool_api(redis.url) as (port, _pid):
                    alone += uvloop.run(_latencies_ms(port, arguments.window_s))
                    for attacked_port, measured in ((bystander_port, on_bystander), (port, attacked)):
                        url = f"http://127.0.0.1:{attacked_port}{PATHS[name]}"
                        with _attack([program, *options, "-u", url], arguments.window_s):
                            measured.extend(uvloop.run(_latencies_ms(port, arguments.window_s)))
            print(_row(name, alone, on_bystander, attacked), flush=True)
    return 0


@contextmanager
def _attack(command: Sequence[str], window_s: float) -> Iterator[None]:
    """Raises if the attack ends first. The API closes a connection whose head is incomplete after 10 s."""
    sizes = ["-c", str(SLOW_CONNECTIONS), "-r", str(SLOW_CONNECTIONS_PER_S), "-p", "3", "-l", str(int(window_s) + 20)]
    with tempfile.TemporaryFile(mode="w+b") as output:
        child = start_child(command[0], [*command, *sizes], output=output, environment={"TERM": "dumb"})
        try:
            time.sleep(LEAD_S)
            yield
            output.seek(0)
            if child.exit_code is not None:
                raise SystemExit(f"slowhttptest ended by itself:\n{output.read()[-2000:].decode(errors='replace')}")
        finally:
            child.stop(5)


async def _latencies_ms(port: int, window_s: float) -> list[float]:
    connections = [await connect(port) for _ in range(CLIENTS)]
    end_s = time.monotonic() + window_s
    try:
        each = await asyncio.gather(*(_ask(connection, number, end_s) for number, connection in enumerate(connections)))
    finally:
        for connection in connections:
            connection.close()
    return [latency_ms for latencies_ms in each for latency_ms in latencies_ms]


async def _ask(connection: Connection, number: int, end_s: float) -> list[float]:
    """Submits and reads alternately."""
    await asyncio.sleep(PAUSE_S * number / CLIENTS)
    submit = post(systems.JOBS_PATH, systems.submit_body(not_before=FAR_FUTURE), accept=b"application/json")
    latencies_ms = []
    read = b""
    while time.monotonic() < end_s:
        for request in (submit, read):
            if not request:
                continue
            begin_s = time.monotonic()
            head = await asyncio.wait_for(connection.send(request), timeout=10)
            latencies_ms.append((time.monotonic() - begin_s) * 1000)
            if head.status not in (200, 202):
                raise SystemExit(f"a client got {head.status}")
            if location := head.field(b"location"):
                read = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % location
            await asyncio.sleep(PAUSE_S)
    return latencies_ms


def _row(name: str, *measured: Sequence[float]) -> str:
    """`measured` is alone, with the bystander attacked, and attacked."""
    cells = [f"{percentile(each, 50):6.2f} /{percentile(each, 99):6.2f}" for each in measured]
    alone_ms, on_bystander_ms, attacked_ms = [percentile(each, 99) for each in measured]
    return f"{name:16} {'  '.join(cells)}   {attacked_ms / alone_ms - 1:+.0%}, {attacked_ms / on_bystander_ms - 1:+.0%}"


if __name__ == "__main__":
    sys.exit(main())
