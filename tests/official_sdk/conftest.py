"""The official SDK, this year's and last year's, each in its own environment, against a whole deployment."""

import asyncio
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import Deployment, a_deployment, a_simulator

PROGRAMS = Path(__file__).parent / "programs"
ROOT = PROGRAMS.parent.parent.parent

PYTHONS = {"2.12": Path(sys.executable), "0.75": ROOT / ".venv" / "old-sdk" / "bin" / "python"}
"""Interpreters, by the version of the SDK that they have."""

NODE_SDK = ROOT / ".venv" / "node"
"""The folder with the SDK for Node."""

Seen = dict[tuple[str, str], dict[str, Any]]
"""A program's output, by case and by sync or async."""

_LONGEST_S = 50
_OF_THE_DEVELOPER = ("ANTHROPIC_", "OPENAI_", "TOKENSPOOL_", "PYTHON")


@dataclass(frozen=True)
class Sdk:
    """One version of the SDK."""

    version: str
    run: str
    """Part of every prompt, so that the prompts of two versions differ."""

    async def sees(self, program: str, base_url: str, **environment: str) -> Seen:
        """Runs a program against that URL; returns what it prints. It must exit with 0."""
        process = await asyncio.create_subprocess_exec(
            *self._command(program),
            env=self._environment(base_url) | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_LONGEST_S):
                out, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, errors.decode()
        lines = [json.loads(line) for line in out.splitlines()]
        return {(line.pop("case"), line.pop("mode")): line for line in lines}

    def _command(self, program: str) -> list[str | Path]:
        if self.version == "node":
            return ["node", PROGRAMS / f"{program}.mjs"]
        return [PYTHONS[self.version], PROGRAMS / f"{program}.py"]

    def _environment(self, base_url: str) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_DEVELOPER)}
        given = {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": "sk-of-the-program", "RUN": self.run}
        return {**mine, **given, "NODE_SDK": str(NODE_SDK)}


@pytest.fixture(params=PYTHONS)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each version in turn."""
    return _sdk(request.param)


@pytest.fixture(params=[*PYTHONS, "node"])
def any_sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each version in turn, and the one for Node."""
    return _sdk(request.param)


def _sdk(version: str) -> Sdk:
    if version == "node":
        if shutil.which("node") is None:
            pytest.skip("there is no node on this machine")
        if not (NODE_SDK / "node_modules").exists():
            pytest.skip("there is no SDK for Node in .venv/node; scripts/set-up dev brings it where npm is installed")
    elif not PYTHONS[version].exists():
        pytest.fail("there is no old SDK in .venv/old-sdk; scripts/set-up dev makes it")
    return Sdk(version, f"run-{version}-{secrets.token_hex(3)}")


@pytest.fixture(scope="session")
def reference_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The upstream itself, for comparison. It is a simulator of its own, with its own counts of calls."""
    with a_simulator(Path(tmp_path_factory.mktemp("reference"))) as url:
        yield url


@pytest.fixture(scope="session")
def _deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with (
        a_simulator(Path(tmp_path_factory.mktemp("simulator"))) as url,
        a_deployment(url, TOKENSPOOL_UPSTREAM_RETRY_BASE_S="0.05") as deployment,
    ):
        yield deployment


@pytest.fixture
async def deployment(_deployment: Deployment) -> Deployment:
    """An API and a worker with a simulator as their upstream."""
    await _deployment.make_whole(apis=1, workers=1)
    return _deployment
