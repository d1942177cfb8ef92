"""Parses large or otherwise costly bodies in a process of their own.

Decoding holds the GIL, so a thread would not help: 31 MB of text stop every other request for 0.18 s, 64 KB of nested
lists for 35 ms (measured). The process is started for the first such body, and parses one at a time. A tenant has at
most one body in the queue, so that its next one comes after those of others.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, Final, Self, TypeVar
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


def is_costly(raw: bytes) -> bool:
    """Whether parsing it could block the event loop for more than about 10 ms."""
    if len(raw) <= _FEW_BYTES:
        return False
    return len(raw) > _MOST_BYTES or raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _MOST_VALUES


class Parsers:
    """One for each API process; use it with ``async with``."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._slot = asyncio.Semaphore(1)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def parse(self, tenant: str, raw: bytes, parse: Callable[[bytes], T]) -> T:
        """``parse(raw)``, run here if that is cheap, else in the process, so ``parse`` and what it returns are pickled.

        Raises what ``parse`` does, and QueueFull.
        """
        if not is_costly(raw):
            return parse(raw)
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                return await self._parse(tenant, raw, parse)
        except (TimeoutError, BrokenProcessPool) as error:
            _log.warning("parser_failed", error=type(error).__name__, body_bytes=len(raw))
            raise QueueFull(
                "Too many large request bodies are being read; retry in 5 s.", retry_after_s=_RETRY_AFTER_S
            ) from None

    async def _parse(self, tenant: str, raw: bytes, parse: Callable[[bytes], T]) -> T:
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        async with turn:
            await self._slot.acquire()
            try:
                running = self._submit(raw, parse)
            except BaseException:
                self._slot.release()
                raise
            # If the caller gives up, the process still parses: the slot is free only when the process is.
            outcome = asyncio.wrap_future(running)
            outcome.add_done_callback(self._on_parsed)
            return await asyncio.shield(outcome)

    def _on_parsed(self, outcome: "asyncio.Future[Any]") -> None:
        self._slot.release()
        if not outcome.cancelled():
            outcome.exception()  # or asyncio would log it as never retrieved if the caller has gone

    def _submit(self, raw: bytes, parse: Callable[[bytes], T]) -> "Future[T]":
        try:
            return self._running().submit(parse, raw)
        except BrokenProcessPool:  # it died after the body before
            self._executor = None
            return self._running().submit(parse, raw)

    def _running(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)
        return self._executor


def _begin() -> None:
    """Runs first in the new process, which ends with its parent and ignores signals: the parent may drain for long."""
    for number in (signal.SIGINT, signal.SIGTERM):  # systemd sends them to each process of a service
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent: Any = parent_process()
    parent.join()
    os._exit(0)
