"""Without keys, web pages of others cannot use the browser of whoever runs this: by rebinding a name, or across sites."""

from collections.abc import Mapping
from typing import Protocol

import pytest

from tests.routes.conftest import StartApi

HERE = {"Host": "127.0.0.1:8000"}


class Ask(Protocol):
    """Sends a request to an API with these settings, and gives the status: 404 is that of one that was let through to a
    route which is not there.
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
    """To the browser it is the page's own origin: its requests carry its name."""
    assert await asked(headers={"Host": host, "Sec-Fetch-Site": "same-origin"}) == 403
    assert await asked("POST", "/v1/jobs", headers={"Host": host}) == 403


@pytest.mark.parametrize("path", ["/health/live"])
async def test_whoever_looks_after_the_process_may_use_any_name(asked: Ask, path: str) -> None:
    """A kubelet asks by the address of the pod."""
    assert await asked(path=path, headers={"Host": "10.1.2.3:8000"}) == 200


async def test_names_can_be_added(asked: Ask) -> None:
    """Or all be let in."""
    assert await asked(headers={"Host": "api.internal:80"}, allowed_hosts="api, API.internal") == 404
    assert await asked(headers={"Host": "other.internal"}, allowed_hosts="api, api.internal") == 403
    assert await asked(headers={"Host": "whatever"}, allowed_hosts="*") == 404


@pytest.mark.parametrize("site", ["cross-site", "something-new"])
async def test_a_page_of_another_site_is_refused(asked: Ask, site: str) -> None:
    """It cannot read the response, but what it sends would be done."""
    headers = HERE | {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Origin": "https://evil.example"}
    assert await asked("POST", "/v1/webhooks/secret/rotate", headers=headers) == 403
    assert await asked(headers=headers) == 403


async def test_an_old_browser_says_it_by_origin_alone(asked: Ask) -> None:
    """Also where a page has none: a sandboxed frame is anybody's."""
    for origin in ("https://evil.example", "null"):
        assert await asked("POST", headers=HERE | {"Origin": origin}) == 403
    assert await asked("POST", headers=HERE | {"Origin": "http://localhost:3000"}) == 404


async def test_a_link_may_lead_here(asked: Ask) -> None:
    """The page that it stands on sees nothing of it. A form that posts is no link."""
    headers = HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert await asked(headers=headers) == 404
    assert await asked("POST", headers=headers) == 403


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
async def test_one_s_own_pages_are_served(asked: Ask, site: str) -> None:
    """Those on another port of this machine too."""
    assert await asked("POST", headers=HERE | {"Sec-Fetch-Site": site}) == 404


async def test_an_origin_that_the_settings_name_may_call(asked: Ask) -> None:
    """That is what they are for."""
    origin = "https://app.example.com"
    headers = HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": origin}
    assert await asked("POST", headers=headers, cors_origins=origin) == 404


async def test_with_keys_none_of_this_matters(asked: Ask) -> None:
    """A page has no key."""
    headers = {"Host": "api.example.com", "Sec-Fetch-Site": "cross-site", "Origin": "https://app.example.com"}
    assert await asked(auth="keys", headers=headers) == 404
