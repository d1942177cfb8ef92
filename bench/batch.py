"""The batch rows: submits a file of prompts, runs it on two workers with an upstream without delay, reads the results.

Meanwhile other callers submit single jobs, whose waiting time is compared with that before the batch. The batch's
counts are read four times a second and must add up each time. The reference is plain arq with jobs that do nothing.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from bench import systems
from bench.measure import Effort, Failed, Samples, percentile
from bench.processes import free_port, python, resident_bytes, running
from cli.embedded_redis import EmbeddedRedis

MODEL = "sim-t10-g0-f0"
OTHERS_MODEL = "sim-t5-g5-f5"
WORKERS = 2
OTHERS_EVERY_S = 0.1
BASELINE_S = 10.0
LONGEST_RUN_S = 900.0
_MIB = 1 << 20


@dataclass(slots=True)
class Watched:
    """Observations while a part of the measurement ran."""

    waits_ms: list[float] = field(default_factory=list)
    most_bytes: int = 0
    looks: int = 0
    problems: list[str] = field(default_factory=list)


def batch(effort: Effort, samples: Samples) -> None:
    """A single round, since it takes minutes."""
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        port = free_port()
        stack.enter_context(running(python("-m", "simulator", "--port", str(port)), {}, ready_port=port))
        api_port, api_pid = stack.enter_context(systems.tokenspool_api(redis.url))
        for _ in range(WORKERS):
            stack.enter_context(systems.tokenspool_worker(redis.url, systems.Upstream(port, 0)))
        api = _Api(api_port)
        api.submit_one(OTHERS_MODEL)
        before = Watched()
        with _other_callers(api, before):
            time.sleep(BASELINE_S)
        body = stack.enter_context(_lines(effort.batch_requests))
        idle_bytes = resident_bytes([api_pid])

        watched = Watched()
        with _memory(api_pid, watched):
            start_s = time.monotonic()
            batch_id = api.submit_file(body)
            accepted_s = time.monotonic() - start_s
        samples.add("batch-accept", systems.TOKENSPOOL, accepted_s)
        samples.add("batch-memory", systems.TOKENSPOOL, (watched.most_bytes - idle_bytes) / _MIB)

        during = Watched()
        with _other_callers(api, during):
            items_per_s = _run_to_end(api, batch_id, effort.batch_requests, during)
        samples.add("batch-items", systems.TOKENSPOOL, items_per_s)
        _add_waits(samples, before, during)

        reading = Watched()
        idle_bytes = resident_bytes([api_pid])
        with _memory(api_pid, reading):
            start_s = time.monotonic()
            lines = api.count_results(batch_id)
            samples.add("batch-results", systems.TOKENSPOOL, lines / (time.monotonic() - start_s))
        if lines != effort.batch_requests:
            raise Failed(f"{lines} result lines for {effort.batch_requests} requests")
        samples.add("batch-results-memory", systems.TOKENSPOOL, (reading.most_bytes - idle_bytes) / _MIB)
    samples.add("batch-items", "plain arq, jobs that do nothing, one worker", _arq_jobs_per_s())


def _add_waits(samples: Samples, before: Watched, during: Watched) -> None:
    for watched in (before, during):
        if watched.problems or not watched.waits_ms:
            raise Failed(f"{len(watched.waits_ms)} other jobs during the batch; {watched.problems[:3]}")
    p99_before, p99_during = percentile(before.waits_ms, 99), percentile(during.waits_ms, 99)
    samples.add("batch-wait", systems.TOKENSPOOL, p99_during / max(1.0, p99_before))
    samples.notes.append(
        f"waiting time of other jobs during the batch: p50 {percentile(during.waits_ms, 50):.0f} ms, p99 {p99_during:.0f} ms "
        f"({len(during.waits_ms)} jobs); without it p50 {percentile(before.waits_ms, 50):.0f} ms, p99 {p99_before:.0f} ms; "
        f"counts added up at {during.looks} looks"
    )


def _run_to_end(api: _Api, batch_id: str, requests: int, watched: Watched) -> float:
    start_s = time.monotonic()
    start_done: int | None = None
    counts: dict[str, int] = {}
    while time.monotonic() - start_s < LONGEST_RUN_S:
        found = api.read(f"/v1/batches/{batch_id}")
        counts = dict(found["counts"])
        total = counts.pop("total")
        watched.looks += 1
        if total != requests or sum(counts.values()) != total:
            raise Failed(f"the counts do not add up: {found['counts']}")
        done = total - counts["queued"] - counts["running"]
        if start_done is None:
            start_s, start_done = time.monotonic(), done
        if found["status"] == "ended":
            if counts["succeeded"] != total:
                raise Failed(f"not all succeeded: {found['counts']}")
            return float(done - start_done) / (time.monotonic() - start_s)
        time.sleep(0.25)
    raise Failed(f"the batch did not end within {LONGEST_RUN_S:.0f} s: {counts}")


@dataclass(frozen=True, slots=True)
class _Api:
    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        if response.status >= 300:
            raise Failed(f"{method} {path}: {response.status} {response.read()[:300]!r}")
        return response

    def read(self, path: str) -> Any:
        with self.ask("GET", path) as response:
            return json.loads(response.read())

    def submit_one(self, model: str) -> float:
        """Runs a job of another caller to its end; returns its waiting time in ms."""
        body = json.dumps({"prompt": "Hello.", "model": model})
        headers = {"Content_Type": "application/json", "Prefer": "wait=60", "X_Tenant": "somebody-else"}
        with self.ask("POST", "/v1/jobs", body, **headers) as response:
            job = json.loads(response.read())
        if job["status"] != "succeeded":
            raise Failed(f"another job ended during the batch as {job['status']}")
        return float(job["timing"]["queued_ms"])

    def submit_file(self, body: IO[bytes]) -> str:
        with self.ask("POST", "/v1/batches", body, Content_Type="application/jsonl") as response:
            return str(json.loads(response.read())["id"])

    def count_results(self, batch_id: str) -> int:
        count = 0
        with self.ask("GET", f"/v1/batches/{batch_id}/results") as response:
            while piece := response.read(1 << 18):
                count += piece.count(b"\n")
        return count


@contextmanager
def _lines(requests: int) -> Iterator[IO[bytes]]:
    """A file of small prompts, one request a line."""
    with tempfile.TemporaryFile() as body:
        for number in range(requests):
            params = {
                "model": MODEL,
                "max_tokens": 64,
                "prompt": f"Is row {number} of the table about the sea? Yes or no.",
            }
            body.write(json.dumps({"custom_id": f"row-{number}", "params": params}).encode() + b"\n")
        body.seek(0)
        yield body


@contextmanager
def _other_callers(api: _Api, watched: Watched) -> Iterator[None]:
    """Other callers submit ten jobs a second while the block runs."""

    def one() -> None:
        try:
            watched.waits_ms.append(api.submit_one(OTHERS_MODEL))
        except (OSError, Failed, http.client.HTTPException) as error:
            watched.problems.append(f"{type(error).__name__}: {error}")

    def step() -> None:
        threading.Thread(target=one, daemon=True).start()

    with _every(OTHERS_EVERY_S, step):
        yield
    time.sleep(1)


@contextmanager
def _memory(pid: int, watched: Watched) -> Iterator[None]:
    def look() -> None:
        watched.most_bytes = max(watched.most_bytes, resident_bytes([pid]))

    with _every(0.05, look):
        yield
        look()


@contextmanager
def _every(seconds: float, step: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def turn() -> None:
        while not over.wait(seconds):
            step()

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _arq_jobs_per_s() -> float:
    """The rate at which one process of arq's own worker runs 5,000 jobs that do nothing."""
    with EmbeddedRedis() as redis:
        command = python("-m", "bench.arq_idle", "--redis-url", redis.url, "--jobs", "5000")
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"[0-9.]+", printed)
    if found is None:
        raise Failed(f"no rate: {printed!r} from {sys.executable}")
    return float(found[0])
