"""What a route may ask for: the parts of the process, and who is calling."""

import asyncio
import re
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from fastapi import Depends, Path
from fastapi.routing import APIRoute
from starlette.requests import Request

from api.anthropic_compat.wire import is_on_surface
from api.auth import authenticate
from api.http.headers import is_of_openais_sdk
from api.http.invalid import refuse, unknown_parameter
from api.state.batch_relay import BatchRelay
from api.state.drain import Drain, Phase
from api.state.key_ring import KeyRing
from api.state.occupancy import Occupancy
from api.state.parsers import Parsers
from api.state.relay import Relay
from api.state.unsent_bytes import UnsentBytes
from api.state.upload_slots import Uploads
from shared.api_key import Caller, Scope
from shared.errors import InvalidRequest, NotFound
from shared.routes import Routes
from shared.settings import Settings
from shared.store.runtime import Runtime
from shared.telemetry import Logger

_TENANT: Final = "tokenspool.tenant"

JOB_ID: Final = re.compile(r"job_[0-9a-hjkmnp-tv-z]{26}", re.ASCII)
BATCH_ID: Final = re.compile(r"batch_[0-9a-hjkmnp-tv-z]{26}", re.ASCII)

_IGNORED_BY_THE_MESSAGES_API: Final = ("beta",)
"""What the beta clients of older SDKs add to each path."""
_OWN_BATCHES: Final = "/v1/batches"
_NOT_OPENAIS: Final = (
    "This path is tokenspool's own batch API, not OpenAI's, and OpenAI's SDK would take its answers for something else. "
    "OpenAI's API is not served here yet; its base URL will be /openai/v1. Until then call this path with another HTTP client."
)
"""OpenAI has the same path with other objects: its SDK's list, retrieve and cancel would succeed, and a poll never end."""


@dataclass
class LetPast:
    """How many requests went past the limit of addresses because Redis did not answer."""

    count: int = 0


@dataclass
class BodiesHeld:
    """What the bodies that are being read hold together."""

    bytes: int = 0


@dataclass
class LastHealth:
    """The report that was worked out last, and when, by the loop's clock."""

    report: Any = None
    at_s: float = 0.0


@dataclass(frozen=True)
class ApiState:
    """What lives as long as the application; opened by its lifespan."""

    name: str
    """Of this process, while it lives: jobs that a client waits for here carry it."""
    settings: Settings
    runtime: Runtime
    relay: Relay
    batch_relay: BatchRelay
    key_ring: KeyRing
    uploads: Uploads
    parsers: Parsers
    unsent: UnsentBytes
    drain: Drain
    routes: Routes
    occupancy: Occupancy
    shutdown: asyncio.Event
    """Set when the drain is over: whatever still waits ends now."""
    log: Logger
    let_past: LetPast = field(default_factory=LetPast)
    bodies: BodiesHeld = field(default_factory=BodiesHeld)
    last_health: LastHealth = field(default_factory=LastHealth)

    def wind_down(self, *, is_hurried: bool) -> Phase:
        """Asked a few times a second once the server was told to stop, until it is over. ``is_hurried``: it is over now."""
        now_s = asyncio.get_running_loop().time()
        self.drain.begin(now_s)
        self.relay.dismiss()
        self.batch_relay.dismiss()
        phase = Phase.OVER if is_hurried else self.drain.phase(now_s)
        if phase is Phase.OVER:
            self.stop()
        return phase

    def stop(self) -> None:
        """Followers are told to come back, and what waits responds now. Calls after the first change nothing."""
        self.drain.begin(asyncio.get_running_loop().time())
        self.shutdown.set()
        self.relay.close()
        self.batch_relay.dismiss()


def api_of(request: Request) -> ApiState:
    """For routes that do without FastAPI's dependencies, which cost 20 µs each."""
    api: ApiState = request.scope["state"]["api"]
    return api


async def _api(request: Request) -> ApiState:
    return api_of(request)  # a coroutine: FastAPI runs plain functions in threads


async def caller_of(request: Request, scope: Scope, *, query: Collection[str] = ()) -> Caller:
    """Who sent it, and may do that. ``query``: the parameters that a GET may have; any other would be taken for a filter by its
    sender, and everything be returned. Raises Unauthenticated, Forbidden, InvalidRequest, StorageUnavailable,
    TooManyConnections.
    """
    api = api_of(request)
    caller = await authenticate(request, api.settings, api.key_ring, scope)
    request.scope[_TENANT] = caller.tenant
    api.occupancy.enter(request.scope, caller.tenant)
    if request.scope["path"].startswith(_OWN_BATCHES) and is_of_openais_sdk(request.scope):
        raise InvalidRequest(_NOT_OPENAIS)
    if request.scope["query_string"] and request.method == "GET":
        _refuse_unknown(request, query)
    return caller


def tenant_of(scope: MutableMapping[str, Any]) -> str:
    """Whose request it is, once that was asked; the empty name if nobody's."""
    tenant: str = scope.get(_TENANT, "")
    return tenant


def _refuse_unknown(request: Request, query: Collection[str]) -> None:
    ignored = _IGNORED_BY_THE_MESSAGES_API if is_on_surface(request.scope["path"]) else ()
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in query and name not in ignored]
    if unknown:
        raise refuse(*[unknown_parameter(name, query) for name in unknown])


def _declared(request: Request) -> Collection[str]:
    """The query parameters of a route that FastAPI calls."""
    route: APIRoute = request.scope["route"]
    return [parameter.alias for parameter in route.dependant.query_params]


async def _submitter(request: Request) -> Caller:
    return await caller_of(request, Scope.SUBMIT)


async def _reader(request: Request) -> Caller:
    return await caller_of(request, Scope.READ, query=_declared(request))


async def _canceller(request: Request) -> Caller:
    return await caller_of(request, Scope.CANCEL)


async def _admin(request: Request) -> Caller:
    return await caller_of(request, Scope.ADMIN, query=_declared(request))


async def _job_id(job_id: Annotated[str, Path()]) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise NotFound
    return job_id


async def _batch_id(batch_id: Annotated[str, Path()]) -> str:
    if not BATCH_ID.fullmatch(batch_id):
        raise NotFound
    return batch_id


Api = Annotated[ApiState, Depends(_api)]
Submitter = Annotated[Caller, Depends(_submitter)]
Reader = Annotated[Caller, Depends(_reader)]
Canceller = Annotated[Caller, Depends(_canceller)]
Admin = Annotated[Caller, Depends(_admin)]
JobId = Annotated[str, Depends(_job_id)]
BatchId = Annotated[str, Depends(_batch_id)]
"""Of the path. What cannot be one of ours is not found, like an absent one."""
