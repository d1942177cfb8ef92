"""Whether response times distinguish a foreign id from an absent one: the medians of thousands, route by route.

    .venv/bin/python -m tests.tenants.measure_time [--count 2000]

One API process, one connection and its own Redis. Foreign and absent ids alternate in random order, so that other load
on the machine affects both. The foreign objects include a large prompt, result and log, and a batch of 10,000.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from cli.child import start_child
from cli.embedded_redis import EmbeddedRedis, free_port
from shared.api_key import new_key_id
from shared.job import Step, new_id
from shared.settings import load_settings
from shared.store.queue import Ending
from shared.store.runtime import Runtime, open_runtime
from tests.support.batches import a_result, fail
from tests.support.builders import a_text_delta, lines
from tests.support.store import append, begin, claim_one, finish, make_overdue, receive, start, start_batch, submit
from tests.tenants.table import OwnedPath, owned_paths
from tests.tenants.victim import ATTACKER, VICTIM, a_key
from tests.tenants.wire import Line, a_line

MOST_MS = 0.5
_LARGE_BYTES = 5_000_000


async def _ended(runtime: Runtime) -> tuple[dict[str, str], dict[str, str]]:
    """Jobs and batches in each terminal state, and some that will never begin."""
    failed = await start(runtime, tenant=VICTIM)
    await fail(runtime, failed)
    ended = await start_batch(runtime, 1, tenant=VICTIM)
    await finish(runtime, await claim_one(runtime), Ending(Step.SUCCEED, a_result("Hello.")))
    cancelled, expired = [await submit(runtime, tenant=VICTIM) for _ in range(2)]
    await runtime.jobs.cancel(cancelled.id, VICTIM)
    await make_overdue(runtime, expired.id)
    await runtime.jobs.expire()
    cancelling = await start_batch(runtime, 2, tenant=VICTIM)
    await runtime.batches.cancel(cancelling.id, VICTIM)
    receiving, dropped = [await receive(runtime, 2, tenant=VICTIM) for _ in range(2)]
    await runtime.batches.drop(dropped.id, VICTIM)
    jobs = {"failed": failed.id, "cancelled": cancelled.id, "expired": expired.id, "ended item": ended.job_ids[0]}
    batches = {"ended": ended.id, "cancelling": cancelling.id, "receiving": receiving.id, "dropped": dropped.id}
    return jobs, batches


async def _large(runtime: Runtime) -> dict[str, dict[str, str]]:
    """Ids of large objects of a tenant, by kind and description."""
    jobs, batches = await _ended(runtime)
    request = b'{"messages":[{"role":"user","content":"%b"}]}' % (b"x" * _LARGE_BYTES)
    done = await start(runtime, tenant=VICTIM, request=request)
    await finish(runtime, done, Ending(Step.SUCCEED, a_result("x" * _LARGE_BYTES)))
    claimed = await start(runtime, tenant=VICTIM)
    for at in range(0, 5000, 250):
        events = [a_text_delta(f"word {number} ") for number in range(250)]
        await append(runtime, claimed, *events, seq=claimed.next_seq + at)
    running = await start(runtime, tenant=VICTIM)
    batch = await receive(runtime, lines(10_000), tenant=VICTIM)
    await begin(runtime, batch)
    await runtime.batches.advance_all(batch.id)
    for _ in range(100):
        await finish(runtime, await claim_one(runtime), Ending(Step.SUCCEED, a_result("Hello.")))
    small = await receive(runtime, lines(1), tenant=VICTIM)
    await begin(runtime, small)
    await runtime.batches.advance_all(small.id)
    waiting = await submit(runtime, tenant=VICTIM)
    metadata = {f"key-{number}": "x" * 512 for number in range(16)}
    described = await submit(runtime, tenant=VICTIM, metadata=metadata)
    return {
        "job": {
            "5 MB in and out": done.id,
            "5,000 events": claimed.id,
            "running": running.id,
            "queued": waiting.id,
            "all metadata": described.id,
            "item": batch.job_ids[50],
            **jobs,
        },
        "batch": {"10,000 items": batch.id, "1 item": small.id, **batches},
    }


async def _keys(runtime: Runtime) -> dict[str, str]:
    standing, revoked, rotating = [(await a_key(runtime, VICTIM)).key.id for _ in range(3)]
    await runtime.api_keys.revoke(revoked, VICTIM)
    await runtime.api_keys.rotate(rotating, VICTIM, grace_s=3600)
    return {"standing": standing, "revoked": revoked, "rotating": rotating}


async def _measure(line: Line, method: str, path: OwnedPath, foreign: dict[str, str], count: int) -> str:
    """One row of the table; absent ids are new each time."""
    took: dict[str, list[float]] = defaultdict(list)
    body = b"{}" if method == "POST" else None
    kinds = [*foreign] * (count // len(foreign) + 1)
    turns = [(name, foreign[name]) for name in kinds[:count]] + [("absent", "")] * count
    random.shuffle(turns)
    for name, own_id in turns:
        asked = path.of(own_id or (new_key_id() if path.kind == "key" else new_id(path.kind)))
        started_s = time.perf_counter()
        await line.ask(method, asked, headers=line.of(ATTACKER), body=body)
        took[name].append((time.perf_counter() - started_s) * 1000)
    absent_ms = median(took.pop("absent"))
    all_ms = median([one_ms for each in took.values() for one_ms in each]) - absent_ms
    by_kind = {name: median(each) - absent_ms for name, each in took.items()}
    worst = max(by_kind, key=lambda name: abs(by_kind[name]))
    too_far = " <-- too far" if max(abs(all_ms), abs(by_kind[worst])) >= MOST_MS else ""
    row = f"{method:6} {path.path:42} {absent_ms:8.3f} {all_ms:+8.3f} {by_kind[worst]:+8.3f} {worst}{too_far}"
    print(row, flush=True)  # noqa: T201 - a command
    return too_far


async def _main(count: int) -> int:
    directory = Path(tempfile.mkdtemp(prefix="tokenspool-time-"))
    with EmbeddedRedis(append_only=False) as redis:
        async with open_runtime(load_settings(redis_url=redis.url), process_name="measure", timeout_s=60) as runtime:
            ids = await _large(runtime)
            ids["key"] = await _keys(runtime)
            keys = {VICTIM: "", ATTACKER: (await a_key(runtime, ATTACKER)).text}
        ids["msgbatch"] = {name: own_id.replace("batch_", "msgbatch_") for name, own_id in ids["batch"].items()}
        port = free_port()
        settings = {"TOKENSPOOL_AUTH": "keys", "TOKENSPOOL_REDIS_URL": redis.url}
        command = [sys.executable, "-m", "cli", "serve", "--port", str(port)]
        with (directory / "api.log").open("wb") as log:
            api = start_child("api", command, output=log, environment=settings)
        try:
            async with asyncio.timeout(30):
                while True:
                    try:
                        async with a_line(f"http://127.0.0.1:{port}"):
                            break
                    except OSError:
                        await asyncio.sleep(0.1)
            lists = [
                OwnedPath("/v1/jobs?batch_id={}", "batch", frozenset({"GET"})),
                OwnedPath("/v1/jobs?after={}", "job", frozenset({"GET"})),
                OwnedPath("/v1/batches?after={}", "batch", frozenset({"GET"})),
                OwnedPath("/v1/messages/batches?after_id={}", "msgbatch", frozenset({"GET"})),
            ]
            print(f"{'':49} {'absent':>8} {'foreign':>8} {'worst':>8} (ms: median, differences of medians)")  # noqa: T201
            is_far = False
            async with a_line(f"http://127.0.0.1:{port}", keys) as line:
                for path in [path for path in owned_paths() if path.kind in ids] + lists:
                    for method in sorted(path.methods - {"HEAD"}):
                        is_far |= bool(await _measure(line, method, path, ids[path.kind], count))
        finally:
            api.stop(10)
    return int(is_far)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000, help="foreign ids per route, and as many absent ones")
    sys.exit(asyncio.run(_main(parser.parse_args().count)))
