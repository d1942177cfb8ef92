"""One delivery attempt to receivers of every kind: it ends in time, reads little, and leaves nothing open."""

import asyncio
import gzip
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import uvloop

from shared.store.webhooks import TENANT_MOST
from shared.webhook_address import Address
from shared.webhooks import Reason
from tests.support.wait import wait_until
from tests.webhook_addresses.conftest import (
    HOST,
    LOOPBACK,
    PUBLIC,
    Canaries,
    Certificates,
    Names,
    StartReceiver,
    WatchedNetwork,
    a_sender,
)
from worker.webhooks.sender import UNTRIED, Receipt

_MOST_READ_BYTES = 128 << 10
_SHORT_S = 0.5


async def test_a_webhook_is_a_post_of_the_bytes_and_headers_that_it_was_given(start_receiver: StartReceiver) -> None:
    """The sender adds only the headers that HTTP needs, which callers cannot change."""
    receiver = await start_receiver(b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\n\r\n")
    sender = a_sender(LOOPBACK)
    headers = {"webhook-id": "evt_1", "Content-Type": "application/json", "Host": "other", "Content-Length": "9"}
    for _ in range(2):
        assert await sender.post(f"{receiver.url}?a=b%20c", headers, b'{"a":1}') == Receipt(204)
    assert receiver.bodies == [b'{"a":1}'] * 2
    assert receiver.heads[0] == receiver.heads[1]  # no cookies
    lines = receiver.heads[0].lower().decode().split("\r\n")
    assert lines[0] == "post /hook?a=b%20c http/1.1"
    assert f"host: 127.0.0.1:{receiver.port}" in lines
    assert {"webhook-id: evt_1", "content-length: 7", "user-agent: tokenspool-tests"} <= set(lines)
    assert not {"host: other", "content-length: 9"} & set(lines)


async def test_https_goes_to_the_checked_address_under_the_name_of_the_url(
    start_receiver: StartReceiver, certificates: Certificates
) -> None:
    """The server name, the certificate and the Host header are the URL's; there is one look-up and one connection."""
    names_shown: list[str | None] = []
    serving = certificates.serving()
    serving.sni_callback = lambda _socket, name, _context: names_shown.append(name)
    receiver = await start_receiver(tls=serving)
    network = WatchedNetwork(moved={PUBLIC: "127.0.0.1"}, ports={443: receiver.port})
    names = Names((PUBLIC,))
    sender = a_sender(network=network, resolve=names, ssl_context=certificates.trusting())
    assert await sender.post(f"https://{HOST.upper()}/hook", {}, b"{}") == Receipt(204)
    assert names_shown == [HOST]
    assert f"host: {HOST}\r\n".encode() in receiver.heads[0].lower()
    assert network.attempts == [PUBLIC]
    assert names.asked == [HOST]


async def test_a_certificate_of_another_name_or_of_an_unknown_authority_is_refused(
    start_receiver: StartReceiver, certificates: Certificates
) -> None:
    """Nothing is sent to it."""
    receiver = await start_receiver(tls=certificates.serving())
    network = WatchedNetwork(moved={PUBLIC: "127.0.0.1"}, ports={443: receiver.port})
    trusting = a_sender(network=network, ssl_context=certificates.trusting())
    for url in ("https://other.example.com/", f"https://{PUBLIC}/"):
        assert await trusting.post(url, {}, b"{}") == Receipt(None, Reason.TLS)
    assert await a_sender(network=network).post(f"https://{HOST}/", {}, b"{}") == Receipt(None, Reason.TLS)
    assert receiver.heads == []


async def test_plain_text_on_an_https_port_is_a_tls_failure(start_receiver: StartReceiver) -> None:
    """Its reason is TLS."""
    receiver = await start_receiver(reads=False)
    sender = a_sender(LOOPBACK)
    assert await sender.post(f"https://127.0.0.1:{receiver.port}/", {}, b"{}") == Receipt(None, Reason.TLS)


async def test_a_name_that_leads_elsewhere_at_the_second_look_is_looked_up_once(
    start_receiver: StartReceiver, certificates: Certificates, canaries: Canaries
) -> None:
    """DNS rebinding: public for the check, loopback for the connection. The next attempt looks it up again."""
    receiver = await start_receiver(tls=certificates.serving())
    names = Names((PUBLIC,), ("127.0.0.2",))
    ports = {443: receiver.port}
    network = WatchedNetwork(moved={PUBLIC: "127.0.0.1"}, ports=ports)
    sender = a_sender(network=network, resolve=names, ssl_context=certificates.trusting())
    assert await sender.post(f"https://{HOST}/", {}, b"{}") == Receipt(204)
    assert names.asked == [HOST]
    ports[443] = canaries.port
    assert await sender.post(f"https://{HOST}/", {}, b"{}") == Receipt(None, Reason.FORBIDDEN_ADDRESS)
    assert network.attempts == [PUBLIC]


async def test_proxy_variables_are_ignored(
    start_receiver: StartReceiver, canaries: Canaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would resolve the name itself."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for variable in (name, name.lower()):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{canaries.port}")
    receiver = await start_receiver()
    sender = a_sender(LOOPBACK, resolve=Names(("127.0.0.1",)))
    assert await sender.post(receiver.url, {}, b"{}") == Receipt(204)
    assert await sender.post(f"http://named:{receiver.port}/", {}, b"{}") == Receipt(204)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", Receipt(None, Reason.TIMEOUT)),
        (b"HTTP/1.1 200 OK\r\nContent-", Receipt(None, Reason.TIMEOUT)),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Receipt(None, Reason.TIMEOUT)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            Receipt(200),
        ),  # it has the webhook; the body does not matter
        (b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", Receipt(500)),
    ],
)
async def test_an_attempt_to_a_receiver_that_hangs_ends_in_time(
    answer: bytes, expected: Receipt, start_receiver: StartReceiver
) -> None:
    """Wherever it hangs; its connection is closed."""
    receiver = await start_receiver(answer, hangs=True)
    assert await a_sender(LOOPBACK, timeout_s=_SHORT_S).post(receiver.url, {}, b"{}") == expected
    await asyncio.wait_for(receiver.closed.wait(), 10)


