"""The reference for the batch row: how many jobs a second a plain arq worker runs when the jobs do nothing.

The bench runs it as `python -m bench.arq_idle --redis-url URL --jobs N`; it prints the rate. `max_jobs` is that of our
worker.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import uvloop
from arq import Worker, create_pool, func
from arq.connections import RedisSettings


async def nothing(ctx: dict[str, Any], number: int) -> int:  # noqa: ARG001 - arq passes ctx by this name
    return number


async def jobs_per_s(redis_url: str, jobs: int) -> float:
    pool = await create_pool(RedisSettings.from_dsn(redis_url))
    for start in range(0, jobs, 100):
        await asyncio.gather(*[pool.enqueue_job("nothing", number) for number in range(start, min(start + 100, jobs))])
    worker = Worker(
        [func(nothing, name="nothing")],
        redis_pool=pool,
        burst=True,
        max_jobs=100,
        poll_delay=0.01,
        handle_signals=False,
    )
    start_s = time.monotonic()
    await worker.async_run()
    elapsed_s = time.monotonic() - start_s
    await worker.close()
    return worker.jobs_complete / elapsed_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the rate of a plain arq worker")
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    arguments = parser.parse_args()
    print(uvloop.run(jobs_per_s(arguments.redis_url, arguments.jobs)))
