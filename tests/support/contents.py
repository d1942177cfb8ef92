"""Reads every name and every value in Redis, of any type, to search them for words.

DUMP would not do: it compresses values, so that a search could miss a word.
"""

from typing import Any, Final

from shared.store.commands import Commands
from tests.support.store import all_keys, kind_of

_READS: Final[dict[bytes, tuple[str, ...]]] = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", "0", "-1"),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}


async def contents(commands: Commands) -> dict[str, bytes]:
    """By key, all parts of its value, concatenated."""
    found = {}
    for name in await all_keys(commands):
        kind = await commands.call("TYPE", name)
        if kind != b"none":  # it expired meanwhile
            command, *rest = _READS[kind]
            found[name] = b"\n".join(_parts_of(await commands.call(command, name, *rest)))
    return found


async def kinds_that_hold(commands: Commands, words: str) -> set[str]:
    """The kinds of keys whose name or value contains the words."""
    found = await contents(commands)
    return {kind_of(name) for name, value in found.items() if words.encode() in name.encode() + b"\n" + value}


def _parts_of(reply: Any) -> list[bytes]:
    if isinstance(reply, bytes):
        return [reply]
    if isinstance(reply, dict):
        return [part for pair in reply.items() for part in _parts_of(list(pair))]
    if isinstance(reply, (list, tuple, set)):
        return [part for each in reply for part in _parts_of(each)]
    return [] if reply is None else [str(reply).encode()]
