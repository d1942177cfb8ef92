"""Redis keys: one list, from which Python and Lua both take their names."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from shared.batch import BatchState
from shared.job import TRANSITIONS, JobState, Priority, Step
from shared.store import redis_keys
from shared.store.idempotency import fingerprint_of, key_hash
from shared.store.script import NAMES, script, sources, target


def test_python_and_lua_build_the_same_names() -> None:
    """The Lua functions are generated from the list, and must build the same names as Python."""
    lua = redis_keys.lua_functions({**redis_keys.KEYS, **redis_keys.GLOBAL_KEYS, **redis_keys.CHANNELS})
    for kind, (arguments, _) in (redis_keys.KEYS | redis_keys.GLOBAL_KEYS).items():
        assert (
            f"local function key_{kind}({', '.join(arguments)}) return KEYS[1] .. '{kind}{':' * bool(arguments)}'"
            in lua
        )
    for kind in redis_keys.CHANNELS:
        assert f"local function channel_{kind}(" in lua
    assert redis_keys.job("job_1") == "ts:{0}:job:job_1"
    assert redis_keys.events("job_1") == "ts:{0}:events:job_1"
    assert redis_keys.plain("waiting") == "ts:{0}:waiting"
    assert redis_keys.usage("tenant-a", "2026-11-23") == "ts:{g}:usage:tenant-a:2026-11-23"
    with pytest.raises(ValueError, match="needs"):
        redis_keys.plain("job")


def test_a_script_carries_only_the_names_that_it_uses() -> None:
    """Redis defines the functions again in every call."""
    kinds = redis_keys.kinds_in("call('DEL', key_log(id), channel_events(id))")
    assert kinds == {"log", "events"}
    assert redis_keys.lua_functions(kinds).count("local function") == 2


def test_every_key_says_how_long_it_lives() -> None:
    """A TTL, or the reason for having none."""
    for kind, (_, meaning) in (redis_keys.KEYS | redis_keys.GLOBAL_KEYS).items():
        assert re.search(r"No TTL|Gone when empty|TTL|retention", meaning), kind


def test_no_name_is_in_two_tables() -> None:
    """The name decides the prefix and the Lua function."""
    assert redis_keys.KEYS.keys().isdisjoint(redis_keys.GLOBAL_KEYS)
    assert (redis_keys.KEYS | redis_keys.GLOBAL_KEYS).keys().isdisjoint(redis_keys.CHANNELS)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_touches_keys_of_its_own_prefix_only(name: str) -> None:
    """It gets one prefix; with a name of another prefix it would build a key that nobody reads."""
    prefix = script(name).prefix
    assert prefix in (redis_keys.SHARD, redis_keys.GLOBAL)
    for kind in re.findall(r"\b(?:key|channel)_(\w+)\(", _body(name)):
        assert redis_keys.prefix_of(kind) == prefix, kind


def test_all_keys_and_channels_of_a_shard_are_in_one_slot() -> None:
    """Each script stays on one node of a cluster."""
    names = [
        redis_keys.job("x"),
        redis_keys.result("x"),
        redis_keys.log("x"),
        redis_keys.index("t"),
        redis_keys.idempotency("t", "h"),
    ]
    names += [
        redis_keys.batch("b"),
        redis_keys.batch_items("b"),
        redis_keys.batch_invalid("b"),
        redis_keys.batch_ended("b"),
    ]
    names += [
        redis_keys.batch_followed("b"),
        redis_keys.batch_index("t"),
        redis_keys.batch_events("b"),
        redis_keys.plain("due"),
    ]
    names += [
        redis_keys.worker("w"),
        redis_keys.events("x"),
        redis_keys.flow("normal:t:m"),
        redis_keys.plain("wake"),
        redis_keys.plain("running"),
    ]
    assert {re.search(r"\{(.*?)\}", name).group(1) for name in names} == {"0"}  # type: ignore[union-attr]


def test_a_flow_names_band_tenant_key_and_model() -> None:
    """In this order: CLAIM reads the tenant between the first two colons, and a model's name may contain colons."""
    assert redis_keys.flow_of(Priority.HIGH, "tenant-a", "vendor:model:1") == "high:tenant-a::vendor:model:1"
    assert redis_keys.flow_of(Priority.LOW, "t", "m", key_id="k1") == "low:t:k1:m"


# The scripts, as texts

