"""The figures of the service as JSON: how many jobs wait and run, what has ended, and how the upstreams, the workers and
Redis are.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from api.ops.health import RouteHealth, health_of
from api.ops.workers import WorkerView, view_of
from shared.clock import to_rfc3339
from shared.figures import (
    BUCKET_MS,
    BUCKET_S,
    Bucket,
    Point,
    ended_since,
    first_tokens_of,
    percentile,
    points_of,
)
from shared.routes import CHAIN_SEPARATOR
from shared.store.figures import BandDepth, Depths
from shared.store.memory import RedisFacts
from shared.store.redis_problems import RedisProblem
from shared.store.upstreams import Left, RouteState

_MINUTE_MS = 60_000
_HOUR_MS = 3_600_000


class BandFigures(msgspec.Struct, frozen=True):
    """The jobs of a priority that wait for their turn; those that wait for their time, for room or for money are not counted."""

    startable: int
    """How many would start now if there were free slots. Beyond a hundred flows it is an estimate."""
    oldest_wait_s: float | None
    """How long the first of them could have started; null if none waits for its turn. Jobs whose LLM is shut count too."""


class JobFigures(msgspec.Struct, frozen=True):
    """The jobs that have not ended."""

    waiting: int
    """All queued jobs."""
    startable: int
    running: int
    by_priority: dict[str, BandFigures]


class FirstToken(msgspec.Struct, frozen=True):
    """How long answers took to begin, from the start of their jobs. Null if none began."""

    p50: float | None
    p95: float | None


class MinuteLimit(msgspec.Struct, frozen=True):
    """A limit of a minute, and what is left of it now."""

    limit: int
    left: int


class RouteFigures(RouteHealth, frozen=True):
    """A route that was called within the hour. Null is no limit that is known."""

    calls_left: int | None
    """How many more calls its limits allow now."""
    requests: MinuteLimit | None
    input_tokens: MinuteLimit | None
    output_tokens: MinuteLimit | None


class RedisFigures(msgspec.Struct, frozen=True):
    """Redis. Null is what it does not report."""

    used_bytes: int | None
    max_bytes: int | None
    """Null, too, if it has no maxmemory."""
    policy: str | None
    persistence: str | None
    """``aof``, or ``none``: then a restart of Redis loses jobs."""
    problems: list[RedisProblem]


class BucketView(msgspec.Struct, frozen=True, rename={"begin": "from"}):
    """Ten seconds."""

    begin: str
    waiting: int
    running: int
    tokens: int
    succeeded: int
    failed: int
    first_token_p50_ms: float | None
    first_token_p95_ms: float | None


class History(msgspec.Struct, frozen=True, rename={"begin": "from"}):
    """The last hour: a value for each bucket, oldest first, from the first bucket that holds anything."""

    bucket_s: int
    begin: str
    waiting: list[int]
    """At the beginning of each bucket; as before where nobody looked."""
    running: list[int]
    tokens: list[int]
    succeeded: list[int]
    failed: list[int]
    first_token_p50_ms: list[float | None]
    first_token_p95_ms: list[float | None]


class StatsView(msgspec.Struct, frozen=True, kw_only=True):
    """The service now, over all tenants."""

    at: str
    jobs: JobFigures
    followers: int
    """Connections that follow a job or a batch."""
    tokens_per_s: float
    """Output tokens of all answers under way, over the last five seconds."""
    first_token_ms: FirstToken
    """Over the last minute."""
    ended_last_minute: dict[str, int]
    """By outcome."""
    ended_last_hour: dict[str, int]
    upstreams: list[RouteFigures]
    workers: list[WorkerView]
    redis: RedisFigures
    history: History | msgspec.UnsetType = msgspec.UNSET


def stats_of(
    depths: Depths,
    buckets: Mapping[int, Bucket],
    routes: Mapping[str, RouteState],
    workers: Iterable[Mapping[str, str]],
    redis: RedisFacts,
    problems: list[RedisProblem],
) -> StatsView:
    """The figures, without the history."""
    now_ms, facts = depths.now_ms, list(workers)
    bands = {band: _band_of(depth, routes, now_ms) for band, depth in depths.bands.items()}
    minute_began = (now_ms - _MINUTE_MS) // BUCKET_MS
    first_tokens = first_tokens_of(bucket for number, bucket in buckets.items() if number >= minute_began)
    return StatsView(
        at=to_rfc3339(now_ms),
        jobs=JobFigures(
            depths.waiting, sum(band.startable for band in bands.values()), depths.running, by_priority=bands
        ),
        followers=depths.followers,
        tokens_per_s=round(sum(_number(worker.get("tokens_per_s")) for worker in facts), 1),
        first_token_ms=FirstToken(percentile(first_tokens, 0.5), percentile(first_tokens, 0.95)),
        ended_last_minute=ended_since(now_ms - _MINUTE_MS, depths.outcomes, buckets),
        ended_last_hour=ended_since(now_ms - _HOUR_MS, depths.outcomes, buckets),
        upstreams=[_route_of(state) for _, state in sorted(routes.items())],
        workers=sorted(map(view_of, facts), key=lambda worker: worker.name),
        redis=RedisFigures(redis.used_bytes, redis.max_bytes, redis.policy, redis.persistence, problems),
    )


def history_of(buckets: Mapping[int, Bucket], newest: int) -> History:
    """The hour up to the bucket ``newest``."""
    points = points_of(buckets, newest)
    first = points[0].number if points else newest + 1
    columns: dict[str, Any] = {
        name: [getattr(point, name) for point in points] for name in Point._fields if name != "number"
    }
    return History(bucket_s=BUCKET_S, begin=to_rfc3339(first * BUCKET_MS), **columns)


def bucket_view_of(buckets: Mapping[int, Bucket], number: int) -> BucketView | None:
    """One bucket as a client appends it to the history; None if there is no history yet."""
    points = points_of(buckets, number)
    return BucketView(to_rfc3339(number * BUCKET_MS), *points[-1][1:]) if points else None


def _band_of(depth: BandDepth, routes: Mapping[str, RouteState], now_ms: int) -> BandFigures:
    startable = sum(_startable(chain, jobs, routes) for chain, jobs in depth.jobs.items())
    oldest_s = None if depth.oldest_ms is None else max(0, now_ms - depth.oldest_ms) / 1000
    return BandFigures(round(startable), oldest_s)


def _startable(chain: str, jobs: float, routes: Mapping[str, RouteState]) -> float:
    """How many of the jobs of a chain may call an upstream now: the first of its routes that is not shut."""
    for name in chain.split(CHAIN_SEPARATOR):
        state = routes.get(name)
        if state is None or (state.shut_s <= 0 and state.open_ms is None):
            return jobs if state is None or state.room is None else min(jobs, state.room)
        if state.why == "full" and state.open_ms is None:
            return 0  # a fallback is for a route that is shut
    return 0


def _route_of(state: RouteState) -> RouteFigures:
    return RouteFigures(
        **msgspec.structs.asdict(health_of(state)),
        calls_left=state.room,
        requests=_limit_of(state.requests),
        input_tokens=_limit_of(state.input_tokens),
        output_tokens=_limit_of(state.output_tokens),
    )


def _limit_of(left: Left | None) -> MinuteLimit | None:
    return None if left is None else MinuteLimit(*left)


def _number(text: str | None) -> float:
    """0 if a worker of another release says nothing, or something else."""
    try:
        return float(text or 0)
    except ValueError:
        return 0
