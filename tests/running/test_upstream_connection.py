"""The bytes between the provider and an upstream, for what the simulator cannot play."""

import asyncio
import gzip
import resource
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.completion import Completion
from shared.routes import Limits, ProviderName
from shared.settings import load_settings
from tests.running.crew import FAST
from tests.running.providers import on_each_provider
from tests.support.builders import an_answer
from tests.support.wait import wait_until
from worker.outcome import Failure, How, UpstreamError
from worker.providers import open_providers
from worker.providers.anthropic import _streaming
from worker.providers.base import PING, Provider, UpstreamEvent
from worker.rate_limit_headers import Allowance

Answering = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]

A_REQUEST = msgspec.json.encode(
    {"model": FAST, "max_tokens": 10, "messages": [{"role": "user", "content": "Say hello."}]}
)
AN_EVENT = {
    ProviderName.ANTHROPIC: b'event: ping\ndata: {"type":"ping"}\n\n',
    ProviderName.OPENAI: b'data: {"choices":[{"index":0,"delta":{}}]}\n\n',
}
"""An event that the provider passes on."""
PATH = {ProviderName.ANTHROPIC: "/v1/messages", ProviderName.OPENAI: "/v1/chat/completions"}
MORE = {
    ProviderName.ANTHROPIC: b',"stream":true}',
    ProviderName.OPENAI: b',"stream":true,"stream_options":{"include_usage":true}}',
}
"""The members that the provider adds to a request."""


@dataclass
class RawUpstream:
    """Reads requests, and responds to each with the test's bytes."""

    answer: Answering
    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """The first line of each request."""
    connections: int = 0
    closed: int = 0
    """The number of connections that the client closed."""

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
    upstream: RawUpstream, name: ProviderName, *, key: str | None = "made-up", unchecked_key: str = ""
) -> AsyncIterator[Provider]:
    """``unchecked_key``: a key that the settings would refuse."""
    settings = load_settings(
        anthropic_base_url=upstream.url,
        anthropic_api_key=key,
        openai_base_url=f"{upstream.url}/v1",
        openai_api_key=key,
    )
    if unchecked_key:
        settings = settings.model_copy(update={f"{name}_api_key": SecretStr(unchecked_key)})
    provider = open_providers(settings, [name])[name]
    try:
        yield provider
    finally:
        await provider.close()


def whole(status: str, body: bytes, *headers: str) -> Answering:
    """A response with a Content-Length."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers])
        writer.write(f"{head}\r\n\r\n".encode() + body)
        await writer.drain()

    return answer


def begun(status: str, *headers: str) -> Answering:
    """A head, and then nothing more."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join([f"HTTP/1.1 {status}", "transfer-encoding: chunked", *headers])
        writer.write(f"{head}\r\n\r\n".encode())
        await asyncio.get_running_loop().create_future()

    return answer


async def endless(writer: asyncio.StreamWriter) -> None:
    """An endless error page."""
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
    """Makes a call; reads the answer to its end."""
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
async def test_the_request_is_made_once_and_asks_for_an_uncompressed_answer(provider: ProviderName) -> None:
    """Compression would delay tokens, which are read as they come."""
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
    """Also in the middle of an error page, which the SDK itself reads."""
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
    """The API key would be sent with it."""
    async with (
        an_upstream(whole("200 OK", AN_EVENT[provider])) as elsewhere,
        an_upstream(whole("307 Temporary Redirect", b"", f"location: {elsewhere.url}")) as upstream,
    ):
        failure = await failure_from(upstream, provider)
        assert (failure.error.code, failure.error.upstream_status) == ("upstream_rejected", 307)
        assert not failure.is_retryable
        assert "redirects to /" in failure.error.message
        assert "base URL" in failure.error.message
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://user:secret@secret.example.com/login?token=secret#secret", "/login on another host by https"),
        ("/login?token=secret", "/login"),
        ("http://[", "/"),
        ("", "/v1/"),
    ],
)
@on_each_provider
async def test_the_error_names_the_target_of_a_redirect_without_its_secrets(
    provider: ProviderName, location: str, shown: str
) -> None:
    """A caller must not learn internal hosts. The failure is final, whatever page comes with the redirect."""
    page = b'{"error":{"type":"api_error","message":"secret"}}'
    async with an_upstream(whole("302 Found", page, f"location: {location}")) as upstream:
        failure = await failure_from(upstream, provider)
        assert (failure.error.code, failure.is_retryable) == ("upstream_rejected", False)
        assert f"redirects to {shown}" in failure.error.message
        assert "secret" not in failure.error.message


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


