"""Looks names up, in threads that may outlive the attempt that asked: if a name server hangs, the look-up takes as long as
the resolver waits, up to half a minute, which is longer than a delivery attempt takes.

So there is only one look-up of a name at a time, for all attempts that need it, and each tenant has a share of the look-ups:
if a tenant's names hang, only that tenant waits.
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
"""Look-ups at once. A tenant may have TENANT_MOST of them, as many as it may have attempts. Each is of one name, however many
attempts wait for it and however often it is tried. So a tenant's other names wait only while 16 of its names hang, and other
tenants' names only while eight tenants' names hang so; four such tenants fill a worker's slots already. A thread that waits
is cheap."""
WAIT_S: Final = 5.0
"""How long to wait for room. This also keeps the deliveries of a tenant without room from being claimed and put back without
a pause."""

Resolve = Callable[[str], Sequence[Address]]
"""All addresses of a name; blocks. Raises OSError or UnicodeError if there are none."""


def addresses_of(name: str) -> Sequence[Address]:
    """All addresses of a name, IPv4 and IPv6, by the system's resolver."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found))


class LookUps:
    """The look-ups of a process. Those that hang end with it."""

    def __init__(self, resolve: Resolve, *, wait_s: float) -> None:
        self._resolve = resolve
        self._wait_s = wait_s
        self._under_way: dict[str, asyncio.Future[Sequence[Address]]] = {}
        self._of_tenant: Counter[str] = Counter()
        """How many of the look-ups under way each tenant began."""

    async def begin(self, name: str, tenant: str) -> "asyncio.Future[Sequence[Address]] | None":
        """Begins the look-up of a name, or joins the one under way. None: there was no room for it in time.

        The future gives the addresses, which may be none, and may be cancelled.
        """
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
        """Looks up in a thread of its own: no other work waits for it, and it ends with the process."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[Address]] = loop.create_future()

        def report(addresses: Sequence[Address]) -> None:
            del self._under_way[name]
            self._of_tenant -= Counter((tenant,))  # this also drops the tenants that have none
            found.set_result(addresses)

        def look_up() -> None:
            addresses: Sequence[Address] = ()
            try:
                addresses = self._resolve(name)
            except Exception:  # noqa: BLE001,S110 its message holds the name; that there is no address is enough
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
