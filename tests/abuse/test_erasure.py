"""After DELETE, Redis holds nothing of a job or batch: neither requests nor answers, however it ended.

The name of its end user stays in the usage and, for a day, in the ledger, as its model and its key do.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.abuse.conftest import Watched
from tests.support.contents import contents, kinds_that_hold
from tests.support.follower import ask, asking
from tests.support.store import kind_of, make_overdue, ttl_ms
from tests.support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

_WORD = "what-is-to-be-forgotten"
_TENANT = {"X-Tenant": "forgetful"}
_IN_TWENTY_DAYS = (datetime.now(UTC) + timedelta(days=20)).isoformat()
_MODEL = "sim-t40-g0-f0"


def _body(words: str, **job: Any) -> dict[str, Any]:
    return {
        "model": _MODEL,
        "max_tokens": 100,
        "system": _WORD,
        "messages": [{"role": "user", "content": f"{words} {_WORD}"}],
        "metadata": {"user_id": "an-end-user"},
        "stop_sequences": [_WORD.upper()],
        "job": {"metadata": {"note": _WORD, _WORD: "a name"}, **job},
    }


async def _call(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    status, content, _ = await ask(url, path, method=method, body=body, headers={**_TENANT, **headers})
    return status, content


async def _state(url: str, path: str) -> str:
    status, content = await _call(url, "GET", path)
    assert status == 200
    return str(content["status"])


async def _erase(url: str, path: str) -> None:
    """Erases it; if it has not ended, cancels it first."""
    if await _state(url, path) not in ("succeeded", "failed", "expired", "cancelled", "ended"):
        status, problem = await _call(url, "DELETE", path)
        if status == 204:  # it had ended meanwhile
            return
        assert (status, problem["code"]) == (409, "not_ended")
        assert (await _call(url, "GET", path))[0] == 200
        assert (await _call(url, "POST", f"{path}/cancel"))[0] in (200, 202)

        async def has_ended() -> bool:
            return await _state(url, path) in ("cancelled", "ended")

        await wait_until(has_ended, f"the end of {path}")
    assert (await _call(url, "DELETE", path))[0] == 204
    assert (await _call(url, "GET", path))[0] == 404


_JOBS: dict[str, dict[str, Any]] = {
    "succeeded": _body("echo:"),
    "failed": _body(f"fail=400,message={_WORD}"),
    "running": _body("tokens=1000 gap-ms=50"),
    "queued": _body("echo:", not_before=_IN_TWENTY_DAYS),
    "expired": _body("echo:", not_before=_IN_TWENTY_DAYS),
}


async def test_nothing_is_left_of_jobs(watched: Watched) -> None:
    """Jobs of every surface, in every state, with every member that a job can have."""
    url = watched.deployment.urls[0]
    async with watched.deployment.runtime() as runtime:
        ids = {}
        for name, body in _JOBS.items():
            status, job = await _call(url, "POST", "/v1/jobs", body, **{"Idempotency-Key": f"{_WORD}-{name}"})
            assert status == 202, job
            ids[name] = job["id"]
        await make_overdue(runtime, ids["expired"])
        prompt = {"prompt": f"echo: {_WORD}"}
        assert (await _call(url, "POST", "/complete", prompt))[0] == 200
        for path, body in (("/complete/stream", prompt), ("/v1/messages", _plain("echo:", stream=True))):
            async with asking(url, path, method="POST", body=body, headers=_TENANT) as response:
                assert _WORD.encode() in await response.read()

        async def are_there() -> bool:
            return {name: await _state(url, f"/v1/jobs/{job_id}") for name, job_id in ids.items()} == {
                name: name for name in ids
            }

        await wait_until(are_there, "a job in each state", timeout_s=20)
        assert await kinds_that_hold(runtime._commands, _WORD) >= {"job", "log", "result"}
        _, page = await _call(url, "GET", "/v1/jobs?limit=100")
        assert {job["id"] for job in page["data"]} > set(ids.values())
        for job in page["data"]:
            await _erase(url, f"/v1/jobs/{job['id']}")
        assert await kinds_that_hold(runtime._commands, _WORD) == set()
        status, _ = await _call(url, "POST", "/v1/jobs", _JOBS["failed"], **{"Idempotency-Key": f"{_WORD}-failed"})
        assert status == 404  # the Idempotency-Key is remembered, but not its job
        assert await kinds_that_hold(runtime._commands, _WORD) == set()


async def test_nothing_is_left_of_a_partial_answer(watched: Watched) -> None:
    """Neither of the log nor of what a worker stored in place of a result, nor in the ledger."""
    url = watched.deployment.urls[0]
    async with watched.deployment.runtime() as runtime:
        status, job = await _call(url, "POST", "/v1/jobs", _body("end=1 echo:", max_attempts=1))
        assert status == 202, job

        async def is_stored() -> bool:
            return await kinds_that_hold(runtime._commands, _WORD) >= {"job", "log", "result"}

        await wait_until(is_stored, "the partial answer to be stored", timeout_s=20)
        status, found = await _call(url, "GET", f"/v1/jobs/{job['id']}")
        assert (status, found["status"], found["partial"]["text"]) == (200, "failed", _WORD)
        await _erase(url, f"/v1/jobs/{job['id']}")
        assert await kinds_that_hold(runtime._commands, _WORD) == set()


def _plain(words: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in _body(words).items() if name != "job"} | more


async def test_nothing_is_left_of_batches(watched: Watched) -> None:
    """Batches of both surfaces that have ended, or were cancelled in the middle."""
    url = watched.deployment.urls[0]
    async with watched.deployment.runtime() as runtime:
        ids = []
        for words in ("echo:", "tokens=1000 gap-ms=50"):
            lines = [{"custom_id": f"{_WORD}-{number}", "params": _plain(words)} for number in range(3)]
            lines.append({"custom_id": f"{_WORD}-fails", "params": _plain(f"fail=400,message={_WORD}")})
            lines.append({"custom_id": f"{_WORD} refused", "params": {"model": _MODEL, "max_tokens": _WORD}})
            batch = {"requests": lines, "job": {"metadata": {"note": _WORD}}}
            status, content = await _call(url, "POST", "/v1/batches", batch, **{"Idempotency-Key": f"{_WORD} {words}"})
            assert status == 202, content
            ids.append(content["id"])
        lines = [{"custom_id": f"{_WORD}-{number}", "params": _plain("echo:")} for number in range(2)]
        status, content = await _call(url, "POST", "/v1/messages/batches", {"requests": lines})
        assert status == 200, content
        ids.append(content["id"].replace("msgbatch_", "batch_"))

        async def has_one_ended() -> bool:
            return await _state(url, f"/v1/batches/{ids[0]}") == "ended"

        await wait_until(has_one_ended, "the end of a batch", timeout_s=20)
        assert await kinds_that_hold(runtime._commands, _WORD) >= {"job", "log", "result", "batch"}
        for batch_id in ids:
            await _erase(url, f"/v1/batches/{batch_id}")

        async def is_nothing_left() -> bool:
            return await kinds_that_hold(runtime._commands, _WORD) == set()

        await wait_until(is_nothing_left, "the end of the last piece", timeout_s=20)


async def test_a_count_of_tokens_is_kept_for_a_minute(watched: Watched) -> None:
    """Its caller does not know its id and so could not erase it."""
    url = watched.deployment.urls[0]
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "what-is-counted"}]}
    status, _ = await _call(url, "POST", "/v1/messages/count_tokens", body)
    assert status == 200
    async with watched.deployment.runtime() as runtime:
        held = [name for name, value in (await contents(runtime._commands)).items() if b"what-is-counted" in value]
        assert {kind_of(name) for name in held} <= {"job"}
        for name in held:
            assert 0 < (await ttl_ms(runtime, name) or 0) <= 60_000
