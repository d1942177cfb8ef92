"""What a refusal costs, by what is wrong with the key: the work is asserted; the time is only measured and printed."""

import asyncio
import hmac
import random
import time
from collections.abc import Callable
from statistics import median
from urllib.parse import urlsplit

import pytest

from shared.api_key import new_key_id, new_key_text, read_key_text
from shared.settings import load_settings
from shared.store.runtime import Runtime, open_runtime
from tests.keys.conftest import make_key
from tests.support.redis_servers import RedisUnderTest
from tests.support.served import Served

_ROUNDS = 3000


async def test_whatever_is_wrong_with_a_key_the_same_is_done(
    real_redis: RedisUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same commands, and the same number of comparisons of equal length, even without a secret to compare with."""
    compared: list[tuple[int, int]] = []
    plainly = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return plainly(one, other)

    async with open_runtime(load_settings(redis_url=real_redis.url), process_name="tests", timeout_s=10) as runtime:
        known, rotated, revoked = [(await make_key(runtime)).key.id for _ in range(3)]
        await runtime.api_keys.rotate(rotated, None, grace_s=3600)
        await runtime.api_keys.revoke(revoked, None)
        monkeypatch.setattr(hmac, "compare_digest", compare)
        done = {}
        for key_id in (known, rotated, revoked, new_key_id()):
            presented = read_key_text(new_key_text(key_id, "test").encode())
            assert presented is not None
            compared.clear()
            before = await _commands_run(runtime)
            assert await runtime.api_keys.look_up(presented) is None
            after = await _commands_run(runtime)
            done[key_id] = {name: count - before.get(name, 0) for name, count in after.items()}, tuple(compared)
    commands, comparisons = done[known]
    assert all(one == done[known] for one in done.values())
    assert (commands["hmget"], commands["time"]) == (1, 1)
    assert comparisons == ((64, 64), (64, 64))


async def _commands_run(runtime: Runtime) -> dict[str, int]:
    """How often each command has run since the server started."""
    facts = (await runtime._commands.call("INFO", "commandstats")).decode()
    lines = [line.removeprefix("cmdstat_") for line in facts.splitlines() if line.startswith("cmdstat_")]
    return {line.partition(":")[0]: int(line.partition("calls=")[2].partition(",")[0]) for line in lines}


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_a_wrong_secret_takes_as_long_as_an_unknown_id(served: Served, fact: Callable[[str], None]) -> None:
    """One connection, in random order. Each key is new, because wrong keys are cached."""
    runtime = served.api.runtime
    known = (await make_key(runtime)).key.id
    rotated = (await make_key(runtime)).key.id
    await runtime.api_keys.rotate(rotated, None, grace_s=3600)
    kinds: dict[str, Callable[[], str]] = {
        "wrong secret": lambda: new_key_text(known, "test"),
        "wrong secret, two live": lambda: new_key_text(rotated, "test"),
        "unknown id": lambda: new_key_text(new_key_id(), "test"),
        "wrong checksum": lambda: new_key_text(known, "test")[:-1] + "!",
    }
    taken_ns: dict[str, list[int]] = {kind: [] for kind in kinds}
    parts = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        for _ in range(_ROUNDS):
            for kind in random.sample(list(kinds), len(kinds)):
                request = (
                    f"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX-Request-ID: same\r\nX-Api-Key: {kinds[kind]()}\r\n\r\n"
                )
                began_ns = time.perf_counter_ns()
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                taken_ns[kind].append(time.perf_counter_ns() - began_ns)
                assert b" 401 " in head[:16]
    finally:
        writer.close()
    medians = {kind: median(taken) / 1000 for kind, taken in taken_ns.items()}
    fact("401 after " + ", ".join(f"{micros:.0f} µs ({kind})" for kind, micros in medians.items()))
