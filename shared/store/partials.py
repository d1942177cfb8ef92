"""What came so far of jobs that run, or that ended without success.

It is folded from the job's log. Soon after such an end a worker stores it in place of a result, since a log takes
fifteen times as much memory (measured: 53 KB and 3.6 KB for 500 tokens); until then the log is kept as long as the record.
"""

from typing import Final

import msgspec

from shared.events import EventId
from shared.job import Job, JobState
from shared.partial import Folding
from shared.settings import Settings
from shared.store.commands import Commands
from shared.store.compression import restored, stored
from shared.store.log import Log
from shared.store.reads import RESULT_BYTES, Reads

_PAGE_BYTES: Final = 64 << 10
_MOST_EVENTS: Final = 500
"""A page of the log has about _PAGE_BYTES, as far as the page before shows, and no more events than this."""
_DUE_AT_ONCE: Final = 20


class Partials:
    """The partial answers of a shard."""

    def __init__(self, commands: Commands, settings: Settings, reads: Reads, log: Log) -> None:
        self._commands = commands
        self._compress_above_bytes = settings.compress_above_bytes
        self._reads = reads
        self._log = log

    async def added_to(self, job: Job) -> Job:
        """The job with its ``partial``, None if there is none. The tenant was checked. Raises TooManyReads."""
        raw = await self._of(job) if job.has_published and job.state is not JobState.SUCCEEDED else None
        return msgspec.structs.replace(job, partial=msgspec.Raw(raw) if raw else None)

    async def _of(self, job: Job) -> bytes | None:
        if job.has_ended:
            async with self._reads.turn(job.tenant, RESULT_BYTES):
                kept: bytes | None = await self._commands.run("content", id=job.id, tenant=job.tenant, kind="result")
            if kept:
                return await restored(kept)
        return await self._folded(job.id, job.claim_epoch, tenant=job.tenant)

    async def keep_due(self) -> bool:
        """Stores the partial answers of some jobs that ended. Returns whether more may be due."""
        due = await self._commands.run("due_partials", most=_DUE_AT_ONCE)
        for job_id, claim_epoch in due:
            partial = await self._folded(job_id.decode(), int(claim_epoch))
            partial = await stored(partial or b"", self._compress_above_bytes)
            await self._commands.run("keep_partial", id=job_id, partial=partial)
        return len(due) == _DUE_AT_ONCE

    async def _folded(self, job_id: str, claim_epoch: int, *, tenant: str | None = None) -> bytes | None:
        """In pieces, so that a log of many megabytes does not hold up the loop."""
        folding = Folding()
        start, after = EventId(claim_epoch, 0), None
        count = 20
        while events := await self._log.read(job_id, start=start, after=after, count=count, tenant=tenant):
            for event in events:
                folding.add(event)
            after = events[-1].id
            size = sum(len(event.data) for event in events)
            count = min(_MOST_EVENTS, 1 + _PAGE_BYTES * len(events) // (size + 1))
        return folding.partial
