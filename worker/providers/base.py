"""The seam between a job and whatever LLM answers it: a request in, Messages events out, errors as ours."""

from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

import msgspec

from shared.completion import GarbledStream
from shared.model_info import ModelInfo
from worker.rate_limit_headers import Allowance


class UpstreamEvent(NamedTuple):
    """One Messages event as Anthropic's API would send it, whatever the upstream's habits: an SDK can add them up."""

    name: str
    data: bytes
    """One line of JSON."""
    text: tuple[int, str] | None = None
    """(block index, text) if it is a text delta. It was decoded anyway: whoever adds it up need not do so again."""


PING: Final = UpstreamEvent("ping", b'{"type":"ping"}')


LAST_WORDS_S: Final = 1.5
"""How long the end of the response is waited for after the answer's. What comes then, if anything, is its usage."""


class UpstreamStream(Protocol):
    """An answer on its way."""

    @property
    def allowance(self) -> Allowance | None:
        """What the head said of limits; None if nothing."""
        ...

    @property
    def lacks(self) -> str:
        """What an answer that has ended without being whole lacks, for a sentence; empty if nothing."""
        ...

    @property
    def is_answered(self) -> bool:
        """Whether the answer is whole but for the words that end the stream, which are waited for LAST_WORDS_S at most."""
        ...

    def explain(self, error: GarbledStream) -> str:
        """Why the answer cannot be read, with what was odd before that and may have led to it."""
        ...

    async def read(self) -> list[UpstreamEvent]:
        """The next events; waits for them. Empty at the clean end of the stream.

        A ping among them is a sign of life: the upstream's own, or PING for bytes that made no event (comments, empty frames,
        a part of one). What came before a failure is given first. Raises UpstreamError. Being cancelled is safe.
        """
        ...


class Provider(Protocol):
    """A kind of upstream. One for a worker process; ``close`` it at the end."""

    def stream(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> AbstractAsyncContextManager[UpstreamStream]:
        """Sends a Messages request (JSON, without ``stream``), its model renamed to ``model``, and opens its streamed answer.

        ``beta`` and ``version`` are the caller's ``anthropic-beta`` and ``anthropic-version``; an upstream that has no such
        headers does not get them.
        Never retries. Leaving the context closes the upstream's socket unless the answer was read to its end.
        Raises UpstreamError.
        """
        ...

    async def count_tokens(
        self, request: bytes, *, model: str, beta: str = "", version: str = "", connect_timeout_s: float
    ) -> int:
        """How many tokens a Messages request has as input. Costs nothing. Never retries. Raises UpstreamError."""
        ...

    async def models(self) -> list[ModelInfo]:
        """What the upstream serves, in its order; a call that costs nothing. Takes 10 s at most. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """Closes what is left open."""
        ...


def named(request: bytes, model: str) -> bytes:
    """The request with that model. Byte for byte as it was if it names it already."""
    if msgspec.json.decode(request, type=_Named).model == model:
        return request
    members = msgspec.json.decode(request, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**members, "model": model})


class _Named(msgspec.Struct):
    model: str = ""
