"""No prompt, answer or key ever reaches a log at DEBUG, whatever fails. Every chaos run also searches its logs."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.embedded_redis import free_port
from shared.api_key import ALL_SCOPES, new_key_text
from shared.limits import CallerLimits
from tests.chaos.conftest import HistoryOf
from tests.support.contents import contents
from tests.support.deployment import (
    CANARIES,
    CANARY_API_KEY,
    CANARY_KEY,
    CANARY_METADATA,
    CANARY_PROMPT,
    Api,
    Deployment,
    Process,
    away,
)
from tests.support.facts import Fact
from tests.support.follower import ask, asking
from tests.support.wait import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]

_ANSWERS = [
    "tokens=20 gap-ms=5",
    f"echo: {CANARY_PROMPT} {CANARY_KEY}",
    f"fail=400,message={CANARY_PROMPT}",
    f"fail=401,message={CANARY_KEY}",
    f"fail=500,message={CANARY_PROMPT}",
    f"fail=529,retry-after=1,message={CANARY_PROMPT}",
    f"fail=200,body=html,message={CANARY_PROMPT}",
    f"error=3,message={CANARY_PROMPT}",
    f"header=x-canary:{CANARY_KEY}",
    "bad-json=3",
    "garbage=3",
    "bad-chunk=3",
    "end=3",
    "fin=3",
    "rst=head",
    "restart=3",
    "no-start=1",
    "text=surrogate",
    "stall=3",
]


_TALKATIVE = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}
"""Makes Python itself log: slow callbacks, unretrieved task errors, unclosed sockets, stacks at a crash."""


async def test_no_canary_is_in_any_log(empty: Deployment, history_of: HistoryOf, fact: Fact) -> None:
    """Every failure of the upstream, hostile bodies, cancels, an outage, and a full Redis."""
    api = empty.begin_api(port=None, **_TALKATIVE)
    settings = {"TOKENSPOOL_CONTENT_IDLE_TIMEOUT_S": "1", "TOKENSPOOL_UPSTREAM_RETRY_BASE_S": "0.01", **_TALKATIVE}
    worker = empty.begin_worker(**settings)
    await empty.api_up(api)
    await empty.worker_up(worker)
    history = history_of(empty)
    for number, words in enumerate(_ANSWERS):
        model = f"sim-t40-g20-f{30 + number}"  # its own route, so that no fault's circuit delays other jobs
        job = await history.submit(words, allowed_calls=4, max_attempts=2, model=model)
        assert job is not None
        history.follow(job, form="messages")
        await ask(api.url, "/v1/jobs", method="POST", body={"prompt": f"{CANARY_PROMPT} {words}", "model": model})
    bodies = [
        CANARY_PROMPT.encode(),
        b'{"prompt": "%b' % CANARY_PROMPT.encode(),
        b'{"prompt": 1, "not a name: %b": 1}' % CANARY_PROMPT.encode(),
        b'{"prompt": ["%b"]}' % CANARY_PROMPT.encode(),
        b'{"prompt": "x", "job": {"not a name: %b": "%b"}}' % (CANARY_PROMPT.encode(), CANARY_KEY.encode()),
    ]
    for path in ("/v1/jobs", "/complete", "/complete/stream"):
        for body in bodies:
            headers = {"Authorization": f"Bearer {CANARY_KEY}", "x-api-key": CANARY_KEY}
            async with asking(api.url, path, method="POST", headers=headers, body=body) as response:
                assert 400 <= response.status < 500
                said = (await response.read()).decode()
                assert CANARY_PROMPT not in said
                assert CANARY_KEY not in said
    for path in (
        f"/v1/jobs/{CANARY_PROMPT}",
        f"/{CANARY_PROMPT}",
        f"/v1/jobs?after={CANARY_PROMPT}",
        f"/?{CANARY_KEY}",
    ):
        async with asking(api.url, path, headers={"Idempotency-Key": CANARY_KEY, "Cookie": CANARY_KEY}) as response:
            assert CANARY_PROMPT.encode() not in await response.read()
    async with asking(api.url, "/complete/stream", method="POST", body={"prompt": f"{CANARY_PROMPT} stall=2"}) as gone:
        await gone.read_some()
    running = await history.submit_many(6, "tokens=100 gap-ms=20", allowed_calls=4)
    for job in running:
        history.follow(job)
    await wait_until(lambda: all(one.text for one in history.followers[-6:]), "text", timeout_s=20)
    await history.cancel(running[0])
    await away(empty.redis, 1)
    async with empty.runtime() as runtime:
        facts = (await runtime._commands.call("INFO", "memory")).decode()
        await runtime._commands.call("CONFIG", "SET", "maxmemory", facts.partition("used_memory:")[2].split()[0])
        await asyncio.gather(*[history.submit("tokens=1") for _ in range(5)])
        await runtime._commands.call("CONFIG", "SET", "maxmemory", "0")
    await history.all_ended(timeout_s=60)
    crashing = empty.begin_worker(**settings)
    await empty.worker_up(crashing)
    crashing.signal(signal.SIGABRT)
    assert await crashing.ended(20) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in crashing.log  # faulthandler prints places, not values
    assert empty.say_what_leaked() == []
    worker.signal(signal.SIGTERM)
    api.signal(signal.SIGTERM)
    assert await api.ended(20) == 0
    assert await worker.ended(20) == 0
    lines = sum(process.log.count("\n") for process in empty.processes)
    assert lines > 50
    assert empty.say_what_leaked() == []
    for job in history.jobs.values():
        assert all(f"{job.nonce}." not in process.log for process in empty.processes), "an answer is in a log"
    hashes = {line["prompt_hash"] for line in worker.lines("job_succeeded")}
    assert hashes
    assert all(len(prompt_hash) == 12 for prompt_hash in hashes)
    fact(f"{lines} log lines at DEBUG through {len(_ANSWERS)} kinds of answers, an outage, a full Redis: 0 canaries")


async def test_no_key_of_ours_is_in_any_log(empty: Deployment) -> None:
    """Keys are made, used, guessed, rotated and revoked, over HTTP and by the command, with authentication on."""
    api = empty.begin_api(port=None, TOKENSPOOL_AUTH="keys", **_TALKATIVE)
    await empty.api_up(api)
    async with empty.runtime() as runtime:
        made = await runtime.api_keys.create(
            "default", env="live", name="one", scopes=ALL_SCOPES, limits=CallerLimits(requests_per_minute=1000)
        )
    assert made is not None
    canaries = [made.text.rpartition("_")[2]]

    async def call(path: str, key: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        status, response, _ = await ask(api.url, path, method=method, headers={"X-Api-Key": key}, body=body)
        return status, response

    body = {"prompt": CANARY_PROMPT, "job": {"metadata": {CANARY_METADATA: CANARY_METADATA}}}
    assert (await call("/v1/jobs", made.text, "POST", body))[0] == 202
    wrong = new_key_text(made.key.id, "live")
    for guess in (wrong, made.text[:-1], made.text + "0", made.text.replace("live", "test"), CANARY_KEY, "Bearer"):
        status, problem = await call("/v1/jobs", guess, "POST", body)
        assert status == 401
        assert guess not in str(problem)
    status, second = await call("/v1/keys", made.text, "POST", {"name": "two"})
    assert status == 201
    status, third = await call(f"/v1/keys/{second['id']}/rotate", made.text, "POST")
    assert status == 200
    assert (await call(f"/v1/keys/{second['id']}/revoke", made.text, "POST"))[0] == 200
    canaries += [text.rpartition("_")[2] for text in (wrong, second["key"], third["key"])]
    async with asking(api.url, f"/v1/jobs?api_key={made.text}&x-api-key={made.text}") as response:
        assert response.status == 401
        assert made.text.encode() not in await response.read()
    CANARIES.extend(canaries)
    empty.key = made.text
    try:
        assert empty.say_what_leaked() == []
        async with empty.runtime() as runtime:  # Redis stores only its hash
            for name, value in (await contents(runtime._commands)).items():
                assert not any(canary.encode() in value for canary in canaries), name
        api.signal(signal.SIGTERM)
        assert await api.ended(20) == 0
        assert empty.say_what_leaked() == []
    finally:
        del CANARIES[-len(canaries) :]


async def test_the_search_finds_what_is_planted(quick: Deployment, tmp_path: Path) -> None:
    """In each place that it searches: a search without hits proves nothing by itself."""
    log = quick.directory / "planted.log"
    program = "import sys, time; print('up', flush=True); time.sleep(60)"
    port = free_port()
    telling = [sys.executable, "-um", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    (tmp_path / "metrics").write_text(f'jobs{{model="{CANARY_PROMPT[:16]}"}} 1\n')
    teller = Api("teller", telling, {}, quick.directory / "teller.log")
    teller.url = f"http://127.0.0.1:{port}"
    quick.apis.append(teller)
    try:
        log.write_text(f"a line\na line with {CANARY_PROMPT}\n")
        planted = Process("planted", [sys.executable, "-c", program, CANARY_KEY], {}, quick.directory / "planted2.log")
        quick.processes.append(planted)
        await wait_until(lambda: "up" in planted.log, "the planted process")
        await wait_until(lambda: "Serving" in teller.log, "the planted API")
        async with quick.runtime() as runtime:
            await runtime._commands.call("SET", f"ts:{{0}}:llm:{CANARY_METADATA}", 1)
            await runtime._commands.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
            await runtime._commands.call("GET", f"no such key {CANARY_API_KEY}")
        found = quick.say_what_leaked()
        assert [line.partition(":")[0] for line in found] == ["planted.log", "command line", "http", "Redis", "Redis"]
    finally:
        log.unlink()
        quick.apis.remove(teller)
        teller.kill()
        planted.kill()
        quick.processes.remove(planted)
        async with quick.runtime() as runtime:
            await runtime._commands.call("DEL", f"ts:{{0}}:llm:{CANARY_METADATA}")
            await runtime._commands.call("CONFIG", "SET", "slowlog-log-slower-than", "-1")
            await runtime._commands.call("SLOWLOG", "RESET")
    assert quick.say_what_leaked() == []
