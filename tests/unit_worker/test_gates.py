"""How many jobs of each route a worker may start, from what it knows of the gates."""

import random
from typing import Any

import pytest

from shared.routes import Limits, ProviderName, Route
from shared.store.upstreams import Denied, Obstacle, RouteState
from worker.gates import SHUT, SPREAD_S, UNKNOWN, Gates

SLOTS = 100


class Worker:
    """Gates with a clock of their own."""

    def __init__(self, **members: Any) -> None:
        self.s = 1_000.0
        self.gates = Gates(lambda: self.s, slots=SLOTS, **members)

    def see(self, *states: RouteState, workers: int = 1) -> dict[str, int]:
        """A look, and the quotas from then on."""
        self.gates.looked(states, workers=workers)
        return self.gates.quotas()

    def after(self, seconds: float) -> "Worker":
        self.s += seconds
        return self


def state(
    name: str = "r", *, shut_s: float = 0, why: str = "", open_ms: int | None = None, room: int | None = None
) -> RouteState:
    return RouteState(name, shut_s, why, open_ms, room)


def gate(shut_s: float) -> RouteState:
    return state(shut_s=shut_s, why="upstream_rate_limited")


def test_nothing_is_bounded_where_nothing_is_wrong() -> None:
    """One look, then none before the next tick's."""
    worker = Worker()
    assert worker.gates.must_look()
    assert worker.see(state()) == {}
    assert worker.gates.next_s() is None
    assert not worker.after(10).gates.must_look()
    worker.gates.forget()
    assert worker.gates.must_look()


def test_what_is_bounded_is_looked_at_again_soon() -> None:
    """A quarter of a second is fresh enough."""
    worker = Worker()
    worker.see(state(room=5))
    assert not worker.after(0.2).gates.must_look()
    assert worker.after(0.1).gates.must_look()


def test_a_gate_shuts_its_route_alone() -> None:
    """Until a look says otherwise, and the worker knows when to look."""
    worker = Worker()
    assert worker.see(gate(30), state("s")) == {"r": SHUT}
    assert worker.gates.next_s() == pytest.approx(30)
    assert worker.after(29).gates.next_s() == pytest.approx(1)
    assert worker.gates.quotas() == {"r": SHUT}


def test_a_gate_that_opens_lets_its_jobs_start_over_five_seconds() -> None:
    """One at once, then more and more, then any number."""
    worker = Worker()
    worker.see(gate(1))
    started = 0
    worker.after(1)
    for step in range(50):
        quota = worker.see(state())["r"]
        for _ in range(quota):
            worker.gates.claimed("r")
        started += quota
        assert started == 1 + int(SLOTS * step / 50 + 1e-6)
        assert worker.gates.next_s() == SPREAD_S / SLOTS
        assert worker.gates.quotas() == {"r": 0}
        worker.after(SPREAD_S / 50 + 1e-9)
    assert worker.see(state()) == {}
    assert worker.gates.next_s() is None


def test_a_gate_that_shuts_again_ends_the_spread() -> None:
    """And the next one begins anew."""
    worker = Worker()
    worker.see(gate(1))
    assert worker.after(1).see(state()) == {"r": 1}
    assert worker.after(2).see(gate(1)) == {"r": SHUT}
    assert worker.after(1).see(state()) == {"r": 1}
    worker.gates.denied("r", Denied(Obstacle.SHUT, 2, "upstream_overloaded"))
    assert worker.gates.quotas() == {"r": SHUT}
    assert worker.gates.next_s() == pytest.approx(2)