async def test_an_attempt_to_a_receiver_that_hangs_in_its_handshake_ends_in_time(start_receiver: StartReceiver) -> None:
    """Its connection is closed too, although the HTTP client does not know it yet."""
    receiver = await start_receiver(b"", hangs=True, reads=False)
    sender = a_sender(LOOPBACK, timeout_s=_SHORT_S)
    assert await sender.post(f"https://127.0.0.1:{receiver.port}/", {}, b"{}") == Receipt(None, Reason.TIMEOUT)
    await asyncio.wait_for(receiver.closed.wait(), 10)


async def test_an_attempt_to_a_receiver_that_reads_nothing_ends_in_time() -> None:
    """The body does not fit into the buffers."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        sender = a_sender(LOOPBACK, timeout_s=_SHORT_S)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        assert await sender.post(url, {}, b"a" * (32 << 20)) == Receipt(None, Reason.TIMEOUT)


async def test_an_attempt_that_is_cancelled_closes_its_connection(start_receiver: StartReceiver) -> None:
    """Only CancelledError leaves the sender."""
    receiver = await start_receiver(b"", hangs=True)
    attempt = asyncio.create_task(a_sender(LOOPBACK).post(receiver.url, {}, b"{}"))
    await wait_until(lambda: bool(receiver.bodies), "the receiver was told")
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    await asyncio.wait_for(receiver.closed.wait(), 10)


@pytest.mark.parametrize(
    ("answer", "again", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n", b"a" * 65536, Receipt(200)),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536, Receipt(200)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 1000, Receipt(200)),
        (b"HTTP/1.1 200 OK\r\nA: ", b"a" * 65536, Receipt(None, Reason.PROTOCOL)),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 1000, Receipt(None, Reason.PROTOCOL)),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, Receipt(None, Reason.PROTOCOL)),
        (b"", b"\x00\xff" * 1000, Receipt(None, Reason.PROTOCOL)),
        (b"", b"\r\n" * 1000, Receipt(None, Reason.PROTOCOL)),
    ],
)
async def test_an_endless_response_is_read_up_to_a_bound(
    answer: bytes, again: bytes, expected: Receipt, start_receiver: StartReceiver
) -> None:
    """64 KB of a head, and as much of a body."""
    receiver = await start_receiver(answer, again=again)
    network = WatchedNetwork()
    assert await a_sender(LOOPBACK, network=network).post(receiver.url, {}, b"{}") == expected
    assert network.read_bytes <= _MOST_READ_BYTES
    await asyncio.wait_for(receiver.closed.wait(), 10)


async def test_a_compressed_response_is_not_decompressed(start_receiver: StartReceiver) -> None:
    """A bomb of 32 MB stays 32 KB of ignored bytes."""
    bomb = gzip.compress(bytes(32 << 20), 9)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    receiver = await start_receiver(head + bomb)
    network = WatchedNetwork()
    assert await a_sender(LOOPBACK, network=network).post(receiver.url, {}, b"{}") == Receipt(200)
    assert network.read_bytes <= _MOST_READ_BYTES
    assert b"accept-encoding: identity\r\n" in receiver.heads[0].lower()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"-ERR unknown command 'POST'\r\n",
        b"HTTP/1.1 99999 No\r\n\r\n",
        b"HTTP/1.1 -1 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: \r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_a_response_that_is_not_http_is_reported_as_such(answer: bytes, start_receiver: StartReceiver) -> None:
    """The receiver closes after it."""
    receiver = await start_receiver(answer)
    assert await a_sender(LOOPBACK).post(receiver.url, {}, b"{}") == Receipt(None, Reason.PROTOCOL)


async def test_a_closed_port_is_a_refused_connection(start_receiver: StartReceiver) -> None:
    """If the name has several addresses, the sender tries the next one."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    sender = a_sender(LOOPBACK)
    assert await sender.post(f"http://127.0.0.1:{port}/", {}, b"{}") == Receipt(None, Reason.REFUSED_CONNECTION)
    receiver = await start_receiver()
    sender = a_sender(LOOPBACK, resolve=Names(("127.0.0.9", "127.0.0.1")))
    assert await sender.post(f"http://anything:{receiver.port}/", {}, b"{}") == Receipt(204)


