"""Look-ups of names, in threads that may outlive whoever asked: a name server that hangs holds its look-up for as long as the
resolver's own patience, up to half a minute, which is longer than a delivery attempt takes.

So a name is looked up once at a time, for all who ask meanwhile, and a tenant has a share of them: whose names hang waits,
and nobody else does.
"""

import asyncio
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from shared.store.webhooks import TENANT_MOST
from shared.webhook_address import Address

_MOST: Final = 128
"""At once, and TENANT_MOST of a tenant, as many as it may have attempts. Each is a name, however many attempts wait for it and
however often it is tried. So 16 names must hang until their tenant's others wait, and names of eight tenants until anybody's
do; four such tenants fill a worker's slots already. A thread that waits is cheap."""
WAIT_S: Final = 5.0
"""For room. Also what keeps a tenant without any from being claimed, and put back, as fast as Redis can."""

Resolve = Callable[[str], Sequence[Address]]
"""All addresses of a name; blocks. Raises OSError or UnicodeError if there are none."""


def addresses_of(name: str) -> Sequence[Address]:
    """By the system's resolver, A and AAAA."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found))


class LookUps:
    """Those of a process. What hangs ends with it."""

    def __init__(self, resolve: Resolve, *, wait_s: float) -> None:
        self._resolve = resolve
        self._wait_s = wait_s
        self._under_way: dict[str, asyncio.Future[Sequence[Address]]] = {}
        self._of_tenant: Counter[str] = Counter()
        """Whoever asked first."""

    async def begin(self, name: str, tenant: str) -> "asyncio.Future[Sequence[Address]] | None":
        """The addresses to come, none if there are none; it may be cancelled. None: there was no room for it in time."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._wait_s
        while name not in self._under_way:
            if len(self._under_way) < _MOST and self._of_tenant[tenant] < TENANT_MOST:
                self._start(name, tenant)
                break
            left_s = deadline_s - loop.time()
            if left_s <= 0:
                return None
            await asyncio.wait(self._under_way.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        return asyncio.shield(self._under_way[name])

    def _start(self, name: str, tenant: str) -> None:
        """In a thread of its own, which no other work waits for, and which ends with the process."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[Address]] = loop.create_future()

        def report(addresses: Sequence[Address]) -> None:
            del self._under_way[name]
            self._of_tenant -= Counter((tenant,))  # without those that have none
            found.set_result(addresses)

        def look_up() -> None:
            addresses: Sequence[Address] = ()
            try:
                addresses = self._resolve(name)
            except Exception:  # noqa: BLE001,S110 its message holds the name; no address says it all
                pass
            try:
                loop.call_soon_threadsafe(report, addresses)
            except RuntimeError:  # the loop was closed meanwhile
                pass

        self._under_way[name] = found
        self._of_tenant[tenant] += 1
        try:
            threading.Thread(target=look_up, name="webhook look-up", daemon=True).start()
        except RuntimeError:  # no more threads
            loop.call_soon(report, ())
