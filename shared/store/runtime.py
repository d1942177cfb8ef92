"""All that a process needs from Redis, opened by one context manager: the same for API, worker, command line and tests."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from shared.errors import StorageUnavailable
from shared.settings import Settings
from shared.store.addresses import Addresses
from shared.store.api_keys import ApiKeys
from shared.store.attempts import Attempts
from shared.store.batches import Batches
from shared.store.commands import Commands
from shared.store.connect import MakeConnection, connection_maker
from shared.store.erasures import Erasures
from shared.store.figures import Figures
from shared.store.jobs import Jobs
from shared.store.limits import Limits
from shared.store.log import Log
from shared.store.memory import Memory
from shared.store.operations import Operations
from shared.store.oversight import Oversight
from shared.store.partials import Partials
from shared.store.presence import Presence
from shared.store.queue import Queue
from shared.store.reads import Reads, Turns
from shared.store.redis_problems import RedisProblem, RedisProblems
from shared.store.script import NAMES, script
from shared.store.subscriber import Subscriber
from shared.store.tenants import Tenants
from shared.store.upstreams import Upstreams
from shared.store.usage import UsageBook
from shared.store.waits import Waits
from shared.store.webhooks import Webhooks
from shared.store.workers import Workers

_MOST_URGENT_S = 1.5
"""Bound of an urgent command, however long other calls may wait: a revoked key is refused within 5 s, 3 of which it is cached."""


@dataclass(frozen=True)
class Runtime:
    """Lives as long as the process's main."""

    settings: Settings
    _commands: Commands
    _urgent: Commands
    """A separate connection for what must not wait for the large replies that callers ask for: checking and revoking keys,
    health, which processes live, how far logs go. For small commands with small replies only.
    """
    reads: Reads
    jobs: Jobs
    waits: Waits
    batches: Batches
    operations: Operations
    log: Log
    partials: Partials
    attempts: Attempts
    queue: Queue
    workers: Workers
    presence: Presence
    upstreams: Upstreams
    usage: UsageBook
    api_keys: ApiKeys
    tenants: Tenants
    limits: Limits
    erasures: Erasures
    oversight: Oversight
    addresses: Addresses
    webhooks: Webhooks
    memory: Memory
    figures: Figures
    problems: RedisProblems
    make_connection: MakeConnection

    def subscriber(
        self, *, on_message: Callable[[str, bytes], None], on_confirmed: Callable[[str], None]
    ) -> Subscriber:
        """A pub/sub connection of its own; open it with ``async with``."""
        return Subscriber(
            self.make_connection,
            on_message=on_message,
            on_confirmed=on_confirmed,
            moves=lambda: self._commands.moves,
            problems=self.problems,
        )

    async def ping(self) -> bool:
        """Whether Redis replies now."""
        try:
            return bool(await self._urgent.call("PING"))
        except StorageUnavailable:
            return False


@contextlib.asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    process_name: str,
    timeout_s: float | None = None,
    make_connection: MakeConnection | None = None,
    on_problem: Callable[[RedisProblem], None] | None = None,
) -> AsyncIterator[Runtime]:
    """Opens a runtime, even if Redis is away. ``timeout_s`` is how long a command may take, by default as in the API.

    ``on_problem`` is called when something begins to be wrong with Redis.
    """
    problems = RedisProblems(on_problem)
    connect = make_connection or connection_maker(settings.redis_url, name=process_name)
    scripts = [script(name) for name in NAMES]
    longest_s = timeout_s or settings.redis_timeout_s
    urgent_s = timeout_s or min(settings.redis_timeout_s, _MOST_URGENT_S)
    async with (
        Commands(connect, timeout_s=longest_s, scripts=scripts, problems=problems) as commands,
        Commands(connect, timeout_s=urgent_s, problems=problems, follows=commands) as urgent,
    ):
        reads = Reads(commands, Turns())
        memory = Memory(
            urgent,
            high_water=settings.memory_high_water,
            tenant_share=settings.tenant_waiting_share,
            problems=problems,
        )
        log = Log(commands, reads, urgent)
        workers, upstreams = Workers(commands, settings, urgent), Upstreams(commands, settings, urgent)
        jobs = Jobs(commands, settings, reads, urgent, memory)
        batches = Batches(commands, settings, reads, memory)
        api_keys = ApiKeys(urgent, reads)
        webhooks = Webhooks(commands, settings, reads)
        operations = Operations(commands, settings, reads)
        yield Runtime(
            settings=settings,
            _commands=commands,
            _urgent=urgent,
            reads=reads,
            jobs=jobs,
            waits=Waits(commands, settings, reads, upstreams, workers),
            batches=batches,
            operations=operations,
            log=log,
            partials=Partials(commands, settings, reads, log),
            attempts=Attempts(commands, reads),
            queue=Queue(commands, settings, urgent),
            workers=workers,
            presence=Presence(commands, settings),
            upstreams=upstreams,
            usage=UsageBook(commands),
            api_keys=api_keys,
            tenants=Tenants(commands),
            limits=Limits(commands, settings, reads, memory),
            oversight=Oversight(commands, reads),
            erasures=Erasures(commands, settings, api_keys, operations, batches, jobs, webhooks),
            addresses=Addresses(urgent),
            webhooks=webhooks,
            memory=memory,
            figures=Figures(commands, urgent),
            problems=problems,
            make_connection=connect,
        )
