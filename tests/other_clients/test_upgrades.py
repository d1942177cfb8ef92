"""Clients that ask for HTTP/2 on a plain connection, as they do by default."""

import json
import shutil
from typing import Final

import pytest

from tests.other_clients.conftest import PROGRAMS, printed
from tests.support.served import Served

pytestmark = pytest.mark.timeout(90)

_MESSAGE: Final = json.dumps(
    {"model": "sim-t6-g1-f1", "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
)


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on this machine: JDK's HttpClient is not tried")
async def test_the_http_client_of_the_jdk_works_with_its_defaults(served: Served) -> None:
    """Bodies with a length and in chunks, also large ones; a stream; a batch; several connections at once."""
    output = await printed("java", PROGRAMS / "JdkHttpClient.java", served.url)
    seen = {name: (status, body) for name, status, body in (line.split("\t") for line in output.splitlines())}
    for name in ("post", "chunked post", "large post"):
        status, body = seen[name]
        assert (status, json.loads(body)["stop_reason"]) == ("200", "end_turn"), name
    assert seen["stream"][0] == "200"
    assert [name for name in seen["stream"][1].split(",") if name != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    status, body = seen["batch"]
    assert (status, json.loads(body)["counts"]["total"]) == ("202", 2)
    assert seen["at once"][1] == "200,200,200,200,200"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine: curl --http2 is not tried")
async def test_curl_with_http2_gets_its_response_by_http_1_1(served: Served) -> None:
    """Two requests on one connection; the first asks for the upgrade."""
    asked = ["--header", "content-type: application/json", "--data", _MESSAGE, f"{served.url}/v1/messages"]
    output = await printed("curl", "--silent", "--http2", "--write-out", r"\n%{http_version}\n", *asked, *asked[-1:])
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [answer["stop_reason"] for answer in answers] == ["end_turn", "end_turn"]
    assert output.splitlines().count("1.1") == 2
