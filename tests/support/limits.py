"""Steps that the tests of limits share. Redis's clock cannot be moved: the buckets of a window are."""

from shared.store import keys
from shared.store.runtime import Runtime

BUCKET_MS = 500
WINDOW_MS = 121 * BUCKET_MS
"""For so long a bucket is counted at most."""

A_DOLLAR = 1_000_000_000
TENANT = keys.owner_of_tenant("tenant-a")
KEY = keys.owner_of_key("key-1")


async def age(runtime: Runtime, window: str, by_ms: int) -> None:
    """As if all that a window holds had been counted so much earlier (rounded up to whole buckets)."""
    call = runtime.commands.call
    buckets = -(-by_ms // BUCKET_MS)
    found = await call("HGETALL", window)
    if not found:
        return
    fields = {name.decode(): int(value) for name, value in zip(found[::2], found[1::2], strict=True)}
    moved = {
        str(int(name) - buckets) if name.isdecimal() else name: value - buckets if name in ("first", "last") else value
        for name, value in fields.items()
    }
    await call("DEL", window)
    await call("HSET", window, *[part for pair in moved.items() for part in pair])
    await call("PEXPIRE", window, 120_000)


async def counted(runtime: Runtime, window: str) -> int:
    """The sum of a window, which must be that of its buckets."""
    found = await runtime.commands.call("HGETALL", window)
    fields = {name.decode(): int(value) for name, value in zip(found[::2], found[1::2], strict=True)}
    total = sum(value for name, value in fields.items() if name.isdecimal())
    assert fields.get("sum", 0) == total
    return total


async def spent(runtime: Runtime, owner: str) -> list[int]:
    """What an owner's calls cost: of each day and month that is kept, whichever they are."""
    names = sorted(await runtime.commands.call("KEYS", keys.spend(owner, "*")))
    return [int(await runtime.commands.call("GET", name)) for name in names]
