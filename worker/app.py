"""A worker process: opens what it needs, runs, and ends on SIGTERM."""

import asyncio
import signal

import uvloop

from shared.settings import Settings
from shared.store.runtime import open_runtime
from shared.telemetry import configure_logging, get_logger
from worker.arq_worker import ArqWorker
from worker.llm_state import LlmState
from worker.log_writer import LogWriter
from worker.providers import open_provider
from worker.run_job import RunContext

_REDIS_TIMEOUT_S = 5.0


def run_worker(settings: Settings) -> None:
    """Blocks until the worker was drained. The first SIGTERM or SIGINT drains, the second hands back at once."""
    configure_logging(settings.log_level)
    uvloop.run(_work(settings))


async def _work(settings: Settings) -> None:
    logger = get_logger("worker")
    provider = open_provider(settings)
    try:
        async with open_runtime(settings, process_name="tokenspool-worker", timeout_s=_REDIS_TIMEOUT_S) as runtime:
            context = RunContext(
                settings=settings,
                provider=provider,
                writer=LogWriter(runtime),
                llm_state=LlmState(),
                logger=logger,
            )
            worker = ArqWorker(runtime, context, settings, logger)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.drain)
            await worker.async_run()
    finally:
        await provider.close()
