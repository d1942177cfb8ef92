"""A webhook receiver: a server on a real socket that keeps the requests, and responds as a test wants."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from standardwebhooks.webhooks import Webhook as Verifier

Response = bytes | None
"""The bytes of a response; None: never respond."""


class Received(msgspec.Struct, frozen=True):
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
        """The id of the job or batch that it is about."""
        data = msgspec.json.decode(self.body)["data"]
        return str(data.get("job_id", data.get("batch_id")))

    def verified_by(self, secret: str) -> Any:
        """The body, verified by the standardwebhooks library. Raises WebhookVerificationError."""
        return Verifier(secret).verify(self.body, self.headers)


def response(status: int, **headers: str) -> bytes:
    """A response without a body."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n{''.join(lines)}\r\n".encode()


@dataclass
class Receiver:
    """Responds with 204, unless a test sets other responses."""

    url: str
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    respond_to: Callable[[Received], Response] = lambda _: response(204)

    def respond_with(self, *responses: Response) -> None:
        """Sets the next responses, in order; after them, 204."""
        coming = iter(responses)
        self.respond_to = lambda _: next(coming, response(204))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.received.append(received := Received(request.split(" ")[1], headers, body, time.monotonic()))
            reply = self.respond_to(received)
            if reply is None:
                await reader.read()  # until the sender gives up
            else:
                writer.write(reply)
                await writer.drain()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free loopback port."""
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
