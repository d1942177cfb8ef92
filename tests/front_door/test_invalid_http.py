"""Invalid or ambiguous HTTP/1.1 gets a small 400; the connection closes, and the bytes after it are not read."""

import asyncio
import json
from typing import Any

import pytest
import structlog

from tests.front_door.conftest import A_HEAD, NO_REDIS, connected, hear, say
from tests.support.served import Served, serving
from tests.support.wait import wait_until

_POST = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\n"
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

INVALID = {
    "two lengths": _POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": _POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": _POST + b"Content-Length: +3\r\n\r\nabc",
    "an endless length": _POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "length and chunks": _POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "unknown transfer encoding": _POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "compressed chunks": _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": _POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": _POST + b"Transfer-Encoding: identity\r\n\r\n",
    "two transfer encodings": _POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked twice": _POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": _POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab": _POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that ends in LF": _POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "an extension that ends in LF": _POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
    "a chunk size with 0x": _POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "a negative chunk size": _POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": _POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\nabc\r\n",
    "a chunk that is longer": _POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "a header that ends in LF": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: a\x00b\r\n\r\n",
    "a control character": b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: a\x01b\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "a space before the first header": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "a name that is none": b"GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "the same host twice": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "another host's target": b"GET http://evil/health HTTP/1.1\r\nHost: a\r\n\r\n",
    "a file": b"GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "a star": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT to this host's target": b"CONNECT http://a/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "an unknown method": b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a byte that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "a byte that is not ASCII in the query": b"GET /?\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
}


async def test_invalid_http_gets_400_and_a_close(door: Served) -> None:
    """A problem document with the headers of every response; a request after it is not read."""
    answers = await asyncio.gather(*(say(door, raw + _SMUGGLED) for raw in INVALID.values()))
    assert {
        name: heard for name, heard in zip(INVALID, answers, strict=True) if heard.statuses != [400] or not heard.closed
    } == {}
    for heard in answers:
        head, _, body = heard.raw.partition(b"\r\n\r\n")
        document = json.loads(body)
        assert (document["status"], document["code"]) == (400, "invalid_request")
        lines = head.lower().split(b"\r\n")
        assert {b"content-type: application/problem+json", b"cache-control: no-store", b"connection: close"} <= set(
            lines
        )
        assert b"x-request-id: " + document["request_id"].encode() in lines
        assert not any(line.startswith(b"server:") for line in lines)


async def test_the_log_has_one_line_of_a_thousand_bad_requests(door: Served) -> None:
    """The line quotes nothing that was sent."""
    with structlog.testing.capture_logs() as lines:
        for _ in range(20):
            await asyncio.gather(*(say(door, b"GET /canary HTTP/9.9\r\n\r\n") for _ in range(50)))
    refusals = [line for line in lines if line["event"] == "connections_refused"]
    assert len(refusals) == 1
    assert "canary" not in str(refusals)
    assert door.connections.refused["invalid_request"] == 1000


VALID = {
    "the same host's target": b"GET http://api/health/live HTTP/1.1\r\nHost: api\r\n\r\n",
    "an empty line before": b"\r\n" + A_HEAD,
}


@pytest.mark.parametrize("raw", VALID.values(), ids=VALID.keys())
async def test_valid_but_rare_requests_are_served(door: Served, raw: bytes) -> None:
    """RFC 9112 requires both to be accepted."""
    assert (await say(door, raw)).statuses == [200]


async def test_methods_that_no_route_has_are_405(door: Served) -> None:
    """The methods of HTTP."""
    for method in (b"TRACE", b"QUERY", b"M-SEARCH", b"PUT"):
        assert (await say(door, A_HEAD.replace(b"GET", method))).statuses == [405], method


