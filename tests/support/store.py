"""Steps and checks that the tests of the store share.

The scripts read Redis's clock only. So a test does not wait for a lease or a due time, but changes the score that
stores it.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

from shared.batch import Batch, BatchState, InvalidItem, NewItem
from shared.events import Event, decode_published
from shared.job import BANDS, TERMINAL_STATES, Job, JobState, Step, Submission
from shared.limits import NO_LIMITS, CallerLimits
from shared.operation import OperationState
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.idempotency import fingerprint_of
from shared.store.queue import Claim, Ending, Finished, FinishReply, Reaped
from shared.store.runtime import Runtime
from shared.waiting import Turn
from shared.webhooks import DeliveryState
from tests.support.builders import a_batch_id, a_batch_spec, a_submission, lines
from tests.support.wait import wait_until

A_RESULT = b'{"text":"Hello.","stop_reason":"end_turn","message":{}}'
SUCCESS = Ending(Step.SUCCEED, result=A_RESULT)

_ALL_KEYS = redis_keys.KEYS | redis_keys.GLOBAL_KEYS
_marks = itertools.count()


async def submit(runtime: Runtime, *, expires_in_s: int = 3600, **members: Any) -> Submission:
    """Submits a job."""
    submission = a_submission(**members)
    await runtime.jobs.submit(submission, expires_in_s=expires_in_s)
    return submission


async def submit_many(runtime: Runtime, count: int, **members: Any) -> list[str]:
    """Submits ``count`` jobs; returns their ids in order."""
    submissions = [a_submission(**members) for _ in range(count)]
    for start in range(0, count, 500):
        calls = [runtime.jobs.submit(submission, expires_in_s=3600) for submission in submissions[start : start + 500]]
        for call in calls:
            await call
    return [submission.id for submission in submissions]


class Begun(NamedTuple):
    """A batch and its lines."""

    id: str
    tenant: str
    lines: Sequence[NewItem | InvalidItem]

    @property
    def job_ids(self) -> list[str]:
        """The jobs of the valid lines, in order."""
        return [line.job_id for line in self.lines if isinstance(line, NewItem)]


async def receive(
    runtime: Runtime,
    items: int | Sequence[NewItem | InvalidItem] = 3,
    *,
    tenant: str = "tenant-a",
    slice_items: int = 250,
    key_id: str = "",
    key_limits: CallerLimits = NO_LIMITS,
) -> Begun:
    """Stores a batch's whole body without starting it. ``items``: its lines, or a number of valid lines."""
    begun = Begun(a_batch_id(), tenant, lines(items) if isinstance(items, int) else items)
    key: dict[str, Any] = {"key_id": key_id, "key_limits": key_limits}
    await runtime.batches.open(begun.id, tenant, **key)
    for start in range(0, len(begun.lines), slice_items):
        await runtime.batches.add(begun.id, tenant, begun.lines[start : start + slice_items], **key)
    return begun


async def begin(
    runtime: Runtime,
    begun: Begun,
    *,
    expires_in_s: int = 3600,
    idempotency_key: str | None = None,
    body: Any = "the body",
    key_limits: CallerLimits = NO_LIMITS,
    **spec: Any,
) -> str:
    """Starts a received batch; the test calls ``advance``. ``spec``: arguments of a_batch_spec()."""
    started = await runtime.batches.start(
        begun.id,
        begun.tenant,
        a_batch_spec(**spec),
        expires_in_s=expires_in_s,
        idempotency_key=idempotency_key,
        fingerprint=fingerprint_of(body),
        key_limits=key_limits,
    )
    return started.id


async def start_batch(
    runtime: Runtime,
    items: int | Sequence[NewItem | InvalidItem] = 3,
    *,
    tenant: str = "tenant-a",
    key_id: str = "",
    key_limits: CallerLimits = NO_LIMITS,
    **how: Any,
) -> Begun:
    """A batch whose items are all queued. ``how``: arguments of begin()."""
    begun = await receive(runtime, items, tenant=tenant, key_id=key_id, key_limits=key_limits)
    assert await begin(runtime, begun, key_id=key_id, key_limits=key_limits, **how) == begun.id
    await runtime.batches.advance_all(begun.id)
    return begun


