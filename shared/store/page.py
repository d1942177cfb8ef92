"""Pages of lists: a list's ids are read some at a time, then the records of those that are wanted."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from shared.store.commands import Commands
from shared.store.reads import Record

PAGE_BYTES: Final = 512 << 10
"""A page ends early when its records have more than this."""


class Stretch(NamedTuple):
    """The next ids of a list."""

    ids: Sequence[str]
    """Those that may be wanted."""
    end: str | None
    """Its last id, wanted or not, after which the next stretch begins. None if it has no ids."""
    is_last: bool


class Sized(NamedTuple):
    """An item of a page, and its size in bytes."""

    item: Any
    size: int


Stretches = Callable[[str | None], Awaitable[Stretch]]
"""Gives the stretch after an id; None: the first one."""
WantedOf = Callable[[Sequence[str]], Awaitable[Sequence[str]]]
"""Gives those of a stretch that may be wanted."""
Read = Callable[[Sequence[str]], Awaitable[Sequence[Sized | None]]]
"""Reads the first of these ids, as many as it likes; None for each that is not wanted."""


class Bounds(NamedTuple):
    """Which ids of a list are meant. None: all in this direction."""

    oldest: str | None = None
    before: str | None = None

    def earlier(self, last: str | None) -> str | None:
        """What the ids after ``last`` sort before, with the newest first."""
        return min((each for each in (last, self.before) if each is not None), default=None)


NO_BOUNDS: Final = Bounds()


def stretches_of(
    commands: Commands,
    index: str,
    *,
    count: int,
    is_newest_first: bool = True,
    bounds: Bounds = NO_BOUNDS,
    wanted_of: WantedOf | None = None,
) -> Stretches:
    """The ids of an index, which sort by time, ``count`` at a time. ``bounds``: only with the newest first."""
    command, start, end = ("ZREVRANGEBYLEX", "+", "-") if is_newest_first else ("ZRANGEBYLEX", "-", "+")
    if bounds.oldest is not None:
        end = f"[{bounds.oldest}"

    async def stretch_after(last: str | None) -> Stretch:
        at = bounds.earlier(last)
        members = await commands.call(command, index, f"({at}" if at else start, end, "LIMIT", 0, count)
        return await stretch_of([member.decode() for member in members], count=count, wanted_of=wanted_of)

    return stretch_after


async def stretch_of(ids: Sequence[str], *, count: int, wanted_of: WantedOf | None) -> Stretch:
    """The stretch of these ids, of which there are ``count`` unless it is the last."""
    wanted = await wanted_of(ids) if wanted_of is not None and ids else ids
    return Stretch(wanted, ids[-1] if ids else None, len(ids) < count)


def sized(
    ids: Sequence[str], records: Sequence[Record], item_of: Callable[[str, Record], Any]
) -> Sequence[Sized | None]:
    """The items of the first ids, as many as there are records; None where ``item_of`` gives None."""
    pairs = [(item_of(item_id, record), record) for item_id, record in zip(ids, records, strict=False)]
    return [None if item is None else Sized(item, size_of(record)) for item, record in pairs]


def size_of(record: Record) -> int:
    """The approximate size in bytes."""
    return sum(len(value) for value in record if value is not None)


async def read_page(
    stretch_after: Stretches, read: Read, *, after: str | None, limit: int, most_stretches: int
) -> tuple[list[Any], str | None]:
    """The items after that id, and the id after which the next page begins; None if there are no more.

    A page has fewer than ``limit`` items if they reach PAGE_BYTES, or if ``most_stretches`` hold no more that are wanted.
    The first item is read however large it is.
    """
    items: list[Any] = []
    size = 0
    last = after
    for _ in range(most_stretches):
        stretch = await stretch_after(last)
        left = stretch.ids
        while left:
            found = await read(left)
            for item_id, one in zip(left, found, strict=False):
                if one is not None:
                    if len(items) == limit or (items and size + one.size > PAGE_BYTES):
                        return items, last
                    items.append(one.item)
                    size += one.size
                last = item_id
            left = left[len(found) :]
        if stretch.is_last:
            return items, None
        last = stretch.end or last
    return items, last
