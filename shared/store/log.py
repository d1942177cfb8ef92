"""The event log of a job: appended by the claim that holds it, read by anyone who follows."""

from collections.abc import Sequence
from typing import Final

from shared.events import Event, EventId
from shared.job import Step
from shared.store import keys
from shared.store.commands import Commands
from shared.store.script import script, sources

REFUSED: Final = -1

_START: Final = EventId(0, 0)


class Log:
    """The logs of a shard."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def append(
        self,
        job_id: str,
        epoch: int,
        first_seq: int,
        events: Sequence[tuple[str, bytes]],
        *,
        published: bool,
        attempts: int = 0,
        failures: int = 0,
    ) -> int:
        """Adds (name, data) events from ``first_seq`` on; those that the log holds already are passed over.

        Returns the seq that the log takes next: less than expected if it lost a tail, REFUSED if the claim is over.
        ``attempts`` and ``failures`` are written to the record when an attempt begins inside the claim.
        """
        arguments: list[str | bytes | int] = []
        for name, data in events:
            arguments += (name, data)
        reply: int = await self._commands.run(
            script("append"), job_id, epoch, sources(Step.SUCCEED), first_seq, int(published), attempts, failures, *arguments
        )
        return reply

    async def read(self, job_id: str, *, after: EventId | None = None, start: EventId = _START, count: int = 1000) -> list[Event]:
        """Events in order: those behind ``after``, or those from ``start`` on."""
        first = f"({after}" if after else str(start)
        entries = await self._commands.call("XRANGE", keys.log(job_id), first, "+", "COUNT", count)
        return [_event_of(entry_id, fields) for entry_id, fields in entries]

    async def newest_claim(self, job_id: str) -> EventId | None:
        """Where the newest attempt begins, or None if none has."""
        epoch = await self._commands.call("HGET", keys.job(job_id), "claim_epoch")
        return EventId(int(epoch), 0) if epoch else None

    async def tops(self, job_ids: Sequence[str]) -> list[EventId | None]:
        """The id of the last event of each log, in one round trip."""
        replies = [self._commands.call("XREVRANGE", keys.log(job_id), "+", "-", "COUNT", 1) for job_id in job_ids]
        return [_id_of(entries[0][0]) if (entries := await reply) else None for reply in replies]


def _event_of(entry_id: bytes, fields: list[bytes]) -> Event:
    return Event(_id_of(entry_id), fields[0].decode(), fields[1])


def _id_of(entry_id: bytes) -> EventId:
    epoch, _, seq = entry_id.partition(b"-")
    return EventId(int(epoch), int(seq))


