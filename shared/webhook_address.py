"""Which webhook URLs may be called: checks the URL at submit, and its addresses at each delivery.

A caller names a URL that our worker then calls from inside the operator's network (SSRF). So by default the worker
calls only https on port 443 of public addresses, and checks the address that it connects to, not the name.
"""

import ipaddress
import re
from typing import Final

import msgspec

from shared.webhooks import MOST_URL_CHARS, STANDARD_PORTS

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
"""The operator's allow-list (``TOKENSPOOL_WEBHOOK_ALLOW_NETWORKS``): in these, any scheme and port may be called."""

HTTPS_PORT: Final = STANDARD_PORTS["https"]

# Python's own is_global differs between versions, and does not know the cloud services on public addresses.
_NOT_PUBLIC_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network: Linux treats 0.0.0.0 as loopback
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a carrier's NAT; Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host, which only its virtual machines can reach
        "169.254.0.0/16",  # link local: the metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_GLOBAL_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
"""All addresses that are assigned. It excludes loopback, fc00::/7, fe80::/10, fec0::/10, ff00::/8, 100::/64, 5f00::/16,
and the forms that embed an IPv4 address without a public gateway: ::/96, ::ffff:0:0:0/96, 64:ff9b:1::/48."""
_NOT_PUBLIC_V6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: a router sends it to the IPv4 address embedded in it
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})

_INNER_NAMES: Final = (".localhost", ".localdomain", ".local", ".internal", ".home.arpa", ".lan", ".intranet")

_PRINTABLE: Final = re.compile(r"[!-\[\]-~]+")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_URL: Final = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?]*)(?P<target>.*)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_LABEL: Final = re.compile(r"[a-z0-9_-]{1,63}")
_MOST_HOST_CHARS: Final = 253


class RefusedUrl(ValueError):
    """The message completes a sentence that begins with "the URL", and never quotes the URL."""


class Target(msgspec.Struct, frozen=True):
    """A URL, parsed once, so that the worker calls exactly what was checked."""

    scheme: str
    """``https`` or ``http``."""
    host: str
    """In lower case; an IPv6 address without its brackets."""
    port: int
    path: str
    """With the query; never empty."""
    address: Address | None
    """The host, if it is an IP address."""

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == STANDARD_PORTS[self.scheme] else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """Raises RefusedUrl for anything but an absolute http(s) URL in its plainest form, whatever the settings allow."""
    if len(url) > MOST_URL_CHARS:
        raise RefusedUrl(f"must have at most {MOST_URL_CHARS} characters")
    if not _PRINTABLE.fullmatch(url):
        raise RefusedUrl("must be printable ASCII without spaces and backslashes")
    if "#" in url:
        raise RefusedUrl("must not have a fragment")
    whole = _URL.fullmatch(url)
    if whole is None:
        raise RefusedUrl("must be https" if _SCHEME.match(url) else "must be an absolute https URL")
    if "@" in whole["authority"]:
        raise RefusedUrl("must not hold a user or a password")
    authority = _AUTHORITY.fullmatch(whole["authority"])
    if authority is None:
        raise RefusedUrl("must name a host, and a port only as a number")
    scheme = whole["scheme"].lower()
    port = int(authority["port"] or STANDARD_PORTS[scheme])
    if not 0 < port < 1 << 16:
        raise RefusedUrl("must have a port below 65536")
    host = authority["host"].lower()
    address = _literal(host)
    if address is None:
        _check_name(host)
    path = whole["target"] if whole["target"].startswith("/") else f"/{whole['target']}"
    return Target(scheme, host.strip("[]"), port, path, address)


def refusal_of_url(url: str, allowed: Networks) -> str | None:
    """Why a submit with this URL is refused, as the end of a sentence that begins with "the URL"; None if it is accepted.

    If the operator allows any networks, every name is accepted: only a delivery knows its address.
    """
    try:
        target = target_of(url)
    except RefusedUrl as refused:
        return str(refused)
    if target.address is not None:
        if may_connect(target.address, scheme=target.scheme, port=target.port, allowed=allowed):
            return None
    elif allowed:
        return None
    if target.scheme != "https":
        return "must be https"
    if target.port != HTTPS_PORT:
        return f"must lead to port {HTTPS_PORT}"
    if target.address is not None or _is_inner(target.host):
        return "must lead to a public address"
    return None


def may_connect(address: Address, *, scheme: str, port: int, allowed: Networks) -> bool:
    """Whether a webhook may be sent there: anything inside ``allowed``; elsewhere only https on port 443, if public."""
    plain = unmapped(address)
    if any(plain in network for network in allowed if network.version == plain.version):
        return True
    return scheme == "https" and port == HTTPS_PORT and is_public(plain)


def is_public(address: Address) -> bool:
    """Whether the address is public, and so is the IPv4 address embedded in it, if any."""
    address = unmapped(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    last_four_bytes = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _NAT64:  # in an IPv6-only network, DNS64 returns this form for every IPv4 host
        return is_public(last_four_bytes)
    if address not in _GLOBAL_UNICAST_V6 or any(address in network for network in _NOT_PUBLIC_V6):
        return False
    carries_one = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    return not carries_one or is_public(last_four_bytes)


def unmapped(address: Address) -> Address:
    """``::ffff:a.b.c.d`` becomes a.b.c.d: the kernel connects to it over IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _literal(host: str) -> Address | None:
    """The host's IP address; None for a name. Raises RefusedUrl for forms that only a resolver reads as an address:
    ``127.1``, ``0x7f.1``, ``017700000001``, ``2130706433``, ``127.0.0.1.``.
    """
    try:
        if host.startswith("["):
            return ipaddress.IPv6Address(host[1:-1])
        if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise RefusedUrl("must have an IP address in its usual form, or a name") from None
    return None


def _check_name(host: str) -> None:
    if len(host) > _MOST_HOST_CHARS or not all(map(_LABEL.fullmatch, host.split("."))):
        raise RefusedUrl("must have a host name without empty or overlong parts, and without a dot at its end")


def _is_inner(host: str) -> bool:
    """Whether no public DNS knows the name."""
    return "." not in host or f".{host}".endswith(_INNER_NAMES)
