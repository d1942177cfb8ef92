"""A queue on a real Redis, a simulated upstream, and any number of real workers, in the test's own event loop."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, cast

import msgspec

from shared.errors import StorageUnavailable
from shared.events import TERMINAL_EVENTS, Event, OurEvent, text_of
from shared.job import TERMINAL_STATES, Job, JobState
from shared.routes import ProviderName
from shared.settings import load_settings, routes_of
from shared.store import redis_keys
from shared.store.runtime import Runtime, open_runtime
from shared.telemetry import Logger
from simulator.app import Simulator
from simulator.record import Call
from tests.support.store import submit
from tests.support.wait import wait_until
from worker.app import redis_timeout_s
from worker.arq_worker import ArqWorker
from worker.providers import open_providers
from worker.run_job import run_context

TENANT = "tenant-a"
FAST = "sim-t6-g1-f1"
"""Six tokens, a millisecond apart."""
STEADY = "sim-t500-g10-f1"
"""Takes five seconds: long enough to be interrupted."""


class LogLines:
    """A worker's log, as values."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        """Level, event and facts of each line."""

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append(("info", event, facts))

    def warning(self, event: str, **facts: Any) -> None:
        self.lines.append(("warning", event, facts))

    def error(self, event: str, **facts: Any) -> None:
        self.lines.append(("error", event, facts))

    def exception(self, event: str, **facts: Any) -> None:
        self.error(event, exc_info=sys.exc_info()[1], **facts)

    def named(self, event: str) -> list[dict[str, Any]]:
        """The facts of each line with that name."""
        return [facts for _, name, facts in self.lines if name == event]

    @property
    def errors(self) -> list[tuple[str, dict[str, Any]]]:
        """Lines at level error, which mean a bug of ours."""
        return [(event, facts) for level, event, facts in self.lines if level == "error"]


@dataclass
class Hand:
    """One worker with its own connections, as in its own process."""

    worker: ArqWorker
    runtime: Runtime
    log: LogLines
    done: "asyncio.Task[None]"
    expected_errors: set[str] = field(default_factory=set)
    """Names of error lines that the test causes on purpose."""

    @property
    def running(self) -> set[str]:
        """The ids of the jobs that it is running."""
        return set(self.worker.tasks)

    async def is_idle(self) -> None:
        """Waits until it runs no job."""
        await wait_until(lambda: not self.worker.tasks, "the worker to be idle")

    async def drained(self) -> None:
        """Drains it, as after SIGTERM, and waits until it has ended."""
        self.worker.drain()
        async with asyncio.timeout(10):
            await self.done

    def stop_claiming(self) -> None:
        """It claims no further job."""
        self.worker.allow_pick_jobs = False

    def stop_renewing(self) -> None:
        """Its leases run out without its noticing."""

        async def renew_nothing(*_: Any) -> list[str]:
            return []

        replace(self.runtime.queue, "renew", renew_nothing)

    async def killed(self) -> None:
        """Stops it as SIGKILL would: it sends nothing more."""
        self.done.cancel()
        await asyncio.wait([self.done])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.worker.drain()
        self.worker.drain()
        _, late = await asyncio.wait([self.done], timeout=10)
        if late:
            await self.killed()
            raise AssertionError("the worker did not stop")
        if not self.done.cancelled():
            self.done.result()
        assert self.worker.job_counter == 0
        assert self.worker.tasks == {}
        assert [error for error in self.log.errors if error[0] not in self.expected_errors] == []