async def batch_of(runtime: Runtime, begun: Begun) -> Batch:
    """As its tenant sees it."""
    return await runtime.batches.get(begun.id, begun.tenant)


async def counts_of(runtime: Runtime, begun: Begun) -> dict[str, int]:
    """The batch's counts that are not 0, without the total."""
    counts = (await batch_of(runtime, begun)).counts
    found = {name: getattr(counts, name) for name in counts.__struct_fields__}
    assert found.pop("total") == sum(found.values())
    return {name: number for name, number in found.items() if number}


async def make_batch_due(runtime: Runtime, *batch_ids: str) -> None:
    """Makes these batches due, as if the process that worked on them had stopped."""
    for batch_id in batch_ids:
        await runtime._commands.call("ZADD", redis_keys.plain("due"), "XX", 1, batch_id)


async def claim(
    runtime: Runtime, count: int = 1, *, worker: str = "worker-1", low_count: int = 500, takes_suspect: bool = True
) -> list[Claim]:
    """Claims up to ``count`` jobs."""
    claims, _ = await runtime.queue.claim(worker, count=count, low_count=low_count, takes_suspect=takes_suspect)
    return claims


async def claim_one(runtime: Runtime, *, worker: str = "worker-1") -> Claim:
    """Claims the next job."""
    (found,) = await claim(runtime, worker=worker)
    return found


async def start(runtime: Runtime, *, worker: str = "worker-1", **members: Any) -> Claim:
    """A new job, claimed, in an otherwise idle queue."""
    submission = await submit(runtime, **members)
    found = await claim_one(runtime, worker=worker)
    assert found.id == submission.id
    return found


async def append(
    runtime: Runtime, claimed: Claim, *events: tuple[str, bytes], seq: int | None = None, published: bool = True
) -> int:
    """Appends after CLAIM's events, or at ``seq``."""
    reply: int = await runtime.log.append(
        claimed.id, claimed.epoch, claimed.next_seq if seq is None else seq, events, published=published
    )
    return reply


async def finish(runtime: Runtime, claimed: Claim, ending: Ending = SUCCESS, *, seq: int | None = None) -> FinishReply:
    """Ends the job directly after CLAIM's events, or at ``seq``."""
    return await runtime.queue.finish(claimed, ending, seq=claimed.next_seq if seq is None else seq)


async def succeed(runtime: Runtime, **members: Any) -> Claim:
    """A new job that has succeeded; the queue must be empty."""
    claimed = await start(runtime, **members)
    assert (await finish(runtime, claimed)).outcome is Finished.ENDED
    return claimed


async def confirm(runtime: Runtime, claimed: Claim) -> None:
    """Renews the lease for the first time, which confirms that the worker has started the job."""
    assert await runtime.queue.renew([(claimed.id, claimed.epoch)]) == []


async def expire_leases(runtime: Runtime, *job_ids: str) -> None:
    """Lets the leases expire, as if only their worker had been silent."""
    for job_id in job_ids:
        await runtime._commands.call("ZADD", redis_keys.plain("running"), "XX", 1, job_id)


async def lose(runtime: Runtime, claimed: Claim, *, confirmed: bool = True) -> Reaped:
    """Reaps the job, as if its worker had died after (or before, if not ``confirmed``) it confirmed the start."""
    if confirmed:
        await confirm(runtime, claimed)
    await expire_leases(runtime, claimed.id)
    return await runtime.queue.reap()


async def roll_back_log(runtime: Runtime, job_id: str, keep: int) -> None:
    """Cuts the log to its first ``keep`` events, as after a power loss."""
    events = await runtime.log.read(job_id, count=keep)
    await runtime._commands.call("DEL", redis_keys.log(job_id))
    for event in events:
        await runtime._commands.call("XADD", redis_keys.log(job_id), str(event.id), event.name, event.data)


