"""What ``/health`` shows to a key: the state of the service, and nothing about other tenants' models."""

import httpx2

from shared.store.upstreams import Verdict
from tests.keys.conftest import TENANT, bearer, make_key
from tests.support.builders import a_submission
from tests.support.served import Served
from tests.support.upstreams import a_route, called


async def test_a_tenant_sees_only_the_models_that_it_uses(served: Served, http: httpx2.AsyncClient) -> None:
    """Names of models that only other tenants use are not shown."""
    runtime = served.api.runtime
    own, theirs = a_route("mine"), a_route("theirs")
    for route in (own, theirs):
        for _ in range(10):
            await called(runtime, route, Verdict.TROUBLE)
    await runtime.jobs.submit(a_submission(tenant=TENANT, model="mine"), expires_in_s=60)
    key = await make_key(runtime)
    report = (await http.get("/health", headers=bearer(key.text))).json()
    assert [route["route"] for route in report["routes"]] == [own.name]
    assert report["status"] == "degraded"
    assert set((await http.get("/health")).json()) == {"status"}
