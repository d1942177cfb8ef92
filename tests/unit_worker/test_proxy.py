"""Which calls of the LLM use the proxy in the environment, and with which key."""

import httpx2
import pytest

from shared.routes import ProviderName
from shared.settings import load_settings
from simulator.app import running
from worker.providers import open_providers
from worker.providers.transport import _proxy_of

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables as in an office, without NO_PROXY."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, NOBODY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", list(ProviderName))
@pytest.mark.parametrize("key", ["made-up", "made-up\n", "made-up\r\n"])
async def test_an_llm_on_this_machine_is_called_directly(name: ProviderName, key: str) -> None:
    """`dev` starts one there. A line end in the key does not break the call."""
    async with running() as simulator:
        settings = load_settings(
            anthropic_base_url=simulator.url,
            anthropic_api_key=key,
            openai_base_url=f"{simulator.url}/v1",
            openai_api_key=key,
        )
        provider = open_providers(settings, [name])[name]
        try:
            assert await provider.models()
        finally:
            await provider.close()


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://127.0.0.1:9100", None),
        ("http://127.8.9.1:9100", None),
        ("http://localhost:9100", None),
        ("http://[::1]:9100", None),
        ("http://10.0.0.7:9100", NOBODY),
        ("https://api.example.com", NOBODY),
    ],
)
def test_everything_else_goes_through_the_proxy(url: str, proxy: str | None) -> None:
    assert _proxy_of(httpx2.URL(url)) == proxy
