"""Parses large or otherwise costly bodies in a process of their own.

Decoding holds the GIL, so a thread would not help: 31 MB of text stop every other request for 0.18 s, 64 KB of nested
lists for 35 ms (measured). Neither is a body pickled, which stops them for 50 ms if it has 31 MB: it goes through a
socket. The process is started for the first such body, and parses one at a time. A tenant has at most one body in the
queue, so that its next one comes after those of others.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import IO, Any, Final, Self, TypeVar
from weakref import WeakValueDictionary

from shared.errors import QueueFull
from shared.telemetry import get_logger

T = TypeVar("T")

_MOST_BYTES: Final = 256 << 10
"""Up to this a body is parsed on the event loop: parsed, validated and hashed for its Idempotency-Key in 4 to 5 ms if it is
all escapes or long numbers, in 2 if it is text (measured)."""
_MOST_VALUES: Final = 4000
"""Commas and brackets, in texts or not: 3 to 5 ms in bodies of 8 to 33 KB (measured)."""
_FEW_BYTES: Final = 8 << 10
"""Below this a body of nothing but brackets takes 4 ms, 6 with an Idempotency-Key; one of nothing but invalid messages 2 (measured)."""
_LONGEST_WAIT_S: Final = 20.0
_RETRY_AFTER_S: Final = 5
_NICE: Final = 10
"""Gives the event loops precedence where cores are few, and as a batch process it never interrupts them."""

_log = get_logger("api")


def is_costly(raw: bytes | bytearray) -> bool:
    """Whether parsing it could block the event loop for more than about 10 ms."""
    if len(raw) <= _FEW_BYTES:
        return False
    return len(raw) > _MOST_BYTES or raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _MOST_VALUES


class Parsers:
    """One for each API process; use it with ``async with``."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._bodies: socket.socket | None = None
        """The process reads the bodies from its other end."""
        self._running: asyncio.Task[Any] | None = None
        self._is_over = False
        self._slot = asyncio.Semaphore(1)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        self._stop()

    async def parse(self, tenant: str, raw: bytes | bytearray, parse: Callable[[bytes], T]) -> T:
        """``parse(raw)``, run here if that is cheap, else in the process, so ``parse`` and what it returns are pickled.

        Raises what ``parse`` does, and QueueFull.
        """
        if not is_costly(raw):
            return parse(bytes(raw))
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                return await self._parse(tenant, raw, parse)
        except (TimeoutError, BrokenProcessPool) as error:
            _log.warning("parser_failed", error=type(error).__name__, body_bytes=len(raw))
            raise QueueFull(
                "Too many large request bodies are being read; retry in 5 s.", retry_after_s=_RETRY_AFTER_S
            ) from None

    async def _parse(self, tenant: str, raw: bytes | bytearray, parse: Callable[[bytes], T]) -> T:
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        async with turn:
            await self._slot.acquire()
            # If the caller gives up, the process still reads and parses: the slot is free only when the process is.
            running = self._running = asyncio.create_task(self._run(raw, parse), name="parser")
            running.add_done_callback(self._on_parsed)
            return await asyncio.shield(running)

    def _on_parsed(self, running: "asyncio.Task[Any]") -> None:
        self._running = None
        self._slot.release()
        if not running.cancelled():
            running.exception()  # or asyncio would log it as never retrieved if the caller has gone

    async def _run(self, raw: bytes | bytearray, parse: Callable[[bytes], T]) -> T:
        try:
            bodies, parsed = self._submit(parse, len(raw))
        except BrokenProcessPool:  # it died after the body before
            self._stop()
            bodies, parsed = self._submit(parse, len(raw))
        outcome = asyncio.wrap_future(parsed)
        with contextlib.suppress(OSError):  # it died, which ``outcome`` says too
            await asyncio.get_running_loop().sock_sendall(bodies, raw)
        return await outcome

    def _submit(self, parse: Callable[[bytes], T], size: int) -> "tuple[socket.socket, Future[T]]":
        if self._executor is not None and self._bodies is not None:
            return self._bodies, self._executor.submit(_parse_next, parse, size)
        if self._is_over:
            raise BrokenProcessPool
        self._bodies, theirs = socket.socketpair()
        self._bodies.setblocking(False)
        with theirs:  # ours is closed once the process is started: then its death breaks the socket
            self._executor = ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=_begin, initargs=(theirs,)
            )
            return self._bodies, self._executor.submit(_parse_next, parse, size)

    def _stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if self._bodies is not None:
            self._bodies.close()
        self._executor = self._bodies = None


_sent: Final[list[IO[bytes]]] = []
"""In the process: the stream of all bodies. Elsewhere nothing."""


def _begin(bodies: socket.socket) -> None:
    """Runs first in the new process, which ends with its parent and ignores signals: the parent may drain for long."""
    _sent.append(bodies.makefile("rb"))
    for number in (signal.SIGINT, signal.SIGTERM):  # systemd sends them to each process of a service
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _parse_next(parse: Callable[[bytes], T], size: int) -> T:
    return parse(_sent[0].read(size))


def _end_with_parent() -> None:
    parent: Any = parent_process()
    parent.join()
    os._exit(0)
