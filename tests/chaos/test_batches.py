"""Batches while workers, Redis and APIs die: one outcome per line, counts that always add up, no extra call."""

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import pytest

from shared.batch import BatchSpec, NewItem
from shared.job import TERMINAL_STATES, JobSpec, new_id
from shared.store import redis_keys
from shared.store.queue import FATAL_TAKEOVERS
from tests.support.batch_follower import BatchFollower
from tests.support.deployment import CANARY_PROMPT, Deployment, away
from tests.support.facts import Fact
from tests.support.follower import Cut, ask, asking
from tests.support.store import all_keys, kind_of
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

MODEL = "sim-t10-g20-f20"


def _lines(nonce: str, count: int, model: str = MODEL) -> bytes:
    requests = [
        {
            "custom_id": f"{nonce}-{number}",
            "params": {"model": model, "max_tokens": 64, "prompt": f"{CANARY_PROMPT} nonce={nonce}-{number}"},
        }
        for number in range(1, count + 1)
    ]
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


async def _submit(url: str, body: bytes, **headers: str) -> Any:
    named = {"Content-Type": "application/jsonl", **headers}
    status, batch, _ = await ask(url, "/v1/batches", method="POST", headers=named, body=body)
    assert status == 202, batch
    return batch


async def _look(deployment: Deployment, batch_id: str) -> Any:
    """The batch, or None while no API can read it."""
    try:
        status, batch, _ = await ask(random.choice(deployment.urls), f"/v1/batches/{batch_id}")
    except (OSError, Cut):
        return None
    assert status in (200, 503), batch
    return batch if status == 200 else None


def _assert_adds_up(batch: Any, total: int) -> None:
    counts = dict(batch["counts"])
    assert counts.pop("total") == total == sum(counts.values()), batch["counts"]


async def _results(deployment: Deployment, batch_id: str) -> list[Any]:
    async with asking(deployment.urls[0], f"/v1/batches/{batch_id}/results") as response:
        assert response.status == 200
        return [json.loads(line) for line in (await response.read()).splitlines()]


async def _until_ended(deployment: Deployment, batch_id: str, total: int, looks: Counter[str]) -> Any:
    done = 0
    while True:
        batch = await _look(deployment, batch_id)
        if batch is None:
            looks["nobody could say"] += 1
        else:
            looks["exact"] += 1
            _assert_adds_up(batch, total)
            counts = batch["counts"]
            now_done = total - counts["queued"] - counts["running"]
            assert now_done >= done, "an item that had ended runs again"
            done = now_done
            if batch["status"] == "ended":
                return batch
        await asyncio.sleep(0.1)


async def test_workers_and_redis_killed_again_and_again_during_a_batch(quick: Deployment, fact: Fact) -> None:
    """2,000 items; every second and a half a worker is killed, every fourth time Redis instead."""
    nonce, total = f"killed-batch-{random.randrange(1 << 32)}", 2_000
    batch = await _submit(quick.urls[0], _lines(nonce, total))
    looks: Counter[str] = Counter()
    watching = asyncio.create_task(_until_ended(quick, batch["id"], total, looks))
    kills: Counter[str] = Counter()
    began_s = time.monotonic()
    while not watching.done() and kills["workers"] < 12:
        await asyncio.sleep(1.5)  # between two faults
        victim = random.choice([worker for worker in quick.workers if worker.is_running])
        victim.kill()
        kills["workers"] += 1
        quick.begin_worker()
        if kills["workers"] % 4 == 0:
            await away(quick.redis, 1)
            kills["redis"] += 1
    ended = await watching
    took_s = time.monotonic() - began_s
    await quick.make_whole(apis=2, workers=2)

    lines = await _results(quick, batch["id"])
    assert sorted(line["line"] for line in lines) == list(range(1, total + 1))
    assert Counter(line["status"] for line in lines) == Counter(
        {name: count for name, count in ended["counts"].items() if name != "total" and count}
    )
    calls = Counter(call.nonce for call in await quick.calls() if call.nonce.startswith(nonce))
    takeovers: Counter[int] = Counter()
    async with quick.runtime() as runtime:
        for line in lines:
            count = int(await runtime._commands.call("HGET", redis_keys.job(line["job_id"]), "takeovers") or 0)
            takeovers[count] += 1
            assert calls[line["custom_id"]] <= 1 + count, line
            if line["status"] != "succeeded":
                assert line["error"]["code"] == "worker_lost", line
                assert count >= FATAL_TAKEOVERS, line
            else:
                assert line["result"]["text"], line
    fact(
        f"a batch of {total:,}, {kills['workers']} workers and {kills['redis']} times Redis killed in {took_s:.0f} s: "
        f"{len(lines):,} lines, {ended['counts']['succeeded']:,} succeeded, {calls.total():,} calls, takeovers "
        f"{dict(sorted(takeovers.items()))}; counts exact at {looks['exact']} looks"
    )


