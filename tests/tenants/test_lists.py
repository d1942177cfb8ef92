"""Lists, cursors, filters and Idempotency-Keys: each tenant has its own; another tenant's ids act like made-up ones."""

import json
from typing import Any

import pytest

from shared.job_filter import JobFilter
from shared.store.runtime import Runtime
from tests.support.builders import a_bad_line, a_batch_id, a_line, an_id
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import serving
from tests.support.store import all_keys, begin, kind_of, receive, serve_queue, start_batch, submit
from tests.support.wait import wait_until
from tests.tenants.table import ENDLESS, OF_OPERATORS, paths_without_parameters
from tests.tenants.victim import ATTACKER, CANARY, KEY, VICTIM, Victim, a_key, absent_ids, state_of_all
from tests.tenants.wire import Line, Response
from tests.tenants.wire import a_line as a_connection

_GETTABLE = sorted(
    path
    for path, methods in paths_without_parameters().items()
    if "GET" in methods and path not in (*OF_OPERATORS, ENDLESS)
)
_POSTABLE = sorted(path for path, methods in paths_without_parameters().items() if "POST" in methods)


async def _asked(line: Line, path: str, tenant: str = ATTACKER, method: str = "GET", **more: Any) -> Response:
    return await line.ask(method, path, headers={**line.of(tenant), **more.pop("headers", {})}, **more)


async def _keys_of(runtime: Runtime, tenant: str) -> list[str]:
    return [name for name in await all_keys(runtime._commands) if f":idempotency:{tenant}:" in name]


def _twin_of(own_id: str) -> str:
    """An absent id that sorts directly next to this one."""
    return own_id[:-1] + ("0" if own_id[-1] != "0" else "1")


@pytest.mark.parametrize("path", _GETTABLE)
async def test_lists_hold_only_the_tenants_own_objects(victim: Victim, line: Line, path: str) -> None:
    """Every route that can be read without an id; new routes are included automatically."""
    answer = await _asked(line, path)
    assert answer.status == 200
    for mark in (CANARY, KEY, VICTIM, *victim.all_ids, *victim.of("msgbatch").values()):
        assert mark.encode() not in answer.body


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("/v1/jobs", "job", "after"),
        ("/v1/batches", "batch", "after"),
        ("/v1/messages/batches", "msgbatch", "after_id"),
        ("/v1/messages/batches", "msgbatch", "before_id"),
        ("/v1/keys", "key", "after"),
        ("/v1/operations", "op", "after"),
    ],
)
async def test_a_foreign_cursor_acts_like_an_absent_one(
    runtime: Runtime, victim: Victim, line: Line, path: str, kind: str, name: str
) -> None:
    """It acts like an absent id that sorts next to it."""
    for _ in range(3):
        await submit(runtime, tenant=ATTACKER)
        await start_batch(runtime, 1, tenant=ATTACKER)
        await a_key(runtime, ATTACKER)
    for own_id in victim.of(kind).values():
        found = await _asked(line, f"{path}?limit=2&{name}={own_id}")
        assert found.status == 200
        assert found == await _asked(line, f"{path}?limit=2&{name}={_twin_of(own_id)}")


async def test_a_foreign_batch_has_no_items(runtime: Runtime, victim: Victim, line: Line) -> None:
    """In every state, and with every filter and cursor."""
    own = await start_batch(runtime, 2, tenant=ATTACKER)
    for query in ("", "&status=queued", f"&after={own.job_ids[1]}", f"&after={victim.ids['job']['running item']}"):
        responses = {
            name: await _asked(line, f"/v1/jobs?batch_id={batch_id}{query}")
            for name, batch_id in {**absent_ids("batch"), **victim.ids["batch"]}.items()
        }
        assert json.loads(responses["absent"].body) == {"data": [], "has_more": False, "next": None}
        assert {name for name, answer in responses.items() if answer != responses["absent"]} == set()