async def start_earlier(runtime: Runtime, claimed: Claim, by_ms: int) -> int:
    """Moves the job's start into the past; returns the new start."""
    started_ms = claimed.started_ms - by_ms
    await runtime._commands.call("HSET", redis_keys.job(claimed.id), "started_ms", started_ms)
    return started_ms


async def make_due(runtime: Runtime, *job_ids: str) -> None:
    """Makes deferred jobs due now."""
    for job_id in job_ids:
        await runtime._commands.call("ZADD", redis_keys.plain("deferred"), "XX", 1, job_id)


async def make_overdue(runtime: Runtime, *job_ids: str) -> None:
    """Makes waiting jobs overdue, in the queue's score and in their records."""
    for job_id in job_ids:
        if await runtime._commands.call("ZSCORE", redis_keys.plain("waiting"), job_id) is None:
            continue
        has_started = await runtime._commands.call("HEXISTS", redis_keys.job(job_id), "started_ms")
        await runtime._commands.call("HSET", redis_keys.job(job_id), "started_ms" if has_started else "expires_ms", 1)
        await runtime._commands.call("ZADD", redis_keys.plain("waiting"), "XX", 1, job_id)


async def age_alive(runtime: Runtime, by_ms: int) -> None:
    """Moves the workers' last sign of life into the past."""
    seen_ms = int(await runtime._commands.call("GET", redis_keys.plain("alive")))
    await runtime._commands.call("SET", redis_keys.plain("alive"), seen_ms - by_ms, "EX", 3600)


async def job_of(runtime: Runtime, job_id: str, tenant: str = "tenant-a", *, with_result: bool = False) -> Job:
    """As its tenant sees it."""
    return await runtime.jobs.get(job_id, tenant, with_result=with_result)


async def serve_queue(runtime: Runtime, *, worker: str = "worker-1", draining: int = 0) -> None:
    """A worker lives, as far as Redis and this process know."""
    await runtime.workers.announce(worker, {"draining": draining})
    await look_anew(runtime)


async def look_anew(runtime: Runtime) -> None:
    """Looks at workers and routes now, although what the process knows of them is fresh."""
    runtime.waits._looked_s = 0.0
    await runtime.waits.look()


async def places(runtime: Runtime, job_ids: Sequence[str]) -> list[int | None]:
    """The place of each job in the queue, while a worker lives; None if it waits for more than its turn and others."""
    await serve_queue(runtime)
    waits = await runtime.waits.of([(job_id, "a-model") for job_id in job_ids])
    return [next((each.position for each in found or () if isinstance(each, Turn)), None) for found in waits]


async def state_of(runtime: Runtime, job_id: str) -> JobState:
    """The state in the record; unlike a read, this does not end an overdue job."""
    return JobState((await runtime._commands.call("HGET", redis_keys.job(job_id), "state")).decode())


async def record_of(runtime: Runtime, job_id: str) -> dict[bytes, bytes]:
    """Every field of a record, as stored."""
    flat = await runtime._commands.call("HGETALL", redis_keys.job(job_id))
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def names_in_log(runtime: Runtime, job_id: str) -> list[str]:
    """The names of a job's events, in order."""
    return [event.name for event in await runtime.log.read(job_id)]


async def ttl_ms(runtime: Runtime, key: str) -> int | None:
    """A key's TTL, or None if it has none. The key must exist."""
    left: int = await runtime._commands.call("PTTL", key)
    assert left != -2, f"{key} is not there"
    return None if left == -1 else left


async def now_ms(runtime: Runtime) -> int:
    """Redis's clock."""
    seconds, microseconds = await runtime._commands.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def all_keys(commands: Commands) -> list[str]:
    found: set[str] = set()
    cursor: Any = 0
    while True:
        cursor, names = await commands.call("SCAN", cursor, "COUNT", 1000)
        found.update(name.decode() for name in names)
        if int(cursor) == 0:
            return sorted(found)


