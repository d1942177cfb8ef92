"""Every key and channel: its name, what it holds, and its TTL or why it has none.

KEYS, GLOBAL_KEYS and CHANNELS are the only list, and no name is in two of them. The Python functions and the Lua functions
of the scripts are both made from it. What belongs to a tenant's jobs has the hash tag of the tenant's shard (``{0}``: there
is only one shard so far), what belongs to no shard has ``{g}``. A script gets one of the two prefixes, so that it stays in
one slot.
"""

import hashlib
import re
from collections.abc import Callable, Collection
from typing import Final

SHARD: Final = "ts:{0}:"
"""Prefix of every key of the shard; the scripts get it as KEYS[1]."""

GLOBAL: Final = "ts:{g}:"
"""Prefix of what belongs to no shard; the scripts that use it get it as KEYS[1]. Such a script cannot touch a job."""

KEYS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    # name: (arguments, what it is and how long it lives)
    "job": (("id",), "hash: the record. No TTL until the job ends, then the result's retention."),
    "result": (
        ("id",),
        "string: the result as JSON, written at the end; or what came so far of a job that did not succeed, written soon after its end. The result's retention.",
    ),
    "log": (
        ("id",),
        "stream: the events. Made by the first claim; no TTL until the job ends, then the log's retention.",
    ),
    "idempotency": (("tenant", "hash"), "hash: fingerprint, job. No TTL until its job ends, then its retention."),
    "index": (
        ("tenant",),
        "zset of ids, by name: the tenant's jobs. No TTL: each submit drops entries whose record is gone.",
    ),
    "labels": (
        ("tenant", "span"),
        "zset of label and id, by name: the tenant's jobs that have a tag or metadata or did not succeed, of nine hours. Its TTL is that of the record that is kept longest.",
    ),
    "operation": (
        ("id",),
        "hash: the record of an operation, with its counts and its cursor. No TTL until it ends, then the result's retention.",
    ),
    "operation_index": (
        ("tenant",),
        "zset of ids, by name: the tenant's operations. No TTL: each new one drops entries whose record is gone.",
    ),
    "open_operations": (
        ("tenant",),
        "zset of ids, by name: the tenant's operations that have not ended; the first one runs. Gone when empty.",
    ),
    "due_operations": (
        (),
        "zset tenant → when somebody should do the next piece of its first operation (ms). Gone when empty.",
    ),
    "batch": (
        ("id",),
        "hash: the record of a batch, with its counts. No TTL until it ends, then the result's retention.",
    ),
    "batch_items": (
        ("id",),
        "list: the job id of each line, empty for one that never was a job. No TTL until the batch ends, then as its record.",
    ),
    "batch_invalid": (
        ("id",),
        "hash line → why it cannot run, as JSON. No TTL until the batch ends, then as its record.",
    ),
    "batch_ended": (
        ("id",),
        "zset line → its turn: the items that have ended. No TTL until the batch ends, then as its record.",
    ),
    "batch_followed": (("id",), "flag: somebody follows the tokens of a batch, half a minute TTL."),
    "batch_index": (
        ("tenant",),
        "zset of ids, by name: the tenant's batches. No TTL: each start drops entries whose record is gone.",
    ),
    "due": (
        (),
        "zset batch → when somebody should look (ms): those that come in, start, are cancelled or erased. Gone when empty.",
    ),
    "attendants": (
        (),
        "zset API process → until when it is believed to live (ms). A look drops those that are gone. Gone when empty.",
    ),
    "spared": (
        (),
        "number: no attended job is cancelled before this (ms). Five seconds TTL, renewed by every look.",
    ),
    "attended": (("name",), "set of ids: jobs that a client of an API process waits for. Gone when empty."),
    "flow": (
        ("flow",),
        "zset id → place: the waiting jobs of one band, tenant, API key (if it has a cap), end user (its hash) and chain of routes. Gone when empty.",
    ),
    "ready": (("band",), "zset flow → its turn in the band's virtual time: the flows that have jobs. Gone when empty."),
    "parked": (
        (),
        "zset owner → when CLAIM looks at it again (ms): tenants, API keys and end users that wait for room or money. Gone when empty.",
    ),
    "parked_flows": (
        ("owner", "band"),
        "zset flow → the turn that it had: the flows of such an owner that are not ready until then. Gone when empty.",
    ),
    "turns": (
        ("band",),
        "zset tenant → the next turn of its flows, if ahead of the clock. No TTL: CLAIM drops those that it passes.",
    ),
    "clock": (("band",), "number: the band's virtual time. No TTL: it must never fall, and is a few bytes."),
    "places": ((), "number: the last place given out. No TTL: places order the queue, and it is a few bytes."),
    "picks": ((), "number: jobs picked so far, for the one in eight of a lower band. No TTL: a few bytes."),
    "waiting": ((), "zset id → when it ends by itself (ms): every queued job. Gone when empty."),
    "deferred": ((), "zset id → when it is due (ms): queued jobs that are not in a flow yet. Gone when empty."),
    "running": ((), "zset id → when its lease expires (ms). Gone when empty."),
    "ended": (
        (),
        "hash outcome, and the error's code where there is one → how many jobs have ended so. No TTL: counters must not fall, and they are a few hundred bytes.",
    ),
    "followers": (
        (),
        "hash API process → how many followers it has, if any. One minute TTL, renewed by those that have some.",
    ),
    "unfolded": (
        (),
        "zset id → when a worker should fold its log (ms): jobs that ended without success after followers saw content. Gone when empty.",
    ),
    "suspects": (
        ("worker",),
        "hash id → its takeovers: the suspects that a worker runs. One day TTL from the last; a minute from when REAP takes them.",
    ),
    "tenant_running": (("tenant",), "set of ids: the tenant's running jobs. Gone when empty."),
    "key_running": (
        ("key",),
        "set of ids: the running jobs of an API key that had a cap at their submit. Gone when empty.",
    ),
    "user_running": (
        ("user",),
        "set of ids: the running jobs of an end user, named ``<tenant>/<hash>``. Gone when empty.",
    ),
    "key_limits": (
        ("key",),
        "string: jobs at once, budget of a day and of a month of an API key, as SUBMIT heard them last, and the day. 45 days TTL, or as long as a job of it may wait.",
    ),
    "queued_jobs": (
        (),
        "hash owner → how many of its jobs wait, or are about to in a batch; its field is gone at 0. Gone when empty.",
    ),
    "held_budgets": (
        (),
        "hash owner → nano-dollars that its running jobs may cost, where there is a budget; its field is gone at 0. Gone when empty.",
    ),
    "held_bytes": (
        (),
        "hash tenant → bytes of its requests that wait, run, come in with a batch, or are kept for a retry; its field is gone at 0. Gone when empty.",
    ),
    "kept_bytes": (
        ("tenant",),
        "hash ms → bytes of requests of ended jobs whose records are gone by then: those that did not succeed. Gone when empty.",
    ),
    "kept_due": (
        (),
        "zset tenant → when some of these are gone (ms): the next EXPIRE takes them out. Gone when empty.",
    ),
    "pace": (
        ("owner",),
        "hash bucket → submits, and their tokens, in half a second; ``head`` → the span and the sums. Two minutes TTL from the last.",
    ),
    "spend": (
        ("owner", "period"),
        "number: what calls cost, in nano-dollars. Two days TTL where the period is a day (UTC), 62 where it is a month. Of an end user only where its tenant has set such a budget.",
    ),
    "tenant": (
        ("tenant",),
        "hash: a tenant's limits and retentions, and since when it is being erased. No TTL: set by an operator, to hold until he changes it; some 100 bytes.",
    ),
    "tenants": ((), "set of names: the tenants that have settings. No TTL: as those. Gone when empty."),
    "erasures": (
        (),
        "zset tenant → when somebody should look (ms): the tenants that are being erased. Gone when empty.",
    ),
    "erasure": (
        ("tenant",),
        "hash: how far the erasure of a tenant is. No TTL: its last step deletes it.",
    ),
    "delivery": (
        ("id",),
        "hash: a webhook to be sent. No TTL until it was delivered or given up, then the result's retention.",
    ),
    "delivery_index": (
        ("tenant",),
        "zset of ids, by name: the tenant's deliveries. No TTL: each new one drops entries whose record is gone.",
    ),
    "lanes": (
        (),
        "zset lane → when it should be looked at (ms): the deliveries of one tenant to one origin. Gone when empty.",
    ),
    "parked_lanes": (
        ("tenant",),
        "zset lane → since when it is due and waits for its tenant to have room for an attempt (ms). Gone when empty.",
    ),
    "unsent": (("lane",), "zset delivery → when it is due (ms). Gone when empty."),
    "sending": (("lane",), "zset delivery → when its lease expires (ms): attempts under way. Gone when empty."),
    "tenant_sending": (("tenant",), "set of ids: the tenant's attempts under way. Gone when empty."),
    "webhook_gone": (
        ("tenant", "endpoint"),
        "flag: the receiver returned 410, and is sent nothing more. 30 days TTL, or until a redelivery arrives.",
    ),
    "webhook_secret": (
        ("tenant",),
        "hash: what a tenant's webhooks are signed with. No TTL: receivers know it. Some 150 bytes.",
    ),
    "alive": ((), "number: when a worker last called (ms), one hour TTL."),
    "grace": ((), "number: no lease is reaped before this (ms), its TTL one lease."),
    "hungry": ((), "flag: a worker has free slots and found nothing more, one minute TTL."),
    "worker": (("name",), "hash: what a worker says of itself, of the LLM and of Redis; its TTL a few leases."),
    "workers": ((), "set of names: whoever announced itself. One hour TTL; a look drops those that are gone."),
    "models": ((), "hash provider → the models that it offers, as JSON; one day TTL."),
}

