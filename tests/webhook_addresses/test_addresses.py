"""No webhook reaches a forbidden address: not by its URL, by DNS, or by a redirect."""

import ipaddress
import itertools

import pytest

from shared.errors import SettingsError
from shared.settings import load_settings
from shared.webhook_address import is_public, may_connect, refusal_of_url
from shared.webhooks import Reason
from tests.webhook_addresses.conftest import (
    HOST,
    LOOPBACK,
    PUBLIC,
    Canaries,
    Names,
    StartReceiver,
    WatchedNetwork,
    a_sender,
)

FORBIDDEN_V4 = (
    *("127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "0.0.0.0", "0.1.2.3"),
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255"),
    *("169.254.169.254", "169.254.170.2", "169.254.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("168.63.129.16", "192.0.0.192", "192.0.0.1", "192.0.2.1", "198.51.100.7", "203.0.113.9", "192.88.99.1"),
    *("198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
)
FORBIDDEN_V6 = (
    *("::1", "::", "::2", "::127.0.0.1", "::8.8.8.8", "::a9fe:a9fe"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::ffff:7f00:1"),
    *("::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"),
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "2002:808:808::1"),
    *("2001::1", "2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:0:808:808:0:0:f5ff:fffe"),
    *("2001:10::1", "2001:20::1", "2001:2::1", "2001:db8::1", "2001:db8:ffff::1", "3fff::1", "3fff:fff::1"),
    *("fc00::1", "fd00:ec2::254", "fdff::1", "fe80::1", "fe80::a9fe:a9fe", "febf::1", "fec0::1", "feff::1"),
    *("100::1", "5f00::1", "ff02::1", "ff0e::1", "ff05::1:3", "4000::1", "1::1"),
    *("2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1", "fe80::5efe:192.168.0.1"),
)
FORBIDDEN = FORBIDDEN_V4 + FORBIDDEN_V6

DISGUISED = (
    *("2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1", "127.0.1", "0", "0x0", "0X7F.1"),
    *("127.0.0.1.", "127.000.000.001", "00000177.1", "127.0.0.0x1", "1.0x7f", "8.8.8.8.", "256.1.1.1", "1.2.3.4.5"),
    *("[::1%25lo]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[v1.fe80::a]", "[::1", "::1", "[127.0.0.1]", "[]"),
    *("localhost.", "localhost..", "a..b", ".example.com", "%6c%6fcalhost", "127.0.0.1%2f", "ex%61mple.com"),
    *("１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "loc\u00adalhost", "\u2100.example.com"),
    *("127.0.0.1\\@example.com", "example.com\\", "example.com\t", "exam\nple.com", "example.com\x00", "a b.com"),
    *("user@example.com", "user:password@example.com", ":@example.com", "@127.0.0.1", "example.com@127.0.0.1"),
    *(
        "example.com:443:80",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:-1",
        "example.com:0x1bb",
    ),
    *("", ":443", "a," + "b", "a;b", "a'b", "*", "a" * 64 + ".com", "a." * 127 + "com"),
)
"""Hosts that parsers and resolvers read in different ways: refused whatever is allowed."""

INNER_NAMES = (
    *("localhost", "LOCALHOST", "a.localhost", "redis", "metadata", "metadata.google.internal", "printer.local"),
    *("db.internal", "redis.default.svc.cluster.local", "localhost.localdomain", "router.home.arpa", "nas.lan"),
)


def literal(address: str) -> str:
    """An address in the form of a URL."""
    return f"[{address}]" if ":" in address else address


def test_there_are_enough_of_them() -> None:
    """All are different addresses."""
    assert len({ipaddress.ip_address(address) for address in FORBIDDEN}) >= 60


@pytest.mark.parametrize("address", FORBIDDEN)
async def test_a_forbidden_address_is_refused_as_a_host_and_not_called(address: str, canaries: Canaries) -> None:
    """At submit, and at delivery if it passed the submit."""
    network = WatchedNetwork(ports={443: canaries.port})
    sender = a_sender(network=network)
    assert refusal_of_url(f"https://{literal(address)}/hook", ()) == "must lead to a public address"
    assert not is_public(ipaddress.ip_address(address))
    assert (await sender.post(f"https://{literal(address)}/hook", {}, b"{}")).reason is Reason.FORBIDDEN_ADDRESS
    assert network.attempts == []


@pytest.mark.parametrize("address", FORBIDDEN)
async def test_a_name_of_a_forbidden_address_is_not_called(address: str, canaries: Canaries) -> None:
    """Not even if the name also has a public address, in any order."""
    for answer in ((address,), (PUBLIC, address), (address, PUBLIC), (*[PUBLIC] * 8, address)):
        network = WatchedNetwork(ports={443: canaries.port})
        names = Names(answer)
        sender = a_sender(network=network, resolve=names)
        assert (await sender.post(f"https://{HOST}/hook", {}, b"{}")).reason is Reason.FORBIDDEN_ADDRESS
        assert network.attempts == []
        assert names.asked == [HOST]


async def test_redirects_to_forbidden_addresses_are_not_followed(
    canaries: Canaries, start_receiver: StartReceiver
) -> None:
    """Nor to allowed ones: the redirect's status is the outcome. Loopback is allowed here, for receiver and canaries."""
    places = [f"https://{literal(address)}/" for address in FORBIDDEN] + canaries.urls()
    places += [f"http://{literal(address)}:{canaries.port}/" for address in FORBIDDEN]
    for status, place in zip(itertools.cycle((301, 302, 303, 307, 308)), places * 2, strict=False):
        receiver = await start_receiver(
            f"HTTP/1.1 {status} Moved\r\nLocation: {place}\r\nRefresh: 0; url={place}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        network = WatchedNetwork(ports={443: canaries.port})
        sender = a_sender(LOOPBACK, network=network)
        assert (await sender.post(receiver.url, {}, b"{}")).status == status
        assert network.attempts == ["127.0.0.1"]


async def test_a_canary_notices_connections_if_its_network_is_allowed(canaries: Canaries) -> None:
    """The tests above rely on this: with the allow-list, the sender does connect to the same addresses."""
    sender = a_sender(LOOPBACK, timeout_s=0.2)
    loopback = [url for url in canaries.urls() if "[" not in url]
    for url in loopback:
        assert (await sender.post(url, {}, b"{}")).reason is Reason.TIMEOUT  # nobody responds
    assert canaries.connections() == len(loopback)
    named = a_sender(LOOPBACK, timeout_s=0.2, resolve=Names(("127.0.0.1",)))
    await named.post(f"http://anything:{canaries.port}/", {}, b"{}")
    await named.post(f"https://anything:{canaries.port}/", {}, b"{}")
    mapped = a_sender(LOOPBACK, timeout_s=0.2)
    await mapped.post(f"http://[::ffff:127.0.0.1]:{canaries.port}/", {}, b"{}")
    assert canaries.connections() == 3


@pytest.mark.parametrize("host", DISGUISED)
@pytest.mark.parametrize("allowed", [(), LOOPBACK])
async def test_a_host_in_disguise_is_refused_whatever_is_allowed(
    host: str, allowed: tuple[ipaddress.IPv4Network, ...], canaries: Canaries
) -> None:
    """The refusal does not quote it."""
    names = Names(("127.0.0.1",))
    sender = a_sender(allowed, network=WatchedNetwork(ports={443: canaries.port}), resolve=names)
    url = f"https://{host}/a-secret-path"
    refusal = refusal_of_url(url, allowed)
    assert refusal is not None
    assert "a-secret-path" not in refusal
    assert len(host) < 4 or host not in refusal
    assert (await sender.post(url, {}, b"{}")).reason is Reason.FORBIDDEN_ADDRESS
    assert names.asked == []


@pytest.mark.parametrize("name", INNER_NAMES)
def test_an_internal_name_is_refused_unless_networks_are_allowed(name: str) -> None:
    """With allowed networks, the delivery decides."""
    assert refusal_of_url(f"https://{name}/hook", ()) == "must lead to a public address"
    assert refusal_of_url(f"https://{name}/hook", LOOPBACK) is None


@pytest.mark.parametrize(
    ("url", "refusal"),
    [
        ("https://example.com/hook?a=b", None),
        ("https://example.com", None),
        ("HTTPS://EXAMPLE.com:443/", None),
        ("https://xn--mnchen-3ya.de/", None),
        ("https://a_b.example.com?c", None),
        ("https://93.184.216.34/", None),
        ("https://[2606:4700::1111]/", None),
        ("https://[64:ff9b::8.8.8.8]/", None),
        ("https://[::ffff:8.8.8.8]/", None),
        ("http://example.com/", "must be https"),
        ("http://93.184.216.34/", "must be https"),
        ("ftp://example.com/", "must be https"),
        ("file:///etc/passwd", "must be https"),
        ("https:example.com", "must be https"),
        ("//example.com/", "must be an absolute https URL"),
        ("example.com", "must be an absolute https URL"),
        ("https://example.com:8443/", "must lead to port 443"),
        ("https://93.184.216.34:22/", "must lead to port 443"),
        ("https://example.com/#part", "must not have a fragment"),
        ("https://a@example.com/", "must not hold a user or a password"),
        ("https://example.com/" + "a" * 1981, "must have at most 2000 characters"),
        ("https://example.com/ä", "must be printable ASCII without spaces and backslashes"),
        ("", "must be printable ASCII without spaces and backslashes"),
    ],
)
def test_each_refused_url_has_its_reason(url: str, refusal: str | None) -> None:
    """Without allowed networks."""
    assert refusal_of_url(url, ()) == refusal


def test_an_allow_list_opens_any_port_and_plain_http_inside_of_it_and_nothing_outside() -> None:
    """A literal address can be checked at submit."""
    assert refusal_of_url("http://127.0.0.1:6379/", LOOPBACK) is None
    assert refusal_of_url("https://[::ffff:127.0.0.1]:1/", LOOPBACK) is None
    assert refusal_of_url("http://hooks.example.com:8080/", LOOPBACK) is None
    assert refusal_of_url("http://10.0.0.1/", LOOPBACK) == "must be https"
    assert refusal_of_url("https://10.0.0.1/", LOOPBACK) == "must lead to a public address"
    assert refusal_of_url("https://93.184.216.34:8443/", LOOPBACK) == "must lead to port 443"


def test_outside_of_the_allow_list_only_https_on_its_own_port_is_called() -> None:
    """The same rule for the addresses of a name."""
    public, private = ipaddress.ip_address(PUBLIC), ipaddress.ip_address("127.0.0.1")
    for scheme, port in itertools.product(("https", "http"), (443, 80, 22)):
        plain = scheme == "https" and port == 443
        assert may_connect(public, scheme=scheme, port=port, allowed=LOOPBACK) == plain
        assert may_connect(private, scheme=scheme, port=port, allowed=LOOPBACK)
        assert not may_connect(private, scheme=scheme, port=port, allowed=())


@pytest.mark.parametrize(
    "address",
    [
        *(
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "223.255.255.255",
            "168.63.129.15",
            "2606:4700:4700::1111",
        ),
        *("2a00:1450:4001:80b::200e", "2001:4860:4860::8888", "64:ff9b::1.1.1.1", "2606:4700::5efe:8.8.8.8"),
    ],
)
def test_an_address_on_the_internet_is_public(address: str) -> None:
    """Including addresses next to the table's networks."""
    assert is_public(ipaddress.ip_address(address))


def test_nothing_that_python_calls_private_is_public() -> None:
    """One address of each /16 of IPv4 and IPv6: our table may be stricter, but never laxer."""
    for start in range(1 << 16):
        for address in (ipaddress.IPv4Address(start << 16 | 0x0101), ipaddress.IPv6Address(start << 112 | 0x0101)):
            assert address.is_global or not is_public(address)


def test_the_allow_list_is_networks() -> None:
    """An invalid list is reported at the start, with the variable's name."""
    assert load_settings(webhook_allow_networks="127.0.0.0/8").webhook_allow_networks == LOOPBACK
    assert load_settings().webhook_allow_networks == ()
    for wrong in ("10.0.0.1/8", "private", "10.0.0.0/33"):
        with pytest.raises(SettingsError, match="TOKENSPOOL_WEBHOOK_ALLOW_NETWORKS must be networks"):
            load_settings(webhook_allow_networks=wrong)
