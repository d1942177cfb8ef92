"""``tokenspool tenants erase``: erases what a tenant has in Redis, piece by piece, and revokes its keys.

It runs while everything else goes on. It can be interrupted and run again, since it lists what is left each time. It keeps usage,
the ledger, budgets, the tenant's settings, and the records of its keys, which say when they were revoked.
"""

import asyncio
import time
from typing import Final

from cli.api_keys import keys_of
from cli.errors import CommandError
from cli.serve import read_settings
from cli.terminal import note
from shared.errors import Problem
from shared.store.runtime import Runtime, open_runtime

_TIMEOUT_S: Final = 10.0
_PROGRESS_EVERY_S: Final = 1.0


def erase_tenant(tenant: str) -> None:
    """Erase the tenant and note the progress. Raises CommandError if Redis fails; it can then be run again."""
    try:
        asyncio.run(_erase(tenant))
    except Problem as problem:
        raise CommandError(f"{problem.detail} {tenant} is erased only in part: run the command again.") from None


async def _erase(tenant: str) -> None:
    async with open_runtime(read_settings(), process_name="tokenspool-erase", timeout_s=_TIMEOUT_S) as runtime:
        await _revoke_keys(runtime, tenant)  # first: nothing more comes in within 5 s
        await _erase_operations(runtime, tenant)  # else one would go on retrying
        await _erase_batches(runtime, tenant)
        await _erase_jobs(runtime, tenant)
        await _erase_deliveries(runtime, tenant)
    note(f"{tenant} is erased; its usage, its settings and the records of its keys are kept")


async def _revoke_keys(runtime: Runtime, tenant: str) -> None:
    revoked = 0
    async for key in keys_of(tenant, runtime.api_keys):
        if key.revoked_ms is None:
            await runtime.api_keys.revoke(key.id, tenant)
            revoked += 1
    note(f"keys revoked: {revoked}")


async def _erase_batches(runtime: Runtime, tenant: str) -> None:
    progress = _Progress("batches erased")
    async for _ in runtime.batches.erase_all_of(tenant):
        progress.add(1)
    progress.end()


async def _erase_jobs(runtime: Runtime, tenant: str) -> None:
    progress = _Progress("jobs erased")
    cancelled, is_more = 0, True
    while is_more:
        piece = await runtime.jobs.erase_some(tenant)
        cancelled += piece.cancelled
        progress.add(piece.erased)
        is_more = piece.is_more
    progress.end(f", {cancelled} of them cancelled")


async def _erase_deliveries(runtime: Runtime, tenant: str) -> None:
    progress, is_more = _Progress("webhook deliveries erased"), True
    while is_more:
        erased, is_more = await runtime.webhooks.erase_some(tenant)
        progress.add(erased)
    progress.end()


async def _erase_operations(runtime: Runtime, tenant: str) -> None:
    progress, is_more = _Progress("operations erased"), True
    while is_more:
        erased, is_more = await runtime.operations.erase_some(tenant)
        progress.add(erased)
    progress.end()


class _Progress:
    """Notes a count once a second, and at the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._noted_s = time.monotonic()

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._noted_s >= _PROGRESS_EVERY_S:
            self._noted_s = time.monotonic()
            note(f"{self._what}: {self._count} so far")

    def end(self, more: str = "") -> None:
        note(f"{self._what}: {self._count}{more}")
