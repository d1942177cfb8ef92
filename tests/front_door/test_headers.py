"""The headers of every response, the origins that may call, and which proxies' headers are believed."""

import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.edge.proxies import TrustedProxies, address_of
from api.http.rate_limit_headers import headers_of
from shared.errors import SettingsError
from shared.limits import LimitState, Measured
from shared.settings import load_settings
from tests.front_door.conftest import A_HEAD, NO_REDIS, say
from tests.support.served import Served, serving

_SAFE = {
    b"x-content-type-options: nosniff",
    b"referrer-policy: no-referrer",
    b"cross-origin-resource-policy: same-origin",
    b"content-security-policy: default-src 'none'; frame-ancestors 'none'",
    b"cache-control: no-store",
}


async def _headers(served: Served, request: bytes) -> list[bytes]:
    heard = await say(served, request, patience_s=5)
    return heard.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")


async def test_every_response_has_the_security_headers(door: Served) -> None:
    """Each exactly once: successes, errors of routes, of the router, of the connection, and of the other surface."""
    for line in (
        b"GET /health/live",
        b"GET /health",
        b"GET /v1/jobs",
        b"POST /v1/messages",
        b"GET /x",
        b"PUT /v1/jobs",
    ):
        headers = await _headers(door, line + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert {header: headers.count(header) for header in _SAFE} == dict.fromkeys(_SAFE, 1), line
        assert not any(header.startswith((b"server:", b"access-control-")) for header in headers)


async def test_a_page_has_its_own_policy(door: Served) -> None:
    """It may be cached."""
    headers = await _headers(door, b"GET /problems/not_found HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert [header for header in headers if header.startswith(b"content-security-policy:")] == [
        b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'"
    ]
    assert b"cache-control: public, max-age=3600" in headers


_PREFLIGHT = (
    b"OPTIONS /v1/jobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\nOrigin: https://app.example\r\nAccess-Control-Request-Method: DELETE\r\n"
    b"Access-Control-Request-Headers: authorization,idempotency-key,anthropic-version\r\n\r\n"
)


async def test_pages_of_named_origins_may_call() -> None:
    """Preflights need no key; errors can be read too; other origins get no CORS headers."""
    async with serving(NO_REDIS, cors_origins="https://app.example, http://localhost:3000") as door:
        received = await _headers(door, _PREFLIGHT)
        assert received[0] == b"HTTP/1.1 204 No Content"
        assert b"access-control-allow-origin: https://app.example" in received
        assert b"access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE" in received
        assert b"access-control-allow-headers: authorization,idempotency-key,anthropic-version" in received
        received = await _headers(
            door, b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\nOrigin: http://localhost:3000\r\n\r\n"
        )
        assert b"access-control-allow-origin: http://localhost:3000" in received
        assert b"vary: Origin" in received
        for origin in (b"https://evil.example", b"null", b"https://app.example.evil", b"http://app.example"):
            received = await _headers(door, _PREFLIGHT.replace(b"https://app.example", origin))
            assert not any(header.startswith(b"access-control-") for header in received)
        hostile = _PREFLIGHT.replace(b"authorization,", b"<script>,")
        assert not any(b"script" in header for header in await _headers(door, hostile))


async def test_without_origins_a_preflight_is_an_ordinary_options(door: Served) -> None:
    """The response lists the methods and allows no origin."""
    received = await _headers(door, _PREFLIGHT)
    assert any(header.lower().startswith(b"allow: ") for header in received)
    assert not any(header.startswith(b"access-control-") for header in received)


def test_invalid_origins_and_networks_are_reported_at_the_start() -> None:
    """So is allowing every origin while authentication is off."""
    assert load_settings(auth="keys", cors_origins="*").cors_origins == ("*",)
    for origins in ("*", "app.example", "https://app.example/", "*, https://app.example"):
        with pytest.raises(SettingsError, match="TOKENSPOOL_CORS_ORIGINS must be"):
            load_settings(auth="off", cors_origins=origins)
    assert load_settings(trusted_proxies="10.0.0.0/8, ::1").trusted_proxies == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::1/128"),
    )
    with pytest.raises(SettingsError, match="TOKENSPOOL_TRUSTED_PROXIES must be networks"):
        load_settings(trusted_proxies="10.0.0.1/8")


async def _client_behind(networks: list[str], peer: str, *headers: tuple[bytes, bytes]) -> tuple[str, str]:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    middleware = TrustedProxies(app, [ipaddress.ip_network(network) for network in networks])
    await middleware({"type": "http", "client": (peer, 1), "scheme": "http", "headers": headers}, nothing, nothing)
    return seen["client"][0], seen["scheme"]


def _for(*hops: bytes) -> tuple[bytes, bytes]:
    return b"x-forwarded-for", b", ".join(hops)


async def test_the_client_is_the_rightmost_address_that_no_trusted_proxy_has() -> None:
    """The client itself wrote everything to the left of it."""
    proxies = ["10.0.0.0/8", "::1"]
    assert await _client_behind(proxies, "10.0.0.1", _for(b"6.6.6.6", b"192.0.2.7", b"10.0.0.2")) == (
        "192.0.2.7",
        "http",
    )
    assert await _client_behind(proxies, "::1", _for(b"6.6.6.6"), _for(b"[2001:db8::1]:80")) == ("2001:db8::1", "http")
    assert await _client_behind(proxies, "::ffff:10.0.0.1", _for(b"192.0.2.7:1234")) == ("192.0.2.7", "http")
    assert await _client_behind(proxies, "10.0.0.1", _for(b"6.6.6.6", b"rubbish", b"10.0.0.9")) == ("10.0.0.9", "http")
    assert await _client_behind(proxies, "10.0.0.1", _for(b"rubbish")) == ("10.0.0.1", "http")
    assert await _client_behind(proxies, "10.0.0.1", (b"x-forwarded-proto", b"https")) == ("10.0.0.1", "https")
    assert await _client_behind(proxies, "10.0.0.1", (b"x-forwarded-proto", b"javascript")) == ("10.0.0.1", "http")
    for stranger in ("192.0.2.9", "127.0.0.1"):
        headers = (_for(b"6.6.6.6"), (b"x-forwarded-proto", b"https"))
        assert await _client_behind(proxies, stranger, *headers) == (stranger, "http")


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_none(text: str) -> None:
    """An address that is found can be parsed."""
    address = address_of(text)
    assert address is None or str(ipaddress.ip_address(address)) == address


async def test_a_page_may_read_the_headers_of_limits() -> None:
    """Those of both surfaces, and every other header of ours."""
    async with serving(NO_REDIS, cors_origins="https://app.example.com") as door:
        heard = await say(door, A_HEAD[:-2] + b"Origin: https://app.example.com\r\n\r\n")
    (exposed,) = re.findall(rb"\r\naccess-control-expose-headers: ([^\r]*)\r\n", heard.raw)
    names = {name.decode().lower() for name in exposed.split(b", ")}
    state = [LimitState(measured, 1, 1, 1) for measured in Measured]
    assert names >= {name.lower() for name in headers_of(state, on_messages_surface=True)}
