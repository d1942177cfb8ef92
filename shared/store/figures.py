"""The figures of all tenants: what waits, runs and has ended now, and the hour's ring of buckets (shared/figures.py)."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from shared.figures import BUCKET_MS, BUCKETS, EMPTY, OUTCOMES, Bucket, bucket_of, fields_of
from shared.job import BANDS
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.waits import FLOWS_COUNTED

_SETTLED_MS: Final = 2_000
"""This long after its end, a bucket and the sample after it are in Redis."""
_READ_AT_ONCE: Final = 60


class BandDepth(NamedTuple):
    """The jobs of a band that wait for their turn. Exact up to a hundred flows; beyond that scaled up from them."""

    jobs: Mapping[str, float]
    """By chain of routes."""
    oldest_ms: int | None
    """Since when the one that waits longest could have started."""


class Depths(NamedTuple):
    """The service now, over all tenants."""

    now_ms: int
    waiting: int
    running: int
    ended: Mapping[str, int]
    """By outcome, and by its error's code after a blank if it has one: how many jobs have ended so, ever."""
    followers: int
    bands: Mapping[str, BandDepth]

    @property
    def outcomes(self) -> dict[str, int]:
        """How many jobs have ended, by outcome alone."""
        sums = dict.fromkeys(OUTCOMES, 0)
        for name, count in self.ended.items():
            outcome = name.partition(" ")[0]
            if outcome in sums:
                sums[outcome] += count
        return sums


class Figures:
    """One for a process; it keeps the buckets that it has read."""

    def __init__(self, commands: Commands, urgent: Commands) -> None:
        self._commands = commands
        self._urgent = urgent
        self._read_lock = asyncio.Lock()
        self._whole = 0
        """The number of the newest bucket that was read when it was whole."""
        self.buckets: dict[int, Bucket] = {}
        """By number, those of the last hour, as ``read`` found them."""

    async def add(self, amounts: Mapping[str, int]) -> None:
        """A worker adds to the present bucket."""
        await self._commands.run("add_figures", amounts=[part for pair in amounts.items() for part in pair])

    async def sample(self) -> float:
        """Samples the queue for the present bucket, unless another process does. Returns the seconds until the next bucket."""
        bucket, is_first, left_ms = await self._urgent.run("open_bucket")
        if is_first:
            depths = await self.depths()
            sample = fields_of(depths.waiting, depths.running, depths.outcomes)
            await self._commands.call("HSET", redis_keys.figures(bucket.decode()), *sample)
        return int(left_ms) / 1000

    async def depths(self) -> Depths:
        """What waits, runs and has ended."""
        now, waiting, running, ended, followers, bands = await self._urgent.run("depths", most_flows=FLOWS_COUNTED)
        counts = {name.decode(): int(count) for name, count in zip(ended[::2], ended[1::2], strict=True)}
        by_band = {band.value: _band_of(*found) for band, found in zip(BANDS, bands, strict=True)}
        return Depths(int(now), waiting, running, counts, followers, by_band)

    async def read(self, now_ms: int) -> int:
        """Brings ``buckets`` up to date. Returns the number of the newest whole one."""
        newest = (now_ms - _SETTLED_MS) // BUCKET_MS - 1
        async with self._read_lock:
            wanted = range(now_ms // BUCKET_MS - BUCKETS - 1, now_ms // BUCKET_MS + 1)
            known = {
                number: self.buckets[number] for number in wanted if number <= self._whole and number in self.buckets
            }
            unread = [number for number in wanted if number not in known]
            for start in range(0, len(unread), _READ_AT_ONCE):
                part = unread[start : start + _READ_AT_ONCE]
                replies = [self._commands.call("HGETALL", redis_keys.figures(str(number))) for number in part]
                for number, reply in zip(part, replies, strict=True):
                    flat = await reply
                    known[number] = bucket_of(flat) if flat else EMPTY
            self.buckets, self._whole = known, max(self._whole, newest)
        return newest


def _band_of(flows: int, looked_at: int, oldest_ms: Any, *jobs: Any) -> BandDepth:
    scale = flows / looked_at if looked_at else 1
    counts = {chain.decode(): count * scale for chain, count in zip(jobs[::2], jobs[1::2], strict=True)}
    return BandDepth(counts, int(oldest_ms) if int(oldest_ms) >= 0 else None)
