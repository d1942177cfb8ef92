"""What every test relies on: no network, no keys, none of the developer's settings."""

import os
import socket

import pytest

from tests.support.loopback import OutsideWorld, is_local


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("203.0.113.7", 443), ("api.anthropic.com", 443)])
def test_no_test_connects_beyond_this_machine(address: tuple[str, int]) -> None:
    """Whatever makes the socket: httpx, aiohttp and asyncio all end up here."""
    with socket.socket() as opened, pytest.raises(OutsideWorld, match=address[0]):
        opened.connect(address)
    with socket.socket() as opened, pytest.raises(OutsideWorld):
        opened.connect_ex(address)
    with pytest.raises(OutsideWorld):
        socket.create_connection(address, timeout=1)
    with socket.socket(type=socket.SOCK_DGRAM) as opened, pytest.raises(OutsideWorld):
        opened.sendto(b"x", address)


def test_no_test_asks_for_a_name() -> None:
    """A look-up leaves the machine too."""
    with pytest.raises(OutsideWorld):
        socket.getaddrinfo("example.com", 80)
    assert socket.getaddrinfo("127.0.0.1", 80)


def test_a_test_reaches_this_machine() -> None:
    """Under all of its names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
    assert all(
        map(is_local, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST", b"localhost", "", None, "0.0.0.0"))
    )
    assert not any(
        map(is_local, ("10.0.0.1", "169.254.169.254", "localhost.example.com", "127.0.0.1.nip.io", "2001:db8::1"))
    )


def test_no_key_and_no_setting_is_there() -> None:
    """A test cannot spend money, nor pass because of what a developer has set."""
    foreign = [name for name in os.environ if name.startswith(("ANTHROPIC_", "OPENAI_", "TOKENSPOOL_"))]
    assert set(foreign) <= {"TOKENSPOOL_REDIS_BINARY"}
