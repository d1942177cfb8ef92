"""Waits for a condition, instead of sleeping."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

_LOOK_S = 0.002
_LATE_LOOKS = 25


async def wait_until(predicate: Callable[[], bool | Awaitable[bool]], what: str, *, timeout_s: float = 10) -> None:
    """Returns once ``predicate`` is true. Raises AssertionError naming ``what`` after ``timeout_s``.

    It looks some more times after that: if the machine stood still, what it waits for did so too.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    late_looks = 0
    while True:
        found = predicate()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        late_looks += loop.time() > deadline_s
        if late_looks > _LATE_LOOKS:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        await asyncio.sleep(_LOOK_S)