async def test_a_name_without_addresses_is_unresolvable() -> None:
    """Whatever the resolver returns or raises."""

    def fails(_name: str) -> Sequence[Address]:
        raise socket.gaierror(-2, "Name or service not known")

    for resolve in (fails, Names(())):
        assert await a_sender(resolve=resolve).post(f"https://{HOST}/", {}, b"{}") == Receipt(None, Reason.UNRESOLVABLE)


class Hanging:
    """A resolver that returns this machine; names that begin with ``hangs`` wait for ``goes_on``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.goes_on = threading.Event()

    def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        if name.startswith("hangs"):
            self.goes_on.wait(20)
        return Names(("127.0.0.1",))(name)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """Releases the hanging names after the test."""
    hanging = Hanging()
    yield hanging
    hanging.goes_on.set()


async def test_names_that_hang_delay_only_their_tenant(start_receiver: StartReceiver, hanging: Hanging) -> None:
    """Their look-ups outlive the attempts. A delivery without a free slot is not tried; others go on."""
    receiver = await start_receiver()
    sender = a_sender(LOOPBACK, timeout_s=_SHORT_S, look_up_wait_s=_SHORT_S / 10, resolve=hanging)

    async def tell(host: str, tenant: str = "tenant-a") -> Receipt:
        return await sender.post(f"http://{host}:{receiver.port}/", {}, b"{}", tenant=tenant)

    answers = await asyncio.gather(*(tell(f"hangs{number}") for number in range(TENANT_MOST + 3)))
    assert Counter(answers) == {Receipt(None, Reason.TIMEOUT): TENANT_MOST, UNTRIED: 3}
    assert len(hanging.asked) == TENANT_MOST
    assert await tell("answers") is UNTRIED
    assert await tell("127.0.0.1") == Receipt(204)
    assert await tell("answers", "tenant-b") == Receipt(204)
    assert await asyncio.to_thread(lambda: "the default executor is free") != ""
    hanging.goes_on.set()

    async def is_looked_up() -> bool:
        return await tell("answers") == Receipt(204)

    await wait_until(is_looked_up, "names are looked up again")


async def test_a_name_that_hangs_is_looked_up_once(start_receiver: StartReceiver, hanging: Hanging) -> None:
    """However many deliveries wait for it, and however often: the tenant's others go on."""
    receiver = await start_receiver()
    sender = a_sender(LOOPBACK, timeout_s=_SHORT_S, resolve=hanging)
    for _ in range(2):
        url = f"http://hangs:{receiver.port}/"
        answers = await asyncio.gather(*(sender.post(url, {}, b"{}") for _ in range(2 * TENANT_MOST)))
        assert set(answers) == {Receipt(None, Reason.TIMEOUT)}
    assert hanging.asked == ["hangs"]
    assert await sender.post(f"http://answers:{receiver.port}/", {}, b"{}") == Receipt(204)


