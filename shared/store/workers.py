"""The workers that live, the facts that they announce, and the models that the upstreams offer."""

from collections.abc import Mapping

import msgspec

from shared.model_info import ModelInfo, distinct
from shared.settings import Settings
from shared.store import redis_keys
from shared.store.commands import Commands


class Workers:
    """The workers of a shard."""

    def __init__(self, commands: Commands, settings: Settings, urgent: Commands) -> None:
        self._commands = commands
        self._urgent = urgent
        self._kept_ms = int(settings.lease_s * 3000)

    async def announce(self, worker: str, facts: Mapping[str, str | float]) -> None:
        """The worker is alive, and announces these facts. They are kept for three leases."""
        flat = [part for fact in facts.items() for part in fact]
        await self._commands.run("announce", worker=worker, kept_ms=self._kept_ms, facts=flat)

    async def withdraw(self, worker: str) -> None:
        """The worker leaves."""
        forgotten = self._commands.call("DEL", redis_keys.worker(worker))
        await self._commands.call("SREM", redis_keys.plain("workers"), worker)
        await forgotten

    async def living(self) -> list[dict[str, str]]:
        """The facts that each living worker announces."""
        names = [name.decode() for name in await self._urgent.call("SMEMBERS", redis_keys.plain("workers"))]
        replies = [self._urgent.call("HGETALL", redis_keys.worker(name)) for name in names]
        found = [await reply for reply in replies]
        if gone := [name for name, flat in zip(names, found, strict=True) if not flat]:
            await self._urgent.call("SREM", redis_keys.plain("workers"), *gone)
        return [
            {name.decode(): fact.decode(errors="replace") for name, fact in zip(flat[::2], flat[1::2], strict=True)}
            for flat in found
            if flat
        ]

    async def publish_models(self, provider: str, models: bytes) -> None:
        """What an upstream offers: a list of ModelInfo as JSON. All lists are forgotten a day after the last was published."""
        key = redis_keys.plain("models")
        published = self._commands.call("HSET", key, provider, models)
        await self._commands.call("EXPIRE", key, 86_400)
        await published

    async def models(self) -> list[ModelInfo]:
        """What the upstreams offer, each in its own order."""
        flat = await self._commands.call("HGETALL", redis_keys.plain("models"))
        lists = dict(zip(flat[::2], flat[1::2], strict=True))
        return distinct(model for name in sorted(lists) for model in _models_of(lists[name]))


def _models_of(raw: bytes) -> list[ModelInfo]:
    """Empty if a newer release wrote the list in another form."""
    try:
        return msgspec.json.decode(raw, type=list[ModelInfo])
    except msgspec.DecodeError:
        return []
