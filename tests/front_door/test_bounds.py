"""No client can hold a connection longer than its deadline, or take the connections that others need."""

import asyncio
import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.edge.connections import MOST_HEADERS, BoundedConnection, Bounds, bounds_of
from cli.probe import http_status
from tests.front_door.conftest import A_HEAD, NO_REDIS, connected, hear, port_of, say
from tests.support.served import Served, serving
from tests.support.wait import wait_until

_SHORT = Bounds(connections=1000, spare=8, keep_alive_s=0.3, head_s=0.3, linger_s=0.3, stalled_s=0.3)
_PATIENT = Bounds(connections=1000, spare=8, keep_alive_s=600, head_s=600, linger_s=600, stalled_s=600)


async def test_a_head_of_64_kib_or_100_headers_is_the_most(door: Served) -> None:
    """Sent in one piece, in many, and without end."""
    assert (await say(door, A_HEAD[:-2] + b"X: %b\r\n\r\n" % (b"x" * 60_000))).statuses == [200]
    heard = await say(door, A_HEAD[:-2] + b"X: %b\r\n\r\n" % (b"x" * 66_000))
    assert (heard.statuses, heard.closed) == ([431], True)
    assert b'"code":"head_too_large"' in heard.raw
    assert (await say(door, b"GET /%b HTTP/1.1\r\n" % (b"x" * 66_000))).statuses == [431]
    async with connected(door) as (reader, writer):
        writer.write(A_HEAD[:-2] + b"X: ")
        for _ in range(70):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0)
        assert (await hear(reader)).statuses == [431]
    most = MOST_HEADERS - 1
    assert (await say(door, A_HEAD[:-2] + b"X: a\r\n" * most + b"\r\n")).statuses == [200]
    assert (await say(door, A_HEAD[:-2] + b"X: a\r\n" * (most + 1) + b"\r\n")).statuses == [431]


_CHUNKED = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "a trailer": (b"0\r\nX: ", b"a" * 1000),
    "trailers": (b"0\r\n", b"X: a\r\n" * 100),
    "a chunk's extension": (b"1;", b"a" * 1000),
    "extensions of chunks": (b"", (b"1;%b\r\na\r\n" % (b"a" * 100)) * 10),
}


@pytest.mark.parametrize(("begin", "piece"), ENDLESS.values(), ids=ENDLESS.keys())
async def test_chunk_extensions_and_trailers_have_64_kib_at_most(door: Served, begin: bytes, piece: bytes) -> None:
    """The parser keeps a trailer in memory until it ends. A large body before it does not raise the bound."""
    async with connected(door) as (reader, writer):
        writer.write(_CHUNKED + b"10000\r\n%b\r\n" % (b"a" * 65_536))
        await wait_until(lambda: len(door.server.server_state.tasks) == 1, "the request")
        writer.write(begin)
        for _ in range(200):
            writer.write(piece)
            await asyncio.sleep(0)
        heard = await hear(reader)
    assert (heard.statuses, heard.closed) == ([431], True)


