"""The reference for the submit row: how many jobs a second a plain loop of `arq.enqueue_job` enqueues.

The bench runs it as `python -m bench.arq_enqueue --redis-url URL --seconds N`; it prints the rate.
"""

from __future__ import annotations

import argparse
import time

import uvloop
from arq import create_pool
from arq.connections import RedisSettings


async def jobs_per_s(redis_url: str, seconds: float) -> float:
    redis = await create_pool(RedisSettings.from_dsn(redis_url))
    start_s = time.monotonic()
    count = 0
    while time.monotonic() < start_s + seconds:
        await redis.enqueue_job("complete", "Why is the sky blue?", 256)
        count += 1
    elapsed_s = time.monotonic() - start_s
    await redis.aclose()
    return count / elapsed_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the rate of a plain arq enqueue loop")
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    print(uvloop.run(jobs_per_s(arguments.redis_url, arguments.seconds)))
