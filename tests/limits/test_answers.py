"""What callers see of limits, on each surface; and the limit per address."""

import asyncio
import calendar
import os
import re
import signal
import time
from collections import Counter
from datetime import UTC, date, datetime
from importlib.resources import files
from typing import Any

import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.clock import from_rfc3339
from shared.limits import CallerLimits
from shared.store import redis_keys
from shared.store.addresses import subnet_of
from tests.keys.conftest import make_key
from tests.routes.conftest import A_BODY, CalledApi, StartApi, problem_of
from tests.support.limits import A_DOLLAR
from tests.support.store import now_ms
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


REFUSALS: list[Any] = [
    ("requests_per_minute", {"requests_per_minute": 1}, (1, 1, 1), r"The tenant has made 1 of the 1 requests .* in \d\d s\."),
    ("tokens_per_minute", {"tokens_per_minute": 1100}, (1100, 1049, 1049), r"The tenant has used 1049 of the 1100 tokens .*needs 1049\."),
    ("queued_jobs", {"queued_jobs": 1}, (1, 1, 1), r"The tenant has 1 waiting jobs and may have 1; this request adds 1\."),
    ("usd_per_day", {"nano_usd_per_day": A_DOLLAR * 2}, (2.0, 2.5, 0), r"The tenant has spent \$2\.5 of its budget of \$2 for the day\."),
    ("usd_per_month", {"nano_usd_per_month": A_DOLLAR}, (1.0, 2.5, 0), r"The tenant has spent \$2\.5 of its budget of \$1 for the month\."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "numbers", "sentence"), REFUSALS, ids=[row[0] for row in REFUSALS])
