"""SIGTERM to an API: what goes on during the grace period, who must reconnect at once, and when the process ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.embedded_redis import free_port
from cli.serve import _PARTING_S
from shared.job import JobKind, JobState, Step
from shared.store import redis_keys
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from tests.support.author import Author
from tests.support.builders import a_text_delta, an_answer, block_start, encoded, message_start, wired
from tests.support.deployment import Api, Deployment, a_deployment
from tests.support.follower import Cut, Follower, Response, ask, asking, following
from tests.support.store import claim, state_of
from tests.support.wait import wait_until

_NO_UPSTREAM = "http://127.0.0.1:9"
_MESSAGES = [{"role": "user", "content": "Say hello."}]
_A_MESSAGE = {"model": "a-model", "max_tokens": 9, "messages": _MESSAGES}
_EVENTS = {"Accept": "text/event-stream"}

WAITING: dict[str, tuple[str, dict[str, str], Any]] = {
    "messages, streamed": ("/v1/messages", {}, {**_A_MESSAGE, "stream": True}),
    "messages, whole": ("/v1/messages", {}, _A_MESSAGE),
    "count_tokens": ("/v1/messages/count_tokens", {}, {"model": "a-model", "messages": _MESSAGES}),
    "Prefer: wait": ("/v1/jobs", {"Prefer": "wait=60"}, {"prompt": "x"}),
    "submit and follow": ("/v1/jobs", _EVENTS, {"prompt": "x"}),
    "complete": ("/complete", {}, {"prompt": "x"}),
    "complete, streamed": ("/complete/stream", {}, {"prompt": "x"}),
}
"""Requests that submit a job and wait for it: path, headers, body."""

WHOLE: dict[str, str] = {
    "messages, streamed": "event: message_stop",
    "messages, whole": '"Hello, world."',
    "count_tokens": '"input_tokens":3',
    "Prefer: wait": '"status":"succeeded"',
    "submit and follow": "event: succeeded",
    "complete": '"result":"Hello, world."',
    "complete, streamed": "data: [DONE]",
    "?wait=": '"status":"succeeded"',
}
"""By request, a text that only a complete response contains."""


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A Redis; the test starts the APIs."""
    with a_deployment(_NO_UPSTREAM) as deployment:
        yield deployment


@asynccontextmanager
async def _sent(api: Api, name: str) -> AsyncIterator[asyncio.Task[tuple[int, str]]]:
    """Sends a request; the task returns its status and body."""
    path, headers, body = WAITING[name]
    calling = asyncio.create_task(_read(api.url, path, "POST", headers, body), name=name)
    try:
        yield calling
    finally:
        calling.cancel()
        await asyncio.wait((calling,))


async def _read(url: str, path: str, method: str, headers: dict[str, str], body: Any) -> tuple[int, str]:
    async with asking(url, path, method=method, headers=headers, body=body) as response:
        return response.status, (await response.read()).decode()


async def _authors(runtime: Runtime, count: int) -> list[Author]:
    """Claims the next ``count`` jobs."""
    authors: list[Author] = []

    async def are_there() -> bool:
        authors.extend(Author(runtime, found) for found in await claim(runtime, count))
        return len(authors) == count

    await wait_until(are_there, f"{count} jobs")
    return authors


async def _begin(author: Author) -> None:
    """Writes the first words of the answer."""
    if author.claim.spec.kind is not JobKind.COUNT_TOKENS:
        await author.write(*wired([message_start(input_tokens=1), block_start(0, {"type": "text", "text": ""})]))
        await author.write(a_text_delta("Hello, "))


async def _end(author: Author) -> None:
    """Writes the rest of the answer, and ends the job."""
    if author.claim.spec.kind is JobKind.COUNT_TOKENS:
        await author.runtime.queue.finish(
            author.claim, Ending(Step.SUCCEED, encoded({"input_tokens": 3})), seq=author.seq
        )
        return
    await author.write(a_text_delta("world."), *an_answer()[2:])
    author.said = ["Hello, world."]
    await author.succeed()