async def test_a_large_foreign_batch_names_none_of_its_items(runtime: Runtime) -> None:
    """The list is read in pages; a cursor after the last allowed page would name another tenant's job."""
    received = await receive(runtime, [a_line(1), *map(a_bad_line, range(2, 5_300)), a_line(5_300)], tenant=VICTIM)
    await begin(runtime, received)
    await runtime.batches.advance_all(received.id)
    for batch_id in (received.id, a_batch_id()):
        page = await runtime.jobs.list(ATTACKER, JobFilter(batch_id=batch_id), after=None, limit=1)
        assert (page.jobs, page.next_after) == ([], None)


async def test_a_foreign_item_is_no_cursor_in_the_tenants_own_batch(
    runtime: Runtime, victim: Victim, line: Line
) -> None:
    """Using its line number would reveal that the job exists. An own item of another batch is no cursor either."""
    own, other = await start_batch(runtime, 5, tenant=ATTACKER), await start_batch(runtime, 5, tenant=ATTACKER)
    absent = await _asked(line, f"/v1/jobs?batch_id={own.id}&after={an_id()}")
    assert json.loads(absent.body)["data"] == []
    for job_id in (*victim.ids["job"].values(), other.job_ids[4]):
        assert await _asked(line, f"/v1/jobs?batch_id={own.id}&after={job_id}") == absent
    items = json.loads((await _asked(line, f"/v1/jobs?batch_id={own.id}&after={own.job_ids[4]}")).body)["data"]
    assert [item["id"] for item in items] == own.job_ids[:4][::-1]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/messages", "/v1/batches", "/v1/messages/batches"])
