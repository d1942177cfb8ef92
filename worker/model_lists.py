"""Reads the upstreams' model lists, at the worker's start and once an hour, and publishes them for ``GET /v1/models``.

A list that cannot be read leaves the published one unchanged.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from shared.routes import ProviderName
from shared.store.workers import Workers
from shared.telemetry import Logger
from worker.outcome import Failure, UpstreamError
from worker.providers.base import Provider

_EVERY_S: Final = 3_600.0


class ModelLists:
    """One for a worker process."""

    def __init__(self, providers: Mapping[ProviderName, Provider], logger: Logger, now_s: Callable[[], float]) -> None:
        self._providers = providers
        self._logger = logger
        self._now_s = now_s
        self._read_s = float("-inf")
        self._unpublished: dict[str, bytes] = {}
        self._unread: set[str] = set()
        """Providers whose failure was logged, so that it is logged only once."""

    @property
    def are_old(self) -> bool:
        """Whether this worker has not read them for an hour."""
        return self._now_s() - self._read_s > _EVERY_S

    async def read(self) -> Failure | None:
        """Reads every upstream's list. Returns the first failure, or None: it shows whether they can be reached."""
        self._read_s = self._now_s()
        failures = [await self._read(name, provider) for name, provider in self._providers.items()]
        return next(filter(None, failures), None)

    async def _read(self, name: ProviderName, provider: Provider) -> Failure | None:
        try:
            models = await provider.models()
        except UpstreamError as error:
            if name not in self._unread:
                self._unread.add(name)
                self._logger.info("models_unread", provider=name, code=error.failure.error.code)
            return error.failure
        self._unread.discard(name)
        if models:
            self._unpublished[name] = msgspec.json.encode(models)
        return None

    async def publish(self, workers: Workers) -> None:
        """Writes what was read since the last time. Raises StorageUnavailable, StorageFull: it is published again later."""
        for name, models in list(self._unpublished.items()):
            await workers.publish_models(name, models)
            del self._unpublished[name]
