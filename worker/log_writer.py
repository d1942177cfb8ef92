"""Writes the events of this process's jobs to their logs, many jobs in one flush.

A delta is sent at once if its job has been silent; else 24 ms after the oldest unsent one, up to 100 ms while the event
loop is late, and not before the job's previous flush has landed. Adjacent text deltas of a block become one event, which
gets its seq only then. The flushes of all jobs share a beat, so that they are sent in one write.

A claim's events are kept until its end is acknowledged: if Redis loses the last ones, they are sent again.
"""

import asyncio
from typing import Final, NamedTuple

from shared.errors import StorageUnavailable
from shared.events import OurEvent, encode_text_delta
from shared.store.log import REFUSED
from shared.store.queue import Claim, Cost, Ending, Finished
from shared.store.runtime import Runtime
from worker.redis_trouble import AGAIN_S, AWAY, Outage

MERGE_S: Final = 0.024
_LONGEST_MERGE_S: Final = 0.1
_MERGE_PER_LATE: Final = 4.0
"""How much longer deltas are merged, for each second that the event loop is late: it then has fewer events to write."""
_BEAT_S: Final = 0.004
_LATE_BEATS: Final = 16
"""Over about how many beats their lateness is averaged."""
_MOST_UNSENT_BYTES: Final = 1 << 20
_MOST_EVENTS_PER_FLUSH: Final = 500


