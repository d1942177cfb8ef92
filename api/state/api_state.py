"""The parts of an API process, as its lifespan opens them and each request finds them."""

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive

from api.state.batch_relay import BatchRelay
from api.state.drain import Drain, Phase
from api.state.key_ring import KeyRing
from api.state.occupancy import Occupancy
from api.state.parsers import Parsers
from api.state.relay import Relay
from api.state.unsent_bytes import UnsentBytes
from api.state.upload_slots import Uploads
from shared.routes import Routes
from shared.settings import Settings
from shared.store.runtime import Runtime
from shared.telemetry import Logger

_TENANT: Final = "tokenspool.tenant"


@dataclass
class LetPast:
    """How many requests passed the limit of addresses unchecked because Redis was away."""

    count: int = 0


@dataclass
class BodyBudget:
    """How much memory all request bodies that are being read hold together."""

    bytes: int = 0


@dataclass
class LastHealth:
    """The last report, and when it was made, by the loop's clock."""

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
    abort: Callable[[Receive], bool]
    """See api/edge/uvicorn_internals.py."""
    let_past: LetPast = field(default_factory=LetPast)
    bodies: BodyBudget = field(default_factory=BodyBudget)
    last_health: LastHealth = field(default_factory=LastHealth)

    def wind_down(self, *, is_hurried: bool) -> Phase:
        """Called a few times a second from the stop signal until it returns OVER. ``is_hurried``: it is over now."""
        now_s = asyncio.get_running_loop().time()
        self.drain.begin(now_s)
        self.relay.dismiss()
        self.batch_relay.dismiss()
        phase = Phase.OVER if is_hurried else self.drain.phase(now_s)
        if phase is Phase.OVER:
            self.stop()
        return phase

    def stop(self) -> None:
        """Followers are asked to come back, and what waits responds now. Calls after the first change nothing."""
        self.drain.begin(asyncio.get_running_loop().time())
        self.shutdown.set()
        self.relay.close()
        self.batch_relay.dismiss()


def api_of(request: Request) -> ApiState:
    """For routes that do without FastAPI's dependencies, which cost 20 µs each."""
    api: ApiState = request.scope["state"]["api"]
    return api


def set_tenant(scope: MutableMapping[str, Any], tenant: str) -> None:
    """Whose request it is."""
    scope[_TENANT] = tenant


def tenant_of(scope: MutableMapping[str, Any]) -> str:
    """Whose request it is; the empty name before it is known."""
    tenant: str = scope.get(_TENANT, "")
    return tenant
