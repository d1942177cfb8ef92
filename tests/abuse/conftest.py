"""Real processes with a hook that records every unpickling, and every execution of what a user sent."""

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.abuse.hostile import CANARY, texts
from tests.support.deployment import CANARIES, Deployment, a_deployment, a_simulator

_HOOK = Path(__file__).parent / "hook"


class Watched(NamedTuple):
    """A deployment, and what its hooks recorded."""

    deployment: Deployment
    noted_at: Path
    owned: Path
    """Hostile values create this file if they are executed."""
    texts: list[str]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that installs the same hook in another process."""
        return environment_of(self.noted_at)

    def nothing_was_run(self) -> None:
        """Asserts that nothing was unpickled, compiled or passed to a shell."""
        watched = Path(f"{self.noted_at}.watched").read_text().split()
        assert {str(process.pid) for process in self.deployment.processes} <= set(watched)
        assert not self.noted_at.exists(), self.noted_at.read_text()[:2000]
        assert not self.owned.exists()

    def nothing_leaked(self) -> None:
        """Asserts that nothing is in a log, a key's name or a metric, and that no user could forge a log line."""
        CANARIES.append(CANARY)
        try:
            assert self.deployment.say_what_leaked() == []
        finally:
            CANARIES.remove(CANARY)
        for process in self.deployment.processes:
            for line in process.log.split("\n"):
                assert line.isprintable(), (process.name, line)
                assert not line or isinstance(json.loads(line), dict), process.name


def environment_of(noted_at: Path) -> dict[str, str]:
    """The environment that installs the hook."""
    return {"PYTHONPATH": str(_HOOK), "NOTED_AT": str(noted_at), "NOTED_IF": CANARY}


@pytest.fixture(scope="session")
def _watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("abuse")
    noted_at, owned = directory / "noted", directory / f"owned-{CANARY}"
    settings = {"TOKENSPOOL_MODEL": "sim-t40-g0-f0", "TOKENSPOOL_LEASE_S": "1", **environment_of(noted_at)}
    with a_simulator(directory) as url, a_deployment(url, **settings) as deployment:
        yield Watched(deployment, noted_at, owned, texts(f"touch {owned}"))


@pytest.fixture
async def watched(_watched: Watched) -> AsyncIterator[Watched]:
    """An API and a worker, which must treat everything that a test sends as text."""
    await _watched.deployment.make_whole(apis=1, workers=1)
    yield _watched
    _watched.nothing_was_run()
    _watched.nothing_leaked()
    assert all(process.is_running for process in _watched.deployment.processes)


@pytest.fixture
def python() -> str:
    """The interpreter that runs the tests."""
    return sys.executable
