"""A worker process: opens what it needs, runs, and ends on SIGTERM."""

import asyncio
import os
import signal

import uvloop

from shared.errors import SettingsError
from shared.gc_tuning import tune_gc
from shared.routes import ProviderName
from shared.settings import Settings, routes_of, warn_of_unknown_variables
from shared.store.redis_problems import logging_to
from shared.store.runtime import open_runtime
from shared.telemetry import configure_logging, get_logger
from worker.arq_worker import ArqWorker
from worker.providers import open_providers
from worker.run_job import run_context

_LONGEST_REDIS_TIMEOUT_S = 5.0


def run_worker(settings: Settings) -> None:
    """Blocks until the worker is drained. The first SIGTERM or SIGINT drains it; the second hands its jobs back.

    Raises SettingsError.
    """
    refuse_without_key(settings)
    configure_logging(settings.log_level)
    warn_of_unknown_variables(get_logger("worker"))
    uvloop.run(_work(settings))


def refuse_without_key(settings: Settings) -> None:
    """Raises SettingsError if a key is missing: every job would fail without a retry, a whole backlog in a minute."""
    providers = routes_of(settings).providers
    if ProviderName.ANTHROPIC in providers and settings.anthropic_api_key is None:
        raise SettingsError(
            "ANTHROPIC_API_KEY must be set for a worker (to any word, if the server at ANTHROPIC_BASE_URL requires "
            "none), but is not set."
        )
    is_openai = settings.openai_base_url == Settings.model_fields["openai_base_url"].default
    if ProviderName.OPENAI in providers and settings.openai_api_key is None and is_openai:
        raise SettingsError(
            "OPENAI_API_KEY must be set for a route to OpenAI's own API (a server at OPENAI_BASE_URL may require "
            "none), but is not set."
        )


def redis_timeout_s(settings: Settings) -> float:
    """The timeout of a worker's Redis calls. On a connection that died silently, a renewal must fail early enough to be
    repeated before the lease ends.
    """
    return min(_LONGEST_REDIS_TIMEOUT_S, settings.lease_s / 3)


async def _work(settings: Settings) -> None:
    logger = get_logger("worker").bind(pid=os.getpid())
    providers = open_providers(settings, routes_of(settings).providers)
    tune_gc()
    try:
        async with open_runtime(
            settings,
            process_name="tokenspool-worker",
            timeout_s=redis_timeout_s(settings),
            on_problem=logging_to(logger),
        ) as runtime:
            context = run_context(runtime, settings, providers, logger)
            worker = ArqWorker(runtime, context, settings, logger)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.drain)
            await worker.async_run()
    finally:
        for provider in providers.values():
            await provider.close()
