"""Without API keys, foreign web pages cannot call the API through a user's browser: no DNS rebinding, no CSRF."""

from collections.abc import Mapping
from typing import Protocol

import pytest

from tests.routes.conftest import StartApi

HERE = {"Host": "127.0.0.1:8000"}


class Ask(Protocol):
    """Sends a request to an API with these settings; returns the status. 404 means that the request passed the guard,
    since its route does not exist.
    """

    async def __call__(
        self, method: str = "GET", path: str = "/nothing", *, headers: Mapping[str, str] = HERE, **settings: str
    ) -> int: ...


@pytest.fixture
def asked(start_api: StartApi) -> Ask:
    async def ask(
        method: str = "GET", path: str = "/nothing", *, headers: Mapping[str, str] = HERE, **settings: str
    ) -> int:
        api = await start_api(**settings)
        response = await api.http.request(method, path, headers=headers)
        if response.status_code == 403:
            assert response.json()["code"] == "forbidden"
        return response.status_code

    return ask


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:8000", "[::1]", "[::1]:8000"])
async def test_this_machine_s_own_names_are_served(asked: Ask, host: str) -> None:
    """With any port."""
    assert await asked(headers={"Host": host}) == 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.nip.io", "localhost.evil.example", "192.168.1.5", "[::2]:80"],
)
async def test_a_name_that_is_rebound_is_refused(asked: Ask, host: str) -> None:
    """The browser treats it as the page's own origin, and sends its name in Host."""
    assert await asked(headers={"Host": host, "Sec-Fetch-Site": "same-origin"}) == 403
    assert await asked("POST", "/v1/jobs", headers={"Host": host}) == 403


@pytest.mark.parametrize("path", ["/health/live"])
async def test_health_checks_may_use_any_name(asked: Ask, path: str) -> None:
    """A kubelet uses the address of the pod."""
    assert await asked(path=path, headers={"Host": "10.1.2.3:8000"}) == 200


async def test_names_can_be_added(asked: Ask) -> None:
    """Or all names can be allowed."""
    assert await asked(headers={"Host": "api.internal:80"}, allowed_hosts="api, API.internal") == 404
    assert await asked(headers={"Host": "other.internal"}, allowed_hosts="api, api.internal") == 403
    assert await asked(headers={"Host": "whatever"}, allowed_hosts="*") == 404


@pytest.mark.parametrize("site", ["cross-site", "something-new"])
async def test_a_page_of_another_site_is_refused(asked: Ask, site: str) -> None:
    """It could not read the response, but its request would take effect."""
    headers = HERE | {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Origin": "https://evil.example"}
    assert await asked("POST", "/v1/webhooks/secret/rotate", headers=headers) == 403
    assert await asked(headers=headers) == 403


async def test_for_an_old_browser_the_origin_header_decides(asked: Ask) -> None:
    """Also if it is `null`: a sandboxed frame may be anybody's."""
    for origin in ("https://evil.example", "null"):
        assert await asked("POST", headers=HERE | {"Origin": origin}) == 403
    assert await asked("POST", headers=HERE | {"Origin": "http://localhost:3000"}) == 404


async def test_a_link_may_lead_here(asked: Ask) -> None:
    """The page with the link sees nothing of the response. A form that posts is not a link."""
    headers = HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert await asked(headers=headers) == 404
    assert await asked("POST", headers=headers) == 403


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
async def test_one_s_own_pages_are_served(asked: Ask, site: str) -> None:
    """Also those on another port of this machine."""
    assert await asked("POST", headers=HERE | {"Sec-Fetch-Site": site}) == 404


async def test_an_origin_in_the_settings_may_call(asked: Ask) -> None:
    """By TOKENSPOOL_CORS_ORIGINS."""
    origin = "https://app.example.com"
    headers = HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": origin}
    assert await asked("POST", headers=headers, cors_origins=origin) == 404


async def test_with_keys_the_guard_is_off(asked: Ask) -> None:
    """A page of another site has no key."""
    headers = {"Host": "api.example.com", "Sec-Fetch-Site": "cross-site", "Origin": "https://app.example.com"}
    assert await asked(auth="keys", headers=headers) == 404
