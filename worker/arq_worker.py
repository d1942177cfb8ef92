"""arq's Worker with our queue in it: the only file that knows arq's internals (0.28, maintenance-only, pinned).

arq provides the functions, ctx, the slots (``tasks``, ``job_counter``) and its entry points. Claim, lease, wake-up, run,
abort and finish are ours, and there are no ``arq:*`` keys: plain arq polls, has no fence, recovers a killed worker's jobs
only after the longest timeout, and ends when Redis is away (all measured on 0.28).

The process never ends because Redis is away: every loop here goes on when Redis is back.
"""

import asyncio
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import arq
import msgspec
from arq.worker import func

from shared.settings import Settings
from shared.store import redis_keys
from shared.store.presence import LOOK_S as PRESENCE_S
from shared.store.queue import ALONE_TAKEOVERS, Claim
from shared.store.runtime import Runtime
from shared.telemetry import Logger
from shared.version import version
from worker.model_lists import ModelLists
from worker.pacing import LOOK_S, Lag
from worker.redis_trouble import AWAY
from worker.run_job import RunContext, RunEnd, run_job
from worker.webhooks.deliverer import Deliverer

_TICK_S = 1.0
_AGAIN_S = 0.25
_UNHEARD_S = 0.5
_PACE_IDLE_S = 0.25
_SWEEP_S = 60.0
_DRAIN_MARGIN_S = 20.0
_HAND_BACK_S = 5.0


async def complete(ctx: dict[str, Any], claim: Claim) -> RunEnd:
    """The one function of this worker: run one claimed job."""
    return await run_job(cast("RunContext", ctx["run"]), claim)


