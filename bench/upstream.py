"""A stand-in for the LLM: streams Anthropic Messages answers from a raw socket at a fixed pace.

Each token's text is the CLOCK_MONOTONIC second at which it was written, in a fixed width. So a client on the same
machine knows how long the token took, even if a system merged or reframed tokens. A token costs about 13 µs of CPU:
its frame is rendered once, and the time is inserted between the two halves. The request's `max_tokens` is the number of
tokens in the answer. The bench runs it as `python -m bench.upstream --port N`; its only route is `POST /v1/messages`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from typing import Any, cast

import uvloop

FIRST_TOKEN_MS = 50
BETWEEN_TOKENS_MS = 20
TOKEN_FORMAT = b"%016.6f "
TOKEN_LENGTH = len(TOKEN_FORMAT % 0.0)


def event_frame(name: str, payload: dict[str, Any]) -> bytes:
    """One server-sent event as the Anthropic API frames it: `event:` equals the payload's `type`."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **payload}, separators=(',', ':'))}\n\n".encode()


def chunk(frame: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(frame), frame)


HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"request-id: req_bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def opening(model: str) -> bytes:
    """Everything before the first token; sent at once, like the real API, which responds before it has a token."""
    message: dict[str, Any] = {
        "id": "msg_bench",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 14,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        },
    }
    block = {"index": 0, "content_block": {"type": "text", "text": ""}}
    frames = [
        event_frame("message_start", {"message": message}),
        event_frame("content_block_start", block),
        event_frame("ping", {}),
    ]
    return HEAD + b"".join(chunk(frame) for frame in frames)


_NO_TOKEN = TOKEN_FORMAT % 0.0
_TOKEN_FRAME = event_frame(
    "content_block_delta",
    {"index": 0, "delta": {"type": "text_delta", "text": _NO_TOKEN.decode()}},
)
# The width of the time is fixed, so the chunk's length is the same for every token.
TOKEN_BEFORE, TOKEN_AFTER = chunk(_TOKEN_FRAME).split(_NO_TOKEN)


def closing(token_count: int) -> bytes:
    frames = [
        event_frame("content_block_stop", {"index": 0}),
        event_frame(
            "message_delta",
            {
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": token_count},
            },
        ),
        event_frame("message_stop", {}),
    ]
    return b"".join(chunk(frame) for frame in frames) + b"0\r\n\r\n"


def refusal(status: bytes, error_type: str, message: str) -> bytes:
    body = json.dumps({"type": "error", "error": {"type": error_type, "message": message}}).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


NOT_FOUND = refusal(b"404 Not Found", "not_found_error", "The stand-in answers POST /v1/messages.")
NOT_STREAMED = refusal(b"400 Bad Request", "invalid_request_error", "The stand-in only streams: send stream=true.")


class UpstreamConnection(asyncio.Protocol):
    """One keep-alive connection: reads a whole request, then writes the answer's tokens by timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._received = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._token_count = 0
        self._tokens_left = 0
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses of asyncio's

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._received[:head_end].lower()
        body_start = head_end + 4
        body_end = body_start + _content_length(head)
        if len(self._received) < body_end:
            return
        body = self._received[body_start:body_end]
        self._received = self._received[body_end:]
        if not head.startswith(b"post /v1/messages"):
            self._transport.write(NOT_FOUND)
            return
        request = json.loads(body)
        if not request.get("stream"):
            self._transport.write(NOT_STREAMED)
            return
        self._begin(str(request["model"]), int(request["max_tokens"]))

    def _begin(self, model: str, token_count: int) -> None:
        self._transport.write(opening(model))
        self._token_count = self._tokens_left = token_count
        self._due_s = self._loop.time() + FIRST_TOKEN_MS / 1000
        self._timer = self._loop.call_at(self._due_s, self._write_token)

    def _write_token(self) -> None:
        after = b""
        self._tokens_left -= 1
        if self._tokens_left == 0:
            after = closing(self._token_count)
            self._timer = None
        else:
            # Counted from when this token was due, so that a late one does not slow the pace.
            self._due_s += BETWEEN_TOKENS_MS / 1000
            self._timer = self._loop.call_at(self._due_s, self._write_token)
        token = TOKEN_FORMAT % time.monotonic()
        self._transport.write(b"".join((TOKEN_BEFORE, token, TOKEN_AFTER, after)))


def _content_length(head: bytes) -> int:
    position = head.find(b"\r\ncontent-length:")
    if position < 0:
        return 0
    return int(head[position + 17 :].split(b"\r\n", 1)[0])


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: UpstreamConnection(loop), "127.0.0.1", port, backlog=1024)
    # A garbage collection would pause every stream and count as a delay of the measured system.
    gc.disable()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="the bench's stand-in for the LLM")
    arguments.add_argument("--port", type=int, required=True)
    uvloop.run(serve(arguments.parse_args().port))