def kind_of(key: str) -> str:
    """``ts:{0}:job:job_1`` → ``job``."""
    prefix = next((prefix for prefix in (redis_keys.SHARD, redis_keys.GLOBAL) if key.startswith(prefix)), None)
    assert prefix is not None, f"{key} is outside the shard, and not global"
    kind = key.removeprefix(prefix).partition(":")[0]
    assert prefix == redis_keys.prefix_of(kind), f"{key} has another kind's prefix"
    return kind


async def keys_that_leak(commands: Commands) -> list[str]:
    """The keys without a TTL that redis_keys.py does not allow, each with the reason."""
    leaks = []
    names = await all_keys(commands)
    lifetimes = [commands.call("PTTL", name) for name in names]
    for name, lifetime in zip(names, lifetimes, strict=True):
        kind = kind_of(name)
        if kind not in _ALL_KEYS:
            leaks.append(f"{name}: no key of ours")
        elif await lifetime == -1:
            _, meaning = _ALL_KEYS[kind]
            if "No TTL until" in meaning or "no TTL until" in meaning:
                if await _has_ended(commands, name):
                    leaks.append(f"{name}: what it belongs to has ended")
            elif "No TTL:" not in meaning and "Gone when empty" not in meaning:
                leaks.append(f"{name}: it is to have a TTL")
    return leaks


async def _has_ended(commands: Commands, name: str) -> bool:
    owner = name.rpartition(":")[2]
    if kind_of(name) == "delivery":
        return bool(await commands.call("HGET", name, "state") != DeliveryState.PENDING.encode())
    if kind_of(name) == "idempotency":
        owner = (await commands.call("HGET", name, "job")).decode()
    if owner.startswith("batch_"):
        return await _batch_has_ended(commands, owner)
    if owner.startswith("op_"):
        return bool(
            await commands.call("HGET", redis_keys.operation(owner), "state") != OperationState.RUNNING.encode()
        )
    state, batch_id = await commands.call("HMGET", redis_keys.job(owner), "state", "batch")
    if state is None and batch_id is not None:  # received, but its batch has not started
        return await _batch_has_ended(commands, batch_id.decode())
    return state is None or state.decode() in TERMINAL_STATES


async def _batch_has_ended(commands: Commands, batch_id: str) -> bool:
    state = await commands.call("HGET", redis_keys.batch(batch_id), "state")
    return state is None or state.decode() == BatchState.ENDED


class Heard:
    """The messages of one channel, in order."""

    def __init__(self, runtime: Runtime, channel: str) -> None:
        self.messages: list[bytes] = []
        self._runtime = runtime
        self._channel = channel

    async def all(self) -> list[bytes]:
        """Everything published so far: publishes a marker and waits for it."""
        mark = f"mark {next(_marks)}".encode()
        await self._runtime._commands.call("PUBLISH", self._channel, mark)
        await wait_until(lambda: mark in self.messages, f"the mark on {self._channel}")
        return [message for message in self.messages if not message.startswith(b"mark ")]

    async def events(self) -> list[Event]:
        """The same as ``all``, decoded."""
        return [event for message in await self.all() for event in decode_published(message)]


@contextlib.asynccontextmanager
async def listening(runtime: Runtime, channel: str) -> AsyncIterator[Heard]:
    """Subscribes to one channel."""
    heard = Heard(runtime, channel)
    async with runtime.subscriber(
        on_message=lambda _, message: heard.messages.append(message), on_confirmed=lambda _: None
    ) as subscriber:
        subscriber.subscribe(channel)
        await wait_until(lambda: subscriber.stands(channel), f"the subscription to {channel}")
        yield heard


async def members(runtime: Runtime, key: str) -> list[str]:
    """The members of a zset, lowest score first."""
    return [member.decode() for member in await runtime._commands.call("ZRANGE", key, 0, -1)]