def test_an_open_circuit_lets_one_job_start() -> None:
    """Of all workers' together, about; when it closes, the jobs that waited start over five seconds."""
    worker = Worker()
    assert worker.see(state(shut_s=1, why="upstream_overloaded", open_ms=5)) == {"r": SHUT}
    assert worker.after(1).see(state(why="upstream_overloaded", open_ms=5, room=1)) == {"r": 1}
    worker.gates.claimed("r")
    assert worker.gates.quotas() == {"r": 0}
    assert worker.after(1).see(state()) == {"r": 1}
    assert worker.after(1).see(state()) == {"r": 1 + SLOTS // 5}


@pytest.mark.parametrize(
    ("room", "workers", "quota"), [(0, 1, 0), (0, 9, 0), (7, 1, 7), (7, 2, 3), (9, 9, 1), (100, 3, 33)]
)
def test_workers_share_what_is_left(room: int, workers: int, quota: int) -> None:
    """Evenly."""
    assert Worker().see(state(room=room), workers=workers) == {"r": quota}


def test_the_last_few_go_to_whoever_has_the_luck() -> None:
    """None for all would be a standstill, one for each too many."""
    random.seed(1)
    drawn = [Worker().see(state(room=1), workers=4)["r"] for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert 60 < sum(drawn) < 140


def test_what_was_started_is_taken_off() -> None:
    """Down to nothing, and never to what means shut."""
    worker = Worker()
    worker.see(state(room=2))
    for left in (1, 0, 0):
        worker.gates.claimed("r")
        assert worker.gates.quotas() == {"r": left}
    worker.gates.claimed("another")
    assert worker.gates.quotas() == {"r": 0}


def test_a_full_route_is_not_shut() -> None:
    """Its stand-ins are not asked: there is hope for the very model."""
    worker = Worker()
    assert worker.see(state(shut_s=30, why="full", room=0)) == {"r": 0}
    assert worker.gates.next_s() == pytest.approx(30)


@pytest.mark.parametrize(
    ("why", "quotas"), [(Obstacle.SHUT, {"r": SHUT}), (Obstacle.FULL, {"r": 0}), (Obstacle.SPENT, {})]
)
def test_what_was_denied_is_not_asked_for_again(why: Obstacle, quotas: dict[str, int]) -> None:
    """Before it is said to be possible; but first calls may be made where retries are spent."""
    worker = Worker()
    worker.see(state())
    worker.gates.denied("r", Denied(why, 3, ""))
    assert worker.gates.quotas() == quotas
    assert worker.gates.next_s() == (pytest.approx(3) if quotas else None)


def test_room_that_is_too_small_for_a_call_is_none_until_more_is_free() -> None:
    """A look tells of room for some call; that the next one's tokens do not fit was told by its denial."""
    worker = Worker()
    worker.see(state(room=9))
    worker.gates.denied("r", Denied(Obstacle.FULL, 3, ""))
    assert worker.after(1).see(state(room=9)) == {"r": 0}
    assert worker.after(2).see(state(room=9)) == {"r": 9}


def test_routes_that_nobody_looks_at_any_more_are_forgotten() -> None:
    """Callers name the models, and may name a million of them."""
    worker = Worker()
    for number in range(10):
        worker.gates.denied(f"shut-{number}", Denied(Obstacle.SHUT, 1, "upstream_overloaded"))
        worker.gates.denied(f"full-{number}", Denied(Obstacle.FULL, 1, ""))
    worker.after(2).see(state("other"))
    assert not worker.gates._troubled
    assert not worker.gates._too_small_until_s


def test_a_limit_that_is_not_reached_wakes_nobody() -> None:
    """Most upstreams name their limits: an idle worker must not look twenty times a second for that."""
    worker = Worker()
    worker.see(state(room=2))
    assert worker.gates.next_s() is None
    worker.gates.claimed("r")
    assert worker.gates.next_s() is None
    worker.gates.claimed("r")
    assert worker.gates.next_s() == pytest.approx(0.05)


def test_tokens_are_reckoned_with_where_there_is_a_limit() -> None:
    """Of the settings, or one that was learned."""
    worker = Worker()
    route = Route(ProviderName.ANTHROPIC, "m")
    assert not worker.gates.is_limited(route)
    assert worker.gates.is_limited(route._replace(limits=Limits(output_tokens=5)))
    worker.see(state(route.name, room=3))
    assert worker.gates.is_limited(route)


def test_routes_that_nobody_called_yet_start_a_few() -> None:
    """Where the settings name limits: a route's first permit shows whether it has one. A known route has no such bound."""
    worker = Worker(has_limits=True)
    quotas = worker.see(state("known"), gate(5))
    assert quotas["r"] == SHUT
    assert 0 < quotas[UNKNOWN] < 10
    assert quotas["known"] > 1_000_000
    worker.gates.claimed("new")
    assert worker.gates.must_look()
