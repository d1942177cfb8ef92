"""`python -m bench.profile --role worker`: where one process spends its CPU under load.

Starts tokenspool as the bench does, puts a load on it, and lets py-spy sample one process from outside. Prints the
functions with the most samples, and writes the stacks for a flame graph. Needs `py-spy` in .venv or on the path.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import uvloop

from bench import load, systems
from bench.measure import CLIENTS, SUBMIT_CONNECTIONS, TOKENS, warm_up
from bench.processes import REPOSITORY
from cli.embedded_redis import EmbeddedRedis

SAMPLES_PER_S = 500
SHOWN = 40
IDLE = "_worker (concurrent/futures/thread.py"  # a waiting thread of a pool, which py-spy counts as busy


async def _record(pid: int, seconds: int, stacks: Path) -> None:
    py_spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if py_spy is None:
        raise SystemExit("py-spy is not installed: .venv/bin/python -m pip install py-spy")
    process = await asyncio.create_subprocess_exec(
        py_spy,
        *("record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(SAMPLES_PER_S)),
        *("--function", "--format", "raw", "--output", str(stacks)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(seconds + 30):
        await process.wait()


async def _under_streams(system: systems.System, pid: int, seconds: int, stacks: Path) -> None:
    await warm_up([system])  # so that imports at the first call are not sampled
    async with load.closed_loop(system.target, CLIENTS, TOKENS, spread_s=1.0):
        await asyncio.sleep(3)
        await _record(pid, seconds, stacks)


async def _under_submits(port: int, pid: int, seconds: int, stacks: Path) -> None:
    body = systems.submit_body()
    async with load.submitting(port, systems.JOBS_PATH, body, SUBMIT_CONNECTIONS, expected_status=202):
        await asyncio.sleep(1)
        await _record(pid, seconds, stacks)


def _print(stacks: Path) -> None:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.read_text(encoding="utf-8").splitlines():
        stack, _, samples = line.rpartition(" ")
        count = int(samples)
        functions = stack.split(";")
        if functions[-1].startswith(IDLE):
            continue
        own[functions[-1]] += count
        for function in set(functions):
            within[function] += count
    total = own.total()
    for title, counted in (("own time", own), ("with what it calls", within)):
        print(f"\n{title}, of {total} samples")
        shares = ((function, seen / total) for function, seen in counted.most_common())
        # Functions in nearly every stack are entry points, which tell nothing.
        for function, share in islice((pair for pair in shares if pair[1] < 0.9), SHOWN):
            print(f"{share:6.1%}  {function}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description="Sample one process under load.")
    parser.add_argument("--role", choices=("api", "worker"), default="worker")
    parser.add_argument("--load", choices=("streams", "submits"), default="streams", help="submits: the api alone")
    parser.add_argument("--seconds", type=int, default=8)
    arguments = parser.parse_args()
    stacks = REPOSITORY / ".tokenspool" / "bench" / f"{arguments.role}-{arguments.load}.stacks"
    stacks.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if arguments.load == "submits":
            redis = stack.enter_context(EmbeddedRedis())
            port, pid = stack.enter_context(systems.tokenspool_api(redis.url))
            uvloop.run(_under_submits(port, pid, arguments.seconds, stacks))
        else:
            system = stack.enter_context(systems.tokenspool(stack.enter_context(systems.upstream())))
            (pid,) = system.roles[arguments.role]
            uvloop.run(_under_streams(system, pid, arguments.seconds, stacks))
    _print(stacks)
    print(f"\nstacks: {stacks.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