class ArqWorker(arq.Worker):
    """Runs jobs until it is asked to stop. ``async_run`` returns when everything has ended or was handed back."""

    def __init__(self, runtime: Runtime, context: RunContext, settings: Settings, logger: Logger) -> None:
        super().__init__(
            [func(complete, name="complete", max_tries=1)],
            queue_name=redis_keys.SHARD,
            handle_signals=False,
            max_jobs=settings.concurrency,
            ctx={"run": context},
        )
        self.name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._runtime = runtime
        self._settings = settings
        self._logger = logger
        self._outage = context.writer.outage
        self._context = context
        self._governor = context.governor
        self._governor.worker = self.name
        self._lag = Lag(math.ceil(self.max_jobs * settings.low_priority_share), time.thread_time)
        self._deliverer = Deliverer(runtime.webhooks, settings, self._outage, logger)
        self._models = ModelLists(context.providers, logger, time.monotonic)
        self._claims: dict[str, Claim] = {}
        self._group = asyncio.TaskGroup()
        self._claiming = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._died = asyncio.Event()
        self._strays = 0
        self._swept_to = 0

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
        """Claims and runs until drained. If it is cancelled, it ends the runs and hands nothing back."""
        subscriber = self._runtime.subscriber(on_message=self._on_message, on_confirmed=lambda _: self._wake.set())
        async with subscriber, self._deliverer, self._group as group:
            for channel in ("wake", "control", "gates", "deliveries"):
                subscriber.subscribe(redis_keys.plain(channel))
            subscriber.subscribe(redis_keys.presence(self.name))
            loops = [
                group.create_task(self._loop("claim", self._claim, woken_by=self._wake)),
                group.create_task(self._loop("renew", partial(self._renew_all, subscriber.stands))),
                group.create_task(self._loop("reap", self._reap, woken_by=self._died)),
                group.create_task(self._loop("look", self._look)),
                group.create_task(self._loop("pace", self._pace)),
                group.create_task(self._loop("expire", self._expire)),
                group.create_task(self._loop("upkeep", self._upkeep)),
                group.create_task(self._loop("keep", self._keep)),
                group.create_task(self._loop("sweep", self._sweep, first_s=_SWEEP_S)),
                group.create_task(self._loop("announce", self._announce, woken_by=self._context.llm_state.changed)),
                group.create_task(self._loop("govern", self._govern)),
                group.create_task(self._loop("check", self._check)),
                group.create_task(self._loop("deliver", self._deliverer.deliver, woken_by=self._deliverer.wake)),
            ]
            self._logger.info("worker_started", worker=self.name, concurrency=self.max_jobs)
            await self._stopping.wait()
            await self._drain()
            for task in loops:
                task.cancel()
        self._logger.info("worker_stopped", worker=self.name)

    async def _loop(
        self,
        name: str,
        step: Callable[[], Awaitable[float]],
        *,
        woken_by: asyncio.Event | None = None,
        first_s: float = 0,
    ) -> None:
        """Repeats ``step``, which returns how many seconds to wait. Only a cancellation ends the loop."""
        wake = woken_by or asyncio.Event()
        await asyncio.sleep(first_s)
        while True:
            wake.clear()
            try:
                await _wait(wake, await step())
            except AWAY as problem:
                self._outage.note(problem)
                await asyncio.sleep(_AGAIN_S)
            except Exception:  # a bug of ours: logged, and the other loops and the jobs go on
                self._logger.exception("loop_failed", loop=name)
                await asyncio.sleep(_TICK_S)

    def _on_message(self, channel: str, message: bytes) -> None:
        if channel == redis_keys.plain("deliveries"):
            self._deliverer.wake.set()
            return
        if channel == redis_keys.plain("control"):
            verb, _, job_id = message.decode().partition(" ")
            if verb == "cancel" and (task := self.tasks.get(job_id)):
                self._logger.info("job_cancelled", job_id=job_id)
                task.cancel()
        elif channel == redis_keys.plain("gates"):
            self._governor.heard()
        self._wake.set()

    async def _claim(self) -> float:
        """Fills the free slots, with no more ``low`` jobs than the event loop has time for."""
        async with self._claiming:
            free = self.max_jobs - self.job_counter
            if not self.allow_pick_jobs or free <= 0:
                return _TICK_S
            running = self._claims.values()
            quotas = await self._governor.quotas()
            claims, next_due_s = await self._runtime.queue.claim(
                self.name,
                count=free,
                low_count=max(0, self._lag.room - self._low_running()),
                takes_suspect=all(claim.takeovers < ALONE_TAKEOVERS for claim in running),
                quotas=quotas,
            )
            self._governor.claimed(claims, quotas)
            await self._start(claims)
        if len(claims) == free:
            return 0
        waits_s = [_TICK_S, next_due_s, self._governor.next_s()]
        return min(wait_s for wait_s in waits_s if wait_s is not None)

    def _low_running(self) -> int:
        return sum(claim.spec.priority == "low" for claim in self._claims.values())

    async def _pace(self) -> float:
        """While ``low`` jobs run, checks whether more of them may."""
        if not self._low_running():
            self._lag.rest()
            return _PACE_IDLE_S
        if await self._lag.look():
            self._wake.set()
        return LOOK_S

    async def _start(self, claims: list[Claim]) -> None:
        if not claims:
            return
        # Confirm before the first job runs: the bytes must be in the socket before a job can kill the process.
        self._group.create_task(self._confirm(claims), name="confirm")
        await asyncio.sleep(0)
        for claim in claims:
            if old := self.tasks.get(claim.id):  # we still run an earlier claim of this job, which is over
                old.cancel()
                await asyncio.wait([old])
            self.job_counter += 1
            self._claims[claim.id] = claim
            task = self._group.create_task(self.run_job(claim.id, claim.epoch), name=claim.id)
            self.tasks[claim.id] = task
            task.add_done_callback(partial(self._on_end, claim.id))

    async def _confirm(self, claims: list[Claim]) -> None:
        """The first renewal. It also finds a cancellation that was published before we had the job."""
        try:
            await self._renew(claims)
        except AWAY:
            pass  # the next renewal confirms
        except Exception:
            self._logger.exception("confirm_failed")

    async def run_job(self, job_id: str, score: int) -> None:
        """Overrides arq's method. ``score`` is the claim's epoch; the request came with the claim."""
        claim = self._claims[job_id]
        try:
            end = await self.functions["complete"].coroutine(self.ctx, claim)
        except Exception:
            # A bug of ours. The lease is no longer renewed: the job runs again, and fails after its last takeover.
            self._logger.exception("run_failed", job_id=job_id, attempt=claim.attempt)
            return
        if end is RunEnd.SUCCEEDED:
            self.jobs_complete += 1
        elif end is RunEnd.FAILED:
            self.jobs_failed += 1
        elif end is RunEnd.DEFERRED:
            self.jobs_retried += 1

    def _on_end(self, job_id: str, task: "asyncio.Task[None]") -> None:
        self.job_counter -= 1
        if self.tasks.get(job_id) is task:
            del self.tasks[job_id]
            del self._claims[job_id]
        self._wake.set()

    # While jobs run

    async def _renew_all(self, stands: Callable[[str], bool]) -> float:
        """Runs every quarter of a lease; more often while the channel with the cancellations is not subscribed."""
        await self._renew(list(self._claims.values()))
        every_s = self._settings.lease_s / 4
        return every_s if stands(redis_keys.plain("control")) else min(every_s, _UNHEARD_S)

    async def _renew(self, claims: list[Claim]) -> None:
        """Renews the leases, and ends the runs of claims that are over."""
        if not claims:
            return
        lost = set(
            await self._runtime.queue.renew(
                [(claim.id, claim.epoch) for claim in claims], self._context.last_tokens_ms(claims)
            )
        )
        for claim in claims:
            if claim.id in lost and self._claims.get(claim.id) is claim:
                self.tasks[claim.id].cancel()

    async def _reap(self) -> float:
        """Runs when the next lease expires, and often enough that REAP does not take a pause of ours for an outage of Redis."""
        reaped = await self._runtime.queue.reap()
        for job_id in reaped.back:
            self._logger.warning("job_taken_over", job_id=job_id)
        for job_id in reaped.failed:
            self._logger.error("job_failed", job_id=job_id, code="worker_lost")
        if reaped.back:
            self._wake.set()
        return min(_soon(reaped.next_expiry_s), self._settings.lease_s / 4)

    async def _look(self) -> float:
        """Notices workers that died before their leases expire."""
        for name in await self._runtime.presence.look():
            self._logger.warning("worker_died", worker=name)
            self._died.set()
        return PRESENCE_S

    async def _expire(self) -> float:
        _, next_due_s = await self._runtime.jobs.expire()
        return _soon(next_due_s)

    async def _upkeep(self) -> float:
        """Finishes what others left: batches that started halfway, and jobs whose clients waited at an API process that died."""
        await self._runtime.batches.advance_due()
        for job_id in await self._runtime.jobs.abandon():
            self._logger.info("job_abandoned", job_id=job_id)
        return _TICK_S

    async def _keep(self) -> float:
        """Stores what came so far of jobs that ended without success."""
        return 0 if await self._runtime.partials.keep_due() else _TICK_S

    async def _sweep(self) -> float:
        """Once a minute, looks for jobs that have not ended, and neither wait nor run. Any such job is a bug of ours."""
        self._strays, self._swept_to = await self._runtime.jobs.sweep(self._swept_to)
        if self._strays:
            self._logger.error("stray_jobs", count=self._strays)
        return _SWEEP_S

    async def _announce(self) -> float:
        await self._runtime.workers.announce(
            self.name,
            {
                "name": self.name,
                "version": version(),
                "running": self.job_counter,
                "concurrency": self.max_jobs,
                "draining": int(self._stopping.is_set()),
                "strays": self._strays,
                "tokens_per_s": round(self._context.tokens_per_s(), 1),
                "redis_problems": msgspec.json.encode(self._runtime.problems.current).decode(),
                **self._context.llm_state.facts,
            },
        )
        await self._context.figures.send()
        return _TICK_S

    async def _govern(self) -> float:
        """All workers that announce themselves share the limits. Any worker closes the calls of a dead one."""
        self._governor.workers = max(1, len(await self._runtime.workers.living()))
        await self._governor.tick()
        return _TICK_S

    async def _check(self) -> float:
        """Reads the upstreams' model lists, which is free and shows whether they can be reached. Each worker does so at its
        start and once an hour. If there was no call for a while, one of the workers does.
        """
        idle_s = self._settings.idle_check_s
        if not idle_s:
            return _TICK_S
        is_idle = self._context.llm_state.is_idle(idle_s)
        if self._models.are_old or (is_idle and await self._runtime.upstreams.is_checker(idle_s)):
            failure = await self._models.read()
            if is_idle:
                self._context.llm_state.note_check(failure)
        await self._models.publish(self._runtime.workers)
        return _TICK_S

    # The end

    async def _drain(self) -> None:
        """Lets running jobs end; then hands back those that are left, without counting their attempt."""
        async with self._claiming:  # a CLAIM that is under way may still bring jobs
            pass
        timeouts_s = [claim.timeout_ms / 1000 for claim in self._claims.values()]
        drain_s = self._settings.drain_s
        if drain_s is None:
            drain_s = max(timeouts_s, default=0.0) + _DRAIN_MARGIN_S
        self._logger.info("draining", worker=self.name, running=self.job_counter, drain_s=drain_s)
        delivering = self._group.create_task(self._deliverer.drain(self._hurry), name="drain the webhooks")
        deadline_s = self.loop.time() + drain_s
        while self.tasks and not self._hurry.is_set() and (left_s := deadline_s - self.loop.time()) > 0:
            await _wait(self._hurry, min(left_s, 0.1))
        await self._hand_back()
        await delivering
        try:
            async with asyncio.timeout(1):
                await self._context.figures.send(at_once=True)
                await self._runtime.workers.withdraw(self.name)
        except (*AWAY, TimeoutError):
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
                outlast, release = self._outage.outlast, self._runtime.queue.release
                back = await asyncio.gather(*[outlast(partial(release, claim, reason="drained")) for claim in claims])
            self._logger.info("handed_back", worker=self.name, jobs=sum(back))
        except TimeoutError:
            self._logger.warning("hand_back_failed", worker=self.name, jobs=len(claims))  # their leases will expire


async def _wait(event: asyncio.Event, most_s: float) -> None:
    try:
        async with asyncio.timeout(most_s):
            await event.wait()
    except TimeoutError:
        pass


def _soon(next_s: float | None) -> float:
    """Seconds until something is due, at most a tick; never so few that the loop spins."""
    return _TICK_S if next_s is None else max(0.02, min(_TICK_S, next_s))
