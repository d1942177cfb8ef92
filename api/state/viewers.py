"""Those who watch ``/v1/live``: what they see is made once for all of them, and only while there are some.

Invariant: a viewer that does not read holds a few seconds of figures, and is then asked to reconnect.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from typing import Final

from shared.errors import TooManyConnections

_MOST_OF_A_TENANT: Final = 100
_MOST_UNSENT: Final = 15
"""Frames, of which there is about one a second."""

RESTARTING: Final = b": the server is restarting, connect again\n\n"
KEY_ENDED: Final = b": the api key is not valid any more\n\n"
TOO_SLOW: Final = b": too much is unread, connect again\n\n"


class Viewer:
    """One client."""

    def __init__(self, tenant: str, *, sees_all: bool, newest: int) -> None:
        self.tenant = tenant
        self.sees_all = sees_all
        """Whether it may see the routes that only other tenants use."""
        self.newest = newest
        """The newest bucket that it was sent."""
        self._unsent: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._last: bytes | None = None

    def send(self, frame: bytes) -> None:
        """Sends a frame when the client reads."""
        if len(self._unsent) >= _MOST_UNSENT:
            self.end(TOO_SLOW)
        else:
            self._unsent.append(frame)
            self._wake.set()

    def end(self, last: bytes) -> None:
        """Ends the stream with this comment. Calls after the first change nothing."""
        if self._last is None:
            self._last = last
            self._wake.set()

    async def frames(self) -> AsyncIterator[bytes]:
        """What is sent, to the end."""
        while self._last is None:
            while self._unsent and self._last is None:
                yield self._unsent.popleft()
            if self._last is None:
                self._wake.clear()
                await self._wake.wait()
        yield self._last


class Viewers:
    """The viewers of an API process."""

    def __init__(self) -> None:
        self._open: set[Viewer] = set()
        self._held: Counter[str] = Counter()
        self._some = asyncio.Event()
        self._is_closing = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Viewer]:
        return iter(list(self._open))

    def check(self, tenant: str) -> None:
        """Raises TooManyConnections if the tenant has as many viewers as it may."""
        if self._held[tenant] >= _MOST_OF_A_TENANT:
            raise TooManyConnections(f"Your tenant has {_MOST_OF_A_TENANT} viewers of this process: close some.")

    def open(self, viewer: Viewer) -> None:
        """Shows it everything from now on, until ``close``."""
        self._open.add(viewer)
        self._held[viewer.tenant] += 1
        self._some.set()
        if self._is_closing:
            viewer.end(RESTARTING)

    def close(self, viewer: Viewer) -> None:
        """Ends ``open``."""
        self._open.discard(viewer)
        self._held[viewer.tenant] -= 1
        if not self._held[viewer.tenant]:
            del self._held[viewer.tenant]
        if not self._open:
            self._some.clear()

    async def some(self) -> None:
        """Waits until there is a viewer."""
        await self._some.wait()

    def dismiss(self) -> None:
        """Asks all to connect to another process. Calls after the first change nothing."""
        self._is_closing = True
        for viewer in self._open:
            viewer.end(RESTARTING)