async def test_there_is_an_end_to_threads_whoever_asks(hanging: Hanging) -> None:
    sender = a_sender(timeout_s=_SHORT_S, look_up_wait_s=0, resolve=hanging)
    answers = await asyncio.gather(
        *(
            sender.post(f"https://hangs{number}.com/", {}, b"{}", tenant=f"tenant-{number % 20}")
            for number in range(200)
        )
    )
    assert Counter(answers) == {Receipt(None, Reason.TIMEOUT): 128, UNTRIED: 72}


async def test_an_attempts_time_does_not_run_while_it_waits_for_a_slot(
    start_receiver: StartReceiver, hanging: Hanging
) -> None:
    """It has not begun yet."""
    receiver = await start_receiver()
    sender = a_sender(LOOPBACK, timeout_s=_SHORT_S, resolve=hanging)
    urls = [f"http://hangs{number}:{receiver.port}/" for number in range(TENANT_MOST)]
    before = [asyncio.create_task(sender.post(url, {}, b"{}")) for url in urls]
    await wait_until(lambda: len(hanging.asked) == TENANT_MOST, "all room to be taken")
    waiting = asyncio.create_task(sender.post(f"http://answers:{receiver.port}/", {}, b"{}"))
    assert set(await asyncio.gather(*before)) == {Receipt(None, Reason.TIMEOUT)}
    hanging.goes_on.set()
    assert await waiting == Receipt(204)


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [
        ("120", 120, 120),
        pytest.param(
            format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True), 3600, 7200, id="a date to come"
        ),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
async def test_the_pause_that_a_receiver_asks_for_is_reported(
    header: str, least_s: float, most_s: float, start_receiver: StartReceiver
) -> None:
    """It may be in seconds or a date."""
    receiver = await start_receiver(f"HTTP/1.1 503 Busy\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n".encode())
    answer = await a_sender(LOOPBACK).post(receiver.url, {}, b"{}")
    assert answer.status == 503
    assert answer.retry_after_s is not None
    assert least_s <= answer.retry_after_s <= most_s


@pytest.mark.parametrize("header", ["soon", "-5", "inf", "Mon, 99 Zzz 99999 99:99:99", "1" * 400, "\xff"])
async def test_an_invalid_pause_is_ignored(header: str, start_receiver: StartReceiver) -> None:
    """The status is still reported."""
    head = f"HTTP/1.1 429 No\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    receiver = await start_receiver(head.encode("latin-1"))
    assert await a_sender(LOOPBACK).post(receiver.url, {}, b"{}") == Receipt(429)


def test_all_of_it_holds_on_the_loop_of_a_worker(certificates: Certificates) -> None:
    """On uvloop: a response over TLS, a hang in the handshake, a closed port, and a look-up by the system."""

    async def run() -> list[Receipt]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=certificates.serving())
        with socket.create_server(("127.0.0.1", 0)) as deaf, socket.create_server(("127.0.0.1", 0)) as gone:
            ports = [server.sockets[0].getsockname()[1], deaf.getsockname()[1], gone.getsockname()[1]]
            gone.close()
            context = certificates.trusting()
            sender = a_sender(LOOPBACK, timeout_s=2, resolve=Names(("127.0.0.1",)), ssl_context=context)
            answers = await asyncio.gather(*(sender.post(f"https://{HOST}:{port}/", {}, b"{}") for port in ports))
        server.close()
        return answers

    assert uvloop.run(run()) == [Receipt(204), Receipt(None, Reason.TIMEOUT), Receipt(None, Reason.REFUSED_CONNECTION)]
