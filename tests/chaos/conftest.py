"""Deployments of real processes, which the tests of a run share: what one test killed is restarted for the next."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from tests.support.deployment import Deployment, a_deployment, a_simulator
from tests.support.facts import fact, print_facts
from tests.support.history import History

__all__ = ["fact"]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Prints the figures after the results."""
    print_facts(terminalreporter, "tests/chaos")


@pytest.fixture(scope="session")
def simulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One upstream for all deployments."""
    with a_simulator(Path(tmp_path_factory.mktemp("simulator"))) as url:
        yield url


@pytest.fixture(scope="session")
def _quick(simulator_url: str) -> Iterator[Deployment]:
    with a_deployment(simulator_url, TOKENSPOOL_LEASE_S="1") as deployment:
        yield deployment


@pytest.fixture(scope="session")
def _real(simulator_url: str) -> Iterator[Deployment]:
    with a_deployment(simulator_url) as deployment:
        yield deployment


@pytest.fixture
async def quick(_quick: Deployment) -> AsyncIterator[Deployment]:
    """Two APIs and two workers, with leases of one second."""
    await _quick.make_whole(apis=2, workers=2)
    yield _quick
    await nothing_waits(_quick)
    assert _quick.say_what_leaked() == []


@pytest.fixture
async def real(_real: Deployment) -> AsyncIterator[Deployment]:
    """An API and a worker, with the default settings."""
    await _real.make_whole(apis=1, workers=1)
    yield _real
    await nothing_waits(_real)
    assert _real.say_what_leaked() == []


@pytest.fixture
def empty(simulator_url: str) -> Iterator[Deployment]:
    """A Redis for one test, without any process of ours."""
    with a_deployment(simulator_url, TOKENSPOOL_LEASE_S="1") as deployment:
        yield deployment


async def nothing_waits(deployment: Deployment) -> None:
    """Empties Redis if a failed test left jobs, so that the next one does not run them."""
    if not deployment.redis.is_running:
        deployment.redis.restart()
    async with deployment.runtime() as runtime:
        await runtime._commands.call("CONFIG", "SET", "maxmemory", "0")
        if await runtime._commands.call("EXISTS", "ts:{0}:waiting", "ts:{0}:running"):
            for worker in deployment.workers:
                worker.kill()
            await runtime._commands.call("FLUSHALL")


@pytest.fixture
def history_of(request: pytest.FixtureRequest) -> "HistoryOf":
    """A recorder whose jobs have nonces with the test's name, unlike those of any other history."""
    return HistoryOf(request.node.name)


class HistoryOf:
    """Begins a history on a deployment."""

    def __init__(self, test: str) -> None:
        words = test.removeprefix("test_").replace("[", "-").replace("]", "").split("_")
        self._name = "-".join(words)[:24].strip("-")

    def __call__(self, deployment: Deployment) -> History:
        return History(deployment, f"{self._name}-{secrets.token_hex(3)}")
