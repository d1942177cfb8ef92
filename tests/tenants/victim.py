"""Everything that a tenant can own in this API, in every state, as a target for another tenant."""

from dataclasses import dataclass, field
from typing import Any

from shared.api_key import TENANT_SCOPES, Caller, new_key_id
from shared.job import JobKind, Priority, Step, new_id
from shared.job_filter import JobFilter
from shared.limits import CallerLimits
from shared.operation import OperationAction
from shared.store import redis_keys
from shared.store.api_keys import NewKey
from shared.store.operations import Piece
from shared.store.queue import Ending
from shared.store.runtime import Runtime
from shared.webhooks import delivery_id_of
from tests.support.batches import a_result, fail
from tests.support.builders import a_text_delta, a_webhook
from tests.support.store import (
    append,
    claim_one,
    finish,
    make_overdue,
    now_ms,
    receive,
    start,
    start_batch,
    submit,
)

VICTIM = "tenant-a"
ATTACKER = "tenant-b"
CANARY = "kanarienvogel-prompt-7f3a"
KEY = "the-key-of-both"
"""An Idempotency-Key that both tenants use."""

_REQUEST = b'{"messages":[{"role":"user","content":"%b"}]}' % CANARY.encode()
_SUCCESS = Ending(Step.SUCCEED, a_result(CANARY))
_LATER_MS = 3_600_000


@dataclass
class Victim:
    """The tenant's ids, by kind and state."""

    ids: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"job": {}, "batch": {}, "key": {}, "evt": {}, "op": {}}
    )
    key_texts: dict[str, str] = field(default_factory=dict)
    """An API key of each tenant with all scopes, the victim's first."""

    @property
    def all_ids(self) -> list[str]:
        """The ids of every kind."""
        return [own_id for each in self.ids.values() for own_id in each.values()]

    def of(self, kind: str) -> dict[str, str]:
        """The ids of a kind by state, in the form of its paths."""
        if kind == "msgbatch":
            return {state: own_id.replace("batch_", "msgbatch_", 1) for state, own_id in self.ids["batch"].items()}
        return self.ids[kind]


async def a_victim(runtime: Runtime) -> Victim:
    """A tenant that owns one of everything; the queue must be empty."""
    victim = Victim()
    jobs, batches = victim.ids["job"], victim.ids["batch"]
    about: dict[str, Any] = {"tenant": VICTIM, "metadata": {"note": CANARY}}

    webhook = a_webhook(f"https://{CANARY}.example.com/")
    claimed = await start(runtime, idempotency_key=KEY, request=_REQUEST, webhook=webhook, **about)
    await append(runtime, claimed, a_text_delta(CANARY))
    await finish(runtime, claimed, _SUCCESS, seq=claimed.next_seq + 1)
    jobs["succeeded"] = claimed.id
    victim.ids["evt"]["pending"] = delivery_id_of(claimed.id)
    claimed = await start(runtime, request=_REQUEST, **about)
    await fail(runtime, claimed)
    jobs["failed"] = claimed.id
    jobs["cancelled"] = (await submit(runtime, **about)).id
    await runtime.jobs.cancel(jobs["cancelled"], VICTIM)
    jobs["expired"] = (await submit(runtime, **about)).id
    await make_overdue(runtime, jobs["expired"])
    await runtime.jobs.expire()

    ended = await start_batch(runtime, 2, tenant=VICTIM, idempotency_key=f"{KEY} of batches", metadata={"note": CANARY})
    await finish(runtime, await claim_one(runtime), _SUCCESS)
    await fail(runtime, await claim_one(runtime))
    await runtime.batches.advance_all(ended.id)
    batches["ended"], jobs["item of an ended batch"] = ended.id, ended.job_ids[0]
    running = await start_batch(runtime, 3, tenant=VICTIM)
    await finish(runtime, await claim_one(runtime), _SUCCESS)
    await append(runtime, await claim_one(runtime), a_text_delta(CANARY))
    batches["running"] = running.id
    jobs |= dict(zip(("succeeded item", "running item", "queued item"), running.job_ids, strict=True))
    await _and_what_waits(runtime, victim, about)
    await _and_keys(runtime, victim)
    await _and_operations(runtime, victim)
    return victim


async def _and_operations(runtime: Runtime, victim: Victim) -> None:
    wanted = JobFilter(metadata={"note": CANARY})
    for name in ("ended", "cancelled", "running"):
        begun, _ = await runtime.operations.create(Caller(VICTIM), OperationAction.ERASE, wanted)
        victim.ids["op"][name] = begun
        if name == "ended":
            claimed = await runtime.operations.claim()
            assert claimed is not None
            assert await runtime.operations.advance(claimed, Piece(None, is_last=True))
        elif name == "cancelled":
            await runtime.operations.cancel(begun, VICTIM)
    later_ms = await now_ms(runtime) + _LATER_MS  # so that no loop does it
    await runtime._commands.call("ZADD", redis_keys.plain("due_operations"), "XX", later_ms, VICTIM)