GLOBAL_KEYS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "route": (
        ("name",),
        "hash: what was learned of a route: its gate, its circuit, its limits. One day TTL from the last call.",
    ),
    "routes": (
        (),
        "zset route → when it was last called (ms). One day TTL; a look drops those not called for an hour.",
    ),
    "troubled": (
        (),
        "zset route → when it was shut or its circuit opened, open circuits far above (ms). At most 1,000; one day TTL; a look drops those that are well.",
    ),
    "window": (("name",), "hash bucket → calls, retries and tokens of half a second of a route. One hour TTL."),
    "calls": (
        ("name",),
        "zset call id → until when its worker holds it (ms): a route's running calls. One day TTL from the last.",
    ),
    "call": (("id",), "hash: a row of the ledger, one for each upstream call. Its TTL is the ledger's retention."),
    "address": (
        ("address",),
        "hash bucket → requests of an address (of IPv6: of its /64) in half a second. Two minutes TTL from the last.",
    ),
    "check": ((), "flag: a worker checks that idle upstreams respond, its TTL the time until the next does."),
    "usage": (
        ("tenant", "day"),
        "hash ``model\\nkey\\nmetric`` → integer: a tenant's calls of a day (UTC) added up. Its TTL is the usage's retention.",
    ),
    "end_user_usage": (
        ("tenant", "day"),
        "hash end user → lines ``model\\nkey\\tsums``: the same for calls that have an end user, at most 2,000 lines and those of ``other``. Its TTL is the usage's retention.",
    ),
    "usage_tenants": (
        (),
        "zset tenant → when its last day with calls began (ms). No TTL: each new day of a tenant drops those whose usage is gone.",
    ),
    "figures": (
        ("bucket",),
        "hash: the figures of ten seconds: what waited, ran and had ended at their beginning, tokens, and first tokens by how long they took. A little over an hour TTL.",
    ),
    "api_key": (
        ("id",),
        "hash: an API key, its secrets as SHA-256. No TTL: who holds it must be let in. If it has an end, 90 days beyond it.",
    ),
    "api_keys": (
        ("tenant",),
        "zset of ids, by name: the tenant's API keys. No TTL: each new key, and each list, drops entries whose record is gone.",
    ),
    "api_key_tenants": ((), "set of tenants that have API keys. No TTL: drops those whose last key is gone."),
}