async def test_without_a_configured_key_none_is_sent() -> None:
    """vLLM, llama.cpp and Ollama need no key; some gateways refuse an unknown one."""
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


async def test_openais_limits_are_read_from_an_answer_and_from_a_refusal() -> None:
    name = ProviderName.OPENAI
    async with (
        an_upstream(whole("200 OK", AN_EVENT[name], *LIMITS)) as upstream,
        a_provider(upstream, name) as asked,
        asked.stream(A_REQUEST, model=FAST, connect_timeout_s=5) as stream,
    ):
        assert stream.allowance == Allowance(Limits(requests=60), 62 / 60)
    async with an_upstream(whole("429 Too Many Requests", b"", *LIMITS)) as upstream:
        assert (await failure_from(upstream, name)).allowance == Allowance(Limits(requests=60), 62 / 60)


async def test_events_before_an_error_event_are_passed_on_even_from_the_same_piece() -> None:
    """They were paid for; the error follows them."""
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


async def test_retry_after_ms_overrides_retry_after() -> None:
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


# --- what the response turns out to be ---------------------------------------------------------------------------------

HELLO = {
    ProviderName.ANTHROPIC: b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), data) for name, data in an_answer("Hello")
    ),
    ProviderName.OPENAI: b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":1}}\n\n',
}
"""An answer as a stream; for chat completions without ``[DONE]``."""
HELLO_WHOLE = {
    ProviderName.ANTHROPIC: {
        "type": "message",
        "id": "msg_1",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": 1},
    },
    ProviderName.OPENAI: {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 1},
    },
}
"""The same answer from a server that does not stream."""
STREAMED: Final = "content-type: text/event-stream"
AS_JSON: Final = "content-type: application/json; charset=utf-8"


def pieces(*sent: bytes, head: str = STREAMED, every_s: float = 0.0, end: bytes = b"0\r\n\r\n") -> Answering:
    """A chunked response. With an empty ``end`` the connection stays open."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{head}\r\n\r\n".encode())
        for piece in sent:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(every_s)
        writer.write(end)
        await writer.drain()
        if not end:
            await asyncio.get_running_loop().create_future()

    return answer


async def answer_of(answering: Answering, name: ProviderName) -> Completion:
    """The completion of one call, which must be whole."""
    completion = Completion()
    async with an_upstream(answering) as upstream, a_provider(upstream, name) as provider:
        for event in await ask(provider):
            if event.name != "ping":
                completion.add(event.name, event.data, event.text)
        assert len(upstream.requests) == 1
    assert completion.is_whole
    assert msgspec.json.decode(completion.result())["text"] == "Hello"
    assert (completion.usage.input_tokens, completion.usage.output_tokens) == (12, 1)
    return completion


async def message_from(answering: Answering, name: ProviderName) -> str:
    """The message of one call's failure."""
    async with an_upstream(answering) as upstream:
        return (await failure_from(upstream, name)).error.message


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)]
)
@pytest.mark.parametrize("bite", [1, 1 << 20])
@on_each_provider
async def test_what_comes_compressed_though_it_was_not_asked_for_is_read(
    provider: ProviderName, encoding: str, compress: Callable[[bytes], bytes], bite: int
) -> None:
    sent = compress(HELLO[provider])
    cut = [sent[at : at + bite] for at in range(0, len(sent), bite)]
    await answer_of(pieces(*cut, head=f"{STREAMED}\r\ncontent-encoding: {encoding}"), provider)


@on_each_provider
async def test_a_compressed_stream_is_read_while_it_comes(provider: ProviderName) -> None:
    compressor = zlib.compressobj(wbits=31)
    first = compressor.compress(HELLO[provider][:60]) + compressor.flush(zlib.Z_SYNC_FLUSH)
    head = f"{STREAMED}\r\ncontent-encoding: gzip"
    async with (
        an_upstream(pieces(first, head=head, end=b"")) as upstream,
        a_provider(upstream, provider) as asked,
        asked.stream(A_REQUEST, model=FAST, connect_timeout_s=5) as stream,
        asyncio.timeout(5),
    ):
        assert await stream.read() == [PING]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip", "deflate"])
@on_each_provider
async def test_what_cannot_be_decompressed_is_named(provider: ProviderName, encoding: str) -> None:
    """brotli and zstd need packages that may be missing; the other bodies are garbage."""
    head = f"{STREAMED}\r\ncontent-encoding: {encoding}"
    assert "content-encoding" in await message_from(pieces(b"\x8b\x02\x80rubbish" * 9, head=head), provider)


