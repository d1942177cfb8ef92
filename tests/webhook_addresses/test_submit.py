"""What the API says of a webhook that leads inside: it is refused at the submit, and nobody is looked up or called."""

import httpx2
import pytest

from tests.support.redis_servers import RedisUnderTest
from tests.support.served import serving
from tests.webhook_addresses.conftest import Canaries
from tests.webhook_addresses.test_addresses import DISGUISED, FORBIDDEN, INNER_NAMES, literal

_HOSTS = (*map(literal, FORBIDDEN), *INNER_NAMES, *DISGUISED)


@pytest.mark.parametrize("scheme_and_port", [("https", ""), ("https", ":{port}"), ("http", ":{port}")])
async def test_a_forbidden_address_is_refused_by_every_submit(
    real_redis: RedisUnderTest, canaries: Canaries, scheme_and_port: tuple[str, str]
) -> None:
    """Of a job, a batch, and a batch in lines, with the same answer; and what was refused has left nothing."""
    scheme, port = scheme_and_port[0], scheme_and_port[1].format(port=canaries.port)
    line = '{"custom_id": "a", "params": {"max_tokens": 1, "messages": [{"role": "user", "content": "Hello."}]}}'
    lines = {"Content-Type": "application/jsonl"}
    item = {"custom_id": "a", "params": {"max_tokens": 1, "messages": [{"role": "user", "content": "Hello."}]}}
    async with serving(real_redis.url) as served, httpx2.AsyncClient(base_url=served.url, timeout=20) as api:
        admitted = []
        for host in _HOSTS:
            webhook = {"url": f"{scheme}://{host}{port}/hook"}
            answers = [
                await api.post("/v1/jobs", json={"prompt": "Hello.", "job": {"webhook": webhook}}),
                await api.post("/v1/batches", json={"requests": [item], "job": {"webhook": webhook}}),
                await api.post("/v1/batches", content=line, headers=lines, params={"webhook.url": webhook["url"]}),
            ]
            admitted += [(host, answer.text) for answer in answers if answer.status_code != 400]
        assert admitted == []
        assert (await api.get("/v1/jobs")).json()["data"] == []
        assert (await api.get("/v1/batches")).json()["data"] == []
