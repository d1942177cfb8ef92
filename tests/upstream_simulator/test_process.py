"""The simulator in its own process, and its HTTP on the wire."""

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anthropic
import httpx2
import pytest

from simulator.app import Simulator
from simulator.record import Call
from tests.upstream_simulator.asking import Asking

BODY = json.dumps(
    {"model": "sim-t2-g0-f0", "max_tokens": 9, "messages": [{"role": "user", "content": "nonce=raw"}]}
).encode()


def _request(body: bytes = BODY, *headers: str, path: str = "/v1/messages") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "x-api-key: k",
        "anthropic-version: 2026-10-21",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "simulator", "--port", "0", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        announced = re.fullmatch(r"simulator listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert announced is not None, (await process.communicate())[1].decode()
        yield process, announced[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_at_once_with_open_streams_and_exit_code_0(number: signal.Signals) -> None:
    async with (
        _process() as (process, url),
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
    ):
        stream = await client.messages.create(
            model="sim-t5-g0-f0", max_tokens=9, messages=[{"role": "user", "content": "stall=1"}], stream=True
        )
        await anext(aiter(stream))
        process.send_signal(number)
        async with asyncio.timeout(2):
            assert await process.wait() == 0
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        with pytest.raises(httpx2.TransportError):
            async with stream:
                [event async for event in stream]


async def test_it_can_be_started_with_words_for_all_calls() -> None:
    async with (
        _process("--words", "fail=529,retry-after=7") as (_, url),
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.OverloadedError) as failed:
            await Asking(client).streamed("hello")
        assert failed.value.response.headers["retry-after"] == "7"


async def test_it_prints_its_grammar() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulator", "--grammar"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert b"nonce=a7" in output


@asynccontextmanager
async def _wire(simulator: Simulator) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = simulator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


async def test_a_connection_serves_many_requests(simulator: Simulator) -> None:
    async with _wire(simulator) as (reader, writer):
        for number in range(1, 4):
            writer.write(_request())
            status, body = await _response(reader)
            assert status == 200
            assert json.loads(body)["content"][0]["text"] == f"raw.{number}.0 raw.{number}.1 "


async def test_requests_sent_ahead_are_answered_in_order(simulator: Simulator) -> None:
    async with _wire(simulator) as (reader, writer):
        writer.write(_request() * 3)
        for number in range(1, 4):
            _, body = await _response(reader)
            assert f"raw.{number}.0" in body.decode()


async def test_a_request_may_come_in_single_bytes(simulator: Simulator) -> None:
    async with _wire(simulator) as (reader, writer):
        peer: socket.socket = writer.get_extra_info("socket")
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in _request():
            writer.write(bytes((byte,)))
            await writer.drain()
        assert (await _response(reader))[0] == 200


async def test_a_request_may_be_chunked(simulator: Simulator) -> None:
    async with _wire(simulator) as (reader, writer):
        head = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\n"
        head += b"transfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert (await _response(reader))[0] == 200


async def test_a_client_that_wants_the_connection_closed_gets_it_closed(simulator: Simulator) -> None:
    async with _wire(simulator) as (reader, writer):
        writer.write(_request(BODY, "connection: close"))
        assert (await _response(reader))[0] == 200
        assert await reader.read() == b""


async def test_a_client_that_waits_for_continue_is_told_to(simulator: Simulator) -> None:
    async with _wire(simulator) as (reader, writer):
        request = _request(BODY, "expect: 100-continue")
        writer.write(request[: -len(BODY)])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await _response(reader))[0] == 200


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"nonsense\r\n\r\n"]
)
async def test_what_is_not_http_is_refused_and_closed(simulator: Simulator, garbage: bytes) -> None:
    async with _wire(simulator) as (reader, writer):
        writer.write(garbage)
        assert (await _response(reader))[0] == 400
        assert await reader.read() == b""


async def test_a_body_beyond_32_megabytes_is_refused(simulator: Simulator) -> None:
    async with httpx2.AsyncClient(base_url=simulator.url, verify=False) as client:
        response = await client.post("/v1/messages", content=b"x" * 31_000_000, headers={"x-api-key": "k"})
        assert response.json()["error"]["type"] == "invalid_request_error"
    async with _wire(simulator) as (reader, writer):
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 40000000\r\n\r\n")
        writer.write(b"x" * 35_000_000)
        status, body = await _response(reader)
        assert status == 413
        assert json.loads(body)["error"]["type"] == "request_too_large"


async def test_a_slow_reader_delays_nobody_and_needs_no_memory(simulator: Simulator) -> None:
    """Its answer is made as it is read, and not buffered."""
    body = {"model": "sim-t200000-g0-f0", "max_tokens": 200_000, "stream": True}
    messages = {"messages": [{"role": "user", "content": "nonce=slow"}]}
    async with _wire(simulator) as (reader, writer):
        writer.write(_request(json.dumps(body | messages).encode()))
        await simulator.until(lambda: bool(simulator.calls) and simulator.calls[0].tokens_sent > 0)
        async with _wire(simulator) as (quick_reader, quick_writer):
            quick_writer.write(_request())
            assert (await _response(quick_reader))[0] == 200
        (call,) = simulator.record.of_nonce("slow")
        assert not _has_ended(call)
        assert call.tokens_sent < 100_000
        while not _has_ended(call):
            assert await reader.read(2**20)
        assert (call.ended, call.tokens_sent) == ("completed", 200_000)


def _has_ended(call: Call) -> bool:
    return call.ended is not None
