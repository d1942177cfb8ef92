"""How many batches come in at once: what each holds of a process's memory is small, but not nothing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shared.errors import QueueFull

MOST_UPLOADS: Final = 8
_UPLOAD_AGAIN_S: Final = 5


class Uploads:
    """The batches that come in at once, MOST_UPLOADS at most: each holds two slices, a line and all its custom ids."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def place_of(self, tenant: str) -> Iterator[None]:
        """One for as long as the block takes. A tenant holds no more than it leaves to others: it cannot keep all of them out.

        Raises QueueFull.
        """
        if self._held[tenant] >= MOST_UPLOADS - self._held.total():
            raise QueueFull("As many batches come in as may do so at once.", retry_after_s=_UPLOAD_AGAIN_S)
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1
            self._held += Counter()  # drops those that hold none
