"""The examples do what their first lines say, with real processes."""

import asyncio
import json
import re
import secrets
from pathlib import Path

import httpx2
import pytest

from tests.examples.example import EXAMPLES, an_example, printed, read_until
from tests.support.deployment import Deployment
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(90)


def _sdk(deployment: Deployment, nonce: str, tokens: int) -> tuple[tuple[str, str], dict[str, str]]:
    environment = {
        "ANTHROPIC_BASE_URL": deployment.apis[0].url,
        "ANTHROPIC_API_KEY": "any",
        "MODEL": f"sim-t{tokens}-g20-f20",
    }
    return (nonce, f"nonce={nonce}"), environment


async def test_a_killed_program_restarts_and_gets_the_whole_answer(deployment: Deployment) -> None:
    """SIGKILL in the middle of the stream; the LLM is still called only once."""
    nonce = f"back-{secrets.token_hex(3)}"
    arguments, environment = _sdk(deployment, nonce, 60)
    async with an_example("sdk.py", *arguments, **environment) as process:
        await read_until(process, f"{nonce}.1.5 ")
        process.kill()
        await process.wait()
    whole = "".join(f"{nonce}.1.{index} " for index in range(60))
    assert await printed("sdk.py", *arguments, **environment) == f"{whole}\n"
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]


async def test_a_stream_that_breaks_is_begun_again(deployment: Deployment) -> None:
    """The API is killed in the middle and comes back a while later; the program does not notice more than that."""
    nonce = f"broken-{secrets.token_hex(3)}"
    arguments, environment = _sdk(deployment, nonce, 100)
    async with an_example("sdk.py", *arguments, **environment) as process:
        await read_until(process, f"{nonce}.1.5 ")
        api = deployment.apis.pop(0)
        api.kill()
        await deployment.api_up(deployment.begin_api(port=int(api.url.rpartition(":")[2])))
        async with asyncio.timeout(40):
            out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    _, _, last = out.decode().rpartition("(the connection broke; once more from the beginning)\n")
    assert last == "".join(f"{nonce}.1.{index} " for index in range(100)) + "\n"
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]


def _rows(path: Path, count: int, nonce: str) -> Path:
    """Prompts of a nightly run: one in a hundred fails in its first three calls, which are a job's attempts."""
    with path.open("w") as file:
        for number in range(count):
            fault = " end=1x3" if number % 100 == 7 else ""
            prompt = f"nonce={nonce}-{number} tokens=2 gap-ms=0 first-ms=0{fault}"
            file.write(
                json.dumps({"custom_id": f"row-{number}", "params": {"prompt": prompt, "max_tokens": 10}}) + "\n"
            )
    return path


async def test_a_nightly_run_of_3000_rows_gets_an_answer_for_each(deployment: Deployment, tmp_path: Path) -> None:
    """Killed in the middle and run again; what failed is run again, and nothing else is."""
    nonce = f"night-{secrets.token_hex(3)}"
    prompts, results = _rows(tmp_path / "rows.jsonl", 3000, nonce), tmp_path / "results.jsonl"
    url = deployment.apis[0].url
    before = len(await deployment.calls())
    async with an_example("nightly.py", prompts, results, TOKENSPOOL_URL=url) as process:

        async def has_begun() -> bool:
            return len(await deployment.calls()) > before + 100

        await wait_until(has_begun, "its first calls", timeout_s=30)
        process.kill()
    output = await printed("nightly.py", prompts, results, TOKENSPOOL_URL=url)
    assert output.splitlines()[-1] == f"3000 answers, 0 without one: {results}"
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"row-{number}" for number in range(3000))
    assert {line["status"] for line in lines} == {"succeeded"}
    again = {line["custom_id"] for line in lines if f".4.0 {nonce}" in line["result"]["text"]}
    assert again == {f"row-{number}" for number in range(3000) if number % 100 == 7}
    assert len(await deployment.calls()) - before == 3000 + 3 * 30

    assert (await printed("nightly.py", prompts, results, TOKENSPOOL_URL=url)) == output
    assert len(await deployment.calls()) - before == 3000 + 3 * 30


async def test_a_row_that_stays_without_an_answer_is_reported(deployment: Deployment, tmp_path: Path) -> None:
    """It is in the results with its error, and the program exits with 1."""
    prompts, results = tmp_path / "rows.jsonl", tmp_path / "results.jsonl"
    prompts.write_text('{"custom_id": "good", "params": {"prompt": "tokens=1"}}\n{"custom_id": "bad", "params": {}}\n')
    async with an_example("nightly.py", prompts, results, TOKENSPOOL_URL=deployment.apis[0].url) as process:
        async with asyncio.timeout(40):
            out, _ = await process.communicate()
    assert (process.returncode, out.decode().splitlines()[-1]) == (1, f"1 answers, 1 without one: {results}")
    assert {json.loads(line)["status"] for line in results.read_text().splitlines()} == {"succeeded", "failed"}


async def test_a_receiver_of_webhooks_prints_what_is_signed_and_refuses_what_is_not(deployment: Deployment) -> None:
    """A repeated event is printed once."""
    async with httpx2.AsyncClient(base_url=deployment.apis[0].url, timeout=20) as api, httpx2.AsyncClient() as stranger:
        secret = (await api.get("/v1/webhooks/secret")).json()["secret"]
        async with an_example("webhook_receiver.py", "0", TOKENSPOOL_WEBHOOK_SECRET=secret) as process:
            url = (await read_until(process, "\n")).split()[-1]
            assert (await stranger.post(url, json={"type": "job.succeeded", "data": {}})).status_code == 401
            body = {"prompt": "Hello.", "job": {"webhook": {"url": url}}}
            job = (await api.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"})).json()
            assert (await read_until(process, "\n")).strip() == f"job.succeeded /v1/jobs/{job['id']}"
            (delivery,) = (await api.get("/v1/webhooks/deliveries", params={"job_id": job["id"]})).json()["data"]
            await api.post(f"/v1/webhooks/deliveries/{delivery['id']}/redeliver")
            other = (await api.post("/v1/jobs", json=body, headers={"Prefer": "wait=20"})).json()
            assert (await read_until(process, "\n")).strip() == f"job.succeeded /v1/jobs/{other['id']}"


def test_the_lines_that_a_program_needs_itself_are_counted() -> None:
    """As the README says, and at most half of the 150 that were needed before."""
    rows = re.findall(r"^\| `([\w.]+)` \| \d+ \| (\d+) in (.+?) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == ["chat.py", "chat.html", "nightly.py", "sdk.py"]
    for name, count, functions in rows:
        text = (EXAMPLES / name).read_text()
        assert sum(_lines_of(text, function) for function in re.findall(r"`(\w+)`", functions)) == int(count), name
    assert sum(int(count) for _, count, _ in rows) <= 75


def _lines_of(text: str, function: str) -> int:
    """The lines of a function without blank lines, comments and docstrings of one line."""
    found = re.search(rf"^(?:def|async function) {function}\(.*\n(?:(?:[ }}].*)?\n)*", text, re.MULTILINE)
    assert found is not None, function
    lines = [line.strip() for line in found[0].splitlines()]
    return len([line for line in lines if line and not line.startswith(("#", "//", '"""'))])
