"""The Lua scripts: each makes one change that must happen as a whole. Their texts are in ``lua/``.

A script begins with two lines for this module:

- ``-- uses: now, log``: the parts of ``lua/lib/`` that its text needs; a part may use others.
- ``-- args: id, #seq, events...``: the names of its arguments, in Lua and in Python. With ``#`` Lua gets a number, or nil
  if the text is not a number; with ``...`` it gets a table of all further arguments.

Keys come from redis_keys.py. Lua names no state: states are arguments, taken from the table of the life cycle.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

from shared.batch import BatchCounts, BatchState
from shared.figures import BUCKET_MS, KEPT_MS
from shared.job import BANDS, LONGEST_WAIT_IN_SLOT_S, TRANSITIONS, Step, Usage
from shared.limits import WINDOW_S
from shared.store import redis_keys
from shared.usage import LOST, METRICS, MOST_END_USER_ROWS_PER_DAY, MOST_ROWS_PER_DAY, OTHER, UNMADE
from shared.webhooks import DeliveryState, EventType

_LUA: Final = files("shared.store") / "lua"

NAMES: Final = tuple(sorted(file.name.removesuffix(".lua") for file in _LUA.iterdir() if file.name.endswith(".lua")))

_CONSTANTS: Final = {
    "BANDS": ",".join(BANDS),
    "BATCH_ENDED": BatchState.ENDED.value,
    "BATCH_COUNTS": ",".join(BatchCounts.__struct_fields__),
    "BATCH_EVENT": EventType.BATCH_ENDED.value,
    "JOB_EVENT": "job.",
    "USAGE_FIELDS": ",".join(Usage.__struct_fields__),
    "USAGE_METRICS": ",".join(METRICS),
    "USAGE_OTHER": OTHER,
    "MOST_USAGE_ROWS": MOST_ROWS_PER_DAY,
    "MOST_END_USER_ROWS": MOST_END_USER_ROWS_PER_DAY,
    "DELIVERY_PENDING": DeliveryState.PENDING.value,
    "LONGEST_WAIT_IN_SLOT_MS": int(LONGEST_WAIT_IN_SLOT_S * 1000),
    "LOST": LOST,
    "UNMADE": UNMADE,
    "WINDOW_MS": WINDOW_S * 1000,
    "FIGURES_BUCKET_MS": BUCKET_MS,
    "FIGURES_KEPT_MS": KEPT_MS,
}
"""Constants that the scripts use by these names."""


Argument = bytes | str | int | float


class Script(NamedTuple):
    """A script as Redis gets it."""

    name: str
    prefix: str
    """Its KEYS[1]: what all keys that it touches begin with."""
    args: tuple[str, ...]
    rest: str
    """The name of all further arguments, of any number. Empty: there are none."""
    text: bytes
    sha: str
    values_of: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    """The values of ``args``, in their order."""

    def in_order(self, given: Mapping[str, Argument | Iterable[Argument]]) -> tuple[Argument, ...]:
        """Its arguments in the order in which Redis gets them. Raises TypeError for a missing or unknown name."""
        try:
            arguments = self.values_of(given)
        except KeyError as missing:
            raise TypeError(f"{self.name} needs {missing}") from None
        if len(given) == len(arguments):
            return arguments
        if len(given) > len(arguments) + (self.rest in given):
            raise TypeError(f"{self.name} takes no {given.keys() - {*self.args, self.rest}}")
        return *arguments, *cast("Any", given[self.rest])


@cache
def script(name: str) -> Script:
    """The script of that name, assembled once per process."""
    own = _text_of(_LUA / f"{name}.lua")
    args, rest, head = _arguments_of(own)
    parts = ["head"]
    _add_parts(own, parts)
    library = "".join(_COMMENT.sub("", _text_of(_LUA / "lib" / f"{part}.lua")) for part in parts)
    constants = "".join(f"local {constant} = {value!r}\n" for constant, value in _CONSTANTS.items())
    body = _used_of(constants + library, head + _COMMENT.sub("", own))
    kinds = redis_keys.kinds_in(body)
    text = (redis_keys.lua_functions(kinds) + body).encode()
    prefix = redis_keys.GLOBAL if redis_keys.GLOBAL_KEYS.keys() & kinds else redis_keys.SHARD
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    return Script(name, prefix, args, rest, text, sha, _getter_of(args))


def _getter_of(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)  # made in C: half the time of a comprehension, for each command
    return lambda given: tuple(given[name] for name in names)


_USES: Final = re.compile(r"^-- uses: (.*)\n")
_ARGS: Final = re.compile(r"^-- args: (.*(?:\n--   .*)*)", re.MULTILINE)
_COMMENT: Final = re.compile(r"^\s*--.*\n", re.MULTILINE)
_FUNCTION: Final = re.compile(r"^local function (\w+)\((?:[^\n]* end\n|.*?\nend\n)", re.MULTILINE | re.DOTALL)
"""A function that begins at the start of a line: it ends on that line, or with the first line that is just `end`."""
_WORDS_OF_OTHERS: Final = re.compile(r"'[^'\n]*'|--[^\n]*")
_LOCALS: Final = re.compile(r"^local ((?!function )[\w, ]+) = .*\n", re.MULTILINE)


def _text_of(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")


def _arguments_of(own: str) -> tuple[tuple[str, ...], str, str]:
    """The names that a script's own text gives to its arguments, and the lines of Lua that define them."""
    declared = _ARGS.search(own)
    names = re.findall(r"#?\w+(?:\.\.\.)?", declared[1]) if declared else []
    rest = names.pop().removesuffix("...") if names and names[-1].endswith("...") else ""
    args = tuple(name.removeprefix("#") for name in names)
    values = [f"tonumber(ARGV[{at}])" if name[0] == "#" else f"ARGV[{at}]" for at, name in enumerate(names, 1)]
    lines = [f"local {', '.join(args)} = {', '.join(values)}"] if names else []
    if rest:
        lines += [f"local {rest} = {{}}", f"for at = {len(args) + 1}, #ARGV do {rest}[at - {len(args)}] = ARGV[at] end"]
    return args, rest, "".join(f"{line}\n" for line in lines)


def _add_parts(text: str, parts: list[str]) -> None:
    """Adds the library's parts that a text uses, each after those that it uses itself."""
    used = _USES.match(text)
    for part in used[1].split(", ") if used else ():
        if part not in parts:
            _add_parts(_text_of(_LUA / "lib" / f"{part}.lua"), parts)
            parts.append(part)


def _used_of(library: str, own: str) -> str:
    """Both without the unused parts of the library: each function costs every call 0.3 µs, and SUBMIT needs a third of them."""
    while True:
        words = Counter(re.findall(r"\w+", _WORDS_OF_OTHERS.sub("", library + own)))
        found = [*_FUNCTION.finditer(library), *_LOCALS.finditer(library)]
        unused = [each for each in found if all(words[name] == 1 for name in each[1].split(", "))]
        if not unused:
            return library + own
        for each in sorted(unused, key=lambda each: -each.start()):
            library = library[: each.start()] + library[each.end() :]


def sources(step: Step) -> str:
    """The states that a step may start from, as the scripts take them."""
    return ",".join(sorted(TRANSITIONS[step][0]))


def target(step: Step) -> str:
    """The state that a step leads to."""
    return TRANSITIONS[step][1].value


def main() -> None:
    """Prints a script as Redis runs it."""
    parser = argparse.ArgumentParser(prog="python -m shared.store.script", description=main.__doc__)
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    sys.stdout.buffer.write(script(parser.parse_args().name).text)


if __name__ == "__main__":
    main()
