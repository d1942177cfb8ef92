"""Bodies that would block the event loop are parsed in another process, with fair turns between tenants."""

import asyncio
import hashlib
import os
import pickle
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from api.http.strict_json import decode
from api.state.parsers import Parsers
from shared.errors import InvalidRequest, QueueFull

KB = 1 << 10
COSTLY = {
    "a megabyte of text": b'{"prompt":"%b"}' % (b"a" * (1 << 20)),
    "escapes": b'{"prompt":"%b"}' % (b'\\"' * (300 * KB)),
    "numbers of many digits": b"[%b]" % b",".join([b"9" * 400] * 1500),
    "empty lists": b"[%b]" % b",".join([b"[]"] * 5000),
    "empty objects": b"[%b]" % b",".join([b"{}"] * 5000),
    "floats": b"[%b]" % b",".join([b"1e308"] * 5000),
}
CHEAP = {
    "a prompt": b'{"prompt":"Say something."}',
    "a long prompt": b'{"prompt":"%b"}' % (b"Some words, and then more. " * 3000),
    "nothing but brackets, but few": b"[%b]" % b",".join([b"[]"] * 2500),
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
async def test_what_is_costly_is_parsed_in_another_process(body: bytes) -> None:
    async with Parsers() as parsers:
        assert await parsers.parse("acme", body, _process_of) != os.getpid()


@pytest.mark.parametrize("body", CHEAP.values(), ids=CHEAP)
async def test_what_is_cheap_is_parsed_at_once(body: bytes) -> None:
    async with Parsers() as parsers:
        assert await parsers.parse("acme", body, _process_of) == os.getpid()


async def test_a_refusal_comes_back_whole() -> None:
    async with Parsers() as parsers:
        with pytest.raises(InvalidRequest) as caught:
            await parsers.parse("acme", COSTLY["empty lists"][:-1] + b",1e400]", decode)
    assert [(error.pointer, error.detail) for error in caught.value.errors] == [
        ("#", "has a number that is out of range")
    ]


async def test_an_integer_of_more_digits_than_anybody_needs_is_refused() -> None:
    """Reading it would take time by the square of its digits, on the event loop."""
    assert decode(b"[%b]" % (b"1" * 640)) == [int("1" * 640)]
    with pytest.raises(InvalidRequest) as caught:
        decode(b"[%b]" % (b"1" * 641))
    assert caught.value.errors[0].detail == "has a number that is out of range"


async def test_a_tenant_with_many_bodies_delays_another_by_one() -> None:
    """Each tenant has one body in the queue."""
    done: list[str] = []

    async def parse(tenant: str, name: str) -> None:
        await parsers.parse(tenant, COSTLY["empty lists"], _process_of)
        done.append(name)

    async with Parsers() as parsers, asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(parse("many", f"many {number}"))
        group.create_task(parse("one", "one"))
    assert done.index("one") <= 1


async def test_who_gives_up_leaves_the_line_in_order() -> None:
    async with Parsers() as parsers:
        gone = asyncio.create_task(parsers.parse("acme", COSTLY["empty lists"], _slowly))
        await asyncio.sleep(0)
        gone.cancel()
        assert await parsers.parse("acme", COSTLY["empty lists"], _process_of) != os.getpid()


async def test_a_process_that_dies_is_replaced() -> None:
    async with Parsers() as parsers:
        with pytest.raises(QueueFull):
            await parsers.parse("acme", COSTLY["floats"], _die)
        assert await parsers.parse("acme", COSTLY["floats"], _process_of) != os.getpid()


async def test_no_body_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickling holds the GIL, 50 ms for 31 MB. The process gets the whole body in another way."""
    submitted: list[int] = []
    submit = ProcessPoolExecutor.submit

    def counting(self: ProcessPoolExecutor, *arguments: Any) -> Any:
        submitted.append(len(pickle.dumps(arguments)))
        return submit(self, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", counting)
    large, small = os.urandom(31 << 20), os.urandom(300 * KB)
    bodies: list[bytes | bytearray] = [large, small, bytearray(large)]
    async with Parsers() as parsers:
        for body in bodies:
            assert await parsers.parse("acme", body, _digest) == _digest(body)
    assert len(submitted) == 3
    assert max(submitted) < KB


async def test_a_stop_ends_the_body_that_is_half_sent_and_refuses_the_next() -> None:
    async with Parsers() as parsers:
        half_sent = asyncio.create_task(parsers.parse("acme", b"a" * (31 << 20), _digest))
        next_one = asyncio.create_task(parsers.parse("globex", COSTLY["floats"], _process_of))
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await half_sent
    with pytest.raises(QueueFull):
        await next_one


def _digest(body: bytes | bytearray) -> str:
    return hashlib.sha256(body).hexdigest()


def _process_of(_: bytes) -> int:
    return os.getpid()


def _slowly(_: bytes) -> None:
    time.sleep(0.2)


def _die(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