@on_each_provider
async def test_a_decompression_bomb_is_bounded(provider: ProviderName) -> None:
    """A gigabyte in a megabyte: reading stops at the size limit of an event."""
    bomb = gzip.compress(b"data: " + b" " * (256 << 20), 1)
    head = f"{STREAMED}\r\ncontent-encoding: gzip"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "32 MiB" in await message_from(pieces(bomb, head=head), provider)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # KiB


@on_each_provider
async def test_a_refusal_in_an_encoding_that_nobody_knows_has_no_words(provider: ProviderName) -> None:
    async with an_upstream(whole("400 Bad Request", b"\x1f\x9drubbish", "content-encoding: compress")) as upstream:
        error = (await failure_from(upstream, provider)).error
        assert (error.code, error.message) == ("upstream_rejected", "The LLM refused the request.")


@on_each_provider
async def test_a_compressed_refusal_is_read(provider: ProviderName) -> None:
    body = gzip.compress(b'{"error":{"type":"invalid_request_error","message":"too long"}}')
    async with an_upstream(whole("400 Bad Request", body, AS_JSON, "content-encoding: gzip")) as upstream:
        assert "too long" in (await failure_from(upstream, provider)).error.message


@pytest.mark.parametrize("bite", [1, 1 << 20])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \n \n"])
@on_each_provider
async def test_an_answer_that_is_not_streamed_is_accepted(provider: ProviderName, before: bytes, bite: int) -> None:
    """Some servers ignore ``stream``; some send spaces while they think."""
    body = before + msgspec.json.encode(HELLO_WHOLE[provider])
    cut = [body[at : at + bite] for at in range(0, len(body), bite)]
    await answer_of(pieces(*cut, head=AS_JSON), provider)


@pytest.mark.parametrize(
    ("body", "code", "status", "words"),
    [
        ({"error": {"type": "invalid_request_error", "message": "too long"}}, "upstream_rejected", 200, "too long"),
        ({"error": {"message": "slow down", "code": 429}}, "upstream_rate_limited", 429, "slow down"),
        ({"error": {"type": "overloaded_error", "message": "busy"}}, "upstream_overloaded", 200, "busy"),
        ({"type": "error", "error": {"type": "authentication_error", "message": "no"}}, "upstream_auth", 200, "no"),
        ({"object": "error", "message": "too long", "code": 400}, "upstream_rejected", 400, "too long"),
        ({"error": "out of memory"}, "upstream_error", 200, "out of memory"),
        ({"detail": "not now"}, "upstream_error", 200, "not now"),
        ({"message": "not now"}, "upstream_error", 200, "not now"),
    ],
)
@on_each_provider
async def test_an_error_with_status_200_is_one(
    provider: ProviderName, body: object, code: str, status: int, words: str
) -> None:
    async with an_upstream(whole("200 OK", msgspec.json.encode(body), AS_JSON)) as upstream:
        error = (await failure_from(upstream, provider)).error
        assert (error.code, error.upstream_status) == (code, status)
        assert words in error.message


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (
            b"<!doctype html><title>Log in</title>",
            "text/html; charset=utf-8",
            "text/html, which is not an event stream",
        ),
        (b"  \n<html>", "text/html", "check its base URL"),
        (b"All is well.", "text/plain", "text/plain holds no event"),
        (b'{"choices":', "application/json", "application/json is not JSON"),
        (b"[1]", "application/json", "application/json is not an answer"),
        (b'{"hello":1}', "application/json", "application/json is not an answer"),
        (b'{"content":"Hello"}', "application/json", "its"),
        (b'{"choices":[{"message":{"content":"Hello"}}]}', "application/json", "its"),
    ],
)
@on_each_provider
async def test_a_response_that_is_no_answer_is_named_and_opens_no_circuit(
    provider: ProviderName, body: bytes, content_type: str, words: str
) -> None:
    async with an_upstream(whole("200 OK", body, f"content-type: {content_type}")) as upstream:
        failure = await failure_from(upstream, provider)
        assert (failure.how, failure.error.code) == (How.GARBLED, "upstream_truncated")
        assert words in failure.error.message
        assert "Hello" not in failure.error.message
        assert not failure.opens_circuit


@on_each_provider
async def test_an_event_stream_is_one_whatever_it_is_called(provider: ProviderName) -> None:
    await answer_of(pieces(HELLO[provider], head=AS_JSON), provider)


