"""How many jobs of each route a worker may start, from what it knows of the gates."""

import random
from typing import Any

import pytest

from shared.routes import Limits, ProviderName, Route
from shared.store.upstreams import Denied, Obstacle, RouteState
from worker.gates import SHUT, SPREAD_S, UNKNOWN, Gates

SLOTS = 100


class Worker:
    """Gates with their own clock."""

    def __init__(self, **members: Any) -> None:
        self.s = 1_000.0
        self.gates = Gates(lambda: self.s, slots=SLOTS, **members)

    def see(self, *states: RouteState, workers: int = 1) -> dict[str, int]:
        """Updates the gates; returns the quotas."""
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


def test_without_trouble_nothing_is_bounded() -> None:
    """The gates are read once, and then not before the next tick."""
    worker = Worker()
    assert worker.gates.must_look()
    assert worker.see(state()) == {}
    assert worker.gates.next_s() is None
    assert not worker.after(10).gates.must_look()
    worker.gates.forget()
    assert worker.gates.must_look()


def test_a_bounded_route_is_read_again_soon() -> None:
    """After a quarter of a second."""
    worker = Worker()
    worker.see(state(room=5))
    assert not worker.after(0.2).gates.must_look()
    assert worker.after(0.1).gates.must_look()


def test_a_gate_shuts_only_its_route() -> None:
    """Until a later read opens it; the worker knows when to read."""
    worker = Worker()
    assert worker.see(gate(30), state("s")) == {"r": SHUT}
    assert worker.gates.next_s() == pytest.approx(30)
    assert worker.after(29).gates.next_s() == pytest.approx(1)
    assert worker.gates.quotas() == {"r": SHUT}


def test_a_gate_that_opens_lets_its_jobs_start_over_five_seconds() -> None:
    """One job at once, then more and more, then any number."""
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
    """The next opening begins a new one."""
    worker = Worker()
    worker.see(gate(1))
    assert worker.after(1).see(state()) == {"r": 1}
    assert worker.after(2).see(gate(1)) == {"r": SHUT}
    assert worker.after(1).see(state()) == {"r": 1}
    worker.gates.denied("r", Denied(Obstacle.SHUT, 2, "upstream_overloaded"))
    assert worker.gates.quotas() == {"r": SHUT}
    assert worker.gates.next_s() == pytest.approx(2)


def test_an_open_circuit_lets_one_job_start() -> None:
    """About one over all workers; when it closes, waiting jobs start over five seconds."""
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
    """In equal parts."""
    assert Worker().see(state(room=room), workers=workers) == {"r": quota}


def test_the_last_few_permits_go_to_random_workers() -> None:
    """None for every worker would be a standstill, one for each would be too many."""
    random.seed(1)
    drawn = [Worker().see(state(room=1), workers=4)["r"] for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert 60 < sum(drawn) < 140


def test_started_jobs_reduce_the_quota() -> None:
    """Down to zero, but never to the value that means shut."""
    worker = Worker()
    worker.see(state(room=2))
    for left in (1, 0, 0):
        worker.gates.claimed("r")
        assert worker.gates.quotas() == {"r": left}
    worker.gates.claimed("another")
    assert worker.gates.quotas() == {"r": 0}


def test_a_full_route_is_not_shut() -> None:
    """Its stand-ins are not called, since the route will have room again."""
    worker = Worker()
    assert worker.see(state(shut_s=30, why="full", room=0)) == {"r": 0}
    assert worker.gates.next_s() == pytest.approx(30)


@pytest.mark.parametrize(
    ("why", "quotas"), [(Obstacle.SHUT, {"r": SHUT}), (Obstacle.FULL, {"r": 0}), (Obstacle.SPENT, {})]
)
def test_a_denied_call_is_not_requested_again(why: Obstacle, quotas: dict[str, int]) -> None:
    """Not before it may be possible; but if only retries are used up, first calls may be made."""
    worker = Worker()
    worker.see(state())
    worker.gates.denied("r", Denied(why, 3, ""))
    assert worker.gates.quotas() == quotas
    assert worker.gates.next_s() == (pytest.approx(3) if quotas else None)


def test_room_that_was_too_small_for_a_call_does_not_count_until_more_is_free() -> None:
    """A read shows room for some call, but the denial showed that the next call's tokens do not fit."""
    worker = Worker()
    worker.see(state(room=9))
    worker.gates.denied("r", Denied(Obstacle.FULL, 3, ""))
    assert worker.after(1).see(state(room=9)) == {"r": 0}
    assert worker.after(2).see(state(room=9)) == {"r": 9}


def test_routes_that_are_no_longer_read_are_forgotten() -> None:
    """Callers name the models, and may name a million of them."""
    worker = Worker()
    for number in range(10):
        worker.gates.denied(f"shut-{number}", Denied(Obstacle.SHUT, 1, "upstream_overloaded"))
        worker.gates.denied(f"full-{number}", Denied(Obstacle.FULL, 1, ""))
    worker.after(2).see(state("other"))
    assert not worker.gates._troubled
    assert not worker.gates._too_small_until_s


def test_a_limit_that_is_not_reached_wakes_nobody() -> None:
    """Most upstreams report limits, and an idle worker must not poll twenty times a second because of that."""
    worker = Worker()
    worker.see(state(room=2))
    assert worker.gates.next_s() is None
    worker.gates.claimed("r")
    assert worker.gates.next_s() is None
    worker.gates.claimed("r")
    assert worker.gates.next_s() == pytest.approx(0.05)


def test_tokens_count_if_there_is_a_limit() -> None:
    """From the settings, or learned from an upstream."""
    worker = Worker()
    route = Route(ProviderName.ANTHROPIC, "m")
    assert not worker.gates.is_limited(route)
    assert worker.gates.is_limited(route._replace(limits=Limits(output_tokens=5)))
    worker.see(state(route.name, room=3))
    assert worker.gates.is_limited(route)


def test_routes_that_were_never_called_start_few_jobs() -> None:
    """If the settings have limits: the first permit shows whether the route has one. A known route has no bound."""
    worker = Worker(has_limits=True)
    quotas = worker.see(state("known"), gate(5))
    assert quotas["r"] == SHUT
    assert 0 < quotas[UNKNOWN] < 10
    assert quotas["known"] > 1_000_000
    worker.gates.claimed("new")
    assert worker.gates.must_look()