async def assert_consistent(runtime: Runtime, job_ids: Iterable[str] = ()) -> None:
    """Checks for every job that the bookkeeping matches the records, as ``leave`` and ``put_back`` promise.

    Items of batches need not be named: their batches name them.
    """
    # All in a few round trips, for tests that check after every step.
    commands = runtime._commands
    names = await all_keys(commands)
    batches = await asyncio.gather(*(_books_of(runtime, name) for name in names if kind_of(name) == "batch"))
    ids = list(dict.fromkeys([*job_ids, *(job_id for books in batches for job_id in books.items if job_id)]))
    tenant_names = [name for name in names if kind_of(name) == "tenant_running"]
    flow_names = [name for name in names if kind_of(name) == "flow"]
    parked_names = [name for name in names if kind_of(name) == "parked_flows"]
    attended_names = [name for name in names if kind_of(name) == "attended"]
    waiting_list, deferred_list, running_list, due, parked_owners, *flows_listed = await asyncio.gather(
        *(members(runtime, redis_keys.plain(kind)) for kind in ("waiting", "deferred", "running", "due", "parked")),
        *(members(runtime, name) for name in (*(f"{redis_keys.SHARD}ready:{band}" for band in BANDS), *parked_names)),
    )
    found, waiting_in, running_of, attended_by = await asyncio.gather(
        asyncio.gather(
            *(
                commands.call("HMGET", redis_keys.job(job_id), "state", "tenant", "flow", "attended_by", "key", "held")
                for job_id in ids
            )
        ),
        asyncio.gather(*(members(runtime, name) for name in flow_names)),
        asyncio.gather(*(commands.call("SMEMBERS", name) for name in tenant_names)),
        asyncio.gather(*(commands.call("SMEMBERS", name) for name in attended_names)),
    )
    records: dict[str, list[Any]] = dict(zip(ids, found, strict=True))
    states = {job_id: JobState(record[0].decode()) for job_id, record in records.items() if record[0]}
    waiting, deferred, running = set(waiting_list), set(deferred_list), set(running_list)

    assert waiting == {job_id for job_id, state in states.items() if state is JobState.QUEUED}
    assert running == {job_id for job_id, state in states.items() if state is JobState.RUNNING}
    assert deferred <= waiting

    in_flows: dict[str, str] = {}
    for name, waiting_here in zip(flow_names, waiting_in, strict=True):
        for job_id in waiting_here:
            assert job_id not in in_flows, f"{job_id} is in two flows"
            in_flows[job_id] = name.removeprefix(redis_keys.flow(""))
    assert set(in_flows) == waiting - deferred
    for job_id, flow in in_flows.items():
        assert records[job_id][2].decode() == flow
    assert sorted(flow for listed in flows_listed for flow in listed) == sorted(set(in_flows.values()))
    prefix = redis_keys.plain("parked") + "_flows:"
    assert {name.removeprefix(prefix).rpartition(":")[0] for name in parked_names} <= set(parked_owners)

    by_tenant: dict[str, set[str]] = {}
    for job_id in running:
        by_tenant.setdefault(records[job_id][1].decode(), set()).add(job_id)
    assert by_tenant == _sets(tenant_names, running_of)
    await _assert_use_is_counted(runtime, records, running, waiting, batches, names)

    by_attendant: dict[str, set[str]] = {}
    for job_id in waiting | running:
        if name := records[job_id][3]:
            by_attendant.setdefault(name.decode(), set()).add(job_id)
    assert by_attendant == _sets(attended_names, attended_by)

    for books in batches:
        _assert_counted(books, states, is_due=books.id in due)


