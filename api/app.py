"""The application, put together from its parts. Nothing is decided here.

``uvicorn --factory api.app:create_app`` works too: without settings, ``create_app`` reads the environment.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from api import loops as background
from api import openapi
from api.anthropic_compat import batches as message_batches
from api.anthropic_compat import messages, models
from api.edge.address_limit import AddressLimit
from api.edge.browser_guard import BrowserGuard
from api.edge.connections import bounds_of, open_files
from api.edge.middleware import Envelope
from api.edge.proxies import TrustedProxies
from api.edge.uvicorn_internals import abort
from api.http import errors
from api.native import batches, complete, follow_tokens, jobs, limits, operations, usage, webhooks
from api.ops import api_keys as keys
from api.ops import dashboard, dev, health, problems, stats, tenants, workers
from api.state.api_state import ApiState
from api.state.batch_relay import BatchRelay
from api.state.drain import Drain
from api.state.key_ring import KeyRing
from api.state.occupancy import Occupancy
from api.state.parsers import Parsers
from api.state.relay import Relay
from api.state.unsent_bytes import UnsentBytes
from api.state.upload_slots import Uploads
from shared.errors import SettingsError
from shared.job import new_id
from shared.settings import Auth, Settings, load_settings, routes_of, warn_of_unknown_variables
from shared.store.redis_problems import logging_to
from shared.store.runtime import open_runtime
from shared.telemetry import configure_logging, get_logger
from shared.version import version

State = dict[str, ApiState]
"""What the lifespan yields. Each request finds it as ``scope["state"]``."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for these settings; by default for those of the environment, whose errors exit the process."""
    settings = settings or _settings_of_the_environment()
    app = FastAPI(
        title="tokenspool",
        version=version(),
        description=openapi.DESCRIPTION,
        lifespan=_lifespan(settings),
        openapi_url=None,  # openapi.describe serves it
        docs_url=None,  # both pages would load their scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # else looked up on each call, 20 µs
    )
    if settings.address_requests_per_minute:
        app.add_middleware(AddressLimit, requests_per_minute=settings.address_requests_per_minute)
    if settings.auth is Auth.OFF:
        app.add_middleware(BrowserGuard, hosts=settings.allowed_hosts, origins=settings.cors_origins)
    app.add_middleware(Envelope, cors_origins=settings.cors_origins)
    if settings.trusted_proxies:
        app.add_middleware(TrustedProxies, networks=settings.trusted_proxies)
    errors.add_handlers(app)
    native = (jobs, follow_tokens, operations, batches, usage, limits, complete)
    compat = (messages, message_batches, models)
    shown = ((dashboard,) if settings.dashboard else ()) + ((dev,) if settings.dev_controls else ())
    for part in (*native, *compat, keys, tenants, workers, webhooks, stats, health, problems, *shown):
        app.router.routes.extend(part.router.routes)  # with include_router each request takes 40 µs more (0.165)
    openapi.describe(app)
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[State]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        async with (
            open_runtime(settings, process_name="tokenspool-api", on_problem=logging_to(get_logger("api"))) as runtime,
            Relay(runtime) as relay,
            BatchRelay(runtime, relay) as batch_relay,
            KeyRing(runtime) as key_ring,
            Parsers() as parsers,
        ):
            log = get_logger("api").bind()
            unsent = UnsentBytes(settings.max_unsent_bytes)
            api = ApiState(
                name=new_id("api"),
                settings=settings,
                runtime=runtime,
                relay=relay,
                batch_relay=batch_relay,
                key_ring=key_ring,
                uploads=Uploads(),
                parsers=parsers,
                unsent=unsent,
                drain=Drain(grace_s=settings.shutdown_grace_s, notice_s=settings.shutdown_notice_s),
                routes=routes_of(settings),
                occupancy=Occupancy(
                    bounds_of(settings.max_connections, settings.keep_alive_s, open_files()).connections
                ),
                shutdown=asyncio.Event(),
                log=log,
                abort=abort,
            )
            async with asyncio.TaskGroup() as group:
                loops = [group.create_task(loop, name=name) for name, loop in background.loops_of(api).items()]
                yield {"api": api}
                api.stop()
                for loop in loops:
                    loop.cancel()

    return lifespan


def _settings_of_the_environment() -> Settings:
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(str(error))
    configure_logging(settings.log_level)
    warn_of_unknown_variables(get_logger("api"))
    return settings