async def test_a_trailer_is_no_header(door: Served) -> None:
    """It arrives while the request is being served, and must not set its tenant or key."""
    seen: list[list[tuple[bytes, bytes]]] = []
    app = door.server.config.loaded_app

    async def look(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        seen.append(scope["headers"])
        await app(scope, receive, send)

    door.server.config.loaded_app = look
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Tenant\r\n\r\n"
    await say(door, head + b"2\r\n{}\r\n0\r\nX-Tenant: victim\r\nAuthorization: Bearer x\r\n\r\n")
    assert [name for name, _ in seen[0]] == [b"host", b"transfer-encoding", b"trailer"]


async def test_targets_that_are_not_text_get_400(door: Served) -> None:
    """They do not reach a route."""
    for target in (b"/v1/jobs/%zz", b"/v1/jobs/%ff", b"/v1/jobs?status=%ff", b"/x?%"):
        heard = await say(door, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert heard.statuses == [400], target
        assert b"invalid_request" in heard.raw


async def test_control_characters_in_a_path_get_404(door: Served) -> None:
    """Like any unknown path; the response's head quotes nothing of it."""
    for target in (b"/v1/jobs/%00", b"/a%0d%0aX:b"):
        heard = await say(door, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert heard.statuses == [404], target
        assert b"X:b" not in heard.raw


async def test_a_request_id_that_is_unsafe_in_a_log_is_replaced(door: Served) -> None:
    """The API generates one instead."""
    for request_id in (b"x" * 10_240, b"a b", b"\xff", b"a\xc3\xa9", b"", b"a,b", b"<script>"):
        heard = await say(door, A_HEAD[:-2] + b"X-Request-ID: %b\r\n\r\n" % request_id)
        assert heard.statuses == [200]
        assert b"\r\nx-request-id: req_" in heard.raw


async def test_of_two_request_ids_one_is_echoed(door: Served) -> None:
    """The response never has both."""
    heard = await say(door, A_HEAD[:-2] + b"X-Request-ID: a-1\r\nX-Request-ID: b-2\r\n\r\n")
    assert heard.raw.count(b"x-request-id: a-1\r\n") == 1
    assert b"b-2" not in heard.raw


async def test_100_continue_is_sent_only_for_an_acceptable_body(door: Served) -> None:
    """A body refused by its announced length need not be sent; if it is, it is not read as a request."""
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    heard = await say(door, head + b"Content-Length: 999999999\r\n\r\n" + _SMUGGLED)
    assert (heard.statuses, heard.closed) == ([413], True)
    async with connected(door) as (reader, writer):
        writer.write(head + b"Content-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await hear(reader, patience_s=0.5)).statuses == [400]


async def test_an_invalid_body_before_100_continue_is_no_error_of_ours(door: Served) -> None:
    """It is refused, and no 100 follows."""
    with structlog.testing.capture_logs() as lines:
        heard = await say(
            door,
            _POST + b"Content-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nrubbish\r\n",
        )
        await wait_until(lambda: not door.server.server_state.tasks, "the end of the request")
    assert (heard.statuses, heard.closed) == ([400], True)
    assert [line for line in lines if line["log_level"] == "error"] == []


async def test_a_response_before_the_end_of_the_body_can_be_read(door: Served) -> None:
    """The client is still sending: an immediate close would reset its connection and lose the response."""
    async with connected(door) as (reader, writer):
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(50):
            writer.write(b"x" * 100_000)
            await writer.drain()
        heard = await hear(reader)
    assert (heard.statuses, heard.closed) == ([404], True)
    assert b"\r\nconnection: close\r\n" in heard.raw


async def test_pipelined_requests_are_served_in_order_up_to_a_bound(door: Served) -> None:
    """256 KB can hold ten thousand requests, all kept in memory: the connection ends after the first few."""
    heard = await say(door, A_HEAD * 16)
    assert (heard.statuses, heard.closed) == ([200] * 16, False)
    heard = await say(door, A_HEAD * 5000)
    assert (heard.statuses, heard.closed) == ([200] * 17, True)


async def test_garbage_after_a_request_does_not_disturb_its_response() -> None:
    """The response is complete, and then the connection ends."""
    async with serving(NO_REDIS) as door:
        heard = await say(door, A_HEAD * 3 + b"\x00\x01\x02")
        assert (heard.statuses, heard.closed) == ([200] * 3, True)
