"""The examples do what their first lines say, with real processes."""

import json
import secrets
from pathlib import Path

import httpx2
import pytest

from tests.examples.example import EXAMPLES, an_example, printed, read_until
from tests.support.deployment import Deployment

pytestmark = pytest.mark.timeout(90)


async def test_a_killed_program_restarts_and_gets_the_whole_answer(deployment: Deployment) -> None:
    """SIGKILL in the middle of the stream; the LLM is still called only once."""
    nonce = f"back-{secrets.token_hex(3)}"
    environment = {
        "ANTHROPIC_BASE_URL": deployment.apis[0].url,
        "ANTHROPIC_API_KEY": "any",
        "MODEL": "sim-t60-g20-f20",
    }
    arguments = (nonce, f"nonce={nonce}")
    async with an_example("stream_and_come_back.py", *arguments, **environment) as process:
        await read_until(process, f"{nonce}.1.5 ")
        process.kill()
        await process.wait()
    whole = "".join(f"{nonce}.1.{index} " for index in range(60))
    assert await printed("stream_and_come_back.py", *arguments, **environment) == f"{whole}\n"
    assert [call.ended for call in await deployment.calls(nonce)] == ["completed"]


async def test_a_file_of_prompts_makes_one_batch_however_often_it_is_run(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Also after the program was killed: no prompt runs twice."""
    results = tmp_path / "results.jsonl"
    arguments = (EXAMPLES / "prompts.jsonl", results)
    async with an_example("batch_of_a_file.py", *arguments, TOKENSPOOL_URL=deployment.apis[0].url) as process:
        batch_id = (await read_until(process, "\n")).split()[0]
        process.kill()
        await process.wait()
    calls_before = len(await deployment.calls())
    output = await printed("batch_of_a_file.py", *arguments, TOKENSPOOL_URL=deployment.apis[0].url)
    assert output.split()[0] == batch_id
    assert "total=4 succeeded=4" in output
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["custom_id"], line["status"]) for line in lines] == [
        ("sky", "succeeded"),
        ("grass", "succeeded"),
        ("snow", "succeeded"),
        ("night", "succeeded"),
    ]
    assert all(line["result"]["text"] for line in lines)

    calls = len(await deployment.calls())
    assert calls - calls_before <= 4
    assert (await printed("batch_of_a_file.py", *arguments, TOKENSPOOL_URL=deployment.apis[0].url)).split()[
        0
    ] == batch_id
    assert len(await deployment.calls()) == calls


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
