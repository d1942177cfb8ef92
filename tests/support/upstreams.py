"""Calls to upstreams as the tests of the store make them: reserved and closed, but never made.

The scripts know Redis's clock alone; so a test does not wait but moves all that is stored of the upstreams into the past.
"""

from typing import Any

from shared.job import Usage
from shared.routes import Limits, ProviderName, Route
from shared.store import redis_keys
from shared.store.runtime import Runtime
from shared.store.upstreams import CallEnd, CallFacts, Denied, Obstacle, Reserved, RouteState, Verdict
from tests.support.builders import an_id
from tests.support.store import all_keys, kind_of, now_ms

BUCKET_MS = 500
WINDOW_S = 61

_MOMENTS = ("shut_ms", "open_ms", "closed_ms", "outcome_ms", "opened_ms")


def a_route(model: str = "a-model", **limits: int) -> Route:
    """A route with these limits, by field name."""
    return Route(ProviderName.ANTHROPIC, model, Limits(**limits))


def a_call(call_id: str | None = None, **facts: Any) -> CallFacts:
    """A call that is about to be made; other fields by name."""
    return CallFacts(
        **{
            "id": call_id or an_id().replace("job", "call"),
            "tenant": "tenant-a",
            "key_id": "",
            "job_id": "job_1",
            "epoch": 1,
            "attempt": 1,
            "model": "a-model",
            "is_retry": False,
            "input_estimate": 1,
            "output_estimate": 1,
            **facts,
        }
    )


async def permitted(runtime: Runtime, route: Route, call_id: str | None = None, **facts: Any) -> tuple[str, Reserved]:
    """Reserves a call, which must be permitted. Returns its id and the reply."""
    call = a_call(call_id, **facts)
    answer = await runtime.upstreams.reserve(route, call)
    assert isinstance(answer, Reserved), answer
    return call.id, answer


async def denied(runtime: Runtime, route: Route, why: Obstacle, **facts: Any) -> Denied:
    """Reserves a call, which must be denied for this reason."""
    answer = await runtime.upstreams.reserve(route, a_call(**facts))
    assert isinstance(answer, Denied), answer
    assert answer.why is why
    assert answer.wait_s > 0
    return answer


async def closed(runtime: Runtime, route: Route, call_id: str, verdict: Verdict = Verdict.OK, **end: Any) -> int:
    """A call has ended; any field of its CallEnd by name."""
    call_end = CallEnd(
        **{
            "ended": "succeeded",
            "usage": Usage(),
            "is_estimated": False,
            "cost_nano_usd": 0,
            "verdict": verdict,
            "code": "upstream_overloaded" if verdict is Verdict.TROUBLE else "",
            **end,
        }
    )
    return await runtime.upstreams.close_call(route.name, call_id, await now_ms(runtime), call_end)


async def called(runtime: Runtime, route: Route, verdict: Verdict = Verdict.OK, **end: Any) -> None:
    """A whole call: reserved and closed."""
    call_id, _ = await permitted(runtime, route)
    assert await closed(runtime, route, call_id, verdict, **end) == 1


async def state_of_route(runtime: Runtime, route: Route) -> RouteState:
    """The route's state, as every worker sees it."""
    (state,) = [state for state in await runtime.upstreams.look([route]) if state.name == route.name]
    return state


async def sums_of(runtime: Runtime, route: Route) -> list[int]:
    """Calls, retries, input and output tokens of the window; checks them against its buckets, and their age."""
    stored = await _hash(runtime, f"{redis_keys.GLOBAL}window:{route.name}")
    first = int(stored.pop("first", "0"))
    sums = [int(part) for part in stored.pop("sums", "0 0 0 0").split()]
    buckets = [[int(part) for part in text.split()] for text in stored.values()]
    assert sums == [sum(bucket[place] for bucket in buckets) for place in range(4)]
    assert all(amount >= 0 for bucket in buckets for amount in bucket)
    assert all(int(bucket) >= first for bucket in stored)
    return sums


async def row_of(runtime: Runtime, call_id: str) -> dict[str, str]:
    """A row of the ledger; empty if it does not exist."""
    return await _hash(runtime, f"{redis_keys.GLOBAL}call:{call_id}")


async def holders_of(runtime: Runtime, route: Route) -> list[str]:
    """The calls that count towards the route's concurrency, including abandoned ones that were not noticed yet."""
    found = await runtime._commands.call("ZRANGE", f"{redis_keys.GLOBAL}calls:{route.name}", 0, -1)
    return [call_id.decode() for call_id in found]


async def let_pass(runtime: Runtime, seconds: float) -> None:
    """Moves all upstreams' stored times into the past, by a multiple of BUCKET_MS; TTLs do not change."""
    by_ms = int(seconds * 1000)
    assert by_ms % BUCKET_MS == 0
    for key in await all_keys(runtime._commands):
        match kind_of(key):
            case "window":
                await _age_window(runtime, key, by_ms // BUCKET_MS)
            case "route" | "call":
                await _age_hash(runtime, key, by_ms)
            case "routes" | "calls":
                for member in await runtime._commands.call("ZRANGE", key, 0, -1):
                    await runtime._commands.call("ZINCRBY", key, -by_ms, member)
            case _:
                pass


async def _age_window(runtime: Runtime, key: str, by: int) -> None:
    stored = await _hash(runtime, key)
    aged = {"first": str(int(stored.pop("first")) - by), "sums": stored.pop("sums")}
    aged |= {str(int(bucket) - by): text for bucket, text in stored.items()}
    left_ms = await runtime._commands.call("PTTL", key)
    await runtime._commands.call("DEL", key)
    await runtime._commands.call("HSET", key, *[part for pair in aged.items() for part in pair])
    await runtime._commands.call("PEXPIRE", key, left_ms)


async def _age_hash(runtime: Runtime, key: str, by_ms: int) -> None:
    for name, text in (await _hash(runtime, key)).items():
        if name in _MOMENTS:
            await runtime._commands.call("HSET", key, name, int(text) - by_ms)
        elif name == "bucket":
            await runtime._commands.call("HSET", key, name, int(text) - by_ms // BUCKET_MS)


async def _hash(runtime: Runtime, key: str) -> dict[str, str]:
    flat = await runtime._commands.call("HGETALL", key)
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