async def test_an_endless_trailer_cuts_a_response_that_has_begun(door: Served) -> None:
    """An error could no longer be sent."""

    async def begin(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    door.server.config.loaded_app = begin
    async with connected(door) as (reader, writer):
        writer.write(_CHUNKED)
        assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200 ")
        writer.write(b"0\r\nX: ")
        for _ in range(200):
            writer.write(b"a" * 1000)
            await asyncio.sleep(0)
        assert (await hear(reader)).closed
    await wait_until(lambda: not door.server.server_state.tasks, "the end of the request")


async def test_a_body_in_chunks_of_one_byte_is_accepted(door: Served) -> None:
    """However the sizes are written; the same connection then takes another one."""
    body = b'{"prompt":"%b"' % (b"a" * 20_000)  # not JSON: it is read to its end and then refused
    chunks = b"".join([b"00000001\r\n%c\r\n" % byte for byte in body])
    async with connected(door) as (reader, writer):
        for _ in range(2):
            writer.write(_CHUNKED)
            for place in range(0, len(chunks), 1000):
                writer.write(chunks[place : place + 1000])
                await asyncio.sleep(0)
            writer.write(b"0\r\nX: a\r\n\r\n")
            assert (await hear(reader, patience_s=0.5)).statuses == [400]


async def test_silent_connections_are_closed() -> None:
    """At the beginning or after a response; empty lines count as silence."""
    async with serving(NO_REDIS, bounds=_SHORT) as door:
        async with connected(door) as (reader, _):
            assert await hear(reader) == (b"", True)
        async with connected(door) as (reader, writer):
            writer.write(b"\r\n\r\n")
            assert await hear(reader) == (b"", True)
        async with connected(door) as (reader, writer):
            writer.write(A_HEAD)
            heard = await hear(reader)
            assert (heard.statuses, heard.closed) == ([200], True)
        await wait_until(lambda: door.connections.count == 0, "their going")


async def test_deadlines_outlive_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours while one connection is closed does not keep the next ones from being closed in time."""
    errors: list[str] = []

    def end_wrongly(_: BoundedConnection) -> None:
        errors.append("a bug")
        raise ValueError("a bug")

    async with serving(NO_REDIS, bounds=_SHORT) as door:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        monkeypatch.setattr(door.connections.silent, "act", end_wrongly)
        async with connected(door):
            await wait_until(lambda: bool(errors), "the error")
        monkeypatch.undo()
        async with connected(door) as (reader, _):
            assert await hear(reader) == (b"", True)


async def test_a_log_that_cannot_be_written_harms_nobody(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: a refused client still gets its response, and the next request is served."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(door.connections, "_log", SimpleNamespace(warning=fail))
    assert (await say(door, b"rubbish\r\n\r\n")).statuses == [400]
    assert (await say(door, A_HEAD)).statuses == [200]


async def test_a_connection_that_cannot_even_begin_is_not_counted(
    door: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither up nor down; otherwise the bound of connections would be wrong from then on."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    begin = HttpToolsProtocol.connection_made

    def fail(self: HttpToolsProtocol, transport: Any) -> None:
        begin(self, transport)
        raise ValueError("a bug")

    monkeypatch.setattr(HttpToolsProtocol, "connection_made", fail)
    connections = door.server.server_state.connections
    async with connected(door):
        await wait_until(lambda: bool(connections), "the connection")
    await wait_until(lambda: not connections, "its end")
    assert door.connections.count == 0


async def test_a_head_that_drips_is_cut_with_408() -> None:
    """However regularly bytes come: the deadline counts from the first."""
    async with serving(NO_REDIS, bounds=_SHORT) as door, connected(door) as (reader, writer):

        async def drip() -> None:
            writer.write(A_HEAD[:-2])
            while not writer.transport.is_closing():
                writer.write(b"X: a\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        heard = await hear(reader)
        dripping.cancel()
        assert (heard.statuses, heard.closed) == ([408], True)
        assert b'"code":"request_timeout"' in heard.raw


async def test_a_client_that_does_not_read_its_response_is_cut() -> None:
    """A response larger than any buffer: the OpenAPI document, many times over."""
    async with (
        serving(NO_REDIS, bounds=replace(_PATIENT, stalled_s=0.3)) as door,
        connected(door, receive_buffer=4096) as (_, writer),
    ):
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
        while not door.connections.refused["did_not_read"]:
            if not writer.transport.is_closing():
                writer.write(ask)
            await asyncio.sleep(0.01)
        await wait_until(lambda: door.connections.count == 0, "its going")


async def test_a_client_that_reads_slowly_is_not_cut() -> None:
    """Also if its connection closes after the response."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with serving(NO_REDIS, bounds=replace(_SHORT, stalled_s=0.5)) as door:
        size = len((await say(door, ask)).raw)
        async with connected(door, receive_buffer=4096) as (reader, writer):
            writer.write(ask)
            read = 0
            while piece := await reader.read(8192):
                read += len(piece)
                await asyncio.sleep(0.01)
        assert read == size
        assert not door.connections.refused["did_not_read"]


async def test_above_the_bound_503_but_not_for_health_probes() -> None:
    """While all connections have a request in progress; when one of them closes, there is room again."""
    wait = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    async with serving(NO_REDIS, bounds=replace(_PATIENT, connections=2)) as door:
        async with connected(door) as (_, first), connected(door) as (_, second):
            first.write(wait)
            second.write(wait)
            await wait_until(lambda: len(door.server.server_state.tasks) == 2, "both requests")
            heard = await say(door, b"GET /v1/jobs HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (heard.statuses, heard.closed) == ([503], True)
            assert b"\r\nretry-after: 5\r\n" in heard.raw
            assert b'"code":"too_many_connections"' in heard.raw
            heard = await say(door, A_HEAD)
            assert (heard.statuses, heard.closed) == ([200], True)
        await wait_until(lambda: door.connections.count == 0, "their going")
        assert (await say(door, A_HEAD)).statuses == [200]


async def test_an_idle_connection_makes_room_for_a_new_one() -> None:
    """An attacker that only holds connections locks nobody out: the one that is idle longest is closed."""
    async with serving(NO_REDIS, bounds=replace(_PATIENT, connections=4)) as door:
        held = [await asyncio.open_connection("127.0.0.1", port_of(door)) for _ in range(4)]
        held[3][1].write(b"GET / HTTP/1.1\r\nX: ")
        await wait_until(lambda: door.connections.count == 4, "all of them")
        came = [await asyncio.open_connection("127.0.0.1", port_of(door)) for _ in range(4)]
        for reader, writer in came:
            writer.write(A_HEAD)
            assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200 ")
        for reader, _ in held:
            assert (await hear(reader)).closed
        assert door.connections.refused["made_room"] == 4
        for _, writer in (*held, *came):
            writer.transport.abort()


async def test_a_client_that_stays_after_its_response_makes_room() -> None:
    """It may still read for a while, but does not take another's place."""
    async with serving(NO_REDIS, bounds=replace(_PATIENT, connections=4)) as door:
        held = [await asyncio.open_connection("127.0.0.1", port_of(door)) for _ in range(4)]
        for reader, writer in held:
            writer.write(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
            assert (await hear(reader)).statuses == [404]
        assert (door.connections.count, len(door.connections.leaving)) == (4, 4)
        for _ in range(4):
            assert (await say(door, b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")).statuses == [404]
        for _, writer in held:
            writer.transport.abort()


async def test_a_refused_connection_that_stays_is_not_counted_down() -> None:
    """Its close does not lower the number of served connections."""
    wait = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    ask = b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving(NO_REDIS, bounds=replace(_PATIENT, connections=1)) as door, connected(door) as (_, answered):
        answered.write(wait)
        await wait_until(lambda: len(door.server.server_state.tasks) == 1, "the request")
        async with connected(door) as (reader, dismissed):
            dismissed.write(ask)
            assert (await hear(reader)).statuses == [503]
            assert (await say(door, ask)).statuses == [503]


def test_the_bound_follows_the_limit_of_open_files() -> None:
    """Unless the setting is lower; never above the number of files."""
    assert bounds_of(0, 75, 20_000) == Bounds(20_000 - 64 - 256, 256, 75)
    assert bounds_of(0, 75, 256) == Bounds(168, 24, 75)
    assert bounds_of(100, 75, 20_000).connections == 100
    assert bounds_of(100_000, 75, 1024).connections == 1024 - 64 - 120
    assert bounds_of(0, 75, 16).connections > 0


@contextmanager
def _api_with_few_files() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        env={**os.environ, "TOKENSPOOL_AUTH": "off", "TOKENSPOOL_REDIS_URL": NO_REDIS},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),  # noqa: PLW1509 - one thread
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
async def test_a_flood_beyond_the_open_files_is_shed_and_outlived() -> None:
    """With `ulimit -n 128` and a thousand held connections, requests are served, and all recovers afterwards."""
    with _api_with_few_files() as process:
        assert process.stderr is not None
        port = int(re.findall(rb'"port": (\d+)', process.stderr.readline())[0])
        await wait_until(lambda: http_status("127.0.0.1", port, "/health/live") == 200, "the API")
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
        for _ in range(5):
            assert http_status("127.0.0.1", port, "/health/live") == 200
        for _, writer in held:
            writer.transport.abort()
        assert http_status("127.0.0.1", port, "/health/live") == 200
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"Traceback" not in log
    assert log.count(b"connections_refused") == 1
