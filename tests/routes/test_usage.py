"""``GET /v1/usage``: by tenant, days and groups."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest

from api.native.usage import UsageLine
from shared.store import redis_keys
from shared.usage import METRICS, UsageSums
from tests.routes.conftest import CalledApi, pointers_of
from tests.support.usage import count

SATURDAY, SUNDAY, MONDAY = (date(2026, 11, 21) + timedelta(days=n) for n in range(3))
TENANT = "default"
_DAYS = {"from": "2026-11-21", "to": "2026-11-23"}
_NOTHING = dict.fromkeys(METRICS, 0)


async def _read(api: CalledApi, tenant: str | None = None, **query: Any) -> Any:
    headers = {} if tenant is None else {"X-Tenant": tenant}
    response = await api.http.get("/v1/usage", params=_DAYS | query, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


@pytest.fixture
async def used(api: CalledApi) -> CalledApi:
    """A tenant that used two models on two days, one of them without a price."""
    priced = UsageSums(calls=2, input_tokens=1000, output_tokens=500, cost_nano_usd=10_500_000)
    unpriced = UsageSums(calls=1, unpriced_calls=1, output_tokens=7)
    await count(api.runtime, SATURDAY, "claude-sonnet-4-6", priced, tenant=TENANT)
    await count(api.runtime, SATURDAY, "my-model", unpriced, tenant=TENANT)
    await count(api.runtime, MONDAY, "claude-sonnet-4-6", priced, tenant=TENANT, key="key_1")
    await count(api.runtime, MONDAY, "claude-sonnet-4-6", UsageSums(estimated_calls=1), tenant=TENANT, key="key_1")
    await count(api.runtime, SUNDAY, "claude-sonnet-4-6", UsageSums(calls=99), tenant="theirs")
    return api


async def test_usage_is_grouped_by_day_and_model(used: CalledApi) -> None:
    """By default; every row has every metric."""
    report = await _read(used)
    assert list(report) == ["from", "to", "group_by", "data", "total", "has_more", "next"]
    assert (report["from"], report["to"], report["group_by"]) == ("2026-11-21", "2026-11-23", ["day", "model"])
    priced = _NOTHING | {"calls": 2, "input_tokens": 1000, "output_tokens": 500, "cost_nano_usd": 10_500_000}
    assert report["data"] == [
        {"day": "2026-11-21", "model": "claude-sonnet-4-6", **priced, "cost_usd": 0.0105},
        {"day": "2026-11-21", "model": "my-model"}
        | _NOTHING
        | {"calls": 1, "unpriced_calls": 1, "output_tokens": 7, "cost_usd": None},
        {"day": "2026-11-23", "model": "claude-sonnet-4-6", **priced, "estimated_calls": 1, "cost_usd": 0.0105},
    ]
    assert report["total"] == _NOTHING | {
        "calls": 5,
        "estimated_calls": 1,
        "input_tokens": 2000,
        "output_tokens": 1007,
        "cost_nano_usd": 21_000_000,
        "unpriced_calls": 1,
        "cost_usd": 0.021,
    }


@pytest.mark.parametrize(
    ("group_by", "by", "rows"),
    [
        ("day", ["day"], [("2026-11-21", 3), ("2026-11-23", 2)]),
        ("model", ["model"], [("claude-sonnet-4-6", 4), ("my-model", 1)]),
        ("key", ["key"], [(None, 3), ("key_1", 2)]),
        ("key, day", ["day", "key"], [("2026-11-21", None, 3), ("2026-11-23", "key_1", 2)]),
        (["key", "day", "day"], ["day", "key"], [("2026-11-21", None, 3), ("2026-11-23", "key_1", 2)]),
        ("", [], [(5,)]),
    ],
)
async def test_usage_can_be_grouped_otherwise(used: CalledApi, group_by: Any, by: list[str], rows: list[Any]) -> None:
    """Rows have only the members of their group, in a fixed order."""
    report = await _read(used, group_by=group_by)
    assert report["group_by"] == by
    assert [(*(row[name] for name in by), row["calls"]) for row in report["data"]] == rows
    for row in report["data"]:
        assert list(row) == [*by, *METRICS, "cost_usd"]
    assert list(report["total"]) == [*METRICS, "cost_usd"]
    assert report["total"]["calls"] == 5


@pytest.fixture
async def used_by_end_users(api: CalledApi) -> CalledApi:
    """Calls of two end users and of nobody, on two days."""
    for day, model, key, user, calls in (
        (SATURDAY, "m", None, "ann", 1),
        (SATURDAY, "n", "key_1", "ann", 2),
        (SATURDAY, "m", None, "bob", 4),
        (SATURDAY, "m", None, None, 8),
        (MONDAY, "m", None, "ann", 16),
    ):
        await count(api.runtime, day, model, UsageSums(calls=calls, input_tokens=calls), tenant=TENANT, key=key)
        if user is not None:
            name = redis_keys.end_user_usage(TENANT, day.isoformat())
            before = (await api.runtime._commands.call("HGET", name, user) or b"\n").decode()
            line = f"{model}\n{key or ''}\t{calls} 0 {calls} 0 0 0 0 0\n"
            await api.runtime._commands.call("HSET", name, user, before + line)
            await api.runtime._commands.call("EXPIRE", name, 3600)
    return api


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({"group_by": "end_user"}, [(None, 8), ("ann", 19), ("bob", 4)]),
        (
            {"group_by": "day,end_user"},
            [("2026-11-21", None, 8), ("2026-11-21", "ann", 3), ("2026-11-21", "bob", 4), ("2026-11-23", "ann", 16)],
        ),
        (
            {"group_by": "model,key,end_user"},
            [("m", None, None, 8), ("m", None, "ann", 17), ("m", None, "bob", 4), ("n", "key_1", "ann", 2)],
        ),
        ({"group_by": "model"}, [("m", 29), ("n", 2)]),
        ({"end_user": "ann", "group_by": "model"}, [("m", 17), ("n", 2)]),
        ({"end_user": "ann", "group_by": "day,end_user"}, [("2026-11-21", "ann", 3), ("2026-11-23", "ann", 16)]),
        ({"end_user": "eve", "group_by": "end_user"}, []),
    ],
)
async def test_usage_is_split_by_end_user(used_by_end_users: CalledApi, query: Any, rows: list[Any]) -> None:
    """Calls for nobody are null. With `end_user`, only that one's calls count, in the total too."""
    report = await _read(used_by_end_users, **query)
    by = report["group_by"]
    assert [(*(row[name] for name in by), row["calls"]) for row in report["data"]] == rows
    assert report["total"]["calls"] == sum(row[-1] for row in rows)
    assert all(row["input_tokens"] == row["calls"] for row in report["data"])
    first = await _read(used_by_end_users, **query, limit=1)
    if first["has_more"]:
        rest = await _read(used_by_end_users, **query, after=first["next"])
        assert first["data"] + rest["data"] == report["data"]


