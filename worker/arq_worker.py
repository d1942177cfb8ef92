"""arq's Worker with our queue in it: the only file that knows arq's internals (0.28, maintenance-only, pinned).

arq keeps the functions, ctx, the slots (``tasks``, ``job_counter``) and its entry points. Claim, lease, wake-up, run,
abort and finish are ours, and there are no ``arq:*`` keys: vanilla arq polls, has no fence, recovers a killed worker's
jobs after the longest timeout, and dies when Redis does (all measured on 0.28).

Redis being away never ends the process; every loop here goes on by itself.
"""

import asyncio
import os
import socket
from typing import Any, cast

import arq
from arq.connections import ArqRedis
from arq.worker import func

from shared.errors import StorageFull, StorageUnavailable
from shared.settings import Settings
from shared.store import keys
from shared.store.queue import SUSPECT_TAKEOVERS, Claim
from shared.store.runtime import Runtime
from shared.telemetry import Logger
from worker.log_writer import LogWriter
from worker.run_job import RunContext, RunEnd, run_job

_TICK_S = 1.0
_UNHEARD_S = 0.5
_SWEEP_S = 60.0
_DRAIN_MARGIN_S = 20.0
_HAND_BACK_S = 5.0

_AWAY = (StorageUnavailable, StorageFull)


async def complete(ctx: dict[str, Any], claim: Claim) -> RunEnd:
    """The one function of this worker: answer a completion job."""
    return await run_job(cast("RunContext", ctx["run"]), claim)


