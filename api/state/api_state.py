"""The parts of an API process. Its lifespan opens them, and each request finds them in its scope."""

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
from api.state.viewers import Viewers
from shared.routes import Routes
from shared.settings import Settings
from shared.store.runtime import Runtime
from shared.telemetry import Logger

_TENANT: Final = "tokenspool.tenant"


@dataclass
class LetPast:
    """How many requests passed the address limit unchecked because Redis was away."""

    count: int = 0


@dataclass
class BodyBudget:
    """How much memory is held by all request bodies that are being read."""

    bytes: int = 0


@dataclass
class LastReport:
    """The last report of its kind, and when it was made by the loop's clock, in seconds."""

    report: Any = None
    at_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class ApiState:
    """What lives as long as the application."""

    name: str
    """Identifies this process, also in the records of the attended jobs of its clients."""
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
    viewers: Viewers = field(default_factory=Viewers)
    last_health: LastReport = field(default_factory=LastReport)
    last_stats: LastReport = field(default_factory=LastReport)
    last_history: LastReport = field(default_factory=LastReport)
    """``at_s`` is the number of its newest bucket."""

    def wind_down(self, *, is_hurried: bool) -> Phase:
        """Advances the drain. Call it a few times a second after the stop signal, until it returns OVER.
        ``is_hurried`` ends the drain now.
        """
        now_s = asyncio.get_running_loop().time()
        self.drain.begin(now_s)
        self.relay.dismiss()
        self.batch_relay.dismiss()
        self.viewers.dismiss()
        phase = Phase.OVER if is_hurried else self.drain.phase(now_s)
        if phase is Phase.OVER:
            self.stop()
        return phase

    def stop(self) -> None:
        """Asks followers to reconnect, and has waiting requests respond now. Calls after the first change nothing."""
        self.drain.begin(asyncio.get_running_loop().time())
        self.shutdown.set()
        self.relay.close()
        self.batch_relay.dismiss()
        self.viewers.dismiss()


def api_of(request: Request) -> ApiState:
    """The state, for routes without FastAPI's dependencies, which cost 20 µs each."""
    api: ApiState = request.scope["state"]["api"]
    return api


def set_tenant(scope: MutableMapping[str, Any], tenant: str) -> None:
    """Notes whose request it is."""
    scope[_TENANT] = tenant


def tenant_of(scope: MutableMapping[str, Any]) -> str:
    """Whose request it is; empty until it is known."""
    tenant: str = scope.get(_TENANT, "")
    return tenant