CHANNELS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "events": (("id",), "the events of one job as they are appended, in the form of shared/events.py."),
    "batch_events": (("id",), "``<job id>\\n`` and the same message, for the items of a batch while it is followed."),
    "wake": ((), "empty messages: a job is ready, and some worker was hungry."),
    "control": ((), "``cancel <id>``: to whichever worker runs it."),
    "presence": (("name",), "nothing: a worker subscribes to its own, and Redis drops that when the process dies."),
    "gates": ((), "names of routes whose gate or circuit changed."),
    "deliveries": ((), "empty messages: a webhook is due."),
}

_GLOBAL_KINDS: Final = GLOBAL_KEYS.keys() | {"gates"}


def prefix_of(kind: str) -> str:
    """What the names of this kind begin with."""
    return GLOBAL if kind in _GLOBAL_KINDS else SHARD


def _name(kind: str) -> str:
    return prefix_of(kind) + kind


def _by_one(kind: str) -> Callable[[str], str]:
    begin = f"{_name(kind)}:"
    return lambda argument: begin + argument


def _by_two(kind: str) -> Callable[[str, str], str]:
    begin = f"{_name(kind)}:"
    return lambda first, second: f"{begin}{first}:{second}"


# The tables above say what each is made from, and what it holds.
job = _by_one("job")
result = _by_one("result")
log = _by_one("log")
index = _by_one("index")
labels = _by_two("labels")
operation = _by_one("operation")
operation_index = _by_one("operation_index")
open_operations = _by_one("open_operations")
tenant_running = _by_one("tenant_running")
idempotency = _by_two("idempotency")
batch = _by_one("batch")
batch_items = _by_one("batch_items")
batch_invalid = _by_one("batch_invalid")
batch_ended = _by_one("batch_ended")
batch_followed = _by_one("batch_followed")
batch_index = _by_one("batch_index")
batch_events = _by_one("batch_events")
worker = _by_one("worker")
presence = _by_one("presence")
usage = _by_two("usage")
call = _by_one("call")
end_user_usage = _by_two("end_user_usage")
figures = _by_one("figures")
api_key = _by_one("api_key")
api_keys = _by_one("api_keys")
events = _by_one("events")
tenant = _by_one("tenant")
erasure = _by_one("erasure")
tenant_running = _by_one("tenant_running")
pace = _by_one("pace")
spend = _by_two("spend")
delivery = _by_one("delivery")
delivery_index = _by_one("delivery_index")
flow = _by_one("flow")
ready = _by_one("ready")
parked_flows = _by_two("parked_flows")


