"""Whether an address is this machine's own."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``. A name other than localhost may point anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
