"""The settings of tenants: limits and retentions. The scripts read them from Redis, so a change holds at once."""

from collections.abc import Mapping

from shared.limits import TenantSettings
from shared.store import redis_keys
from shared.store.commands import Commands

_FIELDS = TenantSettings.__struct_fields__


class Tenants:
    """The settings of a shard's tenants."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def get(self, tenant: str) -> TenantSettings:
        """The tenant's settings; all 0 if nothing is set for it. Raises StorageUnavailable."""
        found = await self._commands.call("HMGET", redis_keys.tenant(tenant), *_FIELDS)
        return TenantSettings(**{name: int(value or 0) for name, value in zip(_FIELDS, found, strict=True)})

    async def set(self, tenant: str, changes: Mapping[str, int]) -> TenantSettings:
        """Changes the named members of TenantSettings; 0 removes one. Returns what is set now. Safe to repeat.

        Raises StorageUnavailable, StorageFull.
        """
        assert changes.keys() <= set(_FIELDS)
        flat = [part for pair in changes.items() for part in pair]
        await self._commands.run("set_tenant", tenant=tenant, changes=flat)
        return await self.get(tenant)

    async def clear(self, tenant: str) -> None:
        """Removes all settings of the tenant."""
        await self.set(tenant, dict.fromkeys(_FIELDS, 0))

    async def list(self) -> dict[str, TenantSettings]:
        """The tenants that have settings, by name."""
        names = sorted(name.decode() for name in await self._commands.call("SMEMBERS", redis_keys.plain("tenants")))
        return {name: await self.get(name) for name in names}
