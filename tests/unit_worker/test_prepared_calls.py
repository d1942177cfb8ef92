"""The head of a call is built by the SDK once, and sent again with other bodies."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.settings import load_settings
from worker.outcome import UpstreamError
from worker.providers.anthropic import AnthropicProvider
from worker.providers.base import Provider
from worker.providers.openai import OpenAIProvider

BODY = b'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"%b"}]}'


class Upstream:
    """Refuses every request, and keeps what it got."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.status = 418

    async def refuse(self, request: web.Request) -> web.Response:
        self.heads.append(dict(request.headers))
        self.bodies.append(await request.read())
        return web.json_response({"error": {"type": "teapot", "message": "short and stout"}}, status=self.status)


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    upstream, app = Upstream(), web.Application()
    app.router.add_post("/{path:.*}", upstream.refuse)
    async with TestServer(app) as server:
        yield upstream, str(server.make_url("/")).rstrip("/")


def provider_of(name: str, url: str) -> Provider:
    values: dict[str, Any] = {f"{name}_base_url": url, f"{name}_api_key": "key"}
    settings = load_settings(**values)
    return AnthropicProvider(settings) if name == "anthropic" else OpenAIProvider(settings)


async def refusal_of(provider: Provider, word: bytes, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        async with provider.stream(BODY % word, model="m", connect_timeout_s=5, **options):
            pass
    return raised.value


@pytest.mark.parametrize("name", ["anthropic", "openai"])
async def test_an_answered_call_is_repeated_with_the_same_head(upstream: tuple[Upstream, str], name: str) -> None:
    server, url = upstream
    server.status = 200
    provider = provider_of(name, url)
    for word in (b"one", b"another word"):
        async with provider.stream(BODY % word, model="m", connect_timeout_s=5):
            pass
    first, second = server.heads
    length = first.pop("Content-Length"), second.pop("Content-Length")
    assert first == second
    assert [int(each) for each in length] == [len(body) for body in server.bodies]
    assert b"another word" in server.bodies[1]
    await provider.close()


@pytest.mark.parametrize("name", ["anthropic", "openai"])
@pytest.mark.parametrize("status", [302, 400, 429, 529])
async def test_a_refusal_of_a_repeated_head_reads_as_the_sdks(
    upstream: tuple[Upstream, str], name: str, status: int
) -> None:
    server, url = upstream
    fresh, used = provider_of(name, url), provider_of(name, url)
    server.status = 200
    async with used.stream(BODY % b"first", model="m", connect_timeout_s=5):
        pass
    server.status = status
    expected, got = await refusal_of(fresh, b"x"), await refusal_of(used, b"x")
    assert got.failure == expected.failure
    assert got.failure.error.upstream_status == status
    await fresh.close()
    await used.close()


async def test_callers_with_other_headers_have_heads_of_their_own(upstream: tuple[Upstream, str]) -> None:
    server, url = upstream
    server.status = 200
    provider = provider_of("anthropic", url)
    for beta in ("a", "b", "a", ""):
        async with provider.stream(BODY % b"x", model="m", beta=beta, connect_timeout_s=5):
            pass
    assert [head.get("anthropic-beta") for head in server.heads] == ["a", "b", "a", None]
    await provider.close()
