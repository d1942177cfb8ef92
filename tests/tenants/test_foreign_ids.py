"""Another tenant's objects do not exist: no route, method or state shows otherwise, by a byte or in Redis."""

import pytest

from shared.errors import NotFound
from shared.job import JobState, new_id
from shared.store.runtime import Runtime
from tests.support.store import make_overdue, state_of, submit
from tests.tenants.table import METHODS, OwnedPath, owned_paths
from tests.tenants.victim import ATTACKER, CANARY, VICTIM, Victim, absent_ids, state_of_all
from tests.tenants.wire import Line, Response

_PATHS = owned_paths()
_STREAM = "text/event-stream"
_NAMED = f"?tenant={VICTIM}"
"""A query parameter that only an operator may use, where a route has it."""
_TAKES_A_TENANT = ("/v1/keys/{}", "/v1/keys/{}/revoke")


def _manners(path: OwnedPath, end_id: str) -> list[tuple[str, dict[str, str]]]:
    """Different queries and headers for the same object. Some contain what only the owner can know."""
    if path.path.endswith("/events"):
        return [("", {"Accept": _STREAM}), ("?format=messages", {"Last-Event-ID": end_id}), (_NAMED, {})]
    known = {"/v1/jobs/{}": "?wait=1&result=true", "/v1/batches/{}/results": "?order=finished"}.get(path.path, "")
    return [("", {}), (known, {"Idempotency-Key": "the-key-of-both"}), (_NAMED, {})]


@pytest.mark.parametrize("path", _PATHS, ids=[f"{path.path}" for path in _PATHS])
async def test_foreign_and_absent_ids_get_equal_responses(
    runtime: Runtime, victim: Victim, line: Line, path: OwnedPath
) -> None:
    """The same status, headers and bytes for every method and every state of the object, which does not change."""
    end_id = (await runtime.jobs.get(victim.ids["job"]["succeeded"], VICTIM)).end_id
    assert end_id
    before = await state_of_all(runtime)
    foreign = victim.of(path.kind)
    assert foreign
    for method in METHODS:
        for query, headers in _manners(path, end_id):
            sent = {**headers, **line.of(ATTACKER)}
            body = b"{}" if method in ("POST", "PUT", "PATCH") else None
            responses: dict[str, Response] = {}
            for name, some_id in {**absent_ids(path.kind), **foreign}.items():
                responses[name] = await line.ask(method, path.of(some_id) + query, headers=sent, body=body)
            absent = responses["absent"]
            assert {name for name, answer in responses.items() if answer != absent} == set(), method
            assert CANARY.encode() not in absent.body
            is_taken = method in path.methods or (method == "HEAD" and "GET" in path.methods)
            refused = 400 if query == _NAMED or (query and method not in ("GET", "HEAD")) else 404
            if query == _NAMED and path.path in _TAKES_A_TENANT:
                refused = 403
            assert absent.status == (refused if is_taken else 204 if method == "OPTIONS" else 405), method
    assert (await state_of_all(runtime)).differences_to(before) == set()
    for method in sorted(
        path.methods - {"HEAD"}, key="DELETE".__eq__
    ):  # the owner gets something else, or this test would prove nothing
        state = {"job": "succeeded", "key": "standing", "evt": "pending"}.get(path.kind, "ended")
        answer = await line.ask(method, path.of(foreign[state]), headers=line.of(VICTIM))
        assert answer.status not in (404, 405), method


def test_every_kind_of_id_is_tried() -> None:
    """With each method of its routes: the table is read from the application."""
    assert {path.kind for path in _PATHS} >= {"job", "batch", "msgbatch", "key", "op"}
    assert len({path.path for path in _PATHS}) == len(_PATHS) >= 14


async def test_a_foreign_read_does_not_end_an_overdue_job(runtime: Runtime) -> None:
    """Its owner's read does. An API's own loop does too, so none runs here."""
    job = await submit(runtime, tenant=VICTIM)
    await make_overdue(runtime, job.id)
    before = await state_of_all(runtime)
    for tenant in (ATTACKER, "", "*"):
        with pytest.raises(NotFound):
            await runtime.jobs.get(job.id, tenant, with_result=True)
        with pytest.raises(NotFound):
            await runtime.jobs.request_of(job.id, tenant)
        for call in (runtime.jobs.cancel, runtime.jobs.erase):
            with pytest.raises(NotFound):
                await call(job.id, tenant)
    assert (await state_of_all(runtime)).differences_to(before) == set()
    assert (await runtime.jobs.get(job.id, VICTIM)).state is JobState.EXPIRED
    assert await state_of(runtime, job.id) is JobState.EXPIRED


async def test_another_tenants_content_is_not_read(runtime: Runtime) -> None:
    """Not even to be discarded: megabytes would show in the response time."""
    large = b'{"messages":"%b"}' % (b"x" * 1_000_000)
    job = await submit(runtime, tenant=VICTIM, request=large)
    _, request = await runtime.jobs.request_of(job.id, VICTIM)
    assert request == large
    sent_bytes = await _sent_bytes(runtime)
    for tenant, own_id in ((ATTACKER, job.id), (VICTIM, new_id("job"))):
        with pytest.raises(NotFound):
            await runtime.jobs.request_of(own_id, tenant)
        with pytest.raises(NotFound):
            await runtime.jobs.get(own_id, tenant, with_result=True)
    assert await _sent_bytes(runtime) - sent_bytes < 100_000


async def _sent_bytes(runtime: Runtime) -> int:
    facts = (await runtime._commands.call("INFO", "stats")).decode()
    return int(facts.partition("total_net_output_bytes:")[2].split()[0])
