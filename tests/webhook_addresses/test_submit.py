"""A webhook to an internal address is refused at the submit, and nobody is looked up or called."""

import asyncio
import json

import httpx2
import pytest

from tests.support.redis_servers import RedisUnderTest
from tests.support.served import serving
from tests.webhook_addresses.conftest import Canaries
from tests.webhook_addresses.test_addresses import DISGUISED, FORBIDDEN, INNER_NAMES, literal

_HOSTS = (*map(literal, FORBIDDEN), *INNER_NAMES, *DISGUISED)


@pytest.mark.parametrize(("scheme", "port"), [("https", ""), ("http", ":{port}")])
async def test_a_forbidden_address_is_refused_by_every_submit(
    real_redis: RedisUnderTest, canaries: Canaries, scheme: str, port: str
) -> None:
    """By a job, a batch and a JSON-lines batch, with equal responses; a refused submit leaves nothing."""
    item = {"custom_id": "a", "params": {"max_tokens": 1, "messages": [{"role": "user", "content": "Hello."}]}}
    lines = {"Content-Type": "application/jsonl"}
    async with serving(real_redis.url) as served, httpx2.AsyncClient(base_url=served.url, timeout=60) as api:
        a_few = asyncio.Semaphore(4)  # no more uploads at once than an API accepts

        async def submit(host: str) -> list[httpx2.Response]:
            webhook = {"url": f"{scheme}://{host}{port.format(port=canaries.port)}/hook"}
            async with a_few:
                return [
                    await api.post("/v1/jobs", json={"prompt": "Hello.", "job": {"webhook": webhook}}),
                    await api.post("/v1/batches", json={"requests": [item], "job": {"webhook": webhook}}),
                    await api.post(
                        "/v1/batches", content=json.dumps(item), headers=lines, params={"webhook.url": webhook["url"]}
                    ),
                ]

        responses = await asyncio.gather(*map(submit, _HOSTS))
        admitted = [
            (host, answer.text)
            for host, answers in zip(_HOSTS, responses, strict=True)
            for answer in answers
            if answer.status_code != 400
        ]
        assert admitted == []
        assert (await api.get("/v1/jobs")).json()["data"] == []
        assert (await api.get("/v1/batches")).json()["data"] == []
