"""Finds the client's address behind the reverse proxies that the settings name.

``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed only if the connection comes from a trusted network, since
anybody can send them. This machine is not trusted unless it is named. The client is the rightmost address that is not a
trusted proxy's.

uvicorn's ProxyHeadersMiddleware (0.54) does not fit. It takes any text for the client's address, so that ``rubbish``,
or another spelling of an IPv6 address, is a new client to the address limit. It does not know a proxy by its IPv4
address if we listen on ``::``. It reads a chain of any length.
"""

import functools
import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.settings import Network

_MOST_HOPS: Final = 20


class TrustedProxies:
    """Pure ASGI middleware. Not installed if no proxy is trusted."""

    def __init__(self, app: ASGIApp, networks: Sequence[Network]) -> None:
        self._app = app
        self._networks = tuple(networks)
        self._is_trusted = functools.lru_cache(1024)(self._look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = scope.get("client")
            if client is not None and self._is_trusted(client[0]):
                self._believe(scope)
        await self._app(scope, receive, send)

    def _believe(self, scope: Scope) -> None:
        hops: list[str] = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                hops += value.decode("latin-1").split(",")
            elif name == b"x-forwarded-proto" and value in (b"http", b"https"):
                scope["scheme"] = value.decode()
        for hop in hops[: -_MOST_HOPS - 1 : -1]:
            address = address_of(hop)
            if address is None:
                return  # not an address: the client may have written all that is left of it
            scope["client"] = (address, 0)
            if not self._is_trusted(address):
                return

    def _look_up(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # how a listener on :: sees IPv4 clients
        return any(address in network for network in self._networks)


def address_of(hop: str) -> str | None:
    """The address in ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1`` or ``[2001:db8::1]:80``; or None."""
    text = hop.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text)) if len(text) <= 45 else None
    except ValueError:
        return None