class LogWriter:
    """One for a worker process."""

    def __init__(self, runtime: Runtime, outage: Outage) -> None:
        self.log = runtime.log
        self.queue = runtime.queue
        self.outage = outage
        self._loop = asyncio.get_running_loop()
        self._beats: dict[int, list[JobLog]] = {}
        self._late_s = 0.0
        """How late the beats are, on average over the last ones."""
        self.merge_s = MERGE_S
        """How long deltas are merged."""

    def open(self, claim: Claim, owner: asyncio.Task[object]) -> "JobLog":
        """Opens the log of a claim. The task ``owner`` is cancelled if Redis refuses the claim's writes."""
        return JobLog(self, claim, owner)

    def flush_at(self, due_s: float, job_log: "JobLog") -> None:
        """Flushes on the first beat after ``due_s``."""
        beat = int(due_s / _BEAT_S) + 1
        if beat in self._beats:
            self._beats[beat].append(job_log)
        else:
            self._beats[beat] = [job_log]
            self._loop.call_at(beat * _BEAT_S, self._on_beat, beat)

    def flush_soon(self, job_log: "JobLog") -> None:
        """Flushes when everything that is being read right now has been read."""
        self._loop.call_soon(job_log.flush)

    def now_s(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    def _on_beat(self, beat: int) -> None:
        self._late_s += (self._loop.time() - beat * _BEAT_S - self._late_s) / _LATE_BEATS
        self.merge_s = min(MERGE_S + _MERGE_PER_LATE * self._late_s, _LONGEST_MERGE_S)
        for job_log in self._beats.pop(beat):
            job_log.flush()


class JobLog:
    """The log of one claim, as its worker writes it."""

    def __init__(self, writer: LogWriter, claim: Claim, owner: asyncio.Task[object]) -> None:
        self._writer = writer
        self._claim = claim
        self._owner = owner
        self._first_seq = claim.next_seq
        self._events: list[tuple[str, bytes]] = []
        self._landed = 0
        """How many of the events Redis has acknowledged."""
        self._sent = 0
        """How many of the events were sent to Redis."""
        self._unsent_bytes = 0
        self._text_block = -1
        self._texts: list[str] = []
        self._oldest_unsent_s = 0.0
        self._flushed_s = 0.0
        self._is_scheduled = False
        self._in_flight = False
        self._is_closed = False
        self._has_landed = asyncio.Event()
        self._attempt = (0, 0)
        self.has_published = False
        """Whether followers may have seen an upstream event of this claim."""
        self._held: bytes | None = None
        """The `message_start` of an answer without content yet. It is held back where the followers' protocol has no `reset`."""
        self._needs_reset = False
        """Whether followers may have seen events of this attempt: then the next, in this claim or another, begins with `reset`."""
        self._reset_end = 0
        """How many of the events end with the newest `reset`."""
        self._recorded: _Facts | None = None
        """What the record holds. None: the next append writes it, since Redis may have lost it with the log's last events."""
        self._taken_on: int | None = None
        """The connection over which Redis took the last append: over that one, plain commands do. None: the next append runs the
        script."""
        self.is_lost = False
        """Whether Redis refused a write: the job is somebody else's, or has ended."""

    def add(self, name: str, data: bytes, text: tuple[int, str] | None = None) -> None:
        """One upstream event; ``text`` = (block, text) if it is a text delta, which is merged with its neighbours."""
        if name == "message_start" and not self._claim.spec.may_start_over:
            self._held = data
            return
        self.has_published = self._needs_reset = True
        if self._held is not None:
            self._add("message_start", self._held)
            self._held = None
        if text is not None:
            if text[0] != self._text_block:
                self._close_texts()
                self._text_block = text[0]
            self._texts.append(text[1])
            self._unsent_bytes += len(text[1])
            self._schedule()
        else:
            self._add(name, data)

    def begin_attempt(self, attempts: int, failures: int, retry_event: bytes, reset_event: bytes) -> None:
        """Begins another attempt within the claim: with `retry`, and with `reset` if followers saw some of the one before."""
        self._held = None
        self._add(OurEvent.RETRY, retry_event)
        if self._needs_reset:
            self._add(OurEvent.RESET, reset_event)
            self._needs_reset = False
            self._reset_end = len(self._events)
        self._attempt = (attempts, failures)

    @property
    def is_full(self) -> bool:
        """Whether more than 1 MiB is unsent: reading stops then, so that an outage of Redis costs bounded memory."""
        return self._unsent_bytes > _MOST_UNSENT_BYTES and not self.is_lost

    async def room(self) -> None:
        """Waits while it is full."""
        while self.is_full:
            await self._landing()

    async def land(self) -> None:
        """Waits until everything is in the log, however long Redis is away, or until it is refused."""
        while not self.is_lost and (self._in_flight or self._texts or self._landed < len(self._events)):
            self.flush()
            await self._landing()

    async def _landing(self) -> None:
        self._has_landed.clear()
        await self._has_landed.wait()

    def flush(self) -> None:
        """Sends what is unsent. If a flush is under way, that happens when it has landed."""
        self._is_scheduled = False
        if self._in_flight or self._is_closed:
            return
        self._close_texts()
        if self._landed == len(self._events):
            return
        self._sent = min(len(self._events), self._landed + _MOST_EVENTS_PER_FLUSH)
        # Until the reset itself is sent, the next claim of the job must reset what this one takes back.
        is_shown = self._needs_reset if self._sent >= self._reset_end else self.has_published
        facts = _Facts(is_shown, *self._attempt)
        is_news = facts != self._recorded
        self._flushed_s = self._writer.now_s()
        self._in_flight = True
        if self._taken_on is not None and not is_news:
            extended = self._writer.log.extend(
                self._claim.id,
                self._claim.epoch,
                self._first_seq + self._landed,
                self._events[self._landed : self._sent],
                on=self._taken_on,
            )
            extended.add_done_callback(self._on_extended)
            return
        connection_number = self._writer.log.connection_number
        reply = self._writer.log.append(
            self._claim.id,
            self._claim.epoch,
            self._first_seq + self._landed,
            self._events[self._landed : self._sent],
            published=is_news and facts.is_shown,
            is_reset=is_news and self.has_published and not facts.is_shown,
            attempts=facts.attempts if is_news else 0,
            failures=facts.failures if is_news else 0,
        )
        reply.add_done_callback(lambda done: self._on_appended(done, facts, connection_number))

    async def finish(self, ending: Ending, *, cost: Cost = None) -> Finished:
        """Sends what is unsent and then the end, in one write, and repeats that until Redis replies.

        Returns ENDED, ALREADY or REFUSED.
        """
        while not self.is_lost:
            self.flush()
            if self._texts or self._sent < len(self._events):  # a flush is under way
                await self._landing()
                continue
            try:
                reply = await self._writer.queue.finish(
                    self._claim, ending, seq=self._first_seq + len(self._events), cost=cost
                )
            except AWAY as problem:
                self._writer.outage.note(problem)
                await asyncio.sleep(AGAIN_S)
                continue
            if reply.outcome is not Finished.INCOMPLETE:
                self.close()
                return reply.outcome
            if self._in_flight:
                await self._landing()
            else:
                self._go_back(reply.expected_seq)
        return Finished.REFUSED

    def close(self) -> None:
        """Nothing more is sent."""
        self._is_closed = True

    def _add(self, name: str, data: bytes) -> None:
        self._close_texts()
        self._events.append((name, data))
        self._unsent_bytes += len(data)
        self._schedule()

    def _close_texts(self) -> None:
        if self._texts:
            data = encode_text_delta(self._text_block, "".join(self._texts))
            self._events.append(("content_block_delta", data))
            self._texts.clear()
        self._text_block = -1

    def _schedule(self) -> None:
        if self._is_scheduled or self._in_flight or self._is_closed:
            if self._in_flight and not self._oldest_unsent_s:
                self._oldest_unsent_s = self._writer.now_s()
            return
        now_s = self._writer.now_s()
        self._is_scheduled = True
        merge_s = self._writer.merge_s
        due_s = max(self._oldest_unsent_s or now_s, self._flushed_s) + merge_s
        self._oldest_unsent_s = 0.0
        if now_s - self._flushed_s >= merge_s or due_s <= now_s:
            self._writer.flush_soon(self)
        else:
            self._writer.flush_at(due_s, self)

    def _on_extended(self, reply: "asyncio.Future[list[object]]") -> None:
        self._in_flight = False
        if reply.cancelled() or reply.exception() or not self._writer.log.has_taken(reply.result()):
            self._taken_on = None
            self._sent = self._landed
            self.flush()  # by the script, which tells what is wrong
        elif not self._is_closed:
            self._on_progress(self._sent)

    def _on_appended(self, reply: "asyncio.Future[int]", facts: "_Facts", connection_number: int) -> None:
        self._in_flight = False
        if self._is_closed:
            return
        problem = StorageUnavailable() if reply.cancelled() else reply.exception()
        if isinstance(problem, AWAY):
            self._writer.outage.note(problem)
            self._sent = self._landed
            self._is_scheduled = True
            self._writer.flush_at(self._writer.now_s() + AGAIN_S, self)
            return
        expected_seq = reply.result()
        if expected_seq == REFUSED:
            self._lose()
        elif expected_seq - self._first_seq <= self._landed:
            self._go_back(expected_seq)
        else:
            self._recorded = facts
            if self._claim.spec.batch_id is None:  # the script also publishes to those who follow a batch's tokens
                self._taken_on = connection_number
            self._on_progress(expected_seq - self._first_seq)

    def _on_progress(self, landed: int) -> None:
        self._landed = landed
        self._unsent_bytes = sum([len(data) for _, data in self._events[landed:]])
        self._has_landed.set()
        if self._texts or landed < len(self._events):
            self._schedule()

    def _go_back(self, expected_seq: int) -> None:
        """Redis lost the log's last events: sends them again. Without the events of CLAIM, the log cannot be continued."""
        if expected_seq < self._first_seq:
            self._lose()
        self._recorded = self._taken_on = None
        self._sent = max(0, min(self._landed, expected_seq - self._first_seq))
        self._on_progress(self._sent)

    def _lose(self) -> None:
        self.is_lost = True
        self._is_closed = True
        self._has_landed.set()
        self._owner.cancel()


class _Facts(NamedTuple):
    """What APPEND writes to the record, together with the log."""

    is_shown: bool
    """Whether followers saw something that was not reset."""
    attempts: int
    failures: int