async def test_a_refusal_names_the_limit_and_when_it_opens(
    start_api: StartApi, name: str, settings: dict[str, int], numbers: tuple[float, ...], sentence: str
) -> None:
    """In members, and in the sentence, which the Messages API has in its error. The time is that of ``Retry-After``."""
    api = await limited(start_api, **settings)
    job = await api.submitted()
    await api.runtime.jobs.charge(job["id"], A_DOLLAR * 5 // 2, tenant="default")
    refused = await api.submit()
    document = problem_of(refused, 429, REFUSED_AS.get(name, "budget_exceeded"))
    reached = document["limit"]
    assert (reached["of"], reached["name"]) == ("tenant", name)
    assert (reached["limit"], reached["used"], reached["needed"]) == numbers
    assert re.match(sentence, document["detail"]), document["detail"]
    if name == "queued_jobs":
        assert reached["opens_at"] is None
    else:
        opens_in_s = (from_rfc3339(reached["opens_at"]) - await now_ms(api.runtime)) / 1000
        assert int(refused.headers["retry-after"]) - 3 < opens_in_s <= int(refused.headers["retry-after"])
    theirs = await api.http.post("/v1/messages", json={**MESSAGE, "max_tokens": 1024})
    assert theirs.status_code == 429
    assert re.match(sentence.split("needs", maxsplit=1)[0], theirs.json()["error"]["message"])


REFUSED_AS = {
    "requests_per_minute": "rate_limited",
    "tokens_per_minute": "rate_limited",
    "queued_jobs": "too_many_queued",
    "waiting_bytes": "too_many_queued",
}


async def test_a_refusal_for_bytes_names_what_they_take(start_api: StartApi) -> None:
    """The refused request does not count."""
    api = await start_api()
    await api.submitted()
    (used,) = await api.runtime._commands.call("HVALS", redis_keys.plain("held_bytes"))
    await api.runtime.tenants.set("default", {"waiting_bytes": int(used) + 10})
    reached = problem_of(await api.submit(), 429, "too_many_queued")["limit"]
    assert (reached["of"], reached["name"], reached["opens_at"]) == ("tenant", "waiting_bytes", None)
    assert (reached["limit"], reached["used"], reached["needed"]) == (int(used) + 10, int(used), int(used))


async def test_every_surface_that_submits_names_the_limit(start_api: StartApi) -> None:
    """A stream of ``/complete/stream`` does not begin."""
    api = await limited(start_api, requests_per_minute=1)
    await api.submitted()
    batch: Any = {"requests": [{"custom_id": "a", "params": A_BODY}]}
    for path, body in (("/v1/batches", batch), ("/complete", A_BODY), ("/complete/stream", A_BODY)):
        assert problem_of(await api.http.post(path, json=body), 429, "rate_limited")["limit"]["used"] == 1
    batch = {"requests": [{"custom_id": "a", "params": MESSAGE}]}
    for path, body in (("/v1/messages/batches", batch), ("/v1/messages/count_tokens", MESSAGE)):
        assert "1 of the 1 requests" in (await api.http.post(path, json=body)).json()["error"]["message"]


async def test_of_two_limits_the_one_that_opens_last_is_named(start_api: StartApi) -> None:
    """A key's own budget of the month, and its tenant's minute."""
    api = await start_api(auth="keys")
    made = await make_key(api.runtime, tenant="default", limits=CallerLimits(nano_usd_per_month=A_DOLLAR))
    headers = {"Authorization": f"Bearer {made.text}"}
    await api.runtime.tenants.set("default", {"requests_per_minute": 1})
    job = await api.submitted(**headers)
    first = problem_of(await api.submit(**headers), 429, "rate_limited")["limit"]
    assert (first["of"], first["name"]) == ("tenant", "requests_per_minute")
    await api.runtime.jobs.charge(job["id"], A_DOLLAR, tenant="default", key_id=made.key.id)
    document = problem_of(await api.submit(**headers), 429, "budget_exceeded")
    assert (document["limit"]["of"], document["limit"]["name"]) == ("key", "usd_per_month")
    assert document["limit"]["opens_at"][8:] == "01T00:00:00.000Z"
    assert document["detail"].startswith("The key has spent $1 of its budget of $1 for the month.")


async def test_budgets_are_in_the_headers_of_each_submit(start_api: StartApi) -> None:
    """In millionths of a dollar, with what is not spent; ``t`` is never more than ``w``."""
    api = await limited(start_api, nano_usd_per_day=2 * A_DOLLAR, nano_usd_per_month=1_000_000 * A_DOLLAR)
    job = await api.submitted()
    await api.runtime.jobs.charge(job["id"], A_DOLLAR // 2, tenant="default")
    accepted = await api.submit()
    assert accepted.status_code == 202
    days = calendar.monthrange(*datetime.now(UTC).timetuple()[:2])[1]
    assert accepted.headers["ratelimit-policy"] == (
        f'"micro_usd_per_day";q=2000000;w=86400, "micro_usd_per_month";q=1000000000000;w={days * 86400}'
    )
    form = r'"micro_usd_per_day";r=1500000;t=(\d+), "micro_usd_per_month";r=999999500000;t=(\d+)'
    left_s = re.fullmatch(form, accepted.headers["ratelimit"])
    assert left_s is not None
    assert 0 < int(left_s[1]) <= 86400
    assert int(left_s[1]) <= int(left_s[2]) <= days * 86400
    await api.runtime.jobs.charge(job["id"], 2 * A_DOLLAR, tenant="default")
    refused = await api.submit()
    assert refused.headers["ratelimit"].startswith(f'"micro_usd_per_day";r=0;t={refused.headers["retry-after"]}, ')


async def test_the_rest_of_a_month_is_known_on_each_of_its_days(start_api: StartApi) -> None:
    """In each month of five years, and around the turn of two centuries."""
    api = await start_api()
    lines = (files("shared.store") / "lua/lib/spend.lua").read_text()
    text = f"""
        local DAY_MS, now, call = 86400000, tonumber(ARGV[1]), redis.call
        {lines.split("local function spent_by")[0]}
        local left_ms, length_s = month_now()
        return {{left_ms, length_s}}"""
    days = [date.fromordinal(day) for year in (1999, 2000, 2023, 2024, 2025, 2026, 2100) for day in _ordinals_of(year)]
    for day in days:
        moment = datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC)
        length = calendar.monthrange(day.year, day.month)[1]
        left = await api.runtime._commands.call("EVAL", text, 0, int(moment.timestamp() * 1000))
        assert left == [(length - day.day) * 86_400_000 + 1000, length * 86_400], day


def _ordinals_of(year: int) -> range:
    return range(date(year, 1, 1).toordinal(), date(year + 1, 1, 1).toordinal())


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
    document = refused.json()
    assert document["detail"].startswith("This address has made 3 of the 3 requests that it may make in any 60 s.")
    opens_at = document["limit"].pop("opens_at")
    assert document["limit"] == {"of": "address", "name": "requests_per_minute", "limit": 3, "used": 3, "needed": 1}
    assert 0 < from_rfc3339(opens_at) - await now_ms(first.runtime) <= 61_000
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
