"""``tokenspool tenants``: limits and retention of tenants, written to Redis. They take effect at once, in every process."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from cli.errors import CommandError
from cli.output import put_json
from cli.serve import read_settings
from shared.api_key import TENANT
from shared.errors import Problem
from shared.limits import TenantSettings, shown_settings, stored_settings
from shared.store.runtime import Runtime, open_runtime

T = TypeVar("T")

_TIMEOUT_S: Final = 5.0


def set_tenant(tenant: str, chosen: Mapping[str, float | None], *, as_json: bool) -> None:
    """Set the chosen options and print the result. 0 removes a limit."""
    changes = stored_settings({option: value for option, value in chosen.items() if value is not None})
    if not changes:
        raise CommandError("Nothing to set: give at least one limit (see --help).", 2)
    check_tenant(tenant)
    _show(tenant, _run(lambda runtime: runtime.tenants.set(tenant, changes)), as_json=as_json)


def show_tenant(tenant: str, *, as_json: bool) -> None:
    check_tenant(tenant)
    _show(tenant, _run(lambda runtime: runtime.tenants.get(tenant)), as_json=as_json)


def list_tenants(*, as_json: bool) -> None:
    """Print every tenant that has settings, with them."""
    for tenant, settings in _run(lambda runtime: runtime.tenants.list()).items():
        _show(tenant, settings, as_json=as_json)


def clear_tenant(tenant: str, *, as_json: bool) -> None:
    check_tenant(tenant)
    _run(lambda runtime: runtime.tenants.clear(tenant))
    _show(tenant, TenantSettings(), as_json=as_json)


def check_tenant(tenant: str) -> None:
    """Raises CommandError if the name is not valid."""
    if not TENANT.fullmatch(tenant):
        raise CommandError("A tenant's name must be 1 to 64 characters of A-Z, a-z, 0-9, _, . and -.", 2)


def ask_redis(ask: Callable[[Runtime], Awaitable[T]], *, process_name: str) -> T:
    """What ``ask`` returns. Raises CommandError, with the reason if it is known, if the access to Redis fails."""

    async def asked() -> T:
        async with open_runtime(read_settings(), process_name=process_name, timeout_s=_TIMEOUT_S) as runtime:
            return await ask(runtime)

    try:
        return asyncio.run(asked())
    except Problem as problem:
        raise CommandError(problem.reason or f"{problem.detail} Check TOKENSPOOL_REDIS_URL.") from None


def _run(ask: Callable[[Runtime], Awaitable[T]]) -> T:
    return ask_redis(ask, process_name="tokenspool-tenants")


def _show(tenant: str, settings: TenantSettings, *, as_json: bool) -> None:
    if as_json:
        put_json({"name": tenant, "settings": shown_settings(settings)})
        return
    shown = [f"{option}={value:.12g}" for option, value in shown_settings(settings).items() if value]
    print(tenant, *(shown or ["(nothing set)"]))