def plain(kind: str) -> str:
    """A key or channel without arguments."""
    arguments, _ = _ALL[kind]
    if arguments:
        raise ValueError(f"{kind} needs {arguments}")
    return _name(kind)


def flow_of(band: str, tenant: str, chain: str, *, key_id: str = "", end_user: str | None = None) -> str:
    """The name of a flow. Only a chain of routes may have a colon in it.

    ``key_id``: the API key, if its limits may make CLAIM hold its jobs back. The jobs of all other keys share a flow.
    Each end user has flows of its own.
    """
    user = f"/{_hash_of(end_user)}" if end_user else ""
    return f"{band}:{tenant}:{key_id}{user}:{chain}"


def user_of(tenant: str, end_user: str | None) -> str:
    """The name of an end user in Redis, where its own text is not part of a key; empty for none."""
    return f"{tenant}/{_hash_of(end_user)}" if end_user else ""


def _hash_of(end_user: str) -> str:
    return hashlib.sha256(end_user.encode()).hexdigest()[:16]


def owner_in(name: str) -> tuple[str, str, str]:
    """The kind of a key, and whose it is, if its name says so: ``("pace", "tenant", "acme")``. Else with two empty texts."""
    prefix = SHARD if name.startswith(SHARD) else GLOBAL
    kind, _, rest = name.removeprefix(prefix).partition(":")
    parts = rest.split(":")
    match _ALL.get(kind, ((), ""))[0][:1]:
        case ("tenant" | "lane",):
            return kind, "tenant", parts[0]
        case ("flow",):
            return kind, "tenant", parts[1]
        case ("user",):
            return kind, "tenant", parts[0].partition("/")[0]
        case ("owner",) if parts[0] == "user":
            return kind, "tenant", parts[1].partition("/")[0]
        case ("owner",):
            return kind, parts[0], parts[1]
        case ("key",):
            return kind, "key", parts[0]
    return kind, "", ""


def kinds_in(lua: str) -> set[str]:
    """The keys and channels that a Lua text names, by ``key_job(id)``, ``channel_events(id)`` and so on."""
    return {kind for function, kind in _LUA_FUNCTIONS.items() if re.search(rf"\b{function}\b", lua)}


def lua_functions(kinds: Collection[str]) -> str:
    """These functions, for the head of a script. All names that they make begin with KEYS[1], the script's prefix."""
    lines = []
    for function, kind in _LUA_FUNCTIONS.items():
        if kind in kinds:
            arguments, _ = _ALL[kind]
            own = f"KEYS[1] .. '{kind}:' .. " if arguments else f"KEYS[1] .. '{kind}'"
            parts = own + " .. ':' .. ".join(arguments)
            lines.append(f"local function {function}({', '.join(arguments)}) return {parts} end\n")
    return "".join(lines)


_ALL: Final = KEYS | GLOBAL_KEYS | CHANNELS
_LUA_FUNCTIONS: Final = {f"{'channel' if kind in CHANNELS else 'key'}_{kind}": kind for kind in _ALL}