@dataclass
class Crew:
    """The queue, its upstream and its workers."""

    runtime: Runtime
    """The test's own connection."""
    upstream: Simulator | Mapping[str, Any]
    """The simulator, or the settings for another LLM."""
    stack: AsyncExitStack
    provider: ProviderName = ProviderName.ANTHROPIC
    """The API by which workers call the simulator."""
    jobs: list[str] = field(default_factory=list)
    """The ids of all submitted jobs."""
    scripts: dict[str, str] = field(default_factory=dict)
    """By job, the simulator's words in its prompt."""
    nonce_of: dict[str, str] = field(default_factory=dict)
    nonces: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def simulator(self) -> Simulator:
        """The upstream, which must be a simulator."""
        assert isinstance(self.upstream, Simulator)
        return self.upstream

    @property
    def _upstream_settings(self) -> Mapping[str, Any]:
        if isinstance(self.upstream, Simulator):
            return {
                "provider": self.provider,
                "anthropic_base_url": self.upstream.url,
                "anthropic_api_key": "made-up",
                "openai_base_url": f"{self.upstream.url}/v1",
                "openai_api_key": "made-up",
            }
        return self.upstream

    async def worker(self, *, timeout_s: float | None = None, **settings: Any) -> Hand:
        """Starts a worker, and waits until it is up and subscribed."""
        hand = await self.stack.enter_async_context(self._hand(timeout_s, settings))
        await wait_until(lambda: bool(hand.log.named("worker_started")), "the worker to start")
        await self.is_hungry()
        return hand

    @asynccontextmanager
    async def _hand(self, timeout_s: float | None, settings: dict[str, Any]) -> AsyncIterator[Hand]:
        log = LogLines()
        logger = cast("Logger", log)
        whole = load_settings(
            **{
                "redis_url": self.runtime.settings.redis_url,
                **self._upstream_settings,
                "upstream_retry_base_s": 0.01,
                "idle_check_s": 0,
                "concurrency": 20,
                **settings,
            }
        )
        providers = open_providers(whole, routes_of(whole).providers)
        try:
            async with open_runtime(
                whole, process_name="worker", timeout_s=timeout_s or redis_timeout_s(whole)
            ) as runtime:
                context = run_context(runtime, whole, providers, logger)
                worker = ArqWorker(runtime, context, whole, logger)
                async with Hand(worker, runtime, log, asyncio.create_task(worker.async_run(), name="worker")) as hand:
                    yield hand
        finally:
            for provider in providers.values():
                await provider.close()

    async def is_hungry(self) -> None:
        """Waits until a worker has found the queue empty, so that the next job wakes it."""
        await wait_until(self._has_hungry, "a hungry worker")

    async def _has_hungry(self) -> bool:
        return bool(await self.runtime._commands.call("EXISTS", redis_keys.plain("hungry")))

    async def submit(self, prompt: str = "", *, model: str = FAST, max_tokens: int = 1000, **members: Any) -> str:
        """Submits a job; ``prompt`` holds the simulator's words. Returns the job's id."""
        nonce = f"n{next(self.nonces)}"
        request = {
            "model": model,
            "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": f"nonce={nonce} {prompt}"}],
        }
        members.setdefault("request", msgspec.json.encode(request))
        submission = await submit(self.runtime, model=model, **members)
        self.jobs.append(submission.id)
        self.scripts[submission.id] = prompt
        self.nonce_of[submission.id] = nonce
        return submission.id

    async def job(self, job_id: str) -> Job:
        """The job as its tenant sees it, with its result."""
        record = await self.runtime._commands.call("HGET", redis_keys.job(job_id), "tenant")
        return await self.runtime.jobs.get(job_id, record.decode(), with_result=True)

    async def state(self, job_id: str) -> JobState:
        """The state in the record."""
        return JobState((await self.runtime._commands.call("HGET", redis_keys.job(job_id), "state")).decode())

    async def count(self, state: JobState, number: int) -> bool:
        """Whether exactly ``number`` of the jobs are in that state."""
        return [await self.state(job_id) for job_id in self.jobs].count(state) == number

    async def ended(self, job_id: str, *, timeout_s: float = 10) -> Job:
        """Waits for the job's end."""

        async def has_ended() -> bool:
            try:
                return await self.state(job_id) in TERMINAL_STATES
            except StorageUnavailable:
                return False

        await wait_until(has_ended, f"the end of {job_id}", timeout_s=timeout_s)
        return await self.job(job_id)

    async def all_ended(self, job_ids: Iterable[str], *, timeout_s: float = 20) -> list[Job]:
        """Waits for the end of each job."""
        return [await self.ended(job_id, timeout_s=timeout_s) for job_id in job_ids]

    async def begun(self, job_id: str, tokens: int = 1) -> None:
        """Waits until the log has so many tokens of the job's newest attempt."""

        async def has_begun() -> bool:
            return len(attempt_text(await self.events(job_id)).split()) >= tokens

        await wait_until(has_begun, f"{tokens} tokens of {job_id}")

    async def events(self, job_id: str) -> list[Event]:
        """The whole log."""
        return await self.runtime.log.read(job_id, count=100_000)

    async def names(self, job_id: str) -> list[str]:
        """The names in the log; neighbours with the same name count as one."""
        return [name for name, _ in itertools.groupby(event.name for event in await self.events(job_id))]

    async def ours(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Our own events in the log, with their data."""
        names = TERMINAL_EVENTS | {event.value for event in OurEvent}
        return [
            (event.name, msgspec.json.decode(event.data)) for event in await self.events(job_id) if event.name in names
        ]

    async def open_gates(self) -> None:
        """Opens every gate and circuit, and notifies the workers."""
        call = self.runtime._commands.call
        for name in await call("KEYS", f"{redis_keys.GLOBAL}route:*"):
            await call("DEL", name)
        await call("PUBLISH", redis_keys.plain("gates"), b"")

    def calls(self, job_id: str) -> list[Call]:
        """The upstream calls of a job, in order."""
        return self.simulator.record.of_nonce(self.nonce_of.get(job_id, ""))

    async def field(self, job_id: str, name: str) -> str | None:
        """One field of the record."""
        value = await self.runtime._commands.call("HGET", redis_keys.job(job_id), name)
        return value.decode() if value is not None else None


def attempt_text(events: Iterable[Event]) -> str:
    """The text of the last attempt, as a follower has it that clears its text at each `reset`."""
    pieces: list[str] = []
    for event in events:
        if event.name in (OurEvent.RESET, "message_start"):
            pieces.clear()
        elif (text := text_of(event)) is not None:
            pieces.append(text)
    return "".join(pieces)


def assert_log_is_whole(job: Job, events: list[Event]) -> None:
    """The log has no gap and one terminal event, and the result equals its answer."""
    epochs: list[int] = []
    last_seq = -1
    for event in events:
        assert event.id is not None
        if not epochs or event.id.epoch != epochs[-1]:
            epochs.append(event.id.epoch)
            last_seq = -1
        assert event.id.seq == last_seq + 1, f"a hole before {event.id}"
        last_seq = event.id.seq
    assert epochs == sorted(epochs)

    ends = [event for event in events if event.is_terminal]
    assert [event.name for event in ends] == [job.state.value]
    assert events[-1] is ends[0]
    assert str(ends[0].id) == job.end_id

    has_content, is_new = False, False
    for event in events:
        if event.name in (OurEvent.STARTED, OurEvent.RETRY):
            is_new = True
        elif event.name == OurEvent.RESET:
            has_content, is_new = False, False
        elif not event.is_terminal:
            assert not (has_content and is_new), f"no reset before {event.id}"
            has_content, is_new = True, False

    if job.state is JobState.SUCCEEDED:
        assert job.result is not None
        assert msgspec.json.decode(bytes(job.result))["text"] == attempt_text(events)
        assert job.usage is not None
        assert job.error is None
    else:
        assert job.result is None
        assert (job.error is not None) == (job.state is JobState.FAILED)


async def assert_every_log_is_whole(crew: Crew) -> None:
    """Checks the log of every ended job that still has one."""
    for job_id in crew.jobs:
        if await crew.state(job_id) in TERMINAL_STATES and (events := await crew.events(job_id)):
            assert_log_is_whole(await crew.job(job_id), events)


def replace(of: object, method: str, by: Callable[..., Any]) -> None:
    """Replaces the method of one object."""
    setattr(of, method, by)
