"""Bounds how much of large responses waits to be read by clients, for the process and for each tenant."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import QueueFull

_RETRY_AFTER_S = 5


class UnsentBytes:
    """The large responses of a process that are being sent. Each stream of events has a bound of its own."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """The size of all of them."""
        return self._held.total()

    @contextmanager
    def held(self, tenant: str, size_bytes: int) -> Iterator[None]:
        """Counts a response until the block ends. A tenant may hold as much as it leaves to others, but always one
        response.

        Raises QueueFull.
        """
        held_bytes = self._held[tenant]
        if held_bytes and held_bytes + size_bytes > self._most_bytes - self._held.total():
            raise QueueFull(
                "Too many large responses wait to be read; read them, then retry in 5 s.", retry_after_s=_RETRY_AFTER_S
            )
        self._held[tenant] += size_bytes
        try:
            yield
        finally:
            self._held[tenant] -= size_bytes
            self._held += Counter()  # drops those that hold none