async def _is_drained(api: Api) -> bool:
    status, answer, _ = await ask(api.url, "/health/ready")
    return (status, answer) == (503, {"status": "draining"})


async def _refuses(api: Api) -> bool:
    try:
        await ask(api.url, "/health/live")
    except (OSError, Cut):  # Cut: the API was about to close the connection
        return True
    return False


async def test_requests_that_wait_for_a_job_go_on_and_followers_must_reconnect(deployment: Deployment) -> None:
    """On every surface, streamed or whole, begun or not; also after new connections are refused."""
    api = deployment.begin_api(TOKENSPOOL_SHUTDOWN_NOTICE_S="3")
    await deployment.api_up(api)
    async with deployment.runtime() as runtime:
        calls: dict[str, asyncio.Task[tuple[int, str]]] = {
            name: asyncio.create_task(_read(api.url, path, "POST", headers, body))
            for name, (path, headers, body) in WAITING.items()
        }
        authors = await _authors(runtime, len(calls))
        for author in authors:
            await _begin(author)
        polled = next(one for one in authors if one.claim.spec.kind is not JobKind.COUNT_TOKENS)
        calls["?wait="] = asyncio.create_task(_read(api.url, f"/v1/jobs/{polled.job_id}?wait=60", "GET", {}, None))
        follower = Follower([api.url], polled.job_id)
        connecting = asyncio.create_task(follower.follow_once())
        await wait_until(lambda: bool(follower.ids), "the follower")
        (name,) = await runtime._commands.call("ZRANGE", redis_keys.plain("attendants"), 0, -1)
        attended = [author for author in authors if await _is_attended(runtime, author)]
        assert len(attended) == 5

        api.signal(signal.SIGTERM)
        await wait_until(lambda: _is_drained(api), "the readiness to say so")
        await asyncio.wait_for(connecting, 5)
        assert "the server is restarting, come back with your last event id" in follower.comments
        seen_ms = float(await runtime._commands.call("ZSCORE", redis_keys.plain("attendants"), name))

        status, _, headers = await ask(api.url, "/v1/jobs", method="POST", body={"prompt": "late"})
        assert (status, headers["connection"]) == (202, "close")
        await wait_until(lambda: _refuses(api), "the end of the notice")
        assert not [name for name, call in calls.items() if call.done()]
        assert {await state_of(runtime, author.job_id) for author in authors} == {JobState.RUNNING}

        async def is_attended_again() -> bool:
            return float(await runtime._commands.call("ZSCORE", redis_keys.plain("attendants"), name)) > seen_ms

        await wait_until(is_attended_again, "the process to say that it lives")
        for author in authors:
            await _end(author)
        for call_name, call in calls.items():
            status, body = await asyncio.wait_for(call, 5)
            assert (status, WHOLE[call_name] in body) == (200, True), f"{call_name}: {body}"
        assert await api.ended(_PARTING_S) == 0
        assert "Traceback" not in api.log
        assert '_failed"' not in api.log


async def _is_attended(runtime: Runtime, author: Author) -> bool:
    return bool(await runtime._commands.call("HGET", redis_keys.job(author.job_id), "attended_by"))