async def test_an_api_that_dies_while_a_batch_arrives_leaves_nothing(empty: Deployment) -> None:
    """It is killed in the middle of the body; another process erases what it had stored."""
    api, other = empty.begin_api(), empty.begin_api()
    await empty.api_up(api)
    await empty.api_up(other)
    async with empty.runtime() as runtime:
        host, port = api.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = _lines("never-started", 3_000)
        writer.write(
            b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/jsonl\r\nContent-Length: %d\r\n\r\n"
            % (len(body) + 1_000)
        )
        writer.write(body)
        await writer.drain()

        async def kinds() -> Counter[str]:
            return Counter(kind_of(key) for key in await all_keys(runtime._commands))

        async def has_stored() -> bool:
            return (await kinds())["job"] > 1_000

        await wait_until(has_stored, "a part of the body in Redis", timeout_s=20)
        api.kill()
        writer.close()

        async def is_clean() -> bool:
            left = await kinds()
            return not any(left[kind] for kind in ("job", "batch", "batch_items", "due"))

        await wait_until(is_clean, "nothing left of it", timeout_s=60)


async def test_an_api_that_dies_after_the_start_of_a_batch_loses_none_of_it(empty: Deployment) -> None:
    """The body was complete, but not all items are queued: another process goes on."""
    async with empty.runtime() as runtime:
        api = empty.begin_api()
        await empty.api_up(api)
        # The state that a process leaves which dies directly after START: started, but never advanced.
        batch_id, total = new_id("batch"), 1_000
        await runtime.batches.open(batch_id, "default")
        for start in range(1, total, 250):
            items = [
                NewItem(
                    line,
                    new_id("job"),
                    f"row-{line}",
                    MODEL,
                    json.dumps(
                        {
                            "model": MODEL,
                            "max_tokens": 8,
                            "messages": [{"role": "user", "content": f"nonce=orphan-{line}"}],
                        }
                    ).encode(),
                )
                for line in range(start, start + 250)
            ]
            await runtime.batches.add(batch_id, "default", items)
        await runtime.batches.start(batch_id, "default", BatchSpec(JobSpec(model="")), expires_in_s=3600)
        worker = empty.begin_worker()
        await empty.worker_up(worker)
        ended = await _until_ended(empty, batch_id, total, Counter())
        assert ended["counts"]["succeeded"] == total
        assert len(await _results(empty, batch_id)) == total


async def test_attended_jobs_of_an_api_that_dies_are_cancelled(quick: Deployment) -> None:
    """Their clients lost their connections, so nobody will read the answers."""
    doomed = quick.begin_api()
    await quick.api_up(doomed)
    nonce = f"attended-{random.randrange(1 << 32)}"
    body = {
        "model": "sim-t2000-g50-f20",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": f"{CANARY_PROMPT} nonce={nonce}"}],
    }
    async with asking(doomed.url, "/v1/messages", method="POST", body={**body, "stream": True}) as call:
        assert call.status == 200
        job_id = call.headers["x-job-id"]
        doomed.kill()
    quick.apis.remove(doomed)

    async def is_over() -> bool:
        _, job, _ = await ask(quick.urls[0], f"/v1/jobs/{job_id}")
        return job["status"] in TERMINAL_STATES

    await wait_until(is_over, "the end of the attended job", timeout_s=40)
    _, job, _ = await ask(quick.urls[0], f"/v1/jobs/{job_id}")
    assert job["status"] == "cancelled"

    async def is_closed() -> bool:
        (seen,) = await quick.calls(nonce)
        return seen.client_closed_s is not None

    await wait_until(is_closed, "the end of its upstream call", timeout_s=5)


async def test_fifty_running_items_are_complete_on_one_connection(quick: Deployment, fact: Fact) -> None:
    """Two followers in each format, one of which disconnects and reconnects; a worker dies in the middle."""
    nonce, total = f"told-batch-{random.randrange(1 << 32)}", 50
    batch = await _submit(quick.urls[0], _lines(nonce, total, model="sim-t150-g30-f20"))

    async def all_run() -> bool:
        now = await _look(quick, batch["id"])
        return now is not None and now["counts"]["running"] == total

    await wait_until(all_run, "fifty running items", timeout_s=20)
    followers = [
        BatchFollower(quick.urls, batch["id"], query=f"tokens=true&format={form}")
        for form in ("text", "messages", "text", "messages")
    ]

    async def break_off(follower: BatchFollower) -> BatchFollower:
        for most_bytes in (1, 5_000, 20_000, 60_000):
            await follower.follow_once(most_bytes=most_bytes)
        return await follower.follow()

    tasks = [asyncio.create_task(follower.follow()) for follower in followers[:2]]
    tasks += [asyncio.create_task(break_off(follower)) for follower in followers[2:]]
    await wait_until(
        lambda: all(len(one.items) == total for one in followers[:2]), "all on one connection", timeout_s=20
    )
    quick.workers[0].kill()
    await asyncio.gather(*tasks)
    lines = {line["job_id"]: line for line in await _results(quick, batch["id"])}
    for follower in followers:
        assert follower.items.keys() == lines.keys()
        for job_id, seen in follower.items.items():
            assert len(seen.ends) == 1, seen.names
            assert lines[job_id]["status"] == "succeeded"
            assert seen.text == lines[job_id]["result"]["text"]
            assert seen.custom_id == lines[job_id]["custom_id"]
    fact(
        f"{total} running items told whole to {len(followers)} followers over {sum(one.connections for one in followers)} "
        f"connections, a worker killed: {sum(len(one.frames) for one in followers):,} events"
    )
