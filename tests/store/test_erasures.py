"""Erasing a tenant whole: nothing of it is left in Redis, whatever it was doing and whatever process dies."""

from typing import Any

import pytest

from shared.api_key import TENANT_SCOPES, Caller
from shared.errors import TenantErased
from shared.job import JobKind, Priority, Usage
from shared.job_filter import JobFilter
from shared.limits import CallerLimits
from shared.operation import OperationAction
from shared.store import redis_keys
from shared.store.erasures import ErasureStep
from shared.store.runtime import Runtime
from tests.conftest import StartRuntime
from tests.support.builders import a_line, a_text_delta, a_webhook
from tests.support.contents import contents
from tests.support.store import (
    all_keys,
    append,
    assert_consistent,
    begin,
    claim,
    claim_one,
    finish,
    kind_of,
    receive,
    start_batch,
    submit,
    submit_many,
)
from tests.support.upstreams import a_route, closed, permitted

_GONE, _OTHER = "erased-tenant", "other-tenant"
_LIMITS = CallerLimits(running_jobs=5, requests_per_minute=1000, nano_usd_per_day=10**12)


async def _fill(runtime: Runtime, tenant: str) -> None:
    """Everything that a tenant can have, in every state."""
    await runtime.tenants.set(
        tenant,
        {
            "queued_jobs": 10_000,
            "requests_per_minute": 5_000,
            "end_user_running_jobs": 2,
            "end_user_nano_usd_per_day": 10**9,
        },
        is_created=True,
    )
    made = await runtime.api_keys.create(tenant, env="test", name="", scopes=TENANT_SCOPES, limits=_LIMITS)
    revoked = await runtime.api_keys.create(tenant, env="test", name="", scopes=TENANT_SCOPES, limits=_LIMITS)
    assert made
    assert revoked
    await runtime.api_keys.revoke(revoked.key.id, tenant)
    limited: dict[str, Any] = {"key_id": made.key.id, "limits": _LIMITS, "priority": Priority.HIGH}
    await submit(runtime, tenant=tenant, webhook=a_webhook(), idempotency_key="once", **limited)
    await submit(runtime, tenant=tenant, **limited)
    running, ended = [found for found in await claim(runtime, 10) if found.tenant == tenant][:2]
    await finish(runtime, ended)
    await append(runtime, running, a_text_delta("Hel"))
    erased_before = await submit(runtime, tenant=tenant, idempotency_key="its record is gone")
    await runtime.jobs.cancel(erased_before.id, tenant)
    await runtime.jobs.erase(erased_before.id, tenant)
    await runtime.jobs.charge(running.id, 1_000_000, tenant=tenant, key_id=made.key.id)
    route = f"{redis_keys.GLOBAL}route:probed by {made.key.id}"
    await runtime._commands.call("HSET", route, "probe_tenant", tenant)
    await runtime._commands.call("EXPIRE", route, 86_400)
    for is_open in (False, True):
        call_id, _ = await permitted(runtime, a_route(), tenant=tenant, key_id=made.key.id, end_user="ann")
        if not is_open:
            await closed(runtime, a_route(), call_id, usage=Usage(output_tokens=3), cost_nano_usd=5)
    await submit_many(runtime, 120, tenant=tenant, end_user="ann", tags=("nightly",))
    spent = await submit(runtime, tenant=tenant, end_user="bob", priority=Priority.HIGH)
    assert spent.id in [found.id for found in await claim(runtime, 10)]
    await submit(runtime, tenant=tenant, end_user="bob", priority=Priority.HIGH)
    await runtime.jobs.charge(spent.id, 10**9, tenant=tenant, end_user="bob")
    await claim(runtime, 3)
    caller = Caller(tenant, scopes=TENANT_SCOPES)
    await runtime.operations.create(caller, OperationAction.RETRY, JobFilter(tag="nightly"), idempotency_key="twice")
    await submit(runtime, tenant=tenant, kind=JobKind.COUNT_TOKENS)
    await submit(runtime, tenant=tenant, attended_by="an-api")
    await submit(runtime, tenant=tenant, not_before_ms=32_503_680_000_000)
    cancelled = await submit(runtime, tenant=tenant, webhook=a_webhook())
    await runtime.jobs.cancel(cancelled.id, tenant)
    await start_batch(runtime, 300, tenant=tenant, idempotency_key="of a batch", key_id=made.key.id)
    over = await start_batch(runtime, 2, tenant=tenant)
    await runtime.batches.cancel(over.id, tenant)
    await runtime.batches.advance_all(over.id)
    await receive(runtime, 3, tenant=tenant)
    await runtime.webhooks.secrets(tenant)


async def _names_of(runtime: Runtime, tenant: str) -> dict[str, bytes]:
    """All keys whose name or value names the tenant."""
    found = await contents(runtime._commands)
    return {name: value for name, value in found.items() if tenant.encode() in name.encode() + b"\n" + value}


async def _erase(runtime: Runtime, tenant: str) -> None:
    await runtime.erasures.begin(tenant)
    while await runtime.erasures.advance(tenant):
        pass


@pytest.fixture
async def filled(start_runtime: StartRuntime) -> Runtime:
    """Two tenants that have everything; leases are short, so that an erasure need not wait long for a worker."""
    runtime = await start_runtime(lease_s=0.5)
    for tenant in (_GONE, _OTHER):
        await _fill(runtime, tenant)
    return runtime


