"""The measurements: each puts a load on the systems in turn, and yields one value per round and system.

Rounds of the systems alternate and their order rotates, so that a slower hour of the machine affects all systems
equally. A measurement with failed requests raises Failed instead of yielding a number.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import uvloop

from bench import load, systems
from bench.machine import loop_ms
from bench.processes import (
    Usage,
    connections_to,
    on_cores,
    python,
    resident_bytes,
    usage,
)
from bench.stream import Answer
from bench.systems import System, Upstream
from cli.embedded_redis import EmbeddedRedis

CLIENTS = 200
TOKENS = 50
FIRST_TOKEN_TOKENS = 3  # few, to save time: only the first token is measured
SUBMIT_CONNECTIONS = 32
FAR_FUTURE = "2100-01-01T00:00:00Z"


class Failed(Exception):
    """Requests failed, so the row has no figure; the message counts the failures by kind."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured; with the default all rows take six minutes."""

    rounds: int = 3
    first_token_requests: int = 25
    window_s: float = 5.0
    submit_window_s: float = 3.0
    followers: int = 10_000
    batch_requests: int = 100_000


QUICK = Effort(
    rounds=1, first_token_requests=15, window_s=3.0, submit_window_s=2.0, followers=2_000, batch_requests=5_000
)


@dataclass(slots=True)
class Samples:
    """One value per round, by row and column, with what a reader needs to judge them."""

    values: defaultdict[str, defaultdict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    client_share: list[float] = field(default_factory=list)  # of a core, the load client, per window
    upstream_share: list[float] = field(default_factory=list)  # of a core, the stand-in
    strangers_share: list[float] = field(default_factory=list)  # of a core, other processes
    stolen_share: list[float] = field(default_factory=list)  # of a core, by the host of a virtual machine
    loop_ms: list[float] = field(default_factory=list)  # a million turns of a Python loop, before each window
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, object]:
        """All fields, ready for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def add(self, row: str, column: str, value: float) -> None:
        self.values[row][column].append(value)

    def median(self, row: str, column: str) -> float | None:
        values = self.values[row].get(column)
        return statistics.median(values) if values else None


def in_turn(columns: Sequence[System], rounds: int) -> Iterator[list[System]]:
    for number in range(rounds):
        turn = number % len(columns)
        yield [*columns[turn:], *columns[:turn]]


def percentile(values: Iterable[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def whole(answers: Sequence[Answer], column: str) -> Sequence[Answer]:
    problems = Counter(answer.problem for answer in answers if answer.problem)
    if problems or not answers:
        raise Failed(f"{column}: {problems.total()} of {len(answers)} requests: {dict(problems)}")
    return answers


def start(names: Sequence[str], upstream: Upstream, stack: ExitStack) -> list[System]:
    """The upstream alone and the named systems, running until the stack closes."""
    starters = {
        systems.IN_REQUEST: systems.in_request,
        systems.ARQ: systems.arq,
        systems.TOKENSPOOL: systems.tokenspool,
    }
    return [upstream.alone(), *(stack.enter_context(starters[name](upstream)) for name in names)]


async def warm_up(columns: Sequence[System]) -> None:
    """Checks before any measurement that each system sends whole answers, to one client and to many."""
    for column in columns:
        whole([*await load.one_after_another(column.target, 2, TOKENS)], column.name)
        whole(await load.all_at_once(column.target, CLIENTS // 4, 10), column.name)


async def first_token(columns: Sequence[System], effort: Effort, samples: Samples) -> None:
    for turn in in_turn(columns, effort.rounds):
        p50_ms = {}
        for column in turn:
            answers = await load.one_after_another(column.target, effort.first_token_requests, FIRST_TOKEN_TOKENS)
            p50_ms[column.name] = statistics.median(answer.first_token_ms for answer in whole(answers, column.name))
        alone = p50_ms[systems.ALONE]
        for name, value in p50_ms.items():
            samples.add("first-token", name, value - alone)


async def steady_load(columns: Sequence[System], upstream: Upstream, effort: Effort, samples: Samples) -> None:
    """CPU per request, requests per second and token delivery, all in the same windows."""
    for turn in in_turn(columns, effort.rounds):
        for column in turn:
            roles = {**column.roles, "upstream": [upstream.pid]}
            spread_s = 1.0
            samples.loop_ms.append(loop_ms())
            async with load.closed_loop(column.target, CLIENTS, TOKENS, spread_s) as answers:
                await asyncio.sleep(spread_s + 1.5)
                before = usage(roles)
                await asyncio.sleep(effort.window_s)
                after = usage(roles)
            whole(answers, column.name)
            _add_window(samples, column, before, after, answers)


def _add_window(samples: Samples, column: System, before: Usage, after: Usage, answers: Sequence[Answer]) -> None:
    window_s = after.at_s - before.at_s
    done = sum(before.at_s <= answer.ended_s < after.at_s for answer in answers)
    samples.add("requests", column.name, done / window_s)
    delays_ms = [
        (received_s - written_s) * 1000
        for answer in answers
        for written_s, received_s in zip(answer.written_s, answer.received_s, strict=True)
        if before.at_s <= received_s < after.at_s
    ]
    samples.add("delivery-p50", column.name, percentile(delays_ms, 50))
    samples.add("delivery-p99", column.name, percentile(delays_ms, 99))
    used_s = {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s}
    upstream_s = used_s.pop("upstream")
    client_s = after.client_cpu_s - before.client_cpu_s
    if used_s:
        samples.add("cpu", column.name, sum(used_s.values()) / done * 1000)
        for role, role_s in used_s.items():
            samples.add(f"cpu of {role}", column.name, role_s / done * 1000)
    machine_s = after.machine_busy_s - before.machine_busy_s
    strangers_s = machine_s - client_s - upstream_s - sum(used_s.values())
    samples.client_share.append(client_s / window_s)
    samples.upstream_share.append(upstream_s / window_s)
    samples.strangers_share.append(max(0.0, strangers_s / window_s))
    samples.stolen_share.append((after.stolen_s - before.stolen_s) / window_s)


async def burst(columns: Sequence[System], effort: Effort, samples: Samples) -> None:
    for turn in in_turn(columns, effort.rounds):
        for column in turn:
            answers: list[Answer] = []
            for _ in range(2):
                answers += await load.all_at_once(column.target, CLIENTS, TOKENS)
                await asyncio.sleep(0.3)
            samples.add(
                "burst",
                column.name,
                statistics.median(answer.first_token_ms for answer in whole(answers, column.name)),
            )


@dataclass(frozen=True, slots=True)
class SubmitServer:
    """An endpoint whose POSTs are counted, pinned to the one core of the row."""

    column: str
    port: int
    path: bytes
    expected_status: int
    roles: Mapping[str, Sequence[int]]
    row: str = "submits"
    api_key: bytes = b""


def submits(with_tokenspool: bool, effort: Effort, samples: Samples) -> None:
    """POST /v1/jobs without a worker, compared with an echo endpoint and with a plain arq enqueue loop.

    Every submit has an Idempotency-Key. One row has an API key, with every limit set on it and on its tenant; the other
    has neither.

    The server has one core to itself; the load client and Redis have the others. Otherwise the client would take CPU
    time from the server, and the rate would not be that of one core.
    """
    with ExitStack() as stack:
        server_core, other_cores = _one_core_and_the_others()
        servers = []
        with on_cores(server_core):
            port, pid = stack.enter_context(systems.uvicorn("bench.reference_app:create_app", {}))
        servers.append(SubmitServer("echo endpoint", port, b"/echo", 200, {"echo": [pid]}))
        with on_cores(other_cores):
            redis = stack.enter_context(EmbeddedRedis())
        if with_tokenspool:
            with on_cores(other_cores):
                api_key = systems.limited_key(redis.url)
            for row, auth, key in (("submits", "keys", api_key), ("submits-open", "off", b"")):
                with on_cores(server_core):
                    port, pid = stack.enter_context(systems.tokenspool_api(redis.url, auth=auth))
                roles = {"api": [pid], "redis": [redis.pid]}
                servers.append(SubmitServer(systems.TOKENSPOOL, port, systems.JOBS_PATH, 202, roles, row, key))
        for _ in range(effort.rounds):
            for server in servers:
                with on_cores(other_cores):
                    uvloop.run(_submit_round(server, effort.submit_window_s, samples))
            with on_cores(server_core):
                rate = _arq_enqueue_rate(redis.url, effort.submit_window_s)
            samples.add("submits", "arq enqueue loop", rate)
        samples.notes += _limits(servers, samples)


def _limits(servers: Sequence[SubmitServer], samples: Samples) -> list[str]:
    """How busy each process was, which shows what limited the rate."""
    lines = []
    for server in servers:
        busy = [f"{role} {samples.median(f'{server.row} share of {role}', server.column):.0%}" for role in server.roles]
        client = f"load client {samples.median(f'{server.row} share of the client', server.column):.0%}"
        keys = ", without keys and limits" if server.row == "submits-open" else ""
        lines.append(
            f"busy during the submits to {server.column}{keys}, each of one core: {', '.join([*busy, client])}"
        )
    return lines


async def _submit_round(server: SubmitServer, window_s: float, samples: Samples) -> None:
    submitting = load.submitting(
        server.port,
        server.path,
        systems.submit_body(),
        SUBMIT_CONNECTIONS,
        server.expected_status,
        server.api_key,
    )
    async with submitting as submits:
        await asyncio.sleep(1.0)
        before = usage(server.roles)
        await asyncio.sleep(window_s)
        after = usage(server.roles)
    if submits.problems:
        raise Failed(f"{server.column}: submits refused: {dict(Counter(submits.problems))}")
    elapsed_s = after.at_s - before.at_s
    done = sum(before.at_s <= accepted_s < after.at_s for accepted_s in submits.accepted_s)
    samples.add(server.row, server.column, done / elapsed_s)
    client_share = (after.client_cpu_s - before.client_cpu_s) / elapsed_s
    samples.add(f"{server.row} share of the client", server.column, client_share)
    for role in server.roles:
        share = (after.cpu_s[role] - before.cpu_s[role]) / elapsed_s
        samples.add(f"{server.row} share of {role}", server.column, share)


def _arq_enqueue_rate(redis_url: str, seconds: float) -> float:
    command = python("-m", "bench.arq_enqueue", "--redis-url", redis_url, "--seconds", str(seconds))
    done = subprocess.run(command, capture_output=True, check=True, timeout=seconds + 30, text=True)
    return float(done.stdout)


def _one_core_and_the_others() -> tuple[set[int], set[int]]:
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


def followers(with_tokenspool: bool, effort: Effort, samples: Samples) -> None:
    """Memory of an API process per idle follower, each of its own job, which is due far in the future.

    There are as many followers as `effort` asks for, or as the limit of open files allows.

    Another API process takes the submits: memory that they had freed would otherwise be reused for followers, and not
    be counted.
    """
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(effort.followers, open_files - 500)
    if count < effort.followers:
        samples.notes.append(f"{count:,} followers, not {effort.followers:,}: RLIMIT_NOFILE is {open_files:,}")
    with systems.uvicorn("bench.reference_app:create_app", {}) as (port, pid):
        paths = [b"/idle/%d" % number for number in range(count)]
        uvloop.run(_hold(port, [pid], paths, "sse-starlette alone", None, samples))
    if not with_tokenspool:
        return
    with EmbeddedRedis() as redis:
        body = systems.submit_body(not_before=FAR_FUTURE)
        with systems.tokenspool_api(redis.url) as (port, _):
            submitting = load.submit_many(port, systems.JOBS_PATH, body, count)
            locations = uvloop.run(submitting)
        with systems.tokenspool_api(redis.url) as (port, pid):
            paths = [location + b"/events" for location in locations]
            uvloop.run(_hold(port, [pid], paths, systems.TOKENSPOOL, redis.port, samples))


async def _hold(
    port: int,
    pids: Sequence[int],
    paths: Sequence[bytes],
    column: str,
    redis_port: int | None,
    samples: Samples,
) -> None:
    # The first follower makes the process load code; that is not memory of a follower.
    async with load.following(port, paths[:10]):
        await asyncio.sleep(1.0)
    await asyncio.sleep(1.0)
    before_bytes = resident_bytes(pids)
    async with load.following(port, paths):
        await asyncio.sleep(3.0)
        held_bytes = resident_bytes(pids) - before_bytes
        samples.add("memory", column, held_bytes / len(paths) / 1024)
        if redis_port is not None:
            samples.add("connections", column, connections_to(pids, redis_port))
