"""The bytes between the provider and an upstream, for what the simulator cannot play."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.routes import Limits, ProviderName
from shared.settings import load_settings
from tests.running.crew import FAST
from tests.running.providers import on_each_provider
from tests.support.wait import wait_until
from worker.allowance import Allowance
from worker.outcome import Failure, UpstreamError
from worker.providers import open_providers
from worker.providers.anthropic import _streaming
from worker.providers.base import Provider, UpstreamEvent

Answering = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]

A_REQUEST = msgspec.json.encode(
    {"model": FAST, "max_tokens": 10, "messages": [{"role": "user", "content": "Say hello."}]}
)
AN_EVENT = {
    ProviderName.ANTHROPIC: b'event: ping\ndata: {"type":"ping"}\n\n',
    ProviderName.OPENAI: b'data: {"choices":[{"index":0,"delta":{}}]}\n\n',
}
"""Something that is told."""
PATH = {ProviderName.ANTHROPIC: "/v1/messages", ProviderName.OPENAI: "/v1/chat/completions"}
MORE = {
    ProviderName.ANTHROPIC: b',"stream":true}',
    ProviderName.OPENAI: b',"stream":true,"stream_options":{"include_usage":true}}',
}
"""What the request is sent with."""


@dataclass
class RawUpstream:
    """Reads requests, and answers each with bytes of the test's choice."""

    answer: Answering
    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """The first of each request."""
    connections: int = 0
    closed: int = 0
    """Connections that the client closed."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
                self.lines.append(first)
                self.requests.append((headers, await reader.readexactly(int(headers.get("content-length", "0")))))
                answering = asyncio.create_task(self.answer(writer), name="answer")
                try:
                    while not answering.done():
                        await asyncio.wait([answering], timeout=0.005)
                        if reader.at_eof():
                            return
                    answering.result()
                finally:
                    answering.cancel()
                    await asyncio.wait([answering])
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.closed += 1
            writer.close()


@asynccontextmanager
async def an_upstream(answer: Answering) -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream(answer)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        await server.wait_closed()
        await wait_until(lambda: upstream.closed == upstream.connections, "all connections to be closed")


@asynccontextmanager
async def a_provider(
    upstream: RawUpstream, name: ProviderName, *, key: str | None = "made-up"
) -> AsyncIterator[Provider]:
    settings = load_settings(
        anthropic_base_url=upstream.url,
        anthropic_api_key=key,
        openai_base_url=f"{upstream.url}/v1",
        openai_api_key=key,
    )
    provider = open_providers(settings, [name])[name]
    try:
        yield provider
    finally:
        await provider.close()


def whole(status: str, body: bytes, *headers: str) -> Answering:
    """A response with its length."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers])
        writer.write(f"{head}\r\n\r\n".encode() + body)
        await writer.drain()

    return answer


