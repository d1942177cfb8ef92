"""The OpenAPI document is true: schemathesis makes requests from it and finds no undocumented response."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deployment import a_deployment, a_simulator

_CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.fuzz
@pytest.mark.timeout(1200)
async def test_schemathesis_finds_nothing_in_any_phase(tmp_path: Path) -> None:
    """Examples, coverage, fuzzing and sequences, against real processes: API, worker, Redis, stand-in for the LLM."""
    with a_simulator(tmp_path) as simulator_url, a_deployment(simulator_url) as deployment:
        await deployment.make_whole(apis=1, workers=1)
        url = deployment.urls[0]
        command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(_CONFIG), "run"]
        command += [f"{url}/openapi.json", "--url", url, "--phases", "examples,coverage,fuzzing,stateful", "--no-color"]
        command += ["--max-examples", "40", "--max-time", "120", "--request-timeout", "40", "--continue-on-failure"]
        command += ["--output-truncate", "true"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        print(done.stdout[-4000:])  # noqa: T201 - shows what was tried
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
