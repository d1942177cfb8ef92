"""The seam between a job and whatever LLM answers it: a request in, Messages events out, errors as ours."""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class UpstreamEvent(NamedTuple):
    """One Messages event as the upstream sent it."""

    name: str
    data: bytes
    """One line of JSON."""


class UpstreamStream(Protocol):
    """An answer on its way."""

    async def read(self) -> list[UpstreamEvent]:
        """The next events, pings included; waits for them. Empty at the clean end of the stream.

        Raises UpstreamError. Being cancelled is safe.
        """
        ...


class Provider(Protocol):
    """An upstream. One for a worker process; ``close`` it at the end."""

    def stream(self, request: bytes) -> AbstractAsyncContextManager[UpstreamStream]:
        """Sends a Messages request (JSON, without ``stream``) and opens its streamed answer.

        Never retries. Leaving the context closes the upstream's socket unless the answer was read to its end.
        Raises UpstreamError.
        """
        ...

    async def close(self) -> None:
        """Closes what is left open."""
        ...
