"""Bounds each tenant's open requests: each holds a connection, and one tenant's followers must leave others some."""

from collections import Counter
from collections.abc import MutableMapping
from typing import Any, Final

from shared.errors import TooManyConnections

_SHARE: Final = 3
"""A tenant may hold three times as many as are free: three quarters of all if it is alone, fewer with others."""
_HELD: Final = "tokenspool.occupancy"


class Occupancy:
    """The open requests of one API process, which takes ``most`` connections."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._held: Counter[str] = Counter()

    def enter(self, scope: MutableMapping[str, Any], tenant: str) -> None:
        """Counts a request of the tenant until ``leave``, and only once. Raises TooManyConnections."""
        if _HELD in scope:
            return
        if self._held[tenant] >= max(1, _SHARE * (self._most - self._total)):
            raise TooManyConnections("Your tenant has too many open requests; end some, or retry in 5 s.")
        scope[_HELD] = tenant
        self._held[tenant] += 1
        self._total += 1

    def leave(self, scope: MutableMapping[str, Any]) -> None:
        """Takes a request that has ended out of the count, if it was counted."""
        tenant = scope.pop(_HELD, None)
        if tenant is not None:
            self._total -= 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
