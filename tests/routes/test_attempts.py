"""What was tried for a job, as the API shows it."""

from typing import Any

import pytest

from shared.store.attempts import call_id_of
from shared.store.runtime import Runtime
from shared.store.upstreams import Reserved
from tests.routes.conftest import CalledApi, problem_of
from tests.support.author import Author
from tests.support.upstreams import a_call, a_route, closed

_ROUTE = a_route()


async def _begun(api: CalledApi) -> Author:
    """A running job."""
    await api.submitted()
    return await Author.claim_next(api.runtime)


async def _call_of(runtime: Runtime, author: Author, attempt: int) -> str:
    call = a_call(
        call_id_of(author.job_id, author.claim.epoch, attempt),
        tenant="default",
        job_id=author.job_id,
        epoch=author.claim.epoch,
        attempt=attempt,
        worker="worker-1",
    )
    assert isinstance(await runtime.upstreams.reserve(_ROUTE, call), Reserved)
    return call.id


async def test_attempts_are_listed_with_what_is_known(api: CalledApi) -> None:
    author = await _begun(api)
    first = await _call_of(api.runtime, author, 1)
    await closed(api.runtime, _ROUTE, first, ended="upstream_overloaded", message="It was.", upstream_status=529)
    await author.try_again(2)
    await _call_of(api.runtime, author, 2)
    response = await api.http.get(f"/v1/jobs/{author.job_id}/attempts")
    failed, running = response.json()["data"]
    assert failed["begun_at"] <= failed["ended_at"]
    assert {name: failed[name] for name in ("attempt", "outcome", "message", "upstream_status")} == {
        "attempt": 1, "outcome": "upstream_overloaded", "message": "It was.", "upstream_status": 529,
    }  # fmt: skip
    unknown: dict[str, Any] = dict.fromkeys(
        ("first_token_at", "ended_at", "outcome", "message", "upstream_status", "usage", "cost_usd")
    )
    assert running == unknown | {
        "attempt": 2,
        "provider": _ROUTE.provider,
        "model": _ROUTE.model,
        "route": _ROUTE.name,
        "worker": "worker-1",
        "begun_at": running["begun_at"],
        "is_estimated": False,
    }


async def test_nobody_sees_the_attempts_of_an_erased_or_a_foreign_job(api: CalledApi) -> None:
    author = await _begun(api)
    await _call_of(api.runtime, author, 1)
    await author.fail()
    path = f"/v1/jobs/{author.job_id}"
    assert len((await api.http.get(f"{path}/attempts")).json()["data"]) == 1
    foreign = await api.http.get(f"{path}/attempts", headers={"X-Tenant": "another"})
    problem_of(foreign, 404, "not_found")
    await api.http.delete(path)
    problem_of(await api.http.get(f"{path}/attempts"), 404, "not_found")


@pytest.mark.parametrize("attempts", [0, 250])
async def test_attempts_without_a_row_are_left_out(api: CalledApi, attempts: int) -> None:
    """No call was made, or its row's time is over. However many there were, a bounded number is looked for."""
    author = await _begun(api)
    if attempts:
        await author.try_again(attempts)
        await _call_of(api.runtime, author, attempts)
        await _call_of(api.runtime, author, 1)
    response = await api.http.get(f"/v1/jobs/{author.job_id}/attempts")
    assert [attempt["attempt"] for attempt in response.json()["data"]] == ([attempts] if attempts else [])
