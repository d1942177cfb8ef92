"""A deployment for the examples: an API, a worker that tries again soon, and the stand-in for the LLM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.embedded_redis import free_port
from tests.support.deployment import Deployment, a_deployment, a_simulator

CHAT_PORT = free_port()
"""Of the example of a chat: the API allows pages of that origin."""


@pytest.fixture(scope="session")
def _deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {
        "TOKENSPOOL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
        "TOKENSPOOL_CORS_ORIGINS": f"http://127.0.0.1:{CHAT_PORT}",
        "TOKENSPOOL_UPSTREAM_RETRY_BASE_S": "0.1",
        "TOKENSPOOL_PRICES": '{"sim*": {"input": 1, "output": 1}}',
    }
    with a_simulator(Path(tmp_path_factory.mktemp("simulator"))) as url, a_deployment(url, **settings) as deployment:
        yield deployment


@pytest.fixture
async def deployment(_deployment: Deployment) -> Deployment:
    """For each test, all its processes run again."""
    await _deployment.make_whole(apis=1, workers=1)
    return _deployment
