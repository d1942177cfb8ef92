"""Counts the requests of an address, before the key is checked and the tenant is known."""

import ipaddress

from shared.errors import RateLimited
from shared.limits import LimitOf, LimitState, Measured, ReachedLimit
from shared.store.commands import Commands
from shared.store.limits import detail_of


class Addresses:
    """The requests of the last minute, over all API processes."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    @property
    def can_count(self) -> bool:
        """Whether Redis is connected and replies, as far as we know."""
        return self._commands.is_answering

    async def admit(self, address: str, requests_per_minute: int) -> None:
        """Counts one more request. Raises RateLimited, without counting it; StorageUnavailable as soon as Redis is silent."""
        reply = await self._commands.run_impatiently(
            "admit_address", address=subnet_of(address), limit=requests_per_minute
        )
        wait_ms, used, reset_ms, now_ms = map(int, reply)
        if wait_ms:
            limit, remaining = requests_per_minute, max(0, requests_per_minute - used)
            reached = ReachedLimit(LimitOf.ADDRESS, "requests_per_minute", limit, used, 1, now_ms + wait_ms)
            raise RateLimited(
                detail_of(reached, wait_ms),
                retry_after_s=-(-wait_ms // 1000),
                reached=reached,
                limits=(LimitState(Measured.REQUESTS, limit, remaining, reset_ms),),
            )


def subnet_of(address: str) -> str:
    """What counts as one address: of an IPv6 address its /64, which one household has. Any other text counts as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
