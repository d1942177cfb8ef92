"""Recognises this machine's own addresses."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. False for any name but localhost: it may point anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
