"""Steps that the tests of limits share. They cannot move Redis's clock, so they move a window's buckets."""

from shared.store import redis_keys
from shared.store.runtime import Runtime

BUCKET_MS = 500
WINDOW_MS = 121 * BUCKET_MS
"""The longest time for which a bucket counts."""

A_DOLLAR = 1_000_000_000
TENANT = "tenant:tenant-a"
KEY = "key:key-1"


async def age(runtime: Runtime, window: str, by_ms: int) -> None:
    """Moves all buckets of a window into the past, by ``by_ms`` rounded up to whole buckets."""
    call = runtime._commands.call
    buckets = -(-by_ms // BUCKET_MS)
    found = await call("HGETALL", window)
    if not found:
        return
    fields = {name.decode(): value.decode() for name, value in zip(found[::2], found[1::2], strict=True)}
    first, last, sums = fields.pop("head").split(" ", 2)
    moved = {str(int(name) - buckets): amounts for name, amounts in fields.items()}
    moved["head"] = f"{int(first) - buckets} {int(last) - buckets} {sums}"
    await call("DEL", window)
    await call("HSET", window, *[part for pair in moved.items() for part in pair])
    await call("PEXPIRE", window, 120_000)


async def counted(runtime: Runtime, owner: str) -> tuple[int, int]:
    """The requests and tokens of an owner's window; asserts that they are the sums of its buckets."""
    found = await runtime._commands.call("HGETALL", redis_keys.pace(owner))
    fields = {name.decode(): value.decode() for name, value in zip(found[::2], found[1::2], strict=True)}
    _, _, requests, tokens = map(int, fields.pop("head", "0 0 0 0").split())
    buckets = [tuple(map(int, amounts.split())) for amounts in fields.values()]
    assert (requests, tokens) == (sum(bucket[0] for bucket in buckets), sum(bucket[1] for bucket in buckets))
    return requests, tokens


async def spent(runtime: Runtime, owner: str) -> list[int]:
    """The cost of an owner's calls in each stored day and month."""
    names = sorted(await runtime._commands.call("KEYS", redis_keys.spend(owner, "*")))
    return [int(await runtime._commands.call("GET", name)) for name in names]
