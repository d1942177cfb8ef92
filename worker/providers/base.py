"""The interface between a job and any LLM: a Messages request goes in, Messages events and our own errors come out."""

from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

import msgspec

from shared.completion import GarbledStream
from shared.model_info import ModelInfo
from worker.rate_limit_headers import Allowance


class UpstreamEvent(NamedTuple):
    """One Messages event as Anthropic's API would send it, whatever the upstream sends: an SDK can accumulate them."""

    name: str
    data: bytes
    """One line of JSON."""
    text: tuple[int, str] | None = None
    """(block index, text) if it is a text delta, so that nobody must decode it again."""


PING: Final = UpstreamEvent("ping", b'{"type":"ping"}')


LAST_WORDS_S: Final = 1.5
"""How long to wait for the end of the response after the end of the answer. At most the usage still arrives."""


class UpstreamStream(Protocol):
    """An answer that is arriving."""

    @property
    def allowance(self) -> Allowance | None:
        """What the headers say about limits; None if nothing."""
        ...

    @property
    def lacks(self) -> str:
        """What is missing in an answer that has ended without being whole, for a message; empty if nothing is."""
        ...

    @property
    def is_answered(self) -> bool:
        """Whether the answer is whole and only the end of the stream is missing, for which ``read`` waits LAST_WORDS_S at most."""
        ...

    def explain(self, error: GarbledStream) -> str:
        """Why the answer cannot be read, with an earlier oddity that may be the cause."""
        ...

    @property
    def is_guessed(self) -> bool:
        """Whether a stop reason came while a block is still open, because we had to guess which block was meant."""
        ...

    async def read(self) -> list[UpstreamEvent]:
        """Waits for the next events and returns them. Empty at the clean end of the stream.

        A ping among them is a sign of life: the upstream's own, or PING for bytes that made no event (comments, empty frames,
        a part of an event). Events before a failure are returned first. Raises UpstreamError. Can be cancelled safely.
        """
        ...


class Provider(Protocol):
    """A kind of upstream. One for a worker process; ``close`` it at the end."""

    def stream(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> AbstractAsyncContextManager[UpstreamStream]:
        """Sends a Messages request (JSON, without ``stream``) with ``model`` as its model, and opens the streamed answer.

        ``beta`` and ``version`` are the caller's ``anthropic-beta`` and ``anthropic-version``; an upstream that has no such
        headers does not get them.
        Never retries. Leaving the context closes the upstream's socket unless the answer was read to its end.
        Raises UpstreamError.
        """
        ...

    async def count_tokens(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> int:
        """How many input tokens a Messages request has. Costs nothing. Never retries. Raises UpstreamError."""
        ...

    async def models(self) -> list[ModelInfo]:
        """The models that the upstream serves, in its order. Costs nothing. Takes 10 s at most. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """Closes what is left open."""
        ...


def named(request: bytes, model: str) -> bytes:
    """The request with that model; unchanged, byte for byte, if it names that model already."""
    if msgspec.json.decode(request, type=_Named).model == model:
        return request
    members = msgspec.json.decode(request, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**members, "model": model})


class _Named(msgspec.Struct):
    model: str = ""
