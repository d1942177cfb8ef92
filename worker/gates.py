"""What this worker knows of the routes' gates and limits, and how many jobs of each route it may therefore start.

Pure except for the clock: the governor passes in what Redis said. A quota is this worker's share of what is left, so that
all workers together do not claim more jobs than may be called. When a gate opens, the share grows from 0 over 5 s.
"""

import random
from collections.abc import Callable, Iterable
from typing import Final

from shared.routes import Route
from shared.store.upstreams import Denied, Obstacle, RouteState

SHUT: Final = -1
"""The quota of a shut route: its jobs stay in the queue, unless one of their fallbacks may be called."""

SPREAD_S: Final = 5.0
"""Jobs that waited for a gate start spread over this time, not all at once."""

UNKNOWN: Final = ""
"""The name in the quotas that stands for every route that was not looked at yet."""

_FRESH_S: Final = 0.25
_FIRST_FEW: Final = 4
"""The quota of a route that nobody has called yet, if the settings limit any: its first permit shows whether it has limits."""
_UNBOUNDED: Final = 1 << 30
_SOON_S: Final = 0.05


class Gates:
    """One for a worker process."""

    def __init__(self, now_s: Callable[[], float], *, slots: int, has_limits: bool = False) -> None:
        self._now_s = now_s
        self._slots = slots
        self._has_limits = has_limits
        """Whether the settings limit any route."""
        self._states: dict[str, RouteState] = {}
        self._quotas: dict[str, int] = {}
        self._again_s: dict[str, float] = {}
        """When to look again at a route whose quota is used up."""
        self._too_small_until_s: dict[str, float] = {}
        """Until when a route's room is known to be too small for a call that was denied."""
        self._troubled: set[str] = set()
        """Routes that were shut, or whose circuit was open, at the last look."""
        self._opened_s: dict[str, float] = {}
        self._started: dict[str, int] = {}
        """How many jobs were started since a route opened, for those that opened less than SPREAD_S ago."""
        self._looked_s: float | None = None

    def is_limited(self, route: Route) -> bool:
        """Whether the route may have limits, so that a call must estimate its output tokens."""
        state = self._states.get(route.name)
        return any(route.limits) or (state is not None and state.room is not None)

    def must_look(self) -> bool:
        """Whether to ask Redis before a claim: only if a route is bounded, and what we know of it is not fresh."""
        if self._looked_s is None:
            return True
        is_bounded = bool(self._quotas or self._opened_s)
        return is_bounded and self._now_s() - self._looked_s >= _FRESH_S

    def forget(self) -> None:
        """Something changed: the next claim looks first."""
        self._looked_s = None

    def looked(self, states: Iterable[RouteState], *, workers: int) -> None:
        """Takes in what Redis said. ``workers`` is how many share the room."""
        now_s = self._looked_s = self._now_s()
        self._states = {state.name: state for state in states}
        # Callers can invent names of models: what is known of routes that Redis no longer reports must not pile up.
        self._troubled &= self._states.keys()
        self._too_small_until_s = {name: at_s for name, at_s in self._too_small_until_s.items() if at_s > now_s}
        self._quotas.clear()
        self._again_s.clear()
        for name, state in self._states.items():
            if state.why != "full" and state.shut_s > 0:
                self._shut(name, now_s + state.shut_s)
            elif state.open_ms is None and name in self._troubled:
                self._troubled.discard(name)
                self._opened_s[name] = now_s
                self._started[name] = 0
            if state.open_ms is not None:
                self._troubled.add(name)
            if state.room is not None and self._quotas.get(name) != SHUT:
                is_too_small = self._too_small_until_s.get(name, 0) > now_s
                self._set(name, 0 if is_too_small else _share(state.room, workers), now_s + max(_SOON_S, state.shut_s))

    def denied(self, name: str, denial: Denied) -> None:
        """A call was not permitted, and the next would not be either."""
        again_s = self._now_s() + max(_SOON_S, denial.wait_s)
        match denial.why:
            case Obstacle.SHUT:
                self._shut(name, again_s)
            case Obstacle.FULL:  # maybe only for a call of that many tokens, which a look cannot show
                self._too_small_until_s[name] = again_s
                self._set(name, 0, again_s)
            case Obstacle.SPENT:
                pass  # a first call would be permitted

    def claimed(self, name: str) -> None:
        """A job that will ask for a permit was started."""
        if self._has_limits and name not in self._states:
            self._looked_s = None
            self._again_s[name] = self._now_s() + _SOON_S
        if name in self._started:
            self._started[name] += 1
        if self._quotas.get(name, 0) > 0:
            self._set(name, self._quotas[name] - 1, self._now_s() + _SOON_S)

    def quotas(self) -> dict[str, int]:
        """By route, how many of its jobs this worker may start now, or SHUT; routes without a bound are left out."""
        now_s = self._now_s()
        quotas = dict(self._quotas)
        if self._has_limits:
            quotas = {UNKNOWN: _FIRST_FEW, **dict.fromkeys(self._states, _UNBOUNDED), **quotas}
        for name, opened_s in list(self._opened_s.items()):
            if now_s - opened_s >= SPREAD_S:
                del self._opened_s[name], self._started[name]
            elif quotas.get(name) != SHUT:
                ramp = max(0, 1 + int(self._slots * (now_s - opened_s) / SPREAD_S) - self._started[name])
                quotas[name] = min(ramp, quotas.get(name, ramp))
        return quotas

    def next_s(self) -> float | None:
        """Seconds until a quota may be larger than now; None if none is bounded."""
        now_s = self._now_s()
        waits = [max(_SOON_S, again_s - now_s) for again_s in self._again_s.values()]
        waits += [max(0.01, SPREAD_S / self._slots) for _ in self._opened_s]
        return min(waits, default=None)

    def _set(self, name: str, quota: int, again_s: float) -> None:
        """Only a quota of 0 must be looked at again."""
        self._quotas[name] = quota
        if quota == 0:
            self._again_s[name] = again_s

    def _shut(self, name: str, until_s: float) -> None:
        self._troubled.add(name)
        self._opened_s.pop(name, None)
        self._started.pop(name, None)
        self._quotas[name] = SHUT
        self._again_s[name] = until_s


def _share(room: int, workers: int) -> int:
    """One worker's share of what is left. If that is less than one for each, chance decides."""
    if room >= workers:
        return room // workers
    return int(random.random() * workers < room)
