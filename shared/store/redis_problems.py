"""Why Redis cannot be reached, what it refuses, and how it may lose jobs: in an operator's words, for logs and ``/health``.

Callers of the API see none of it, and no text of Redis's own is quoted: it may repeat an argument, and so a secret.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from shared.telemetry import Logger

_HELD_S: Final = 15.0
"""A problem that was not noted for this long is over: connections, claims and looks note one at least once a second."""
_LOGGED_AGAIN_S: Final = 60.0


class RedisProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong. ``code`` is for programs, ``detail`` says to people what is wrong and what to do."""

    code: str
    detail: str

    @property
    def is_warning(self) -> bool:
        """Whether everything still works, for now."""
        return self.code in _WARNINGS


UNREACHABLE: Final = "unreachable"
TLS_FAILED: Final = "tls_failed"
LOGIN_REFUSED: Final = "login_refused"
TOO_MANY_CLIENTS: Final = "too_many_clients"
NO_DATABASE: Final = "no_database"
NOT_PRIMARY: Final = "not_primary"
NO_PERMISSION: Final = "no_permission"
REFUSED: Final = "refused"

_OF_A_CONNECTION: Final = frozenset({UNREACHABLE, TLS_FAILED, LOGIN_REFUSED, TOO_MANY_CLIENTS, NO_DATABASE})

INFO_REFUSED: Final = RedisProblem(
    "info_refused",
    "Redis refuses INFO, so tokenspool cannot see when its memory is nearly full: give its user +info.",
)
MAY_EVICT: Final = RedisProblem(
    "may_evict",
    "Redis may evict jobs when its memory is full: set its maxmemory-policy to noeviction.",
)
NOT_PERSISTENT: Final = RedisProblem(
    "not_persistent",
    "Redis keeps no append-only file, so a restart loses jobs: set its appendonly to yes.",
)

_WARNINGS: Final = frozenset({INFO_REFUSED.code, MAY_EVICT.code, NOT_PERSISTENT.code})


def logging_to(logger: Logger) -> Callable[[RedisProblem], None]:
    """An ``on_news`` that logs each problem."""
    return lambda problem: logger.warning("redis_problem", code=problem.code, detail=problem.detail)


class RedisProblems:
    """What is wrong now, as one process sees it. ``on_news`` is called when a problem begins, at most once a minute for each."""

    def __init__(
        self, on_news: Callable[[RedisProblem], None] | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_news = on_news
        self._now_s = now_s
        self._seen_s: dict[RedisProblem, float] = {}
        self._logged_s: dict[RedisProblem, float] = {}

    def note(self, problem: RedisProblem) -> None:
        """The problem exists now; it counts as current for 15 s more."""
        now_s = self._now_s()
        is_news = problem not in self._current(now_s)
        self._seen_s[problem] = now_s
        if is_news and now_s - self._logged_s.get(problem, float("-inf")) >= _LOGGED_AGAIN_S:
            self._logged_s[problem] = now_s
            if self._on_news:
                self._on_news(problem)

    def connected(self) -> None:
        """There is a connection: the problems that prevented one are over."""
        self._end(_OF_A_CONNECTION)

    def wrote(self) -> None:
        """Redis accepted a write: it is the primary."""
        self._end({NOT_PRIMARY})

    @property
    def current(self) -> list[RedisProblem]:
        """The problems that exist now."""
        return self._current(self._now_s())

    def _current(self, now_s: float) -> list[RedisProblem]:
        self._seen_s = {problem: seen_s for problem, seen_s in self._seen_s.items() if now_s - seen_s < _HELD_S}
        return list(self._seen_s)

    def _end(self, codes: frozenset[str] | set[str]) -> None:
        self._seen_s = {problem: seen_s for problem, seen_s in self._seen_s.items() if problem.code not in codes}