async def test_another_tenant_s_end_user_of_the_same_name_is_another(used_by_end_users: CalledApi) -> None:
    """Nothing of it is seen."""
    assert (await _read(used_by_end_users, "theirs", end_user="ann"))["data"] == []
    assert (await _read(used_by_end_users, "theirs", group_by="end_user"))["data"] == []


async def test_rows_come_in_pages(used: CalledApi) -> None:
    """Each page has the total of all rows."""
    whole = await _read(used)
    assert (whole["has_more"], whole["next"]) == (False, None)
    first = await _read(used, limit=2)
    assert first["has_more"]
    second = await _read(used, limit=2, after=first["next"])
    assert (second["has_more"], second["next"]) == (False, None)
    assert first["data"] + second["data"] == whole["data"]
    assert first["total"] == second["total"] == whole["total"]


@pytest.mark.parametrize("cursor", ["x", "bnVsbA", "W10", "WzFd", "\u00e9"])
async def test_an_invalid_cursor_is_400(api: CalledApi, cursor: str) -> None:
    """Whatever it decodes to."""
    response = await api.http.get("/v1/usage", params={"after": cursor})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


async def test_days_outside_do_not_count(used: CalledApi) -> None:
    """Nor do they count in the total."""
    report = await _read(used, to="2026-11-22")
    assert report["total"]["calls"] == 3
    assert {row["day"] for row in report["data"]} == {"2026-11-21"}


