"""The API called without sockets, on a real Redis; tests of streams and broken connections use a served one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
import pytest

from api.app import create_app
from api.state.api_state import ApiState
from shared.errors import StorageUnavailable
from shared.settings import load_settings
from shared.store.runtime import Runtime
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.store import all_keys, kind_of

A_BODY = {"prompt": "Say hello."}

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


@dataclass(frozen=True)
class CalledApi:
    """An API and a client of it."""

    http: httpx2.AsyncClient
    state: ApiState

    @property
    def runtime(self) -> Runtime:
        """The API's store."""
        return self.state.runtime

    async def submit(self, body: Any = None, **headers: str) -> httpx2.Response:
        """``POST /v1/jobs``; ``_`` in the names of headers becomes ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/v1/jobs", json=A_BODY if body is None else body, headers=named)

    async def submitted(self, body: Any = None, **headers: str) -> Any:
        """Submits a job, which must be accepted; returns it."""
        response = await self.submit(body, **headers)
        assert response.status_code == 202, response.text
        return response.json()

    async def job(self, job_id: str, **query: Any) -> Any:
        """Reads a job."""
        response = await self.http.get(f"/v1/jobs/{job_id}", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    async def keys_count(self) -> int:
        """The number of keys in Redis, without those that the process's own loops write."""
        names = await all_keys(self.runtime._commands)
        return sum(kind_of(name) not in ("attendants", "spared", "figures") for name in names)


class StartApi(Protocol):
    """Starts an API with these settings; it stops after the test."""

    async def __call__(self, **settings: Any) -> CalledApi: ...


@pytest.fixture
async def start_api(real_redis: RedisUnderTest) -> AsyncIterator[StartApi]:
    """For tests that need other settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> CalledApi:
            return await stack.enter_async_context(called_api(**{"redis_url": real_redis.url, **settings}))

        yield start


@pytest.fixture
async def api(start_api: StartApi) -> CalledApi:
    """An API with the default settings."""
    return await start_api()


@pytest.fixture
async def served(real_redis: RedisUnderTest) -> AsyncIterator[Served]:
    """An API with the default settings, on a real socket."""
    async with serving(real_redis.url) as running:
        yield running


@asynccontextmanager
async def called_api(**settings: Any) -> AsyncIterator[CalledApi]:
    """Runs the lifespan in its own task, as a server does, since a fixture may end in another task than it began in."""
    app = create_app(load_settings(**{"auth": "off", **settings}))
    opened: asyncio.Future[ApiState] = asyncio.get_running_loop().create_future()
    closing = asyncio.Event()

    async def live() -> None:
        async with app.router.lifespan_context(app) as state:
            assert state is not None
            opened.set_result(state["api"])
            await closing.wait()

    living = asyncio.create_task(live(), name="lifespan")
    state = await opened
    with contextlib.suppress(StorageUnavailable):
        await state.runtime.waits.look()  # or the first response might know less of the workers than the next

    async def with_state(scope: _Message, receive: _Receive, send: _Send) -> None:
        await app({**scope, "state": {"api": state}}, receive, send)

    transport = httpx2.ASGITransport(app=with_state)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield CalledApi(client, state)
    finally:
        closing.set()
        await living


def problem_of(response: httpx2.Response, status: int, code: str) -> Any:
    """The problem document of a response, whose members it checks."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == f"/problems/{code}"
    assert document["code"] == code
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    assert set(document) <= {"type", "title", "status", "code", "detail", "errors", "limit", "request_id"}
    return document


def pointers_of(response: httpx2.Response) -> list[str]:
    """The fields that a 400 names."""
    document = problem_of(response, 400, "invalid_request")
    return [error["pointer"] for error in document["errors"]]
