"""Text from users and upstreams stays text: every part passes it on unchanged, and nothing executes it."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from anthropic import AsyncAnthropic
from hypothesis import given, settings
from hypothesis import strategies as st

from api.native.complete import TextFrames
from api.streams.job_stream import _as_messages, _as_text
from cli.event_stream import EventReader
from cli.terminal import printable
from shared.events import Event, EventId
from tests.abuse.conftest import Watched
from tests.abuse.hostile import CANARY
from tests.support.builders import a_text_delta
from tests.support.follower import ask, asking
from tests.support.sse_frames import SseFrames

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

_MANY_TOKENS = 50_000


def _by_the_command(stream: bytes) -> list[tuple[str, str]]:
    return [(event.name, event.data) for event in EventReader().feed(stream)]


def _by_the_standard(stream: bytes) -> list[tuple[str, str]]:
    return [(frame.event, frame.data) for frame in SseFrames().feed(stream)]


def _by_httpx(stream: bytes) -> list[tuple[str, str]]:
    asked = httpx2.Request("GET", "http://a")
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream, request=asked)
    return [(event.event, event.data) for event in httpx2.EventSource(answer, max_event_size=None)]


_PARSERS: list[Callable[[bytes], list[tuple[str, str]]]] = [_by_the_command, _by_the_standard, _by_httpx]


def _text_of(events: list[tuple[str, str]]) -> str:
    """The text of a followed stream, in either format."""
    pieces = []
    for name, data in events:
        if name == "delta":
            pieces.append(json.loads(data)["text"])
        elif name == "content_block_delta":
            pieces.append(json.loads(data)["delta"]["text"])
    return "".join(pieces)


def _names_of(events: list[tuple[str, str]]) -> set[str]:
    return {name for name, _ in events} - {"message"}  # httpx2 reports a `retry` as one


async def _read(url: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    async with asking(url, path, method="GET" if body is None else "POST", body=body, headers=headers) as response:
        assert response.status == 200, (path, response.status, await response.read())
        return await response.read()


async def _each(one: Callable[[str], Awaitable[None]], texts: list[str], *, most: int = 20) -> None:
    """Runs ``one`` for each text, some at a time; the first failure ends all."""
    gate = asyncio.Semaphore(most)

    async def in_turn(text: str) -> None:
        async with gate:
            await one(text)

    async with asyncio.TaskGroup() as group:
        for text in filter(None, texts):
            group.create_task(in_turn(text))


def _asked(text: str, **more: Any) -> dict[str, Any]:
    return {"max_tokens": _MANY_TOKENS, "messages": [{"role": "user", "content": f"echo: {text}"}], **more}


async def test_by_jobs_and_their_streams(watched: Watched) -> None:
    """As a prompt, as metadata and as the answer: in the result, and in both formats of a stream, live and late."""
    url = watched.deployment.urls[0]

    async def one(text: str) -> None:
        note = text[:512] or "-"
        body = {**_asked(text), "job": {"metadata": {"note": note}}}
        live = await _read(url, "/v1/jobs", body=body, headers={"Accept": "text/event-stream"})
        ended = json.loads(_by_the_standard(live)[-1][1])
        assert (ended["result"]["text"], ended["metadata"]) == (text, {"note": note})
        job = json.loads(await _read(url, f"/v1/jobs/{ended['id']}"))
        assert (job["result"]["text"], job["metadata"]) == (text, {"note": note})
        late = [await _read(url, f"/v1/jobs/{ended['id']}/events?format={form}") for form in ("text", "messages")]
        for parse in _PARSERS:
            for stream in (live, *late):
                events = parse(stream)
                assert _text_of(events) == text, parse
                assert _names_of(events) <= _OURS, parse

    await _each(one, watched.texts)


_OURS = {
    *("queued", "started", "delta", "succeeded", "ping"),
    *(
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ),
}


async def test_by_the_simple_endpoints(watched: Watched) -> None:
    r"""``/complete`` unchanged; ``/complete/stream`` with every line end as `\n`, the only one inside an SSE event."""
    url = watched.deployment.urls[0]

    async def one(text: str) -> None:
        body = {"prompt": f"echo: {text}", "max_tokens": 4096}
        assert json.loads(await _read(url, "/complete", body=body))["result"] == text
        stream = await _read(url, "/complete/stream", body=body)
        expected = text.replace("\r\n", "\n").replace("\r", "\n")
        for parse in _PARSERS:
            frames = [data for name, data in parse(stream) if name == "message"]
            assert frames[-1] == "[DONE]"
            assert "[DONE]" not in frames[:-1]
            assert "".join(frames[:-1]) == expected, parse
            assert {name for name, _ in parse(stream)} == {"message"}

    await _each(one, watched.texts)


async def test_by_the_messages_api(watched: Watched) -> None:
    """Whole and streamed, also with the official SDK."""
    url = watched.deployment.urls[0]
    client = AsyncAnthropic(base_url=url, api_key="none", max_retries=0)

    async def one(text: str) -> None:
        asked = client.messages.stream(
            model="sim-t40-g0-f0", max_tokens=_MANY_TOKENS, messages=[{"role": "user", "content": f"echo: {text}"}]
        )
        async with asked as told:
            assert await told.get_final_text() == text
        message = json.loads(await _read(url, "/v1/messages", body=_asked(text)))
        assert message["content"] == [{"type": "text", "text": text}]
        stream = await _read(url, "/v1/messages", body=_asked(text, stream=True))
        for parse in _PARSERS:
            assert _text_of(parse(stream)) == text
            assert _names_of(parse(stream)) <= _OURS

    async with client:
        await _each(one, watched.texts)


async def test_as_names(watched: Watched) -> None:
    """As names of models and Idempotency-Keys: accepted with some end, or refused. Names of models may be in logs."""
    url = watched.deployment.urls[0]

    async def one(text: str) -> None:
        text = text.replace(CANARY, "a name")
        key = quote(text, safe=" !#$%&'()*+,-./:;<=>?@[]^_`{|}~")[:255]
        for path, body, headers in (
            ("/v1/jobs", _asked("x", model=text), {"Prefer": "wait=10"}),
            ("/v1/messages", _asked("x", model=text), {}),
            ("/v1/jobs", {"prompt": "x"}, {"Idempotency-Key": key, "Prefer": "wait=10"}),
            ("/v1/jobs", {"prompt": "x"}, {"Idempotency-Key": key, "Prefer": "wait=10"}),
        ):
            async with asking(url, path, method="POST", headers=headers, body=body) as response:
                told = json.loads(await response.read())
                assert 200 <= response.status < 500, (path, response.status, told)
                assert response.headers["content-type"] in ("application/json", "application/problem+json")
                assert response.headers["x-content-type-options"] == "nosniff"
                assert response.status >= 300 or told.get("status") not in ("queued", "running"), told

    await _each(one, watched.texts)


async def test_by_batches(watched: Watched) -> None:
    """Every result is one line, whatever its text, and every item has only its own events."""
    url = watched.deployment.urls[0]
    wanted = {f"row-{number} {text[:40]}": text for number, text in enumerate(watched.texts) if text}
    wanted = {name: text for name, text in wanted.items() if name.isprintable()} | {
        f"row-{number}": text for number, text in enumerate(watched.texts) if text
    }
    requests = [{"custom_id": name, "params": _asked(text)} for name, text in wanted.items()]
    async with AsyncExitStack() as stack:
        with watched.deployment.no_worker_up():  # later followers would not see items that ended before
            status, batch, _ = await ask(url, "/v1/batches", method="POST", body={"requests": requests})
            assert status == 202
            assert batch["counts"]["total"] == len(wanted)
            answer = await stack.enter_async_context(asking(url, f"/v1/batches/{batch['id']}/events?tokens=true"))
            stream = await answer.read_some()
        stream += await answer.read()
    lines = (await _read(url, f"/v1/batches/{batch['id']}/results")).split(b"\n")
    assert lines.pop() == b""
    assert {line["custom_id"]: line["result"]["text"] for line in map(json.loads, lines)} == wanted
    for parse in _PARSERS:
        ended = {}
        for name, data in parse(stream):
            if name == "succeeded":
                item = json.loads(data)
                ended[item["custom_id"]] = item["result"]["text"]
        assert ended == wanted, parse
        assert _names_of(parse(stream)) <= _OURS | {"snapshot", "progress", "ended"}


async def test_by_the_command(watched: Watched, python: str) -> None:
    """Control sequences of terminals are removed, and the rest is printed."""
    url = watched.deployment.urls[0]
    text = " | ".join(watched.texts)
    _, job, _ = await ask(url, "/v1/jobs", method="POST", body=_asked(text))
    environment = {**watched.environment, "TOKENSPOOL_URL": url, "PYTHONIOENCODING": "utf-8"}
    told = await asyncio.to_thread(
        subprocess.run,
        [python, "-m", "cli", "follow", job["id"]],
        env=environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    shown = told.stdout.decode()
    assert shown.removesuffix("\n") == printable(text).removesuffix("\n")
    assert not any(ord(mark) < 32 and mark not in "\n\t" for mark in shown)
    assert not {"\x7f", "\x9b", "\u202e"} & set(shown)


async def test_no_response_is_a_page_with_the_requests_text(watched: Watched) -> None:
    """Text in paths, queries, headers and bodies: nothing that a browser would execute comes back."""
    url = watched.deployment.urls[0]
    marks = (b"<script", b"onerror", b"Set-Cookie", CANARY.encode())

    async def one(text: str) -> None:
        named = quote(text, safe="")[:4000]
        header = "".join(mark for mark in text if mark.isprintable() and mark.isascii())[:200]
        headers = {
            "X-Request-ID": f"<{header}",  # invalid: a valid one would be echoed
            "Idempotency-Key": header,
            "Last-Event-ID": header,
            "Accept": "text/html, */*",
            "X-Tenant": "who-has-nothing",
        }
        asked: list[tuple[str, str, Any]] = [
            *(
                ("GET", f"{start}{named}", None)
                for start in ("/", "/problems/", "/v1/jobs/", "/v1/models/", "/v1/batches/")
            ),
            *(("GET", f"/v1/jobs?{name}={named}", None) for name in ("after", "status", "batch_id", named[:200])),
            ("POST", "/v1/jobs", {"prompt": 1, text[:50]: text}),
            ("POST", "/complete", {"prompt": [text]}),
            ("POST", "/v1/messages", {"max_tokens": 1, "messages": text, "model": text}),
        ]
        for method, path, body in asked:
            async with asking(url, path, method=method, headers=headers, body=body) as response:
                content = await response.read()
                assert not response.headers.get("content-type", "").startswith("text/html"), path
                assert response.headers.get("x-content-type-options") == "nosniff"
                assert response.status < 500
                if text in content.decode(errors="replace") and len(text) > 8:
                    raise AssertionError(f"{method} {path[:80]} echoes: {content[:200]!r}")
                assert not [mark for mark in marks if mark in content], content[:300]
                assert not set(response.headers) & {"set-cookie", "x-api-key"}

    await _each(one, watched.texts)


def test_the_example_page_treats_answers_as_text() -> None:
    """It has no code that makes elements from them or executes them."""
    page = (Path(__file__).parents[2] / "examples/chat.html").read_text()
    assert "textContent" in page
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in page


async def test_pages_for_people_hold_nothing_of_the_request(watched: Watched) -> None:
    """The only pages are made from constants, whatever the request contains."""
    url = watched.deployment.urls[0]
    page = await _read(url, "/problems/not_found")
    evil = quote("<script>alert(1)</script>")
    headers = {"Referer": "<script>", "User-Agent": "<script>", "X-Request-ID": "<script>"}
    assert await _read(url, f"/problems/not_found?x={evil}", headers=headers) == page
    assert b"<script" not in page


# Any text, through what writes streams

_NASTY = st.text(
    st.one_of(st.sampled_from('\r\n\u2028\u2029\u0085\x00 :datevni{}\\"[DONE]'), st.characters(codec="utf-8"))
)


def _survives(texts: list[str]) -> None:
    events = [Event(EventId(1, number), *a_text_delta(text)) for number, text in enumerate(texts)]
    for encode in (_as_text, _as_messages):
        stream = b"".join(encode(event) for event in events)
        for parse in _PARSERS:
            assert _text_of(parse(stream)) == "".join(texts)
            assert len(parse(stream)) == len(texts)
    frames = TextFrames()
    bare = b"".join(frames.encode(text) for text in texts)
    expected = "".join(texts).replace("\r\n", "\n").replace("\r", "\n")
    for parse in _PARSERS:
        assert "".join([data for _, data in parse(bare)]) == expected, parse


@settings(max_examples=200)
@given(texts=st.lists(_NASTY, max_size=5))
def test_any_text_survives_three_parsers(texts: list[str]) -> None:
    """The command's parser, httpx's, and one that follows the standard exactly."""
    _survives(texts)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@settings(max_examples=10_000)
@given(texts=st.lists(_NASTY, min_size=1, max_size=5))
def test_any_of_ten_thousand_texts_survives(texts: list[str]) -> None:
    """The longer run of the fuzz tier."""
    _survives(texts)
