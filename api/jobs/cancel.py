"""Cancels the job of a client that has gone, whichever surface it called."""

import asyncio
import contextlib

from api.state.api_state import ApiState
from shared.errors import Problem


async def give_up(api: ApiState, tenant: str, job_id: str) -> None:
    """Nobody waits any more: the upstream call ends too. Shielded, since the server may be ending this very task.

    With Redis away the job is left: it is attended, and ends with this process at the latest.
    """
    await asyncio.shield(asyncio.ensure_future(_cancel(api, tenant, job_id)))


async def _cancel(api: ApiState, tenant: str, job_id: str) -> None:
    with contextlib.suppress(Problem):
        await api.runtime.jobs.cancel(job_id, tenant)
