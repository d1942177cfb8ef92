"""The Lua scripts: each is one change that must be true as a whole. Their texts lie in ``lua/``.

A script is its own file behind the functions that it shares with others; keys come from redis_keys.py. Names of states are
never spelled in Lua: they arrive as arguments, from the table of the life cycle.
"""

import hashlib
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from shared.batch import BatchCounts, BatchState
from shared.job import BANDS, TRANSITIONS, Step, Usage
from shared.store import redis_keys
from shared.usage import MOST_ROWS_PER_DAY, OTHER
from shared.webhooks import DeliveryState, EventType

_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "submit": ("prelude", "now", "held", "bookkeeping", "window", "spend", "limits", "position", "submit"),
    "locate": ("prelude", "position", "locate"),
    "claim": ("prelude", "now", "webhooks", "held", "bookkeeping", "spend", "overdue", "claim"),
    "renew": ("prelude", "now", "held", "bookkeeping", "renew"),
    "reap": ("prelude", "now", "webhooks", "held", "bookkeeping", "reap"),
    "release": ("prelude", "now", "held", "bookkeeping", "spend", "release"),
    "append": ("prelude", "append"),
    "finish": ("prelude", "now", "webhooks", "held", "bookkeeping", "spend", "finish"),
    "cancel": ("prelude", "now", "webhooks", "held", "bookkeeping", "cancel"),
    "expire": ("prelude", "now", "webhooks", "held", "bookkeeping", "overdue", "expire"),
    "erase": ("prelude", "now", "held", "lanes", "webhooks", "erase"),
    "erase_jobs": ("prelude", "now", "held", "lanes", "webhooks", "bookkeeping", "erase_jobs"),
    "erase_deliveries": ("prelude", "now", "lanes", "webhooks", "erase_deliveries"),
    "probe": ("prelude", "probe"),
    "charge": ("prelude", "now", "held", "bookkeeping", "spend", "charge"),
    "open_batch": ("prelude", "now", "held", "bookkeeping", "window", "spend", "limits", "open_batch"),
    "add_items": ("prelude", "now", "held", "bookkeeping", "window", "spend", "limits", "add_items"),
    "start_batch": ("prelude", "now", "webhooks", "held", "bookkeeping", "window", "spend", "limits", "start_batch"),
    "advance_batch": ("prelude", "now", "lanes", "webhooks", "held", "bookkeeping", "advance_batch"),
    "cancel_batch": ("prelude", "now", "held", "bookkeeping", "cancel_batch"),
    "drop_batch": ("prelude", "now", "held", "bookkeeping", "drop_batch"),
    "due_batches": ("prelude", "now", "held", "bookkeeping", "due_batches"),
    "ended_items": ("prelude", "ended_items"),
    "list_items": ("list_items",),
    "rows": ("rows",),
    "content": ("content",),
    "set_tenant": ("prelude", "now", "held", "bookkeeping", "set_tenant"),
    "admit_address": ("clock", "window", "admit_address"),
    "claim_deliveries": ("prelude", "now", "lanes", "claim_deliveries"),
    "end_delivery": ("prelude", "now", "lanes", "end_delivery"),
    "redeliver": ("prelude", "now", "lanes", "redeliver"),
    "webhook_secret": ("prelude", "now", "webhook_secret"),
    "attend": ("prelude", "now", "held", "bookkeeping", "attend"),
    "abandon": ("prelude", "now", "webhooks", "held", "bookkeeping", "abandon"),
    "reserve": ("upstream", "reserve"),
    "settle": ("upstream", "settle"),
    "probed": ("upstream", "probed"),
    "look": ("upstream", "look"),
    "hold": ("upstream", "hold"),
    "create_api_key": ("api_key", "create_api_key"),
    "rotate_api_key": ("api_key", "rotate_api_key"),
    "revoke_api_key": ("api_key", "revoke_api_key"),
    "use_api_keys": ("api_key", "use_api_keys"),
    "check_api_keys": ("api_key", "check_api_keys"),
}
"""What each is made of: nothing that it does not need, since Redis builds all of it anew for every call."""

NAMES: Final = tuple(_PARTS)

_CONSTANTS: Final = {
    "BANDS": ",".join(BANDS),
    "BATCH_ENDED": BatchState.ENDED.value,
    "BATCH_COUNTS": ",".join(BatchCounts.__struct_fields__),
    "BATCH_EVENT": EventType.BATCH_ENDED.value,
    "JOB_EVENT": "job.",
    "USAGE_FIELDS": ",".join(Usage.__struct_fields__),
    "USAGE_OTHER": OTHER,
    "MOST_USAGE_ROWS": str(MOST_ROWS_PER_DAY),
    "DELIVERY_PENDING": DeliveryState.PENDING.value,
}
"""Words that the scripts know by name."""

_GLOBAL: Final = frozenset(
    {
        *("reserve", "settle", "probed", "look", "hold"),
        "admit_address",
        *("create_api_key", "rotate_api_key", "revoke_api_key", "use_api_keys", "check_api_keys"),
    }
)
"""Those that keep what is not one shard's; all others see the shard, and nothing else."""


class Script(NamedTuple):
    """A script as Redis is given it."""

    name: str
    prefix: str
    """Its KEYS[1]: what all keys that it touches begin with."""
    text: bytes
    sha: str


@cache
def script(name: str) -> Script:
    """The script of that name, assembled once per process."""
    folder = files("shared.store") / "lua"
    body = _used_of("\n".join((folder / f"{part}.lua").read_text() for part in _PARTS[name]))
    names = "".join(f"local {name} = '{value}'\n" for name, value in _CONSTANTS.items() if name in body)
    head = f"{names}{redis_keys.lua_functions(used_in=body)}\n"
    text = (head + body).encode()
    prefix = redis_keys.GLOBAL if name in _GLOBAL else redis_keys.SHARD
    return Script(name, prefix, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


_FUNCTION: Final = re.compile(r"^local function (\w+)\((?:[^\n]* end\n|.*?\nend\n)", re.MULTILINE | re.DOTALL)
"""One that begins a line: it is that line, or goes on to the first line that is its `end`."""
_COMMENT: Final = re.compile(r"^\s*--.*\n", re.MULTILINE)


def _used_of(body: str) -> str:
    """Without the functions that nobody calls: each costs every call some 0.3 µs, and SUBMIT needs a third of them."""
    body = _COMMENT.sub("", body)
    while True:
        words = Counter(re.findall(r"\w+", body))
        unused = [found for found in _FUNCTION.finditer(body) if words[found[1]] == 1]
        if not unused:
            return body
        for found in reversed(unused):
            body = body[: found.start()] + body[found.end() :]


def sources(step: Step) -> str:
    """The states that a step may start from, as the scripts take them."""
    return ",".join(sorted(TRANSITIONS[step][0]))


def target(step: Step) -> str:
    """The state that a step leads to."""
    return TRANSITIONS[step][1].value
