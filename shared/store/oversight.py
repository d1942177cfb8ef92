"""What waits longest and what runs longest, over all tenants, for operators.

Only the heads of the flows are read, and only the running jobs: the work does not grow with the depth of the queue.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

from shared.job import BANDS, Job, JobState
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.jobs import JOB_FIELDS, job_of
from shared.store.reads import Reads

_MOST_FLOWS: Final = 5_000
"""Flows of a band, and of an owner whose flows are parked, whose heads are read."""
_MOST_PARKED: Final = 1_000
_MOST_RUNNING: Final = 10_000
_AT_ONCE: Final = 250


class Oversight:
    """The jobs of all tenants of a shard."""

    def __init__(self, commands: Commands, reads: Reads) -> None:
        self._commands = commands
        self._reads = reads

    async def oldest_waiting(self, reader: str, *, tenant: str | None, limit: int) -> list[Job]:
        """The jobs that wait for their turn, for room or for money, oldest first; of all tenants if ``tenant`` is None.

        ``reader``: the tenant whose share the reads are. Raises TooManyReads.
        """
        heads = await self._each(
            [("ZRANGE", redis_keys.flow(flow), 0, limit - 1) for flow in await self._flows(tenant)]
        )
        ids = sorted(job_id.decode() for head in heads for job_id in head)  # ids sort by time
        return await self._jobs(reader, ids, JobState.QUEUED, limit)

    async def longest_running(self, reader: str, *, tenant: str | None, limit: int) -> list[Job]:
        """The running jobs, that which started first before the others. As ``oldest_waiting``."""
        running = await self._commands.call("ZRANGE", redis_keys.plain("running"), 0, _MOST_RUNNING - 1)
        ids = [job_id.decode() for job_id in running]
        starts = await self._each([("HMGET", redis_keys.job(job_id), "started_ms", "tenant") for job_id in ids])
        pairs = sorted(
            (int(started_ms), job_id)
            for job_id, (started_ms, owner) in zip(ids, starts, strict=True)
            if started_ms and tenant in (None, owner.decode())
        )
        return await self._jobs(reader, [job_id for _, job_id in pairs], JobState.RUNNING, limit)

    async def _flows(self, tenant: str | None) -> list[str]:
        owners = await self._commands.call("ZRANGE", redis_keys.plain("parked"), 0, _MOST_PARKED - 1)
        lists = [redis_keys.ready(band) for band in BANDS]
        lists += [redis_keys.parked_flows(owner.decode(), band) for owner in owners for band in BANDS]
        found = await self._each([("ZRANGE", flows, 0, _MOST_FLOWS - 1) for flows in lists])
        names = [name.decode() for flows in found for name in flows]
        return [name for name in names if tenant is None or name.split(":")[1] == tenant][:_MOST_FLOWS]

    async def _each(self, commands: Sequence[tuple[str | int, ...]]) -> list[list[bytes]]:
        """The replies, asked for some at a time, so that the commands of others come in between."""
        found: list[list[bytes]] = []
        for start in range(0, len(commands), _AT_ONCE):
            replies = [self._commands.call(*command) for command in commands[start : start + _AT_ONCE]]
            found += [await reply for reply in replies]
            await asyncio.sleep(0)
        return found

    async def _jobs(self, reader: str, ids: Sequence[str], state: JobState, limit: int) -> list[Job]:
        """The first of these jobs that are still in that state."""
        some = ids[: 2 * limit]  # some may have started or ended meanwhile
        records = await self._reads.all(reader, [redis_keys.job(job_id) for job_id in some], JOB_FIELDS)
        jobs = [job_of(job_id, record) for job_id, record in zip(some, records, strict=True) if record[0] and record[1]]
        return list(itertools.islice((job for job in jobs if job.state is state), limit))