async def test_nothing_is_left_of_an_erased_tenant_and_all_of_others(filled: Runtime) -> None:
    """Neither in a name nor in a value; and it may begin anew."""
    others = await _names_of(filled, _OTHER)
    assert {kind_of(name) for name in await _names_of(filled, _GONE)} >= {
        *("job", "batch", "delivery", "call", "usage", "spend", "api_key", "idempotency", "webhook_secret", "tenant"),
        *("index", "tenant_running", "pace", "held_bytes", "queued_jobs", "usage_tenants", "route"),
        *("user_running", "labels", "operation", "open_operations", "end_user_usage"),
    }
    await _erase(filled, _GONE)
    assert await _names_of(filled, _GONE) == {}
    after = await _names_of(filled, _OTHER)
    assert after.keys() == others.keys()
    owned = {name for name in others if redis_keys.owner_in(name)[1:] == ("tenant", _OTHER)}
    assert owned
    assert {name for name in owned if after[name] != others[name]} == set()
    assert await filled.erasures.get(_GONE) is None
    assert not await filled.erasures.advance(_GONE)
    await submit(filled, tenant=_GONE)
    assert (await filled.tenants.get(_GONE)).queued_jobs == 0


async def test_an_erasure_counts_what_it_does(runtime: Runtime) -> None:
    """For whoever waits for its end, in the order of its steps."""
    await submit_many(runtime, 120, tenant=_GONE)
    await start_batch(runtime, 300, tenant=_GONE)
    await runtime.erasures.begin(_GONE)
    seen = [await runtime.erasures.get(_GONE)]
    while await runtime.erasures.advance(_GONE):
        seen.append(await runtime.erasures.get(_GONE))
    found = [one for one in seen if one is not None]
    assert list(dict.fromkeys(one.step for one in found)) == list(ErasureStep)
    last = found[-1]
    assert (last.batches_erased, last.jobs_erased, last.jobs_cancelled, last.since_ms) == (
        1,
        120,
        120,
        found[0].since_ms,
    )


async def test_a_tenant_that_is_being_erased_gets_nothing_new(runtime: Runtime) -> None:
    """From the mark on, whatever had begun to arrive before."""
    received = await receive(runtime, 3, tenant=_GONE)
    await runtime.erasures.begin(_GONE)
    with pytest.raises(TenantErased):
        await submit(runtime, tenant=_GONE)
    with pytest.raises(TenantErased):
        await receive(runtime, 3, tenant=_GONE)
    with pytest.raises(TenantErased):
        await runtime.batches.add(received.id, _GONE, [a_line(4)])
    with pytest.raises(TenantErased):
        await begin(runtime, received)
    with pytest.raises(TenantErased):
        await runtime.tenants.set(_GONE, {"queued_jobs": 1})
    await submit(runtime, tenant=_OTHER)
    await _erase(runtime, _GONE)
    assert await _names_of(runtime, _GONE) == {}
    assert {kind_of(name) for name in await all_keys(runtime._commands)} & {"batch", "batch_items"} == set()


async def test_another_process_goes_on_with_an_erasure(filled: Runtime, start_runtime: StartRuntime) -> None:
    """After each piece the process dies, and none that comes later knows anything but what is in Redis."""
    await filled.erasures.begin(_GONE)
    assert await filled.erasures.next() == _GONE
    assert await filled.erasures.next() is None  # leased
    for _ in range(200):
        await filled._commands.call("ZADD", redis_keys.plain("erasures"), "XX", 1, _GONE)  # as if its lease were over
        successor = await start_runtime(lease_s=0.5)
        tenant = await successor.erasures.next()
        if tenant is None:
            break
        assert tenant == _GONE
        await successor.erasures.advance(tenant)
    assert await _names_of(filled, _GONE) == {}
    assert await filled.erasures.next() is None


async def test_a_worker_that_still_reports_leaves_no_trace(start_runtime: StartRuntime) -> None:
    """Its job was cancelled and erased while the LLM answered: its call ends within the lease, before the last step."""
    runtime = await start_runtime(lease_s=0.5)
    await submit(runtime, tenant=_GONE)
    claimed = await claim_one(runtime)
    call_id, _ = await permitted(runtime, a_route(), tenant=_GONE)
    await runtime.erasures.begin(_GONE)
    while (erasure := await runtime.erasures.get(_GONE)) and erasure.step is not ErasureStep.REST:
        await runtime.erasures.advance(_GONE)
    await closed(runtime, a_route(), call_id, usage=Usage(output_tokens=3), cost_nano_usd=5)
    await runtime.jobs.charge(claimed.id, 5, tenant=_GONE)
    await finish(runtime, claimed)
    assert {kind_of(name) for name in await _names_of(runtime, _GONE)} >= {"usage", "spend", "call"}
    await _erase(runtime, _GONE)
    assert await _names_of(runtime, _GONE) == {}
    await assert_consistent(runtime)


async def test_an_unknown_tenant_is_erased_at_once(runtime: Runtime) -> None:
    """It leaves nothing either."""
    before = set(await all_keys(runtime._commands))
    await _erase(runtime, "nobody")
    assert set(await all_keys(runtime._commands)) == before