@pytest.mark.parametrize("how", ["grace", "second signal"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_after_the_grace_or_a_second_signal_every_client_must_reconnect(
    deployment: Deployment, how: str, number: signal.Signals
) -> None:
    """No connection is just cut: each client gets the reason, and jobs for which only they waited end."""
    api = deployment.begin_api(TOKENSPOOL_SHUTDOWN_GRACE_S="1" if how == "grace" else "30")
    await deployment.api_up(api)
    async with deployment.runtime() as runtime:
        calls = {
            name: asyncio.create_task(_read(api.url, path, "POST", headers, body))
            for name, (path, headers, body) in WAITING.items()
        }
        authors = await _authors(runtime, len(calls))
        for author in authors:
            await _begin(author)
        attended = [author for author in authors if await _is_attended(runtime, author)]
        begun_s = asyncio.get_running_loop().time()
        api.signal(number)
        await wait_until(lambda: _is_drained(api), "the readiness to say so")
        if how != "grace":
            api.signal(number)
        assert await api.ended(_PARTING_S) == 0
        took_s = asyncio.get_running_loop().time() - begun_s
        assert took_s > 1 or how != "grace"
        said = {name: await call for name, call in calls.items()}
        assert said["messages, streamed"][0] == 200
        assert '"overloaded_error","message":"The server is stopping' in said["messages, streamed"][1]
        for name in ("messages, whole", "count_tokens", "complete"):
            assert said[name][0] == 503, name
        assert (said["Prefer: wait"][0], json.loads(said["Prefer: wait"][1])["status"]) == (202, "running")
        assert "come back with your last event id" in said["submit and follow"][1]
        assert '"code":"server_stopping"' in said["complete, streamed"][1]
        for author in attended:
            assert await state_of(runtime, author.job_id) is JobState.CANCELLED


async def test_an_idle_process_ends_at_once_unless_somebody_asks_for_its_readiness(deployment: Deployment) -> None:
    """A load balancer needs time to notice that it is not ready."""
    alone, balanced = deployment.begin_api(), deployment.begin_api(TOKENSPOOL_SHUTDOWN_NOTICE_S="4")
    for api in deployment.apis:
        await deployment.api_up(api)
    assert (await ask(balanced.url, "/health/ready"))[0] == 200
    for api in deployment.apis:
        api.signal(signal.SIGTERM)
    assert await alone.ended(3) == 0
    assert await _is_drained(balanced)
    assert (await ask(balanced.url, "/v1/jobs", method="POST", body={"prompt": "x"}))[0] == 202
    assert await balanced.ended(_PARTING_S) == 0


async def test_a_connection_that_is_kept_alive_ends_with_the_next_response(deployment: Deployment) -> None:
    """The API does not close it while a request is on its way."""
    api = deployment.begin_api(TOKENSPOOL_SHUTDOWN_NOTICE_S="5")
    await deployment.api_up(api)
    parts = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(parts[0], int(parts[1]))
    request = f"GET /health/ready HTTP/1.1\r\nHost: {parts[0]}:{parts[1]}\r\n\r\n".encode()
    writer.write(request)
    first = Response(reader, writer)
    await first.read_head()
    await first.read()
    assert (first.status, first.headers.get("connection")) == (200, None)
    api.signal(signal.SIGTERM)
    await wait_until(lambda: _is_drained(api), "the readiness to say so")
    writer.write(request)
    second = Response(reader, writer)
    await second.read_head()
    await second.read()
    assert (second.status, second.headers["connection"]) == (503, "close")
    assert await reader.read() == b""
    writer.close()
    api.signal(signal.SIGTERM)
    assert await api.ended(_PARTING_S) == 0


async def test_large_bodies_are_parsed_while_it_drains(deployment: Deployment) -> None:
    """A separate process parses them, and a process manager may send the signal to that one as well."""
    api = deployment.begin_api()
    await deployment.api_up(api)
    large = {"prompt": "x" * (1 << 20)}
    async with deployment.runtime() as runtime, _sent(api, "messages, whole"):
        await _authors(runtime, 1)
        assert (await ask(api.url, "/v1/jobs", method="POST", body=large))[0] == 202
        helpers = psutil.Process(api.pid).children(recursive=True)
        assert helpers != []
        for pid in [api.pid, *(helper.pid for helper in helpers)]:
            os.kill(pid, signal.SIGTERM)
        await wait_until(lambda: _is_drained(api), "the readiness to say so")
        parsers = [helper for helper in helpers if "spawn_main" in " ".join(helper.cmdline())]
        assert len(parsers) == 1
        assert (await ask(api.url, "/v1/jobs", method="POST", body=large))[0] == 202
        api.signal(signal.SIGTERM)
        assert await api.ended(_PARTING_S) == 0
        psutil.wait_procs(helpers, timeout=5)
        assert not any(helper.is_running() for helper in helpers)


async def test_under_uvicorns_own_command_waiting_requests_go_on_too(deployment: Deployment) -> None:
    """That command closes its listeners at the signal, which we cannot change."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", str(port)]
    api = deployment.begin_api_by(command, f"http://127.0.0.1:{port}")
    await deployment.api_up(api)
    async with deployment.runtime() as runtime, _sent(api, "messages, streamed") as calling:
        (author,) = await _authors(runtime, 1)
        await _begin(author)
        api.signal(signal.SIGTERM)
        await wait_until(lambda: _refuses(api), "the end of its listeners")
        await asyncio.sleep(1)
        assert not calling.done()
        await _end(author)
        status, body = await asyncio.wait_for(calling, 5)
        assert (status, WHOLE["messages, streamed"] in body) == (200, True), body
        await wait_until(lambda: not api.is_running, "its end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_processes_of_one_port_drain_alike(deployment: Deployment, number: signal.Signals) -> None:
    """The supervisor forwards the signal once and waits; systemd also sends it to each process itself."""
    parent = deployment.begin_api("--processes", "2")
    await deployment.api_up(parent)
    async with deployment.runtime() as runtime, _sent(parent, "messages, whole") as calling:
        (author,) = await _authors(runtime, 1)
        children = [child.pid for child in psutil.Process(parent.pid).children()]
        for pid in [
            parent.pid,
            *(children if number == signal.SIGTERM else []),
        ]:  # a Ctrl-C reaches only the parent here
            os.kill(pid, number)
        await asyncio.sleep(1.5)
        assert not calling.done()
        await _begin(author)
        await _end(author)
        status, body = await asyncio.wait_for(calling, 5)
        assert (status, WHOLE["messages, whole"] in body) == (200, True), body
        assert await parent.ended(5) == 0
        assert not any(psutil.pid_exists(pid) for pid in children)


async def test_a_second_signal_to_the_supervisor_ends_its_processes(deployment: Deployment) -> None:
    """It ends them in order: waiting clients get the reason."""
    parent = deployment.begin_api("--processes", "2")
    await deployment.api_up(parent)
    async with deployment.runtime() as runtime, _sent(parent, "messages, whole") as calling:
        await _authors(runtime, 1)
        parent.signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert not calling.done()
        parent.signal(signal.SIGTERM)
        status, _ = await asyncio.wait_for(calling, 5)
        assert status == 503
        assert await parent.ended(_PARTING_S) == 0
        assert "killing it" not in parent.log


async def test_followers_reconnect_to_another_api_and_miss_nothing(deployment: Deployment) -> None:
    """Meanwhile requests that wait for a job go on."""
    leaving, staying = deployment.begin_api(), deployment.begin_api()
    for api in deployment.apis:
        await deployment.api_up(api)
    async with deployment.runtime() as runtime, _sent(leaving, "messages, streamed") as calling:
        (waited,) = await _authors(runtime, 1)
        author = await Author.start(runtime)
        follower = Follower([leaving.url, staying.url], author.job_id)
        task = await following(follower)
        leaving.signal(signal.SIGTERM)
        await wait_until(lambda: len(follower.connections) == 2, "the follower to come back")
        await author.say("Blue", " light")
        await author.succeed()
        await asyncio.wait_for(task, 5)
        assert (follower.text, follower.connections[0].ended) == ("Blue light", "eof")
        assert not calling.done()
        await _begin(waited)
        await _end(waited)
        assert WHOLE["messages, streamed"] in (await asyncio.wait_for(calling, 5))[1]
