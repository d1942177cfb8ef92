"""The event log of a job: appended by the claim that holds it, read by anyone who follows."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple

from shared.events import Event, EventId, encode_published
from shared.job import JobState, Step
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.reads import RESULT_BYTES, Reads
from shared.store.script import Argument, sources

REFUSED: Final = -1

_START: Final = EventId(0, 0)
_RUNNING: Final = sources(Step.SUCCEED)


class Reach(NamedTuple):
    """How far a job has come."""

    newest_claim: EventId | None
    """The id of the first event of the newest claim."""
    end_id: EventId | None
    """The terminal event's id, once the job has ended; the log may be gone by then."""
    top: EventId | None
    """The last event in the log; None if there is no log, yet or any more."""
    is_queued: bool


class Log:
    """The logs of a shard."""

    def __init__(self, commands: Commands, reads: Reads, urgent: Commands) -> None:
        self._commands = commands
        self._reads = reads
        self._urgent = urgent

    def append(
        self,
        job_id: str,
        epoch: int,
        first_seq: int,
        events: Sequence[tuple[str, bytes]],
        *,
        published: bool,
        is_reset: bool = False,
        attempts: int = 0,
        failures: int = 0,
    ) -> "asyncio.Future[int]":
        """Appends (name, data) events from ``first_seq`` on; those that the log already holds are skipped.

        The future gives the seq that the log takes next: less than expected if the log lost its last events, REFUSED if
        the claim is over. ``published``: followers now see some of the answer, which a later claim must reset;
        ``is_reset``: these events, or earlier ones, reset all that they saw. ``attempts`` and ``failures`` are written to
        the record when another attempt begins within the claim. Commands are sent in the order of the calls. Not a
        coroutine, because a task per flush would cost more than the flush.
        """
        arguments = [part for event in events for part in event]
        shown = 1 if published else -1 if is_reset else 0
        return self._commands.run(
            "append",
            id=job_id,
            epoch=epoch,
            sources=_RUNNING,
            seq=first_seq,
            published=shown,
            attempts=attempts,
            failures=failures,
            events=arguments,
        )

    @property
    def connection_number(self) -> int:
        """The connection that appends go over, for ``extend``."""
        return self._commands.connection_number

    def extend(
        self, job_id: str, epoch: int, first_seq: int, events: Sequence[tuple[str, bytes]], *, on: int
    ) -> "asyncio.Future[list[object]]":
        """Appends events as plain commands, at a quarter of the cost in Redis of ``append``. ``has_taken`` reads the reply.

        Only for a claim whose last append went over the connection ``on`` and was taken: while that connection lives, Redis
        has not lost what it took. The stream refuses the ids of a claim that is over, because whatever ended it has
        written a higher epoch; followers drop them too. Nothing is published to the followers of a batch's tokens.
        """
        log = redis_keys.log(job_id)
        commands: list[tuple[Argument, ...]] = [
            ("XADD", log, "NOMKSTREAM", f"{epoch}-{seq}", name, data)
            for seq, (name, data) in enumerate(events, first_seq)
        ]
        commands.append(("PUBLISH", redis_keys.events(job_id), encode_published(EventId(epoch, first_seq), events)))
        return self._commands.together(commands, on=on)

    @staticmethod
    def has_taken(replies: Sequence[object]) -> bool:
        """Whether Redis took all events of an ``extend``. Else ``append`` them: it tells what is wrong."""
        return all(isinstance(reply, bytes) for reply in replies[:-1])

    async def read(
        self,
        job_id: str,
        *,
        after: EventId | None = None,
        start: EventId = _START,
        count: int = 1000,
        tenant: str | None = None,
    ) -> list[Event]:
        """Events in order: those after ``after``, or those from ``start`` on. If a caller reads them, ``tenant`` is the
        caller's; then it may raise TooManyReads.
        """
        first = f"({after}" if after else str(start)
        async with self._reads.turn(tenant, RESULT_BYTES) if tenant is not None else nullcontext():
            entries = await self._commands.call("XRANGE", redis_keys.log(job_id), first, "+", "COUNT", count)
        return [Event(_id_of(entry_id), fields[0].decode(), fields[1]) for entry_id, fields in entries]

    async def probe(self, job_ids: Sequence[str]) -> list[Reach | None]:
        """How far each log goes, in one command; None for a job that is gone."""
        replies = await self._urgent.run("probe", ids=job_ids)
        return [_reach_of(*reply) if reply else None for reply in replies]


def _reach_of(claim_epoch: bytes, end_id: bytes, top: bytes, state: bytes) -> Reach:
    return Reach(
        EventId(int(claim_epoch), 0) if claim_epoch else None,
        _id_of(end_id) if end_id else None,
        _id_of(top) if top else None,
        state.decode() == JobState.QUEUED,
    )


def _id_of(entry_id: bytes) -> EventId:
    epoch, _, seq = entry_id.partition(b"-")
    return EventId(int(epoch), int(seq))
