"""Somebody who is told: a server on a real socket that keeps what it was sent, and answers as a test wants."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from standardwebhooks.webhooks import Webhook as Verifier

Answer = bytes | None
"""What is written back; None: nothing, for ever."""


class Told(msgspec.Struct, frozen=True):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def subject(self) -> str:
        """The job or batch that it tells of."""
        data = msgspec.json.decode(self.body)["data"]
        return str(data.get("job_id", data.get("batch_id")))

    def verified_by(self, secret: str) -> Any:
        """The body, if the receiver's own copy of the library believes it. Raises WebhookVerificationError."""
        return Verifier(secret).verify(self.body, self.headers)


def answer(status: int, **headers: str) -> bytes:
    """A whole answer without a body."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n{''.join(lines)}\r\n".encode()


@dataclass
class Receiver:
    """Answers 204 unless told otherwise."""

    url: str
    told: list[Told] = field(default_factory=list)
    connections: int = 0
    answer_to: Callable[[Told], Answer] = lambda _: answer(204)

    def answers(self, *answers: Answer) -> None:
        """In this order; afterwards 204."""
        coming = iter(answers)
        self.answer_to = lambda _: next(coming, answer(204))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.told.append(told := Told(request.split(" ")[1], headers, body, time.monotonic()))
            reply = self.answer_to(told)
            if reply is None:
                await reader.read()  # until the other side gives up
            else:
                writer.write(reply)
                await writer.drain()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """On loopback, on a free port, until the end of the block."""
    receiver = Receiver("")
    handlers: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.create_task(receiver.serve(reader, writer), name="receiver")
        handlers.add(handler)
        handler.add_done_callback(handlers.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield receiver
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()
