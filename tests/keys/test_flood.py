"""One key's largest and most frequent reads, against the calls of all others, in an API process."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from shared.api_key import Scope
from tests.keys.conftest import bearer, make_key
from tests.support.deployment import a_deployment
from tests.support.follower import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_LARGE = {f"name-{number:02}": "\U0001f600" * 512 for number in range(16)}
_CONNECTIONS = 200
_RESTED_S = 3.0
_FLOODED_S = 6.0
_REVOKED_WITHIN_S = 5.0
_ANSWERED_S = 2.0
"""A response that has begun goes on, and this client reads it slowly."""


class Seen(NamedTuple):
    """A response."""

    status: int
    at_s: float
    took_s: float


class Caller:
    """Sends the same request over one connection."""

    def __init__(self, url: str, key: str, path: str) -> None:
        self._address = urlsplit(url)
        self._request = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n".encode()

    async def ask(self, seen: list[Seen], *, pause_s: float = 0) -> None:
        """Repeats the request until it is cancelled or its key is refused."""
        reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        try:
            status = 0
            while status != 401:
                started_s = time.monotonic()
                writer.write(self._request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                status = int(head[9:12])
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                seen.append(Seen(status, time.monotonic(), time.monotonic() - started_s))
                await asyncio.sleep(pause_s)
        finally:
            writer.close()


def _p99_ms(seen: list[Seen]) -> float:
    times_s = sorted(one.took_s for one in seen)
    return times_s[int(len(times_s) * 0.99)] * 1000


async def _seen_for(caller: Caller, seconds: float) -> list[Seen]:
    seen: list[Seen] = []
    try:
        async with asyncio.timeout(seconds):
            await caller.ask(seen, pause_s=0.02)
    except TimeoutError:
        pass
    return seen


async def test_one_keys_flood_of_large_pages_delays_neither_others_nor_its_revocation(
    fact: Callable[[str], None],
) -> None:
    """All calls of another tenant succeed, so does the first attempt to revoke the key, and it is refused in time."""
    settings = {"TOKENSPOOL_AUTH": "keys", "TOKENSPOOL_ADDRESS_REQUESTS_PER_MINUTE": "1000000"}
    with a_deployment("http://127.0.0.1:9", **settings) as deployment:
        async with deployment.runtime() as runtime:
            api = deployment.begin_api()
            await deployment.api_up(api)
            owner, bystander = await make_key(runtime, tenant="acme"), await make_key(runtime, tenant="bob")
            attacker = await make_key(runtime, tenant="acme", scopes=frozenset({Scope.READ}))
            deployment.key = owner.text
            for made, job in ((bystander, {}), *[(owner, {"metadata": _LARGE})] * 60):
                body = {"prompt": "x", "job": job}
                status, _, _ = await ask(api.url, "/v1/jobs", method="POST", body=body, headers=bearer(made.text))
                assert status == 202
            caller = Caller(api.url, bystander.text, "/v1/jobs?limit=1")
            rested = await _seen_for(caller, _RESTED_S)
            flood: list[Seen] = []
            page = Caller(api.url, attacker.text, "/v1/jobs?limit=100")
            flooding = [asyncio.create_task(page.ask(flood), name="flood") for _ in range(_CONNECTIONS)]
            flooded = await _seen_for(caller, _FLOODED_S)
            revoking_s = time.monotonic()
            path = f"/v1/keys/{attacker.key.id}/revoke"
            status, _, _ = await ask(api.url, path, method="POST", headers=bearer(owner.text))
            revoked_s = time.monotonic()
            done, pending = await asyncio.wait(flooding, timeout=30)
            assert (status, pending) == (200, set())
            assert "limit_open" not in api.log
            assert [task.exception() for task in done] == [None] * _CONNECTIONS
    assert {one.status for one in rested + flooded} == {200}
    statuses = Counter(one.status for one in flood)
    assert statuses.keys() <= {200, 429, 401}
    last_s = max(one.at_s for one in flood if one.status != 401)
    fact(
        f"{_CONNECTIONS} connections of one key, pages of half a MB: {dict(statuses)}; another tenant's p99 "
        f"{_p99_ms(rested):.1f} ms at rest, {_p99_ms(flooded):.1f} ms beside it; revoked in "
        f"{revoked_s - revoking_s:.2f} s, the last page {last_s - revoked_s:.1f} s later"
    )
    assert last_s - revoked_s < _REVOKED_WITHIN_S + _ANSWERED_S