async def test_foreign_usage_is_not_seen(used: CalledApi) -> None:
    """Each tenant has its own report; a tenant without calls has an empty one."""
    assert (await _read(used, "theirs"))["total"]["calls"] == 99
    stranger = await _read(used, "stranger")
    assert stranger["data"] == []
    assert stranger["total"] == _NOTHING | {"cost_usd": 0}


async def test_the_last_seven_days_are_read_if_none_are_named(api: CalledApi) -> None:
    """Including today, in UTC."""
    before = datetime.now(UTC).date()
    report = (await api.http.get("/v1/usage")).json()
    after = datetime.now(UTC).date()
    last = date.fromisoformat(report["to"])
    assert before <= last <= after
    assert report["from"] == (last - timedelta(days=6)).isoformat()


async def test_one_end_can_be_named_alone(api: CalledApi) -> None:
    """With only `to`: the seven days up to it; with only `from`: all days up to today."""
    report = (await api.http.get("/v1/usage", params={"to": "2026-03-01"})).json()
    assert (report["from"], report["to"]) == ("2026-02-23", "2026-03-01")
    assert (await api.http.get("/v1/usage", params={"to": "0001-01-03"})).json()["from"] == "0001-01-01"
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    report = (await api.http.get("/v1/usage", params={"from": yesterday.isoformat()})).json()
    assert report["from"] == yesterday.isoformat() < report["to"]


async def test_four_hundred_days_can_be_read_at_once(api: CalledApi) -> None:
    """But not one more."""
    await count(api.runtime, date(2025, 1, 1), "m", UsageSums(calls=1), tenant=TENANT)
    query = {"from": "2025-01-01", "to": "2026-02-04"}
    assert (await _read(api, **query))["total"]["calls"] == 1
    assert pointers_of(await api.http.get("/v1/usage", params=query | {"to": "2026-02-05"})) == ["from"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("from=yesterday", ["from"]),
        ("from=", ["from"]),
        ("from=20261121", ["from"]),
        ("from=2026-W47-6", ["from"]),
        ("from=2026-11-21T00:00:00Z", ["from"]),
        ("from=1795442531", ["from"]),
        ("from=２０２６-11-21", ["from"]),
        ("from=2026-11-21%0a", ["from"]),
        ("to=2026-02-30", ["to"]),
        ("to=0000-01-01", ["to"]),
        ("from=x&to=y", ["from", "to"]),
        ("from=2026-11-22&to=2026-11-21", ["from"]),
        ("from=9999-12-31", ["from"]),
        ("from=0001-01-01&to=9999-12-31", ["from"]),
        ("group_by=hour", ["group_by"]),
        ("group_by=end_user&from=2026-10-21&to=2026-11-21", ["from"]),
        ("end_user=", ["end_user"]),
        ("end_user=" + "x" * 65, ["end_user"]),
        ("group_by=day,model,team", ["group_by"]),
        ("group_by=day&group_by=x", ["group_by"]),
        ("group_by=DAY", ["group_by"]),
    ],
)
async def test_an_invalid_query_is_400(api: CalledApi, query: str, names: list[str]) -> None:
    """The error names the parameter and does not quote its value."""
    response = await api.http.get(f"/v1/usage?{query}")
    assert pointers_of(response) == names
    for word in ("yesterday", "hour", "team", "20261121"):
        assert word not in response.text


async def test_usage_has_exactly_the_members_that_are_declared(used: CalledApi) -> None:
    """In their order; a row has every metric."""
    document = (await used.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    report = await _read(used, group_by="tenant,day,model,key,end_user")
    assert list(report) == list(schemas["UsageReport"]["properties"])
    assert list(report["data"][0]) == list(schemas["UsageLine"]["properties"])
    assert schemas["UsageLine"]["required"] == [*METRICS, "cost_usd"]
    assert [field.name for field in msgspec.structs.fields(UsageLine)] == [
        "tenant", "day", "model", "key", "end_user", *METRICS, "cost_usd",
    ]  # fmt: skip
    operation = document["paths"]["/v1/usage"]["get"]
    assert [parameter["name"] for parameter in operation["parameters"]] == [
        "from",
        "to",
        "group_by",
        "end_user",
        "after",
        "limit",
        "tenant",
        "X-Tenant",
    ]
