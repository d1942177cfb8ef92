"""The load client: streamed requests one after another, in closed loops, or all at once; submits; followers.

It uses raw sockets on one loop, so that 200 clients at 50 tokens a second need well under half a core. Every load is
bounded in time and count, and every answer is checked for completeness (`bench/stream.py`). It runs in the process of
`bench/measure.py`.
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
    """Where streamed requests go, and in which format."""

    port: int
    render: Callable[[int], bytes]  # from a number of tokens to the HTTP request for such an answer
    dialect: Dialect


async def stream_once(connection: Connection, target: Target, token_count: int) -> Answer:
    """Sends one streamed request and reads its stream to the end; server errors are in `Answer.problem`."""
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
    """Requests of one client, one after the other on one connection, with short random pauses.

    Without the pauses, the client could fall into step with one of the system's timers.
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
    """One request for each client, all written in one turn of the event loop on open connections."""
    connections = [await connect(target.port) for _ in range(clients)]
    answers = await asyncio.gather(*(stream_once(connection, target, token_count) for connection in connections))
    for connection in connections:
        connection.close()
    return answers


@asynccontextmanager
async def closed_loop(target: Target, clients: int, token_count: int, spread_s: float) -> AsyncIterator[list[Answer]]:
    """Clients that each send the next request when the last one has ended; yields the list that their answers go to.

    The clients' starts are spread over `spread_s`, so that the load is steady. On exit, each client finishes its
    request.
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
    """The responses that the submitting clients got so far."""

    accepted_s: list[float] = field(default_factory=list)  # CLOCK_MONOTONIC, each accepted submit
    problems: list[str] = field(default_factory=list)


@asynccontextmanager
async def submitting(
    port: int, path: bytes, body: bytes, connections: int, expected_status: int, api_key: bytes = b""
) -> AsyncIterator[Submits]:
    """Closed loops of POSTs, each with its own Idempotency-Key; yields the counts, which grow.

    No pipelining: a connection sends its next request after it has read the last response.
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
    """Submits `count` jobs; returns the Location of each. Raises Broken if one is not accepted."""
    locations: list[bytes] = []
    left = iter(range(count))

    async def client() -> None:
        connection = await connect(port)
        for _ in left:
            head = await asyncio.wait_for(connection.send(post(path, body)), SUBMIT_TIMEOUT_S)
            location = head.field(b"location")
            if head.status != 202 or location is None:
                raise Broken(f"a submit got {head.status}, Location {location!r}")
            locations.append(location)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(client())
    return locations


@asynccontextmanager
async def following(port: int, paths: Sequence[bytes]) -> AsyncIterator[None]:
    """Holds one event stream open for each path; the block starts after each has its first bytes.

    Raises Broken if a stream is refused, or ends during the block.
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