async def test_idempotency_keys_are_each_tenants_own(victim: Victim, runtime: Runtime, line: Line, path: str) -> None:
    """The other tenant's key with another body is a new key here, and both tenants keep their own jobs."""
    params = {"model": "a-model", "max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]}
    requests = [{"custom_id": "row-1", "params": params}]
    key = KEY if "batches" not in path else f"{KEY} of batches"
    sent = {
        "/v1/jobs": params,
        "/v1/messages": {**params, "stream": True},
        "/v1/batches": {"requests": requests},
        "/v1/messages/batches": {"requests": requests},
    }[path]
    before = await state_of_all(runtime)
    body, headers = json.dumps(sent).encode(), {"Idempotency-Key": key}
    if path == "/v1/messages":
        async with a_connection(
            f"http://{line.host}", victim.key_texts
        ) as another:  # a stream until its job ends, which is not read
            another.begin("POST", path, headers={**another.of(ATTACKER), **headers}, body=body)

            async def is_known() -> bool:
                return bool(await _keys_of(runtime, ATTACKER))

            await wait_until(is_known, "the job")
    else:
        answer = await _asked(line, path, method="POST", headers=headers, body=body)
        assert answer.status in (200, 202)
        assert not any(header.lower().startswith(b"idempotency-replayed") for header in answer.headers)
        assert not any(own_id.encode() in answer.body for own_id in victim.all_ids)
    after = await state_of_all(runtime)
    records = {name for name in before if ":idempotency:" in name}
    assert len(records) == 2
    assert len(await _keys_of(runtime, ATTACKER)) == 1
    for name in records | {name for name in before if any(own_id in name for own_id in victim.all_ids)}:
        assert after[name][0] == before[name][0], name


async def test_a_queue_position_counts_all_tenants_jobs(real_redis: RedisUnderTest, runtime: Runtime) -> None:
    """On purpose: it tells when a job starts. It shows how many jobs of others start before it, but nothing else."""
    mine = await submit(runtime, tenant=ATTACKER)
    for _ in range(5):
        await submit(runtime, tenant=VICTIM)
    last = await submit(runtime, tenant=ATTACKER)
    await serve_queue(runtime)
    async with serving(real_redis.url) as served, a_connection(served.url) as line:
        first = json.loads((await _asked(line, f"/v1/jobs/{mine.id}")).body)["queue_position"]
        place = json.loads((await _asked(line, f"/v1/jobs/{last.id}")).body)["queue_position"]
    assert 1 <= first < place <= 4  # tenants take turns, so one tenant's flood does not delay another's job


@pytest.mark.parametrize(
    "query",
    ["status=failed", f"metadata.note={CANARY}", "status=running", "error_code=upstream_error", "model=a-model"],
)
async def test_a_filter_finds_nothing_of_another_tenant(victim: Victim, line: Line, query: str) -> None:
    """Whichever index it goes through; the owner finds its own by the same words."""
    assert json.loads((await _asked(line, f"/v1/jobs?{query}")).body) == {"data": [], "has_more": False, "next": None}
    assert json.loads((await _asked(line, f"/v1/jobs?{query}", VICTIM)).body)["data"]


async def test_a_foreign_key_finds_nothing(victim: Victim, line: Line) -> None:
    """Like one that never was."""
    for key_id in victim.ids["key"].values():
        foreign = await _asked(line, f"/v1/jobs?key_id={key_id}")
        assert foreign == await _asked(line, f"/v1/jobs?key_id={_twin_of(key_id)}")


async def test_usage_is_each_tenants_own(victim: Victim, runtime: Runtime, line: Line) -> None:
    """With any other query parameters."""
    await runtime._commands.call("HSET", f"ts:{{g}}:usage:{VICTIM}:2026-11-24", "m\n\ncalls", 7)
    for query in ("", "&group_by=key"):
        answer = await _asked(line, f"/v1/usage?from=2026-11-20&to=2026-11-26{query}")
        assert json.loads(answer.body)["data"] == []
    for query, status in ((f"&tenant={VICTIM}", 403), (f"&key={victim.ids['key']['standing']}", 400)):
        assert (await _asked(line, f"/v1/usage?from=2026-11-20&to=2026-11-26{query}")).status == status
    answer = await _asked(line, "/v1/usage?from=2026-11-20&to=2026-11-26", VICTIM)
    assert json.loads(answer.body)["total"]["calls"] == 7


@pytest.mark.parametrize("tenant", ["*", "a:b", "a b", "a\tb", "ä", "x" * 65, "tenant-a:", "../tenant-a", "a,b"])
async def test_a_tenant_that_is_no_name_is_refused(
    victim: Victim, real_redis: RedisUnderTest, runtime: Runtime, tenant: str
) -> None:
    """With authentication off, X-Tenant goes into names of Redis keys, where an odd name could mean another tenant."""
    before = await all_keys(runtime._commands)
    async with serving(real_redis.url) as served, a_connection(served.url) as line:
        for path in ("/v1/jobs", "/v1/batches", "/v1/usage", f"/v1/jobs/{victim.ids['job']['queued']}"):
            answer = await _asked(line, path, tenant)
            assert answer.status == 400
            assert CANARY.encode() not in answer.body
        assert (await _asked(line, "/v1/jobs", method="POST", body=b'{"prompt":"x"}', tenant=tenant)).status == 400
    new = {kind_of(name) for name in set(await all_keys(runtime._commands)) - set(before)}
    assert new <= {"attendants", "spared", "figures"}


def test_these_tests_know_every_way_in() -> None:
    """A new route without an id in its path may create objects that belong to a tenant, and needs tests here."""
    assert set(_POSTABLE) <= {
        *("/v1/jobs", "/v1/batches", "/v1/messages", "/v1/messages/batches"),  # tested above
        *("/v1/messages/count_tokens", "/complete", "/complete/stream"),  # without Idempotency-Keys
        *("/v1/jobs/cancel", "/v1/jobs/erase", "/v1/jobs/retry"),  # tested in tests/store/test_operations.py
        *("/v1/keys", "/v1/webhooks/secret/rotate"),  # tested in tests/keys and tests/routes/test_webhooks.py
    }
