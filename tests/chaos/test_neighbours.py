"""Whatever one tenant's ordinary key sends, other tenants are served: each attack of the bench, for some seconds."""

import subprocess
import sys
import time

import pytest
import uvloop

from bench.attacks import ATTACKS
from bench.neighbours import Felt, felt_by, system
from tests.support.facts import Fact

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

_LEAD_S = 2.0
_WINDOW_S = 6.0


@pytest.mark.parametrize("name", ATTACKS)
def test_a_neighbour_is_served(name: str, fact: Fact) -> None:
    """Every read and job of the bystander succeeds, and so does every health check. The bench measures how fast."""
    with system() as (port, evil, bystander):
        attacker = subprocess.Popen([sys.executable, "-m", "bench.attacks", name, str(port), evil])
        try:
            time.sleep(_LEAD_S)
            felt: Felt = uvloop.run(felt_by(port, bystander, _WINDOW_S))
            assert attacker.poll() is None, "the attack ended by itself"
        finally:
            attacker.terminate()
            attacker.wait(10)
    fact(f"beside {name}: {len(felt.list_ms)} reads, {len(felt.job_ms)} jobs, slowest read {max(felt.list_ms):.0f} ms")
    assert felt.refused == 0