NO_END = {
    ProviderName.ANTHROPIC: HELLO[ProviderName.ANTHROPIC].partition(b"event: message_stop")[0],
    ProviderName.OPENAI: HELLO[ProviderName.OPENAI],
}


@on_each_provider
async def test_a_connection_that_is_held_open_after_the_answer_is_its_end(provider: ProviderName) -> None:
    """Also if comments keep coming. One to two seconds are enough for the usage to arrive."""
    loop = asyncio.get_running_loop()
    for pings in (0, 100):
        started_s = loop.time()
        await answer_of(pieces(NO_END[provider], *[b": ping\n\n"] * pings, every_s=0.05, end=b""), provider)
        assert 1 <= loop.time() - started_s < 4


async def test_the_usage_may_come_after_the_reason() -> None:
    *frames, last = HELLO[ProviderName.OPENAI].split(b"data: ")[1:]
    sent = [*[b"data: " + frame for frame in frames], b"data: " + last]
    await answer_of(pieces(*sent, every_s=0.3, end=b""), ProviderName.OPENAI)


async def test_content_may_go_on_after_a_finish_reason() -> None:
    """Some servers send one with each piece: what ends the stream is a time without content."""
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
    sent = [chunk % letter for letter in (b"H", b"e", b"l", b"l", b"o")]
    await answer_of(pieces(*sent, usage, every_s=0.6), ProviderName.OPENAI)


@on_each_provider
async def test_a_cut_after_the_whole_answer_loses_nothing(provider: ProviderName) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await pieces(NO_END[provider], every_s=0.05, end=b"7")(writer)
        writer.close()

    await answer_of(answer, provider)


@on_each_provider
async def test_bytes_that_make_no_event_are_a_sign_of_life(provider: ProviderName) -> None:
    sent = [b": OPENROUTER PROCESSING\n\n", b"data:\n\n", HELLO[provider][:5], HELLO[provider][5:]]
    async with (
        an_upstream(pieces(*sent, every_s=0.05)) as upstream,
        a_provider(upstream, provider) as asked,
        asked.stream(A_REQUEST, model=FAST, connect_timeout_s=5) as stream,
    ):
        for _ in range(3):
            assert await stream.read() == [PING]
        assert [event.name for event in await stream.read()][:1] == ["message_start"]


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b'{"detail":"no such model"}', "application/json", "no such model"),
        (
            b'{"detail":[{"loc":["body","messages",0],"msg":"Field required","type":"missing","input":"SECRET"}]}',
            "application/json",
            "body.messages.0: Field required",
        ),
        (b"no such model", "text/plain", "no such model"),
        (b'{"error":"no such model"}', "application/json", "no such model"),
        (b'[{"error":{"message":"no such model"}}]', "application/json", "no such model"),
        (b'{"status":400,"error":"Bad Request","message":"no such model"}', "application/json", "no such model"),
        (b'{"message":"no such model"}', "application/json", "no such model"),
        (b'{"error":{"message":{"detail":"no such model"}}}', "application/json", "no such model"),
        (b"<html><head><title>403 Forbidden</title></head><body>x</body></html>", "text/html", "403 Forbidden"),
        (b"<p>no <b>such</b>\nmodel</p><script>SECRET</script>", "text/html", "no such model"),
        (b'{"message":"<html><body>no such model</body></html>"}', "application/json", "no such model"),
    ],
)
@on_each_provider
async def test_a_refusal_keeps_the_upstreams_own_words(
    provider: ProviderName, body: bytes, content_type: str, words: str
) -> None:
    """In any shape, without markup."""
    for padding in (b"", b" " * 200_000):
        async with an_upstream(whole("422 No", body + padding, f"content-type: {content_type}")) as upstream:
            error = (await failure_from(upstream, provider)).error
            assert (error.code, error.message) == ("upstream_rejected", f"The LLM refused the request: {words}.")


@pytest.mark.parametrize("key", ["with\nnewline", "with\r\nboth", "not UTF-8 \udcff"])
@on_each_provider
async def test_a_key_that_no_header_can_hold_is_a_failure_of_the_call(provider: ProviderName, key: str) -> None:
    """Whatever the SDK or its HTTP client raises becomes a failure of the call, never a bug that ends the run."""
    async with an_upstream(begun("200 OK")) as upstream, a_provider(upstream, provider, unchecked_key=key) as asked:
        for call in (ask(asked), asked.models()):
            with pytest.raises(UpstreamError) as raised:
                await call
            failure = raised.value.failure
            assert (failure.error.code, failure.how) == ("upstream_error", How.FAULTY)
            assert key not in failure.error.message
            assert not failure.opens_circuit
