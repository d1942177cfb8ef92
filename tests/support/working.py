"""A real worker in the test's own event loop, with its own connections, as in its own process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.settings import load_settings, routes_of
from shared.store.runtime import open_runtime
from shared.telemetry import get_logger
from worker.arq_worker import ArqWorker
from worker.providers import open_providers
from worker.run_job import run_context


@asynccontextmanager
async def working(redis_url: str, upstream_url: str, **settings: Any) -> AsyncIterator[ArqWorker]:
    """Takes jobs until the end of the block; then it hands back those it has."""
    given = load_settings(
        **{"redis_url": redis_url, "anthropic_base_url": upstream_url, "anthropic_api_key": "made-up", **settings}
    )
    providers = open_providers(given, routes_of(given).providers)
    async with open_runtime(given, process_name="tokenspool-worker", timeout_s=5) as runtime:
        logger = get_logger("worker")
        context = run_context(runtime, given, providers, logger)
        worker = ArqWorker(runtime, context, given, logger)
        done = asyncio.create_task(worker.async_run(), name="worker")
        try:
            yield worker
        finally:
            worker.drain()
            worker.drain()
            await done
            for provider in providers.values():
                await provider.close()
