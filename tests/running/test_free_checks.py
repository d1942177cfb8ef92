"""A worker checks whether its upstreams respond, so that ``/health`` knows before the first job."""

from typing import Any

import pytest

from tests.running.crew import Crew, Hand
from tests.support.wait import wait_until


async def said(crew: Crew, hand: Hand) -> str | None:
    """What the worker reports about the LLM."""
    found = {facts["name"]: facts.get("llm") for facts in await crew.runtime.workers.living()}
    return found.get(hand.worker.name)


async def says(crew: Crew, hand: Hand, state: str, *, timeout_s: float) -> None:
    async def is_said() -> bool:
        return await said(crew, hand) == state

    await wait_until(is_said, f"the upstream to be {state}", timeout_s=timeout_s)


@pytest.mark.parametrize(("there", "state"), [(True, "reachable"), (False, "unreachable")])
async def test_an_upstream_is_known_without_a_job(crew: Crew, there: bool, state: str) -> None:
    elsewhere: dict[str, Any] = {} if there else {"anthropic_base_url": "http://127.0.0.1:1"}
    hand = await crew.worker(idle_check_s=60, **elsewhere)
    await says(crew, hand, state, timeout_s=2)
    assert crew.simulator.calls == [], "no call that costs anything"


async def test_each_worker_knows_at_its_start(crew: Crew) -> None:
    """Also a second worker, and one that replaces a dead one: the check of a minute ago was another worker's."""
    first = await crew.worker(idle_check_s=60)
    await says(crew, first, "reachable", timeout_s=2)
    await first.killed()
    second = await crew.worker(idle_check_s=60)
    await says(crew, second, "reachable", timeout_s=2)


async def test_the_first_call_is_reported_at_once(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the next tick."""
    monkeypatch.setattr("worker.arq_worker._TICK_S", 1000.0)
    hand = await crew.worker()
    assert await said(crew, hand) is None
    await crew.ended(await crew.submit())
    await says(crew, hand, "reachable", timeout_s=2)
