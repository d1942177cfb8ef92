"""``tokenspool keys`` as an operator uses it: the first key, and what happens to keys later."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator

import httpx2
import pytest

from cli.embedded_redis import EmbeddedRedis
from shared.store.runtime import open_runtime
from tests.command_line.conftest import Tokenspool
from tests.support.failover import asking
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served, serving
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def settings_of_the_shell(real_redis: RedisUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets Redis's URL in the environment."""
    monkeypatch.setenv("TOKENSPOOL_REDIS_URL", real_redis.url)


@pytest.fixture
def api(real_redis: RedisUnderTest) -> Iterator[Served]:
    """An API that asks for keys, in a thread, because a command has its own event loop."""
    opened: list[Served] = []
    is_open, closing = threading.Event(), threading.Event()

    async def live() -> None:
        async with serving(real_redis.url, auth="keys") as served:
            await wait_until(lambda: served.api.key_ring._has_hinted, "its last line on standard output")
            opened.append(served)
            is_open.set()
            await asyncio.to_thread(closing.wait)

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert is_open.wait(20)
    yield opened[0]
    closing.set()
    thread.join()


def id_of(text: str) -> str:
    """The id in a key."""
    return "key_" + text.split("_")[2]


def test_the_first_key_gives_an_operator_access(
    tokenspool: Tokenspool, api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``KEY=$(tokenspool keys create …)``: standard output has only the key. With it the other commands work."""
    monkeypatch.setenv("TOKENSPOOL_URL", api.url)
    refused = tokenspool("submit", "Hello.")
    assert refused.exit_code == 1
    assert refused.sentence.endswith("Set TOKENSPOOL_API_KEY to a valid key.")

    made = tokenspool("keys", "create", "--tenant", "acme", "--scope", "submit,read", "--scope", "admin")
    assert made.exit_code == 0
    assert re.fullmatch(r"ts_live_[0-9a-z]{16}_[0-9A-Za-z]{33}\n", made.out)
    key = made.out.strip()
    assert "scopes submit, read, admin, does not expire. It is shown only once" in made.err
    assert key not in made.err

    monkeypatch.setenv("TOKENSPOOL_API_KEY", key)
    submitted = tokenspool("submit", "Hello.")
    assert submitted.exit_code == 0
    job_id = submitted.out.split()[-1]  # after the log of the API, which runs in the same process
    job = httpx2.get(f"{api.url}/v1/jobs/{job_id}", headers={"x-api-key": key})
    assert job.status_code == 200

    other = httpx2.post(f"{api.url}/v1/keys", json={"scopes": ["read"]}, headers={"x-api-key": key})
    assert other.status_code == 201
    lines = tokenspool("keys", "list").out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(other.json()["id"])] == [id_of(key)]


def test_a_key_is_listed_rotated_and_revoked(tokenspool: Tokenspool) -> None:
    """No secret is ever shown again."""
    assert tokenspool("keys", "list").err == "tokenspool: there are no keys\n"
    options = ("--name", "of\tCI", "--expires-in-days", "30", "--usd-per-day", "2.5", "--queued-jobs", "7")
    assert tokenspool("keys", "create", "--tenant", "acme", *options).exit_code == 2  # a tab is not printable
    key = tokenspool("keys", "create", "--tenant", "acme", "--env", "test", "--name", "of CI", *options[2:]).out.strip()
    tokenspool("keys", "create", "--tenant", "other")
    assert key.startswith("ts_test_")

    rotated = tokenspool("keys", "rotate", id_of(key), "--grace-s", "0")
    assert id_of(rotated.out.strip()) == id_of(key)
    assert rotated.out.strip() != key
    assert "the old one is revoked" in rotated.err

    head, line, *rest = tokenspool("keys", "list", "--tenant", "acme").out.splitlines()
    assert rest == []
    assert re.split(r" {2,}", head) == ["id", "tenant", "name", "scopes", "status", "limits", "used", "made by"]
    assert re.match(rf"{id_of(key)}  acme    of CI  submit,read,\S+  expires in 30 d  queued_jobs=\S+  ", line)
    assert len(line) <= 100
    assert line.split()[-2:] == ["never", "-"]
    document = json.loads(tokenspool("keys", "list", "--tenant", "acme", "--json").out)
    assert (document["id"], document["tenant"], document["limits"]["usd_per_day"]) == (id_of(key), "acme", 2.5)
    assert "key" not in document
    assert len(tokenspool("keys", "list").out.splitlines()) == 3

    again = json.loads(tokenspool("keys", "rotate", id_of(key), "--json").out)
    assert id_of(again["key"]) == again["id"] == id_of(key)

    revoked = tokenspool("keys", "revoke", id_of(key))
    assert (revoked.exit_code, revoked.out) == (0, "")
    assert "is revoked" in revoked.err
    everything = tokenspool("keys", "list").out
    assert "revoked 0 s ago" in everything
    assert key.rpartition("_")[2] not in everything
    assert tokenspool("keys", "rotate", id_of(key)).sentence.startswith("The key is revoked or expired")


def test_an_unknown_key_is_reported(tokenspool: Tokenspool) -> None:
    """With the command that lists keys."""
    for command in ("rotate", "revoke"):
        outcome = tokenspool("keys", command, "key_0000000000000000")
        assert outcome.exit_code == 1
        assert outcome.sentence == "There is no key with this id: see `tokenspool keys list`."


def test_a_key_in_place_of_an_id_is_not_printed(tokenspool: Tokenspool) -> None:
    """It is in the shell's history already, and must not get into further logs."""
    key = tokenspool("keys", "create", "--tenant", "acme").out.strip()
    outcome = tokenspool("keys", "revoke", key)
    assert outcome.exit_code == 2
    assert key not in outcome.err


def test_without_redis_it_says_so(tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that the URL may be wrong."""
    monkeypatch.setenv("TOKENSPOOL_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setattr("cli.tenants._TIMEOUT_S", 0.3)
    outcome = tokenspool("keys", "list")
    assert outcome.exit_code == 1
    assert outcome.sentence.startswith("Redis cannot be reached at 127.0.0.1:1 (")
    assert outcome.sentence.endswith("): start it, or set TOKENSPOOL_REDIS_URL to its address.")


@pytest.mark.parametrize("command", [("keys", "list"), ("tenants", "list")])
def test_a_refused_login_is_named_and_not_shown(
    tokenspool: Tokenspool, monkeypatch: pytest.MonkeyPatch, own_server: EmbeddedRedis, command: tuple[str, str]
) -> None:
    """The password is in the URL."""
    with asking(own_server) as client:
        client.execute_command("ACL", "SETUSER", "someone", "on", ">right", "+@all", "~*")
    monkeypatch.setenv("TOKENSPOOL_REDIS_URL", own_server.url.replace("redis://", "redis://someone:unmistakable@"))
    monkeypatch.setattr("cli.tenants._TIMEOUT_S", 0.3)
    outcome = tokenspool(*command)
    assert outcome.exit_code == 1
    assert outcome.sentence == "Redis refuses the user or the password in TOKENSPOOL_REDIS_URL."


async def test_an_operators_key_has_the_limits_that_were_asked_for(real_redis: RedisUnderTest) -> None:
    """In the units in which they are stored."""
    from cli.api_keys import create_key

    await asyncio.to_thread(
        create_key,
        "acme",
        name="",
        scopes=[],
        env="live",
        expires_in_days=None,
        limits={"requests_per_minute": 60, "usd_per_month": 12.5, "queued_jobs": None},
        as_json=False,
    )
    from shared.settings import load_settings

    async with open_runtime(load_settings(redis_url=real_redis.url), process_name="tests") as runtime:
        (key,) = (await runtime.api_keys.page("acme", after=None, limit=5)).keys
    assert (key.limits.requests_per_minute, key.limits.nano_usd_per_month) == (60, 12_500_000_000)
    assert key.limits.queued_jobs == 0