def begun(status: str, *headers: str) -> Answering:
    """A head, and then nothing for ever."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join([f"HTTP/1.1 {status}", "transfer-encoding: chunked", *headers])
        writer.write(f"{head}\r\n\r\n".encode())
        await asyncio.get_running_loop().create_future()

    return answer


async def endless(writer: asyncio.StreamWriter) -> None:
    """An error page without an end."""
    writer.write(b"HTTP/1.1 529 Overloaded\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        await writer.drain()


async def failure_from(upstream: RawUpstream, name: ProviderName) -> Failure:
    async with a_provider(upstream, name) as provider:
        with pytest.raises(UpstreamError) as raised:
            await ask(provider)
    return raised.value.failure


async def ask(provider: Provider) -> list[UpstreamEvent]:
    """Reads the answer to its end."""
    events: list[UpstreamEvent] = []
    async with provider.stream(A_REQUEST, model=FAST, connect_timeout_s=5) as stream:
        while more := await stream.read():
            events += more
    return events


members = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "stream"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


@given(request=members, indent=st.sampled_from([-1, 0, 2]), around=st.sampled_from([b"", b" ", b"\r\n\t"]))
def test_any_request_goes_out_as_it_is_but_for_stream(request: dict[str, object], indent: int, around: bytes) -> None:
    body = around + msgspec.json.format(msgspec.json.encode(request), indent=indent) + around
    assert msgspec.json.decode(_streaming(body)) == {**request, "stream": True}


@on_each_provider
async def test_the_request_is_made_once_and_asks_for_an_answer_that_can_be_read(provider: ProviderName) -> None:
    """Our bytes are read as they come, so they must not be compressed on the way."""
    async with an_upstream(whole("200 OK", AN_EVENT[provider])) as upstream, a_provider(upstream, provider) as asked:
        assert [event.name for event in await ask(asked)] in (["ping"], ["message_start"])
        ((headers, body),) = upstream.requests
        assert headers["accept-encoding"] == "identity"
        assert headers["content-type"] == "application/json"
        assert "made-up" in headers.get("authorization", "") + headers.get("x-api-key", "")
        assert msgspec.json.decode(body) == msgspec.json.decode(A_REQUEST[:-1] + MORE[provider])
        assert upstream.lines == [f"POST {PATH[provider]} HTTP/1.1"]


@on_each_provider
async def test_a_connection_is_used_again_after_a_whole_answer(provider: ProviderName) -> None:
    async with an_upstream(whole("200 OK", AN_EVENT[provider])) as upstream, a_provider(upstream, provider) as asked:
        for _ in range(3):
            await ask(asked)
        assert upstream.connections == 1


@on_each_provider
async def test_leaving_in_the_middle_closes_the_connection(provider: ProviderName) -> None:
    async with an_upstream(begun("200 OK")) as upstream, a_provider(upstream, provider) as asked:
        async with asked.stream(A_REQUEST, model=FAST, connect_timeout_s=5):
            assert upstream.closed == 0
        await wait_until(lambda: upstream.closed == 1, "the connection to be closed")


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
@on_each_provider
async def test_being_cancelled_in_the_middle_closes_the_connection(provider: ProviderName, status: str) -> None:
    """Also in the middle of an error page, which the SDK reads."""
    async with an_upstream(begun(status)) as upstream, a_provider(upstream, provider) as asked:
        asking = asyncio.create_task(ask(asked))
        await wait_until(lambda: len(upstream.requests) == 1, "the request")
        done, _ = await asyncio.wait([asking], timeout=0.05)
        assert not done
        asking.cancel()
        await asyncio.wait([asking])
        await wait_until(lambda: upstream.closed == 1, "the connection to be closed")


@on_each_provider
async def test_an_endless_error_page_is_not_read_to_its_end(provider: ProviderName) -> None:
    async with an_upstream(endless) as upstream:
        async with asyncio.timeout(5):
            failure = await failure_from(upstream, provider)
        assert (failure.error.code, failure.error.upstream_status) == ("upstream_overloaded", 529)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"error"',
        b'{"error":"text"}',
        b'{"error":{"type":["a"],"message":{"b":1}}}',
        b'{"error":{"type":{},"message":null}}',
        b'{"error":{"type":null}}',
        b'{"error":{"type":"api_error","message":"half a pair \\ud83d"}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
@on_each_provider
async def test_any_error_page_is_a_failure_by_its_status(provider: ProviderName, body: bytes) -> None:
    async with an_upstream(whole("500 Internal Server Error", body, "content-type: application/json")) as upstream:
        failure = await failure_from(upstream, provider)
        assert (failure.error.code, failure.error.retryable) == ("upstream_error", True)
        assert failure.error.upstream_status == 500
        msgspec.json.encode(failure.error)


@pytest.mark.parametrize("data", [b'{"error":{"type":["a"]}}', b"no JSON", b"[1]", b"{}"])
@on_each_provider
async def test_any_error_event_is_a_failure_worth_another_attempt(provider: ProviderName, data: bytes) -> None:
    async with an_upstream(whole("200 OK", b"event: error\ndata: " + data + b"\n\n")) as upstream:
        assert (await failure_from(upstream, provider)).error.retryable


@on_each_provider
async def test_a_redirect_is_not_followed(provider: ProviderName) -> None:
    """The key would go with it."""
    async with (
        an_upstream(whole("200 OK", AN_EVENT[provider])) as elsewhere,
        an_upstream(whole("307 Temporary Redirect", b"", f"location: {elsewhere.url}")) as upstream,
    ):
        failure = await failure_from(upstream, provider)
        assert (failure.error.code, failure.error.upstream_status) == ("upstream_error", 307)
        assert elsewhere.requests == []


@on_each_provider
async def test_retry_after_reaches_the_policy(provider: ProviderName) -> None:
    async with an_upstream(whole("429 Too Many Requests", b"", "Retry-After: 7")) as upstream:
        assert (await failure_from(upstream, provider)).retry_after_s == 7


@on_each_provider
async def test_nobody_there_is_worth_another_attempt(provider: ProviderName) -> None:
    async with an_upstream(begun("200 OK")) as upstream:
        pass
    failure = await failure_from(upstream, provider)
    assert (failure.error.code, failure.error.retryable) == ("upstream_error", True)


async def test_a_server_without_keys_is_sent_none() -> None:
    """vLLM, llama.cpp and Ollama ask for none; some gateways refuse one that they do not know."""
    name = ProviderName.OPENAI
    async with (
        an_upstream(whole("200 OK", AN_EVENT[name])) as upstream,
        a_provider(upstream, name, key=None) as asked,
    ):
        await ask(asked)
        await asked.models()
        assert [headers.get("authorization") for headers, _ in upstream.requests] == [None, None]
        assert upstream.lines[-1] == "GET /v1/models HTTP/1.1"


LIMITS = ("x-ratelimit-limit-requests: 60", "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 1m2s")


async def test_openais_limits_are_heard_with_an_answer_and_with_a_refusal() -> None:
    name = ProviderName.OPENAI
    async with (
        an_upstream(whole("200 OK", AN_EVENT[name], *LIMITS)) as upstream,
        a_provider(upstream, name) as asked,
        asked.stream(A_REQUEST, model=FAST, connect_timeout_s=5) as stream,
    ):
        assert stream.allowance == Allowance(Limits(requests=60), 62 / 60)
    async with an_upstream(whole("429 Too Many Requests", b"", *LIMITS)) as upstream:
        assert (await failure_from(upstream, name)).allowance == Allowance(Limits(requests=60), 62 / 60)


async def test_what_came_before_an_error_event_is_told_though_it_came_in_the_same_piece() -> None:
    """It was paid for; and the error comes all the same."""
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n'
    pings = AN_EVENT[ProviderName.ANTHROPIC] * 2
    async with (
        an_upstream(whole("200 OK", pings + error)) as upstream,
        a_provider(upstream, ProviderName.ANTHROPIC) as asked,
        asked.stream(A_REQUEST, model=FAST, connect_timeout_s=5) as stream,
    ):
        assert [event.name for event in await stream.read()] == ["ping", "ping"]
        for _ in range(2):
            with pytest.raises(UpstreamError) as raised:
                await stream.read()
            assert raised.value.failure.error.code == "upstream_overloaded"


async def test_milliseconds_go_before_seconds() -> None:
    headers = ("retry-after-ms: 1500", "retry-after: 2")
    async with an_upstream(whole("429 Too Many Requests", b"", *headers)) as upstream:
        assert (await failure_from(upstream, ProviderName.OPENAI)).retry_after_s == 1.5


async def test_what_cannot_be_said_makes_no_call() -> None:
    request = b'{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"text"}}]}]}'
    async with an_upstream(begun("200 OK")) as upstream, a_provider(upstream, ProviderName.OPENAI) as asked:
        with pytest.raises(UpstreamError) as raised:
            async with asked.stream(request, model=FAST, connect_timeout_s=5):
                pass
        assert raised.value.failure.error.code == "upstream_rejected"
        assert upstream.connections == 0
