"""``/v1/live``: the figures of each second, made once for all who watch, on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from api.ops import stats
from shared.api_key import Scope
from tests.keys.conftest import bearer, make_key
from tests.support.follower import Response, ask, asking
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.sse_frames import Frame, SseFrames
from tests.support.upstreams import a_route, permitted
from tests.support.wait import wait_until


class Watching:
    """A client of /v1/live."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._parser = SseFrames()
        self._frames: list[Frame] = []

    async def next(self, name: str) -> Any:
        """The data of the next event of that name."""
        async with asyncio.timeout(10):
            while True:
                while self._frames:
                    frame = self._frames.pop(0)
                    if frame.event == name:
                        return json.loads(frame.data)
                piece = await self._response.read_some()
                assert piece, "the stream has ended"
                self._frames += self._parser.feed(piece)

    async def end(self) -> list[str]:
        """Waits for the end. Returns the comments."""
        async with asyncio.timeout(10):
            while piece := await self._response.read_some():
                self._parser.feed(piece)
        return self._parser.comments


@asynccontextmanager
async def watching(served: Served, headers: dict[str, str] | None = None) -> AsyncIterator[Watching]:
    async with asking(served.url, "/v1/live", headers=headers or {}) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store, no-transform"
        yield Watching(response)


async def test_a_viewer_gets_the_history_and_then_each_second_and_each_bucket(real_redis: RedisUnderTest) -> None:
    """The figures are those of /v1/stats; a new bucket continues the history."""
    async with serving(real_redis.url) as served, watching(served) as client:
        history = await client.next("history")
        assert history["bucket_s"] == 10
        first = await client.next("stats")
        assert first["jobs"]["waiting"] == 0
        assert "history" not in first
        await ask(served.url, "/v1/jobs", method="POST", body={"prompt": "Say hello."})
        seen = await client.next("stats")
        while seen["jobs"]["waiting"] == 0:
            seen = await client.next("stats")
        assert seen["jobs"]["by_priority"]["normal"]["startable"] == 1
        now_ms = (await served.api.runtime.figures.depths()).now_ms
        served.api.runtime.figures.buckets.clear()
        number = now_ms // 10_000 - 1
        for viewer in served.api.viewers:
            viewer.newest = number - 1
        await served.api.runtime._commands.call("HSET", f"ts:{{g}}:figures:{number}", "waiting", 3, "tokens", 8)
        served.api.runtime.figures._whole = 0
        bucket = await client.next("bucket")
        assert bucket.keys() == (history.keys() - {"bucket_s"})
        assert isinstance(bucket["waiting"], int)


async def test_the_figures_are_made_once_for_all_viewers_and_only_while_there_are_some(
    real_redis: RedisUnderTest, monkeypatch: Any
) -> None:
    """Thirty viewers cost Redis what one does."""
    made: list[float] = []
    work_out = stats._worked_out

    async def counted(api: Any) -> Any:
        made.append(asyncio.get_running_loop().time())
        return await work_out(api)

    monkeypatch.setattr(stats, "_worked_out", counted)
    async with serving(real_redis.url) as served:
        await asyncio.sleep(1.5)
        assert made == []
        async with asyncio.TaskGroup() as group:

            async def watch() -> None:
                async with watching(served) as client:
                    for _ in range(3):
                        await client.next("stats")

            for _ in range(30):
                group.create_task(watch())
        assert 3 <= len(made) <= 6
        await wait_until(lambda: not len(served.api.viewers), "all to be gone")
        assert served.api.drain.open_requests == 0


async def test_a_viewer_ends_with_its_key_and_sees_only_its_tenants_routes(real_redis: RedisUnderTest) -> None:
    """An operator's sees all routes. A key without the scope read gets none of it."""
    async with serving(real_redis.url, auth="keys") as served:
        runtime = served.api.runtime
        reader = await make_key(runtime, scopes=frozenset({Scope.READ}))
        operator = await make_key(runtime, scopes=frozenset({Scope.READ, Scope.OPERATOR}), tenant="tenant-b")
        submitter = await make_key(runtime, scopes=frozenset({Scope.SUBMIT}))
        await permitted(runtime, a_route("a-secret-model"))
        status, _, _ = await ask(served.url, "/v1/live", headers=bearer(submitter.text))
        assert status == 403
        async with watching(served, bearer(reader.text)) as client, watching(served, bearer(operator.text)) as other:
            assert (await client.next("stats"))["upstreams"] == []
            assert [route["route"] for route in (await other.next("stats"))["upstreams"]] == [
                "anthropic/a-secret-model"
            ]
            _, once, _ = await ask(served.url, "/v1/stats", headers=bearer(reader.text))
            assert once["upstreams"] == []
            await runtime.api_keys.revoke(reader.key.id, "tenant-a")
            assert "the api key is not valid any more" in await client.end()
            assert await other.next("stats")


async def test_a_drain_asks_viewers_to_connect_again_at_once(real_redis: RedisUnderTest) -> None:
    """It does not wait for them."""
    async with serving(real_redis.url) as served, watching(served) as client:
        await client.next("stats")
        served.api.wind_down(is_hurried=False)
        assert "the server is restarting, connect again" in await client.end()


async def test_a_head_request_opens_no_stream(real_redis: RedisUnderTest) -> None:
    """As for every GET."""
    async with serving(real_redis.url) as served:
        async with asking(served.url, "/v1/live", method="HEAD") as response:
            assert response.status == 200
        await wait_until(lambda: not len(served.api.viewers), "no viewer")
        async with asking(served.url, "/v1/live", headers={"Accept": "application/json"}) as response:
            assert response.status == 406
