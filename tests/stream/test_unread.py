"""Large responses that nobody reads hold a bounded part of the process's memory, and only their own tenant's share."""

from contextlib import AsyncExitStack

import httpx2

from shared.store.runtime import Runtime
from tests.stream.conftest import Serve
from tests.support.author import Author
from tests.support.follower import asking
from tests.support.wait import wait_until

_RESULT_BYTES = 8 << 20
"""More than the kernel's buffers hold."""


async def _large_job(runtime: Runtime, tenant: str) -> str:
    author = await Author.start(runtime, tenant=tenant)
    await author.say("a" * (_RESULT_BYTES // 2))
    await author.succeed()
    return f"/v1/jobs/{author.job_id}"


async def test_a_tenant_that_reads_nothing_is_refused_before_others_are(serve: Serve, runtime: Runtime) -> None:
    """It may hold at most half of the bound, and is served again after those responses were read or cut."""
    served = await serve(max_unsent_bytes=5 * _RESULT_BYTES)
    unsent = served.api.unsent
    greedy, other = await _large_job(runtime, "greedy"), await _large_job(runtime, "other")
    async with AsyncExitStack() as connections, httpx2.AsyncClient(base_url=served.url) as http:
        for _ in range(2):
            held_bytes = unsent.bytes
            reading = asking(served.url, greedy, headers={"X-Tenant": "greedy"}, receive_buffer=4096)
            await connections.enter_async_context(reading)
            await wait_until(lambda before=held_bytes: unsent.bytes > before, "the response")  # type: ignore[misc]
        refused = await http.get(greedy, headers={"X-Tenant": "greedy"})
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert refused.headers["retry-after"] == "5"
        assert (
            len((await http.get(other, headers={"X-Tenant": "other"})).json()["result"]["text"]) == _RESULT_BYTES // 2
        )
    await wait_until(lambda: unsent.bytes == 0, "the room")
    async with httpx2.AsyncClient(base_url=served.url) as http:
        assert (await http.get(greedy, headers={"X-Tenant": "greedy"})).status_code == 200


async def test_one_response_is_sent_however_large_it_is(serve: Serve, runtime: Runtime) -> None:
    """Otherwise nobody could ever read it."""
    served = await serve(max_unsent_bytes=1024)
    path = await _large_job(runtime, "acme")
    async with httpx2.AsyncClient(base_url=served.url, headers={"X-Tenant": "acme"}) as http:
        assert len((await http.get(path)).content) > _RESULT_BYTES // 2
