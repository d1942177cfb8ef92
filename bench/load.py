"""The load client: streamed requests one after another, in closed loops, or all at once; submits; followers.

Raw sockets on one loop, so cheap that 200 clients at 50 tokens a second stay well under half a core.
Every load is bounded in time and count, and every answer is checked whole (`bench/stream.py`).
Driven by `bench/measure.py`, in whose process it runs.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.connection import Broken, Connection, Head, connect
from bench.stream import Answer, Dialect, StreamReader

REQUEST_TIMEOUT_S = 60
SUBMIT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Target:
    """Where streamed requests go, and in which words."""

    port: int
    render: Callable[[int], bytes]  # a whole HTTP request for an answer of that many tokens
    dialect: Dialect


async def stream_once(connection: Connection, target: Target, token_count: int) -> Answer:
    """One streamed request, followed to its end; never raises for what the server did."""
    answer = Answer(time.monotonic(), token_count)
    reader = StreamReader(target.dialect, answer)
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            head = await connection.send(target.render(token_count), reader.read)
        reader.close(head.status)
    except Broken as broken:
        answer.problem = str(broken)
    except TimeoutError:
        answer.problem = f"no end within {REQUEST_TIMEOUT_S} s"
        connection.close()
    answer.ended_s = time.monotonic()
    return answer


async def one_after_another(target: Target, count: int, token_count: int) -> list[Answer]:
    """Sequential requests of one client on a kept connection, with short random pauses.

    The pauses keep the client from falling into step with a timer of the system.
    """
    jitter = random.Random(count)
    connection = await connect(target.port)
    answers = []
    for _ in range(count):
        if not connection.is_open:
            connection = await connect(target.port)
        answers.append(await stream_once(connection, target, token_count))
        await asyncio.sleep(jitter.uniform(0.005, 0.035))
    connection.close()
    return answers


async def all_at_once(target: Target, clients: int, token_count: int) -> list[Answer]:
    """As many requests as clients, written in one turn of the loop on open connections."""
    connections = [await connect(target.port) for _ in range(clients)]
    answers = await asyncio.gather(*(stream_once(connection, target, token_count) for connection in connections))
    for connection in connections:
        connection.close()
    return answers


@asynccontextmanager
async def closed_loop(target: Target, clients: int, token_count: int, spread_s: float) -> AsyncIterator[list[Answer]]:
    """Clients that each send the next request when the last has ended; yields the growing answers.

    Starts are spread over `spread_s`, for a steady load and not a wave. On leaving, each client
    finishes the request that it has under way.
    """
    answers: list[Answer] = []
    stopping = asyncio.Event()

    async def client(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        connection = await connect(target.port)
        while not stopping.is_set():
            if not connection.is_open:
                connection = await connect(target.port)
            answers.append(await stream_once(connection, target, token_count))
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(spread_s * number / clients))
        try:
            yield answers
        finally:
            stopping.set()


@dataclass(slots=True)
class Submits:
    """What the submitting clients have been answered so far."""

    accepted_s: list[float] = field(default_factory=list)  # CLOCK_MONOTONIC, each accepted submit
    problems: list[str] = field(default_factory=list)


@asynccontextmanager
async def submitting(
    port: int, path: bytes, body: bytes, connections: int, expected_status: int, api_key: bytes = b""
) -> AsyncIterator[Submits]:
    """Closed loops of POSTs, each with an Idempotency-Key of its own; yields the growing count.

    No pipelining: a connection sends when the last answer is whole.
    """
    submits = Submits()
    stopping = False
    run = uuid.uuid4().hex

    async def client(number: int) -> None:
        connection = await connect(port)
        count = 0
        while not stopping:
            count += 1
            key = b"%b-%d-%d" % (run.encode(), number, count)
            try:
                async with asyncio.timeout(SUBMIT_TIMEOUT_S):
                    head = await connection.send(post(path, body, idempotency_key=key, api_key=api_key))
            except (Broken, TimeoutError) as error:
                submits.problems.append(repr(error))
                return
            if head.status != expected_status:
                submits.problems.append(f"HTTP {head.status}")
                return
            submits.accepted_s.append(time.monotonic())
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(client(number))
        try:
            yield submits
        finally:
            stopping = True


async def submit_many(port: int, path: bytes, body: bytes, count: int) -> list[bytes]:
    """Submit `count` jobs; the answers' Location paths. Raises Broken if one is not accepted."""
    locations: list[bytes] = []
    left = iter(range(count))

    async def client() -> None:
        connection = await connect(port)
        for _ in left:
            head = await asyncio.wait_for(connection.send(post(path, body)), SUBMIT_TIMEOUT_S)
            location = head.field(b"location")
            if head.status != 202 or location is None:
                raise Broken(f"a submit was answered {head.status}, Location {location!r}")
            locations.append(location)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(client())
    return locations


@asynccontextmanager
async def following(port: int, paths: Sequence[bytes]) -> AsyncIterator[None]:
    """Hold one event stream open for each path; entered once each has got its first bytes.

    Raises Broken if a stream is refused or ends while it is being held.
    """
    connections: list[Connection] = []
    ends: list[asyncio.Future[Head]] = []
    try:
        for start in range(0, len(paths), 100):
            await asyncio.gather(*(_follow(port, path, connections, ends) for path in paths[start : start + 100]))
        yield
        if broken := sum(end.done() for end in ends):
            raise Broken(f"{broken} of {len(paths)} followers did not stay")
    finally:
        for end in ends:
            end.cancel()
        for connection in connections:
            connection.close()


async def _follow(port: int, path: bytes, connections: list[Connection], ends: list[asyncio.Future[Head]]) -> None:
    connection = await connect(port)
    connections.append(connection)
    first_bytes = asyncio.Event()
    ends.append(connection.send(get(path), lambda _, __: first_bytes.set()))
    await asyncio.wait_for(first_bytes.wait(), SUBMIT_TIMEOUT_S)


def post(
    path: bytes, body: bytes, *, accept: bytes = b"*/*", idempotency_key: bytes = b"", api_key: bytes = b""
) -> bytes:
    key = b'idempotency-key: "%b"\r\n' % idempotency_key if idempotency_key else b""
    key += b"authorization: Bearer %b\r\n" % api_key if api_key else b""
    return (
        b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: %b\r\ncontent-type: application/json\r\n"
        b"%bcontent-length: %d\r\n\r\n%b" % (path, accept, key, len(body), body)
    )


def get(path: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n" % path
