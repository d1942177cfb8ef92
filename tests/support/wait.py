"""Waits for a condition, instead of sleeping."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

_LOOK_S = 0.002


async def wait_until(predicate: Callable[[], bool | Awaitable[bool]], what: str, *, timeout_s: float = 10) -> None:
    """Returns once ``predicate`` is true. Raises AssertionError naming ``what`` after ``timeout_s``."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while True:
        found = predicate()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        if loop.time() > deadline_s:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        await asyncio.sleep(_LOOK_S)
