"""A request to upgrade is ignored, and the request is served as HTTP/1.1, with its body (RFC 9110, 7.8).

JDK's HttpClient (and so Spring and langchain4j) asks for h2c in the first request of every connection; so does ``curl
--http2``.
"""

import json
import re
from typing import Any, Final

import pytest

from tests.front_door.conftest import A_HEAD, connected, hear, say
from tests.support.served import Served

UPGRADES: Final = {
    "h2c of the JDK": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n",
    "h2c of curl": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "two wishes": b"Connection: upgrade\r\nUpgrade: h2c\r\nUPGRADE: websocket\r\n",
}
each_upgrade = pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES.keys())

_BODY: Final = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
"""As a body it is text; if it were read as a request, there would be one more response."""


def _framed(body: bytes, is_chunked: bool) -> bytes:
    """The header with the body's length or encoding, and the body itself."""
    if not is_chunked:
        return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    middle = len(body) // 2
    chunks = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (body[:middle], body[middle:])]
    return b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % b"".join(chunks)


class Heard:
    """The requests that the application got."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.requests.append((scope["method"], scope["path"], body))
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        await send(start)
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def heard(door: Served) -> Heard:
    app = Heard()
    door.server.config.loaded_app = app
    return app


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@each_upgrade
async def test_the_body_of_a_request_to_upgrade_is_read(
    door: Served, heard: Heard, upgrade: bytes, is_chunked: bool
) -> None:
    """To its last byte: it is not dropped, and not taken for the next request, which follows on the same connection."""
    asked = b"POST /first HTTP/1.1\r\nHost: a\r\n" + upgrade + _framed(_BODY, is_chunked)
    answer = await say(door, asked + asked.replace(b"/first", b"/second") + A_HEAD)
    assert (answer.statuses, answer.closed) == ([200, 200, 200], False)
    assert heard.requests == [("POST", "/first", _BODY), ("POST", "/second", _BODY), ("GET", "/health/live", b"")]


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
async def test_however_the_bytes_arrive(door: Served, heard: Heard, is_chunked: bool) -> None:
    """One byte at a time, with the head and the body in pieces."""
    asked = b"POST /first HTTP/1.1\r\nHost: a\r\n" + UPGRADES["h2c of the JDK"] + _framed(_BODY, is_chunked) + A_HEAD
    async with connected(door) as (reader, writer):
        for place in range(len(asked)):
            writer.write(asked[place : place + 1])
            await writer.drain()
        answer = await hear(reader, patience_s=0.3)
    assert answer.statuses == [200, 200]
    assert heard.requests == [("POST", "/first", _BODY), ("GET", "/health/live", b"")]


@each_upgrade
async def test_a_request_without_a_body_is_served_and_the_connection_goes_on(door: Served, upgrade: bytes) -> None:
    """As if it had not asked for an upgrade."""
    answer = await say(door, A_HEAD[:-2] + upgrade + b"\r\n" + A_HEAD)
    assert (answer.statuses, answer.closed) == ([200, 200], False)
    assert b"upgrade" not in answer.raw.lower()


async def test_a_request_to_upgrade_makes_no_invalid_head_valid(door: Served) -> None:
    """A head that is refused without it is refused with it; nothing after it is read."""
    for framing in (
        b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"Host: b\r\n\r\n",
    ):
        answer = await say(door, b"POST / HTTP/1.1\r\nHost: a\r\n" + UPGRADES["h2c of the JDK"] + framing + _BODY)
        assert (answer.statuses, answer.closed) == ([400], True), framing


async def test_pipelined_requests_to_upgrade_have_the_same_bound_as_others(door: Served) -> None:
    """They cost no more either."""
    answer = await say(door, (A_HEAD[:-2] + UPGRADES["h2c of curl"] + b"\r\n") * 1000, patience_s=1)
    assert answer.closed
    assert len(answer.statuses) <= 17
    assert set(answer.statuses) == {200}


async def test_a_request_to_upgrade_can_expect_100_continue(door: Served, heard: Heard) -> None:
    """Both headers in one request."""
    head = b"POST /first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + UPGRADES["h2c of the JDK"]
    async with connected(door) as (reader, writer):
        writer.write(head + b"Content-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await hear(reader, patience_s=0.5)).statuses == [200]
    assert heard.requests == [("POST", "/first", b"{}")]


class Streamed:
    """A response without a length."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        for piece in (b"one", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def test_an_http_1_0_client_gets_a_stream_without_chunks(door: Served) -> None:
    """It does not know chunks (RFC 9112, 6.1) and would take them for content; the close ends the stream."""
    door.server.config.loaded_app = Streamed()
    for more in (b"", b"Connection: keep-alive\r\n"):
        answer = await say(door, b"GET / HTTP/1.0\r\nHost: a\r\n" + more + b"\r\n")
        head, _, body = answer.raw.partition(b"\r\n\r\n")
        assert (body, answer.closed) == (b"onetwo", True)
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
    answer = await say(door, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.raw.endswith(b"\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_an_http_1_0_client_gets_a_content_length_if_it_is_known(door: Served) -> None:
    """For responses that are not streams."""
    answer = await say(door, A_HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = answer.raw.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    assert int(length[1]) == len(body)
    assert json.loads(body)
    assert answer.closed
