"""What callers see of limits, on each surface; and the limit per address."""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from typing import Any

import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.store.addresses import subnet_of
from tests.routes.conftest import A_BODY, CalledApi, StartApi, problem_of
from tests.support.limits import A_DOLLAR
from tests.support.wait import wait_until

MESSAGE = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Say hello."}]}


async def limited(start_api: StartApi, **settings: int) -> CalledApi:
    """An API; its default tenant has these limits."""
    api = await start_api()
    await api.runtime.tenants.set("default", settings)
    return api


async def test_every_submit_has_the_state_of_the_limits_in_its_headers(start_api: StartApi) -> None:
    """In the fields of the draft standard; without a limit there are none."""
    api = await start_api()
    assert "ratelimit" not in (await api.submit()).headers
    await api.runtime.tenants.set("default", {"requests_per_minute": 2, "tokens_per_minute": 5000, "queued_jobs": 9})
    answer = await api.submit()
    assert answer.headers["ratelimit-policy"] == '"requests";q=2;w=60, "tokens";q=5000;w=60, "queued_jobs";q=9'
    assert re.fullmatch(r'"requests";r=1;t=60, "tokens";r=3\d\d\d;t=60, "queued_jobs";r=7', answer.headers["ratelimit"])
    batch = await api.http.post("/v1/batches", json={"requests": [{"custom_id": "a", "params": A_BODY}]})
    assert batch.headers["ratelimit"].startswith('"requests";r=0;t=60')
    refused = await api.submit()
    problem_of(refused, 429, "rate_limited")
    assert 55 <= int(refused.headers["retry-after"]) <= 61
    assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')


async def test_each_refusal_has_its_code(start_api: StartApi) -> None:
    """A request that can never fit a limit is a 400 that says why."""
    api = await limited(start_api, queued_jobs=1)
    await api.submitted()
    problem_of(await api.submit(), 429, "too_many_queued")
    await api.runtime.tenants.set("default", {"queued_jobs": 0, "tokens_per_minute": 100})
    document = problem_of(await api.submit({**A_BODY, "max_tokens": 500}), 400, "invalid_request")
    assert [error["pointer"] for error in document["errors"]] == ["#/max_tokens"]
    await api.runtime.tenants.set("default", {"tokens_per_minute": 0, "nano_usd_per_day": A_DOLLAR})
    job_id = (await api.submitted())["id"]
    await api.runtime.jobs.charge(job_id, A_DOLLAR, tenant="default")
    problem_of(await api.submit(), 429, "budget_exceeded")


async def test_the_messages_surface_has_its_own_form_of_refusals(start_api: StartApi) -> None:
    """``rate_limit_error`` with the headers that its SDK reads; for a spent budget, that a retry is useless."""
    api = await limited(start_api, requests_per_minute=1, tokens_per_minute=9000)
    await api.submitted()
    refused = await api.http.post("/v1/messages", json=MESSAGE)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["anthropic-ratelimit-requests-limit"] == "1"
    assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", refused.headers["anthropic-ratelimit-tokens-reset"])
    assert "x-should-retry" not in refused.headers
    await api.runtime.tenants.set("default", {"requests_per_minute": 0, "nano_usd_per_month": 1})
    await api.runtime.jobs.charge((await api.submitted())["id"], 1, tenant="default")
    broke = await api.http.post("/v1/messages", json=MESSAGE)
    assert (broke.status_code, broke.headers["x-should-retry"]) == (429, "false")


# Addresses


async def counting(start_api: StartApi, **settings: Any) -> CalledApi:
    """An API that has reached its Redis; before that its limit per address does not apply."""
    api = await start_api(**settings)
    await wait_until(lambda: api.runtime.addresses.can_count, "the connection to Redis")
    return api


async def test_the_limit_per_address_counts_all_its_requests(start_api: StartApi) -> None:
    """Over all processes and routes, in each surface's form; health probes are not counted."""
    first, second = [await counting(start_api, address_requests_per_minute=3) for _ in range(2)]
    assert [(await api.http.get("/v1/jobs")).status_code for api in (first, second, first)] == [200] * 3
    for _ in range(4):
        assert (await first.http.get("/health/live")).status_code == 200
    refused = await second.http.get("/nothing/here")
    problem_of(refused, 429, "rate_limited")
    assert refused.headers["ratelimit-policy"] == '"requests";q=3;w=60'
    assert int(refused.headers["retry-after"]) <= 61
    theirs = await first.http.get("/v1/models")
    assert theirs.json()["error"]["type"] == "rate_limit_error"


async def test_the_limit_of_addresses_is_open_while_redis_is_away(
    own_server: Any, start_api: StartApi, capsys: pytest.CaptureFixture[str]
) -> None:
    """On purpose: it is logged once, and counted."""
    api = await counting(start_api, redis_url=own_server.url, address_requests_per_minute=1)
    assert (await api.http.get("/v1/models")).status_code == 200
    own_server.kill()
    answers = await asyncio.gather(*(api.http.get("/health/live") for _ in range(2)), api.http.get("/v1/jobs"))
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert (await api.http.get("/v1/jobs")).status_code == 503
    assert api.state.let_past.count == 2


async def test_a_flood_does_not_open_the_limit(start_api: StartApi) -> None:
    """However long the event loop's turns are: Redis has replied, and the process is just late to read it."""
    api = await counting(start_api, address_requests_per_minute=20)

    async def be_busy() -> None:
        while True:
            time.sleep(0.3)  # noqa: ASYNC251 - as a thousand requests in one turn would
            await asyncio.sleep(0)

    busy = asyncio.create_task(be_busy())
    answers = await asyncio.gather(*(api.http.get("/nothing/here") for _ in range(200)))
    busy.cancel()
    assert Counter(answer.status_code for answer in answers) == {404: 20, 429: 180}
    assert api.state.let_past.count == 0


async def test_the_limit_of_addresses_opens_soon_if_redis_hangs(own_server: EmbeddedRedis, start_api: StartApi) -> None:
    """Also for requests made before that was known. It applies again as soon as Redis replies."""
    api = await counting(start_api, redis_url=own_server.url, redis_timeout_s=20, address_requests_per_minute=1)
    assert (await api.http.get("/nothing/here")).status_code == 404
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        answers = await asyncio.gather(*(api.http.get("/nothing/here") for _ in range(3)))
        assert [answer.status_code for answer in answers] == [404] * 3
        assert time.monotonic() - started_s < 3
        assert not api.runtime.addresses.can_count
        assert api.runtime._urgent.is_connected
        assert (await api.http.get("/nothing/here")).status_code == 404
        assert api.state.let_past.count == 4
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    await wait_until(lambda: api.runtime.addresses.can_count, "Redis's answer")
    assert (await api.http.get("/nothing/here")).status_code == 429


def test_an_ipv6_network_counts_as_one_address() -> None:
    """An IPv4 address counts as itself, however it is written."""
    assert subnet_of("2001:db8:1:2:3::4") == subnet_of("2001:db8:1:2:ffff::1%eth0") == "2001:db8:1:2::/64"
    assert subnet_of("::ffff:192.0.2.7") == subnet_of("192.0.2.7") == "192.0.2.7"
    assert subnet_of("") == ""
