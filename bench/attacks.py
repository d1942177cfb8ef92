"""Attacks that one API key can make on other tenants, for `bench/neighbours.py` and, smaller, for the chaos tests.

Each is a coroutine that runs until it is cancelled, over its own connections. `python -m bench.attacks NAME PORT KEY`
runs one in its own process, so that its work does not delay the clients whose latency is measured. All send only
well-formed requests of an ordinary key, and only to this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop

from bench.connection import Broken, connect

MIB: Final = 1 << 20
FAR_OFF_S: Final = 20 * 86_400
"""Less than the furthest `not_before` that a job may have."""


class Attacker:
    """Sends requests to an API with one key."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> int:
        """Sends a request on a new connection; returns its status, or 0 if the connection broke."""
        head = f"POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        return await self._ask(head, body)

    async def get(self, path: str) -> int:
        return await self._ask(f"GET {path} HTTP/1.1\r\n", b"")

    async def _ask(self, head: str, body: bytes) -> int:
        request = f"{head}Host: localhost\r\nAuthorization: Bearer {self.key}\r\n\r\n".encode() + body
        try:
            connection = await connect(self.port)
            try:
                return (await connection.send(request)).status
            finally:
                connection.close()
        except (Broken, OSError, TimeoutError):
            return 0

    def unread(self, path: str) -> socket.socket:
        """Sends a request whose response is never read."""
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", self.port))
        opened.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n\r\n".encode())
        return opened


Attack = Callable[[Attacker], Awaitable[None]]


def _numbers() -> bytes:
    return b'{"prompt":"tokens=1","x":[%b]}' % b",".join([b"1e308"] * 99_900)


async def _by(clients: int, ask: Callable[[], Awaitable[int]]) -> None:
    async def one() -> None:
        while True:
            if await ask() in (0, 429, 503):
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())


async def floats(attacker: Attacker) -> None:
    """Bodies of 599 KB of floats with large exponents."""
    body = _numbers()
    await _by(4, lambda: attacker.post("/v1/jobs", body))


async def float_batch(attacker: Attacker) -> None:
    """Batches of 12 MB of floats with large exponents."""
    lines = b"\n".join(b'{"custom_id":"%d","params":%b}' % (number, _numbers()) for number in range(20))
    await _by(1, lambda: attacker.post("/v1/batches", lines, "application/jsonl"))


async def brackets(attacker: Attacker) -> None:
    """Small bodies of empty lists."""
    body = b'{"prompt":"tokens=1","x":[%b]}' % b",".join([b"[]"] * 20_000)
    await _by(4, lambda: attacker.post("/v1/jobs", body))


async def escapes(attacker: Attacker) -> None:
    """Bodies of 31 MB of escaped quotes, more than the API reads at the same time."""
    body = b'{"prompt":"%b"}' % (b'\\"' * (15 * MIB))
    await _by(2, lambda: attacker.post("/v1/messages", body))


async def pages(attacker: Attacker) -> None:
    """64 clients that read pages of jobs with the most metadata that is allowed."""
    await _fill_pages(attacker)
    await _by(64, lambda: attacker.get("/v1/jobs?limit=100"))


async def unread_pages(attacker: Attacker) -> None:
    """150 clients that request such pages and never read them."""
    await _fill_pages(attacker)
    opened = [attacker.unread("/v1/jobs?limit=100") for _ in range(150)]
    try:
        await asyncio.Event().wait()
    finally:
        for each in opened:
            each.close()


async def _fill_pages(attacker: Attacker) -> None:
    metadata = {f"{number:064}": "\U0001f600" * 512 for number in range(16)}
    body = json.dumps({"prompt": "tokens=1", "job": {"not_before": _far_off(), "metadata": metadata}}).encode()
    for _ in range(100):
        await attacker.post("/v1/jobs", body)


def _far_off() -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) + timedelta(seconds=FAR_OFF_S)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def impatience(attacker: Attacker) -> None:
    """60 jobs that allow a slow but healthy upstream one second for its first token, and retry until they fail."""

    async def submit() -> int:
        job = {"first_token_timeout_s": 1, "max_attempts": 10, "priority": "high", "timeout_s": 120}
        prompt = f"tokens=5 first-ms=8000 {secrets.token_hex(4)}"
        return await attacker.post("/v1/jobs", json.dumps({"prompt": prompt, "job": job, "max_tokens": 5}).encode())

    for _ in range(60):
        await submit()
    await asyncio.Event().wait()


async def followers(attacker: Attacker) -> None:
    """As many followers of one job as the API accepts connections."""
    job = json.dumps({"prompt": "tokens=1", "job": {"not_before": _far_off()}}).encode()
    await attacker.post("/v1/jobs", job)
    opened: list[socket.socket] = []
    ids = await _newest_id(attacker)
    try:
        while True:
            with contextlib.suppress(OSError):
                opened.append(attacker.unread(f"/v1/jobs/{ids}/events"))
            if len(opened) > 2000:
                opened.pop(0).close()
            await asyncio.sleep(0.002)
    finally:
        for each in opened:
            each.close()


async def _newest_id(attacker: Attacker) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", attacker.port)
    writer.write(
        f"GET /v1/jobs?limit=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {attacker.key}\r\n\r\n".encode()
    )
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    found: str = json.loads(body)["data"][0]["id"]
    return found


async def names(attacker: Attacker) -> None:
    """Usage of 3,000 models, read in a loop."""
    lines = b"\n".join(
        json.dumps(
            {"custom_id": str(number), "params": {"model": f"simulated-{number}", "prompt": "tokens=1 first-ms=0"}}
        ).encode()
        for number in range(3000)
    )
    await attacker.post("/v1/batches", lines, "application/jsonl")
    await _by(4, lambda: attacker.get("/v1/usage?group_by=day,model,key"))


async def memory(attacker: Attacker) -> None:
    """Prompts of 15 MiB for jobs that start in weeks, as many as the API accepts."""
    body = json.dumps({"prompt": "x" * (15 * MIB), "job": {"not_before": _far_off()}}).encode()
    await _by(2, lambda: attacker.post("/v1/jobs", body))


ATTACKS: Final[dict[str, Attack]] = {
    attack.__name__: attack
    for attack in (
        floats, float_batch, brackets, escapes, pages, unread_pages, impatience, followers, names, memory,
    )
}  # fmt: skip


def main() -> None:
    name, port, key = sys.argv[1:]
    os.nice(0)
    uvloop.run(_attack(ATTACKS[name], Attacker(int(port), key)))


async def _attack(attack: Attack, attacker: Attacker) -> None:
    await attack(attacker)


if __name__ == "__main__":
    main()
