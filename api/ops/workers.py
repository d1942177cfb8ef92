"""``/v1/workers``: the workers that live, for keys with the scope ``operator``."""

from collections.abc import Mapping

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from api.dependencies import Api, Operator
from api.http.responses import json_response
from api.openapi import json_of, operation
from shared.clock import to_rfc3339

router = APIRouter()


class WorkerView(msgspec.Struct, frozen=True):
    """A worker. Null is what a worker of another release does not say."""

    name: str
    type: str
    version: str | None
    slots: int
    running: int
    draining: bool
    last_seen_at: str | None
    """When it last said that it lives, which it does every 2 s. One that is silent for three leases is not listed."""
    llm: str | None
    """How its last calls of the LLM went: reachable, degraded or unreachable; null before the first."""


class WorkerList(msgspec.Struct, frozen=True):
    """All workers that live."""

    data: list[WorkerView]


@router.get("/v1/workers")
@operation({200: json_of(WorkerList, "The workers, sorted by name.")}, (400, 401, 503))
async def list_workers(api: Api, _caller: Operator) -> Response:
    """The workers that live: their versions, slots and running jobs, and whether they drain."""
    found = [view_of(facts) for facts in await api.runtime.workers.living()]
    return json_response(msgspec.json.encode(WorkerList(sorted(found, key=lambda worker: worker.name))))


def view_of(facts: Mapping[str, str]) -> WorkerView:
    """A worker, by what it announces."""
    return WorkerView(
        name=facts.get("name", ""),
        type="worker",
        version=facts.get("version"),
        slots=int(facts.get("concurrency", 0)),
        running=int(facts.get("running", 0)),
        draining=facts.get("draining") == "1",
        last_seen_at=to_rfc3339(int(facts["seen_ms"])) if "seen_ms" in facts else None,
        llm=facts.get("llm"),
    )
