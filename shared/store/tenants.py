"""Tenants: their settings, which are limits and retentions, and who they are. The scripts read the settings from Redis, so a
change holds at once.
"""

import bisect
from collections.abc import Mapping
from typing import NamedTuple

from shared.errors import TenantErased
from shared.limits import TenantSettings
from shared.store import redis_keys
from shared.store.commands import Commands

_FIELDS = TenantSettings.__struct_fields__


class Tenant(NamedTuple):
    """A tenant as an operator sees it."""

    name: str
    settings: TenantSettings
    created_ms: int | None
    """When it was created over HTTP; None if it began with a key, a setting or a job."""
    queued: int
    running: int


class Tenants:
    """The tenants of a shard."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def get(self, tenant: str) -> TenantSettings:
        """The tenant's settings; all 0 if nothing is set for it. Raises StorageUnavailable."""
        found = await self._commands.call("HMGET", redis_keys.tenant(tenant), *_FIELDS)
        return TenantSettings(**{name: int(value or 0) for name, value in zip(_FIELDS, found, strict=True)})

    async def set(self, tenant: str, changes: Mapping[str, int], *, is_created: bool = False) -> TenantSettings:
        """Changes the named members of TenantSettings; 0 removes one. Returns what is set now. Safe to repeat.

        ``is_created``: from now on it exists even without settings. Raises TenantErased, StorageUnavailable, StorageFull.
        """
        assert changes.keys() <= set(_FIELDS)
        flat = [part for pair in changes.items() for part in pair]
        if not await self._commands.run("set_tenant", tenant=tenant, is_created=int(is_created), changes=flat):
            raise TenantErased
        return await self.get(tenant)

    async def clear(self, tenant: str) -> None:
        """Removes all settings of the tenant."""
        await self.set(tenant, dict.fromkeys(_FIELDS, 0))

    async def page(self, *, after: str, limit: int) -> tuple[list[Tenant], str | None]:
        """The tenants after that name, and the name after which the next page begins; None if there are no more."""
        names = await self.names()
        begin = bisect.bisect_right(names, after)
        some = names[begin : begin + limit]
        return [await self._of(name) for name in some], some[-1] if len(names) > begin + limit else None

    async def names(self) -> list[str]:
        """All tenants that have settings or keys, were created, or used something that ``/v1/usage`` still has."""
        settings = self._commands.call("SMEMBERS", redis_keys.plain("tenants"))
        keys = self._commands.call("SMEMBERS", redis_keys.plain("api_key_tenants"))
        usage = self._commands.call("ZRANGE", redis_keys.plain("usage_tenants"), 0, -1)
        return sorted({name.decode() for found in (settings, keys, usage) for name in await found})

    async def find(self, name: str) -> Tenant | None:
        """The tenant; None if there is nothing of it."""
        indexes = self._commands.call(
            "EXISTS", redis_keys.tenant(name), redis_keys.index(name), redis_keys.batch_index(name)
        )
        keys = self._commands.call("EXISTS", redis_keys.api_keys(name))
        usage = self._commands.call("ZSCORE", redis_keys.plain("usage_tenants"), name)
        is_known = any([await indexes, await keys, await usage is not None])
        return await self._of(name) if is_known else None

    async def _of(self, name: str) -> Tenant:
        created = self._commands.call("HGET", redis_keys.tenant(name), "created_ms")
        queued = self._commands.call("HGET", redis_keys.plain("queued_jobs"), f"tenant:{name}")
        running = self._commands.call("SCARD", redis_keys.tenant_running(name))
        settings = await self.get(name)
        created_ms = await created
        return Tenant(name, settings, int(created_ms) if created_ms else None, int(await queued or 0), await running)

    async def list(self) -> dict[str, TenantSettings]:
        """The tenants that have settings, by name."""
        names = sorted(name.decode() for name in await self._commands.call("SMEMBERS", redis_keys.plain("tenants")))
        return {name: await self.get(name) for name in names}