_LUA: Final = Path(str(files("shared.store"))) / "lua"
_STRINGS = re.compile(r"'([^'\n]*)'")
_WRITES = re.compile(
    r"count_in\(|correct\(|count_in_limits\(|cancel_job\(|add_to_index\(|count_queued\(|begin_waiting\(|stop_waiting\(|write_without_memory\(|stamp_alive\(|wake\(|enqueue\(|dequeue\(|leave\(|put_back\(|end_job\(|end_overdue\(|append\("
    r"|count\(|charge\(|end_batch\(|end_item\("
    r"|call\('(?:SET|DEL|UNLINK|INCR|HINCRBY|HSET|HDEL|ZADD|ZREM|SADD|SREM|XADD|RPUSH|LTRIM|PEXPIRE|EXPIRE|PUBLISH)"
)


def _code(name: str) -> str:
    """The whole script without comments."""
    return re.sub(r"--[^\n]*", "", script(name).text.decode())


def _body(name: str) -> str:
    """The script's own part without comments."""
    own = (_LUA / f"{name}.lua").read_text()
    own = re.sub(r"^\s*--.*\n", "", own, flags=re.MULTILINE)
    assert script(name).text.decode().endswith(own)
    return re.sub(r"--[^\n]*", "", own)


@pytest.mark.parametrize("name", NAMES)
def test_no_script_spells_a_state(name: str) -> None:
    """States arrive as arguments, from the table of the life cycle. (``running`` is also the name of a key.)"""
    spelled = set(_STRINGS.findall(_code(name))) & (set(JobState) - {JobState.RUNNING})
    assert spelled <= ({"failed"} if name == "reap" else set())  # a reply to the reaper


@pytest.mark.parametrize("name", NAMES)
def test_no_script_spells_a_state_of_a_batch(name: str) -> None:
    """As above. (``ended`` is also a reply of FINISH; each script that uses it has it from the table.)"""
    spelled = set(_STRINGS.findall(_code(name))) & (set(BatchState) - {BatchState.RUNNING, BatchState.ENDED})
    assert spelled == set()


@pytest.mark.parametrize(
    "name",
    [
        *("renew", "append", "finish", "cancel", "release", "reap", "expire", "erase", "charge", "abandon"),
        *("advance_batch", "cancel_batch", "drop_batch", "due_batches"),
        *("erase_jobs", "erase_deliveries", "claim_deliveries", "end_delivery", "redeliver", "set_tenant"),
        *("admit_address", "reserve", "hold", "look", "revoke_api_key"),
    ],
)
def test_scripts_that_must_pass_at_maxmemory_begin_with_a_write_that_needs_none(name: str) -> None:
    """Redis judges the first write only; after it everything passes."""
    first = _WRITES.search(_body(name))
    assert first is not None
    assert first.group() == "write_without_memory("


@pytest.mark.parametrize("name", ["waits", "probe", "ended_items", "list_items", "content"])
def test_scripts_that_only_read_write_nothing(name: str) -> None:
    """They run for every follower."""
    assert _WRITES.search(_body(name)) is None


@pytest.mark.parametrize("name", NAMES)
def test_scripts_run_on_any_redis_since_6_2(name: str) -> None:
    """They have no ``#!lua`` line."""
    assert not script(name).text.startswith(b"#!")


@pytest.mark.parametrize("name", NAMES)
def test_no_script_lets_lua_format_a_number(name: str) -> None:
    """``..`` and tostring keep 14 digits: a time in ms fits, a multiple of it may not. Scripts use int() instead."""
    assert "tostring" not in _code(name)
    assert not re.search(r"\.\. *(now|epoch|seq|attempt|expires|clock|tag)\b", _code(name))


def test_a_step_is_passed_to_scripts_as_in_the_table() -> None:
    """The source states are a sorted list, so that arguments do not differ between processes."""
    for step in Step:
        states, state = TRANSITIONS[step]
        assert sources(step) == ",".join(sorted(states))
        assert target(step) == state


# Idempotency keys


def test_equal_bodies_have_one_fingerprint() -> None:
    """Whatever the order of members; other bodies have other fingerprints."""
    assert fingerprint_of({"a": 1, "b": [1, {"c": None, "d": 2}]}) == fingerprint_of(
        {"b": [1, {"d": 2, "c": None}], "a": 1}
    )
    bodies = [{}, [], None, 0, 1, "1", "", {"a": 1}, {"a": "1"}, {"a": [1]}, [1, 2], [2, 1], True, {"a": None}]
    assert len({fingerprint_of(body) for body in bodies}) == len(bodies)


def test_a_key_is_stored_as_its_hash() -> None:
    """The key may be long or a secret, or contain anything."""
    seen = {key_hash(key) for key in ("a", "b", "a" * 10_000, "ü", "a:b", " a")}
    assert len(seen) == 6
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in seen)