class ArqWorker(arq.Worker):
    """Runs jobs until told to stop. ``async_run`` returns when everything has ended or was handed back."""

    def __init__(self, runtime: Runtime, context: RunContext, settings: Settings, logger: Logger) -> None:
        super().__init__(
            [func(complete, name="complete", max_tries=1)],
            queue_name=keys.SHARD,
            redis_pool=_NO_POOL,
            handle_signals=False,
            max_jobs=settings.concurrency,
            ctx={"run": context},
        )
        self.name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._runtime = runtime
        self._settings = settings
        self._logger = logger
        self._writer: LogWriter = context.writer
        self._context = context
        self._claims: dict[str, Claim] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._strays = 0

    # Signals

    def drain(self) -> None:
        """The first call stops claiming, and lets running jobs end; a second one hands them back now."""
        if self._stopping.is_set():
            self._hurry.set()
        self.allow_pick_jobs = False
        self._stopping.set()
        self._wake.set()

    # The loop

    async def main(self) -> None:
        """Claims and runs until drained."""
        subscriber = self._runtime.subscriber(on_message=self._on_message, on_confirmed=lambda _: self._wake.set())
        async with subscriber, asyncio.TaskGroup() as group:
            subscriber.subscribe(keys.plain("wake"))
            subscriber.subscribe(keys.plain("control"))
            loops = [
                group.create_task(self._claim_loop(), name="claim"),
                group.create_task(self._renew_loop(subscriber.stands), name="renew"),
                group.create_task(self._reap_loop(), name="reap"),
                group.create_task(self._expire_loop(), name="expire"),
                group.create_task(self._sweep_loop(), name="sweep"),
                group.create_task(self._announce_loop(), name="announce"),
            ]
            self._logger.info("worker_started", worker=self.name, concurrency=self.max_jobs)
            await self._stopping.wait()
            await self._drain()
            for task in loops:
                task.cancel()
        self._logger.info("worker_stopped", worker=self.name)

    def _on_message(self, channel: str, message: bytes) -> None:
        if channel == keys.plain("control"):
            verb, _, job_id = message.decode().partition(" ")
            if verb == "cancel" and (task := self.tasks.get(job_id)):
                task.cancel()
        self._wake.set()

    async def _claim_loop(self) -> None:
        while True:
            due_s = _TICK_S
            self._wake.clear()
            if self.allow_pick_jobs and self.job_counter < self.max_jobs:
                try:
                    due_s = await self._claim(due_s)
                except _AWAY:
                    due_s = 0.25
                    self._wake.clear()
            await _wait(self._wake, due_s)

    async def _claim(self, due_s: float) -> float:
        """Fills the free slots. Returns how long to wait if nothing wakes."""
        free = self.max_jobs - self.job_counter
        running = self._claims.values()
        low_running = sum(claim.spec.priority == "low" for claim in running)
        low_free = int(self.max_jobs * self._settings.low_priority_share) or 1
        claims, next_due_s = await self._runtime.queue.claim(
            self.name,
            count=free,
            low_count=max(0, low_free - low_running),
            takes_suspect=all(claim.takeovers < SUSPECT_TAKEOVERS for claim in running),
        )
        await self._start(claims)
        if len(claims) == free:
            self._wake.set()
        return due_s if next_due_s is None else min(due_s, next_due_s)

    async def _start(self, claims: list[Claim]) -> None:
        if not claims:
            return
        # Confirmed before the first job runs: the bytes are in the socket before anything that may kill the process.
        confirmed = asyncio.ensure_future(self._runtime.queue.renew([(claim.id, claim.epoch) for claim in claims]))
        confirmed.add_done_callback(_forget_failure)
        await asyncio.sleep(0)
        for claim in claims:
            if old := self.tasks.get(claim.id):  # its claim is over, and its worker is us
                old.cancel()
                await asyncio.wait([old])
            await self.start_jobs([claim.id.encode()], claim)

    async def start_jobs(self, job_ids: list[bytes], claim: Claim | None = None) -> None:
        """arq's slots, filled from a claim."""
        assert claim is not None
        (raw_id,) = job_ids
        job_id = raw_id.decode()
        self.job_counter += 1
        self._claims[job_id] = claim
        task = asyncio.create_task(self.run_job(job_id, claim.epoch), name=job_id)
        self.tasks[job_id] = task
        task.add_done_callback(lambda done: self._on_end(job_id, claim, done))

    async def run_job(self, job_id: str, score: int) -> None:
        """arq's name for it; ``score`` is the claim's epoch. The payload came with the claim."""
        self.ctx["job_id"] = job_id
        end = await self.functions["complete"].coroutine(self.ctx, self._claims[job_id])
        if end is RunEnd.SUCCEEDED:
            self.jobs_complete += 1
        elif end is RunEnd.FAILED:
            self.jobs_failed += 1
        elif end is RunEnd.DEFERRED:
            self.jobs_retried += 1

    def _on_end(self, job_id: str, claim: Claim, task: "asyncio.Task[None]") -> None:
        self.job_counter -= 1
        if self.tasks.get(job_id) is task:
            del self.tasks[job_id]
            del self._claims[job_id]
        if not task.cancelled() and (error := task.exception()):
            # A bug of ours. The lease is not renewed any more: the job runs again, and fails after its last takeover.
            self._logger.error("run_failed", job_id=job_id, attempt=claim.attempt, exc_info=error)
        self._wake.set()

    # What goes on beside the jobs

    async def _renew_loop(self, stands: Any) -> None:
        """Every quarter of a lease; more often while cancellations cannot be heard."""
        while True:
            every_s = self._settings.lease_s / 4
            await asyncio.sleep(every_s if stands(keys.plain("control")) else min(every_s, _UNHEARD_S))
            claims = [(claim.id, claim.epoch) for claim in self._claims.values()]
            if not claims:
                continue
            try:
                lost = await self._runtime.queue.renew(claims)
            except _AWAY:
                continue
            epochs = dict(claims)
            for job_id in lost:
                claim, task = self._claims.get(job_id), self.tasks.get(job_id)
                if claim and task and claim.epoch == epochs[job_id]:
                    task.cancel()

    async def _reap_loop(self) -> None:
        """At the earlier of one second and the next expiry of a lease."""
        while True:
            next_s = _TICK_S
            try:
                reaped = await self._runtime.queue.reap()
                next_s = min(next_s, max(0.02, reaped.next_expiry_s or next_s))
                for job_id in reaped.back:
                    self._logger.warning("job_taken_over", job_id=job_id)
                for job_id in reaped.failed:
                    self._logger.error("job_failed", job_id=job_id, code="worker_lost")
                if reaped.back:
                    self._wake.set()
            except _AWAY:
                pass
            await asyncio.sleep(next_s)

    async def _expire_loop(self) -> None:
        while True:
            next_s = _TICK_S
            try:
                _, due_s = await self._runtime.jobs.expire()
                next_s = min(next_s, max(0.02, due_s if due_s is not None else next_s))
            except _AWAY:
                pass
            await asyncio.sleep(next_s)

    async def _sweep_loop(self) -> None:
        """Once a minute: records that have not ended and are nowhere. Expected 0; anything else is a bug of ours."""
        cursor = 0
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                self._strays, cursor = await self._runtime.jobs.sweep(cursor)
                if self._strays:
                    self._logger.error("stray_jobs", count=self._strays)
            except _AWAY:
                pass

    async def _announce_loop(self) -> None:
        while True:
            try:
                await self._runtime.queue.announce(
                    self.name,
                    {
                        "name": self.name,
                        "running": self.job_counter,
                        "concurrency": self.max_jobs,
                        "draining": int(self._stopping.is_set()),
                        "strays": self._strays,
                    },
                )
                await self._context.llm_state.tell(self._runtime)
            except _AWAY:
                pass
            await asyncio.sleep(_TICK_S)

    # The end

    async def _drain(self) -> None:
        """Lets running jobs end; then hands back what is left, its try not counted."""
        timeouts_s = [claim.timeout_ms / 1000 for claim in self._claims.values()]
        drain_s = self._settings.drain_s
        if drain_s is None:
            drain_s = max(timeouts_s, default=0.0) + _DRAIN_MARGIN_S
        self._logger.info("draining", worker=self.name, running=self.job_counter, drain_s=drain_s)
        deadline_s = self.loop.time() + drain_s
        while self.tasks and not self._hurry.is_set() and (left_s := deadline_s - self.loop.time()) > 0:
            await _wait(self._hurry, min(left_s, 0.1))
        await self._hand_back()
        try:
            async with asyncio.timeout(1):
                await self._runtime.queue.withdraw(self.name)
        except (*_AWAY, TimeoutError):
            pass

    async def _hand_back(self) -> None:
        claims, tasks = list(self._claims.values()), list(self.tasks.values())
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            async with asyncio.timeout(_HAND_BACK_S):
                back = await asyncio.gather(*[self._writer.release(claim, reason="drained") for claim in claims])
            self._logger.info("handed_back", worker=self.name, jobs=sum(back))
        except TimeoutError:
            self._logger.warning("hand_back_failed", worker=self.name, jobs=len(claims))  # their leases will expire


class _NoPool:
    """arq wants a pool; with our queue in place it is never used."""

    default_queue_name = keys.SHARD


_NO_POOL = cast("ArqRedis", _NoPool())


async def _wait(event: asyncio.Event, most_s: float) -> None:
    try:
        async with asyncio.timeout(most_s):
            await event.wait()
    except TimeoutError:
        pass


def _forget_failure(done: "asyncio.Future[list[str]]") -> None:
    if not done.cancelled():
        done.exception()  # Redis is away: the next renewal confirms