async def _assert_use_is_counted(
    runtime: Runtime,
    records: dict[str, list[Any]],
    running: set[str],
    waiting: set[str],
    batches: Sequence["_Books"],
    names: Sequence[str],
) -> None:
    """Checks what limits count: jobs that wait (or will, in a started batch), and running jobs of keys with a cap."""
    queued: Counter[str] = Counter()

    def count(tenant: str, key_id: str | None, jobs: int = 1) -> None:
        queued[f"tenant:{tenant}"] += jobs
        if key_id:
            queued[f"key:{key_id}"] += jobs

    for job_id in waiting:
        _, tenant, _, _, key_id, _ = records[job_id]
        count(tenant.decode(), key_id.decode() if key_id else None)
    for books in batches:
        if books.record["state"] in (BatchState.RUNNING, BatchState.CANCELLING):
            unstarted = sum(bool(job_id) for job_id in books.items[int(books.record.get("started_to", 0)) :])
            count(books.record["tenant"], books.record.get("key"), unstarted)
    stored = await runtime._commands.call("HGETALL", redis_keys.plain("queued_jobs"))
    found = dict(zip([owner.decode() for owner in stored[::2]], map(int, stored[1::2]), strict=True))
    assert found == +queued

    budgets: Counter[str] = Counter()
    for job_id, (_, tenant, flow, _, _, nano) in records.items():
        if nano:
            assert job_id in running
            budgets[f"tenant:{tenant.decode()}"] += int(nano)
            key_id, user = _key_and_user_of(flow)
            if key_id:
                budgets[f"key:{key_id}"] += int(nano)
            if user:
                budgets[f"user:{user}"] += int(nano)
    stored = await runtime._commands.call("HGETALL", redis_keys.plain("held_budgets"))
    assert dict(zip([owner.decode() for owner in stored[::2]], map(int, stored[1::2]), strict=True)) == budgets

    await _assert_bytes_are_counted(runtime, names)

    for at, kind in enumerate(("key_running", "user_running")):
        by_owner: dict[str, set[str]] = {}
        for job_id in running:
            if owner := _key_and_user_of(records[job_id][2])[at]:
                by_owner.setdefault(owner, set()).add(job_id)
        own_names = [name for name in names if kind_of(name) == kind]
        running_of = await asyncio.gather(*(runtime._commands.call("SMEMBERS", name) for name in own_names))
        assert by_owner == _sets(own_names, running_of)


def _key_and_user_of(flow: bytes) -> tuple[str, str]:
    """In a flow's name: the key, if it has a cap, and the end user as ``<tenant>/<hash>``; empty for none."""
    _, tenant, owners, _ = flow.decode().split(":", 3)
    key_id, _, user = owners.partition("/")
    return key_id, f"{tenant}/{user}" if user else ""


async def _assert_bytes_are_counted(runtime: Runtime, names: Sequence[str]) -> None:
    """Checks that a tenant's bytes are the sum over its records; a job that succeeded no longer has its request."""
    call = runtime._commands.call
    jobs = [name for name in names if kind_of(name) == "job"]
    records = await asyncio.gather(
        *(call("HMGET", name, "tenant", "batch", "state", "bytes", "kept_until", "request", "spec") for name in jobs)
    )
    held: Counter[str] = Counter()
    kept: Counter[tuple[str, str]] = Counter()
    for tenant, batch_id, state, size, kept_until, request, spec in records:
        if state == JobState.SUCCEEDED.encode():
            assert (size, kept_until, request) == (None, None, None)
            continue
        owner = (tenant or await call("HGET", redis_keys.batch(batch_id.decode()), "tenant")).decode()
        held[owner] += int(size)
        if kept_until:
            kept[owner, kept_until.decode()] += int(size)
        has_ended = state is not None and JobState(state.decode()) in TERMINAL_STATES
        assert has_ended is bool(kept_until)
        assert int(size) == len(request) + len(spec) if batch_id is None else int(size) > len(request)
    assert await _numbers(runtime, redis_keys.plain("held_bytes")) == held
    buckets = [name for name in names if kind_of(name) == "kept_bytes"]
    found = {
        (name.rpartition(":")[2], until): size
        for name in buckets
        for until, size in (await _numbers(runtime, name)).items()
    }
    assert found == kept
    due = await members(runtime, redis_keys.plain("kept_due"))
    assert {owner for owner, _ in kept} <= set(due)


async def _numbers(runtime: Runtime, name: str) -> dict[str, int]:
    flat = await runtime._commands.call("HGETALL", name)
    return {field.decode(): int(number) for field, number in zip(flat[::2], flat[1::2], strict=True)}


