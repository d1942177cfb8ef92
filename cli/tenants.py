"""``tokenspool tenants``: limits and retentions of tenants, written to Redis directly. They hold at once, everywhere."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from cli.errors import CommandError, refused_by_storage
from cli.serve import read_settings
from shared.errors import Problem
from shared.limits import TenantSettings
from shared.store.runtime import Runtime, open_runtime
from shared.store.tenants import Tenants

T = TypeVar("T")

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_UNITS: Final = {"nano_usd": 1_000_000_000, "_ms": 1000}
_TIMEOUT_S: Final = 5.0

OPTIONS: Final = {
    "requests_per_minute": "requests_per_minute",
    "tokens_per_minute": "tokens_per_minute",
    "running_jobs": "running_jobs",
    "queued_jobs": "queued_jobs",
    "waiting_bytes": "waiting_bytes",
    "usd_per_day": "nano_usd_per_day",
    "usd_per_month": "nano_usd_per_month",
    "log_retention_s": "log_retention_ms",
    "result_retention_s": "result_retention_ms",
}
"""What the command line calls a setting → what it is stored as."""


def set_tenant(tenant: str, chosen: Mapping[str, float | None]) -> None:
    """Changes what was chosen, and shows what holds now. 0 takes a limit away."""
    changes = {
        # What rounds to nothing is the least that there is: 0 would take the limit away.
        OPTIONS[option]: round(value * _unit_of(OPTIONS[option])) or int(value > 0)
        for option, value in chosen.items()
        if value is not None
    }
    if not changes:
        raise CommandError("There is nothing to set: name at least one limit (see --help).", 2)
    _show(checked(tenant), _run(lambda tenants: tenants.set(tenant, changes)))


def show_tenant(tenant: str) -> None:
    """What is set for it."""
    _show(checked(tenant), _run(lambda tenants: tenants.get(tenant)))


def list_tenants() -> None:
    """Those that have settings, with them."""
    for tenant, settings in _run(lambda tenants: tenants.list()).items():
        _show(tenant, settings)


def clear_tenant(tenant: str) -> None:
    """As if nothing had ever been set."""
    checked(tenant)
    _run(lambda tenants: tenants.clear(tenant))
    _show(tenant, TenantSettings())


def checked(tenant: str) -> str:
    """The name, if it can be one. Raises CommandError."""
    if not _NAME.fullmatch(tenant):
        raise CommandError("A tenant's name is 1 to 64 of A-Z, a-z, 0-9, _, . and -.", 2)
    return tenant


def _show(tenant: str, settings: TenantSettings) -> None:
    values = [(option, getattr(settings, name) / _unit_of(name)) for option, name in OPTIONS.items()]
    told = [f"{option}={value:.12g}" for option, value in values if value]
    print(tenant, *(told or ["(nothing set)"]))


def _unit_of(name: str) -> int:
    """How much larger the number is that is stored."""
    return next((unit for part, unit in _UNITS.items() if part in name), 1)


def _run(ask: Callable[[Tenants], Awaitable[T]]) -> T:
    try:
        return asyncio.run(_asked(ask))
    except Problem as problem:
        raise refused_by_storage(problem) from None


async def _asked(ask: Callable[[Tenants], Awaitable[T]]) -> T:
    runtime: Runtime
    async with open_runtime(read_settings(), process_name="tokenspool-tenants", timeout_s=_TIMEOUT_S) as runtime:
        return await ask(runtime.tenants)