async def _and_keys(runtime: Runtime, victim: Victim) -> None:
    for name in ("standing", "revoked", "rotating"):
        victim.ids["key"][name] = (await a_key(runtime, VICTIM)).key.id
    await runtime.api_keys.revoke(victim.ids["key"]["revoked"], VICTIM)
    await runtime.api_keys.rotate(victim.ids["key"]["rotating"], VICTIM, grace_s=3600)
    victim.key_texts = {tenant: (await a_key(runtime, tenant)).text for tenant in (VICTIM, ATTACKER)}


async def a_key(runtime: Runtime, tenant: str) -> NewKey:
    """A key with all scopes."""
    name = CANARY if tenant == VICTIM else "mine"
    made = await runtime.api_keys.create(tenant, env="live", name=name, scopes=TENANT_SCOPES, limits=CallerLimits())
    assert made is not None
    return made


async def _and_what_waits(runtime: Runtime, victim: Victim, about: dict[str, Any]) -> None:
    jobs, batches = victim.ids["job"], victim.ids["batch"]
    high = await submit(runtime, priority=Priority.HIGH, **about)
    claimed = await claim_one(runtime)
    assert claimed.id == high.id
    await append(runtime, claimed, a_text_delta(CANARY))
    jobs["running"] = claimed.id
    jobs["queued"] = (await submit(runtime, **about)).id
    jobs["deferred"] = (await submit(runtime, not_before_ms=await now_ms(runtime) + _LATER_MS, **about)).id
    jobs["quiet"] = (await submit(runtime, kind=JobKind.COUNT_TOKENS, tenant=VICTIM)).id
    jobs["attended"] = (await submit(runtime, attended_by="an-api", tenant=VICTIM)).id

    cancelling = await start_batch(runtime, 2, tenant=VICTIM)
    await runtime.batches.cancel(cancelling.id, VICTIM)
    receiving = await receive(runtime, 2, tenant=VICTIM)
    dropped = await receive(runtime, 2, tenant=VICTIM)
    await runtime.batches.drop(dropped.id, VICTIM)
    batches |= {"cancelling": cancelling.id, "receiving": receiving.id, "being erased": dropped.id}
    jobs["item that comes in"] = receiving.job_ids[0]
    later_ms = await now_ms(runtime) + _LATER_MS  # so that no loop advances these, or ends them as abandoned
    for batch in (cancelling, receiving, dropped):
        await runtime._commands.call("ZADD", redis_keys.plain("due"), "XX", later_ms, batch.id)
    await runtime._commands.call("ZADD", redis_keys.plain("attendants"), "XX", later_ms, "an-api")


def absent_ids(kind: str) -> dict[str, str]:
    """Valid ids that nobody has, and texts that are not ids."""
    fitting = new_key_id() if kind == "key" else new_id(kind)
    return {
        "absent": fitting,
        "absent too": new_key_id() if kind == "key" else new_id(kind),
        "upper case": fitting.upper(),
        "short": fitting[:-1],
        "long": f"{fitting}0",
        "a letter of no id": f"{fitting[:-1]}u",
        "of another kind": new_id("req"),
        "a star": f"{kind}_*",
        "a space": f"{fitting}%20",
        "a script": "%3Cscript%3E",
        "a colon": "a:b",
        "of 2,000": "x" * 2000,
    }


_STATE = """
-- Hashes and sets are put in order: theirs changes as Redis moves them to a table of another size, which reads do too.
local function value_of(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'set' then
    local members = redis.call('SMEMBERS', key)
    table.sort(members)
    return table.concat(members, '\\n')
  elseif kind == 'hash' then
    local flat, fields = redis.call('HGETALL', key), {}
    for at = 1, #flat, 2 do fields[#fields + 1] = flat[at] .. '=' .. flat[at + 1] end
    table.sort(fields)
    return table.concat(fields, '\\n')
  end
  return redis.call('DUMP', key)
end

local found, time = {}, redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  found[#found + 1] = key
  found[#found + 1] = value_of(key)
  found[#found + 1] = left < 0 and left or now + left
end
return found
"""
_OF_THE_PROCESS = ("attendants", "spared", "alive", "figures")


class State(dict[str, tuple[bytes, int]]):
    """Every value in Redis with the time at which it expires, without what the API writes for itself."""

    def differences_to(self, other: "State") -> set[str]:
        """The changed keys, without the attacker's own. Expiry times may differ by 10 ms; a renewed TTL ends later."""
        return {
            name
            for name in self.keys() | other.keys()
            if ATTACKER not in name + str(self.get(name)) + str(other.get(name))
            if name not in self
            or name not in other
            or self[name][0] != other[name][0]
            or abs(self[name][1] - other[name][1]) > 10
        }


async def state_of_all(runtime: Runtime) -> State:
    """Read at one moment."""
    flat = await runtime._commands.call("EVAL", _STATE, 0)
    found = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    mine = tuple(f"{redis_keys.prefix_of(kind)}{kind}" for kind in _OF_THE_PROCESS)
    return State(
        (name.decode(), (value, gone_ms)) for name, value, gone_ms in found if not name.decode().startswith(mine)
    )