def _sets(names: Iterable[str], found: Iterable[Any]) -> dict[str, set[str]]:
    return {
        name.rpartition(":")[2]: {member.decode() for member in each} for name, each in zip(names, found, strict=True)
    }


class _Books(NamedTuple):
    """All stored data of a batch."""

    id: str
    record: dict[str, str]
    items: list[str]
    invalid: set[int]
    ended: list[int]
    turns: list[int]
    lifetimes: list[int]


async def _books_of(runtime: Runtime, name: str) -> _Books:
    call, batch_id = runtime._commands.call, name.rpartition(":")[2]
    parts = [redis_keys.batch_items(batch_id), redis_keys.batch_invalid(batch_id), redis_keys.batch_ended(batch_id)]
    record, items, invalid, ended, *lifetimes = await asyncio.gather(
        call("HGETALL", name),
        call("LRANGE", parts[0], 0, -1),
        call("HKEYS", parts[1]),
        call("ZRANGE", parts[2], 0, -1, "WITHSCORES"),
        *(call("PTTL", part) for part in (name, *parts)),
    )
    words = [word.decode() for word in record]
    return _Books(
        batch_id,
        dict(zip(words[::2], words[1::2], strict=True)),
        [job_id.decode() for job_id in items],
        {int(line) for line in invalid},
        [int(line) for line in ended[::2]],
        [int(float(turn)) for turn in ended[1::2]],
        [lifetime for lifetime in lifetimes if lifetime != -2],
    )


def _assert_counted(books: _Books, states: dict[str, JobState], *, is_due: bool) -> None:
    """Checks that a batch's counts match its items' records, that it ended if they did, and that open work is due."""
    record, state = books.record, BatchState(books.record["state"])
    if state is BatchState.DROPPED:
        assert is_due
        assert not any(states[job_id] not in TERMINAL_STATES for job_id in books.items if job_id in states)
        return
    counts = {name: int(record.get(name, 0)) for name in JobState}
    numbered = {line: job_id for line, job_id in enumerate(books.items, 1) if job_id}
    unstarted = {line for line, job_id in numbered.items() if job_id not in states}
    has_begun = state is not BatchState.RECEIVING
    if has_begun:  # a started item without a record was erased, so its line has ended
        unstarted = {line for line in unstarted if line > int(record.get("started_to", 0))}
    erased = len(numbered) - len(unstarted) - sum(job_id in states for job_id in numbered.values())
    expected = Counter(states[job_id] for job_id in numbered.values() if job_id in states)
    expected[JobState.QUEUED] += len(unstarted)
    expected[JobState.FAILED] += len(books.invalid)
    missing = {name: counts[name] - expected[name] for name in JobState}
    assert all(missing[name] >= 0 for name in JobState), (books.id, counts, expected)
    assert sum(missing[name] for name in TERMINAL_STATES) == sum(missing.values()) == erased, (counts, expected)
    assert int(record.get("total", 0)) == sum(counts.values()) == len(numbered) + len(books.invalid)
    live = counts[JobState.QUEUED] + counts[JobState.RUNNING]
    assert int(record.get("live", 0)) == live

    assert books.turns == list(range(len(books.ended)))
    assert len(set(books.ended)) == len(books.ended)
    has_ended = {line for line, job_id in numbered.items() if states.get(job_id) in TERMINAL_STATES}
    assert has_ended | books.invalid <= set(books.ended)
    assert len(books.ended) == sum(counts[name] for name in TERMINAL_STATES)
    assert not any(states.get(numbered.get(line, "")) in (JobState.QUEUED, JobState.RUNNING) for line in books.ended)

    if state is BatchState.ENDED:
        assert live == 0
        assert all(lifetime > 0 for lifetime in books.lifetimes)
    else:
        assert live > 0 or not has_begun
        assert all(lifetime == -1 for lifetime in books.lifetimes)
        is_at_work = not has_begun or bool(unstarted)
        if state is BatchState.CANCELLING:
            is_at_work = True
        assert is_due or not is_at_work
