"""Cancels the job of a client that has disconnected, for every surface."""

import asyncio
import contextlib

from api.state.api_state import ApiState
from shared.errors import Problem


async def give_up(api: ApiState, tenant: str, job_id: str) -> None:
    """Cancels a job that nobody waits for any more, and with it the call to the LLM. Shielded, since the server may be
    cancelling this very task.

    If Redis is away the job goes on. It is attended, so it ends with this process at the latest.
    """
    await asyncio.shield(asyncio.ensure_future(_cancel(api, tenant, job_id)))


async def _cancel(api: ApiState, tenant: str, job_id: str) -> None:
    with contextlib.suppress(Problem):
        await api.runtime.jobs.cancel(job_id, tenant)
