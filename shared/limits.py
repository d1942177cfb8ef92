"""How much a key or a tenant may do. Written down once; the scripts of ``shared/store`` hold callers to it."""

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec


class CallerLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Each 0 is no limit. The names are those of the records' fields in Redis too."""

    requests_per_minute: int = 0
    """Submits admitted in any 60 s. A batch is one."""
    tokens_per_minute: int = 0
    """Tokens of submits in any 60 s: reserved as ``max_tokens`` and an estimate of the input, then
    replaced by the real usage. Those of batches are not counted: their pace is bounded by the next three."""
    running_jobs: int = 0
    """At once, over all workers; more wait, none fails."""
    queued_jobs: int = 0
    """That may wait, items of batches included."""
    nano_usd_per_day: int = 0
    """Billionths of a dollar that calls may cost in a day (UTC). Once spent, submits are refused and what waits is parked; what
    runs goes on, and holds what it may cost: so this is passed by one job at the most."""
    nano_usd_per_month: int = 0
    """The same for a calendar month (UTC)."""

    @property
    def hold_back_claims(self) -> bool:
        """Whether a job that waits may have to wait for more than its turn."""
        return bool(self.running_jobs or self.nano_usd_per_day or self.nano_usd_per_month)


NO_LIMITS: Final = CallerLimits()

LIMITS: Final = CallerLimits.__struct_fields__
"""In the order in which the scripts take them."""


class TenantSettings(CallerLimits, frozen=True, omit_defaults=True):
    """What is set for one tenant; each 0 is what holds for everybody."""

    waiting_bytes: int = 0
    """Of its requests that wait or run, or are kept for a retry, in place of the TOKENSPOOL_TENANT_WAITING_SHARE of Redis's memory."""
    log_retention_ms: int = 0
    """How long the events of an ended job are kept, in place of TOKENSPOOL_LOG_RETENTION_S."""
    result_retention_ms: int = 0
    """How long an ended job or batch and its results are kept, in place of TOKENSPOOL_RESULT_RETENTION_S."""


WINDOW_S: Final = 60


class Measured(StrEnum):
    """What a response reports, as its ``RateLimit`` fields name it."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    QUEUED_JOBS = "queued_jobs"


class LimitState(NamedTuple):
    """State of a limit after a submit: the key's or the tenant's, whichever leaves less."""

    measured: Measured
    limit: int
    remaining: int
    reset_ms: int | None
    """Until all of it is there again, if nothing more comes. None for what no time gives back."""


class Reservation(NamedTuple):
    """What a request is reserved as where tokens a minute are limited, until its usage is known."""

    tokens: int = 0
    """``max_tokens``, and a guess at its input."""
    max_tokens: int = 0
    """All that the LLM may say: of every answer, if several are asked for."""


class _Sized(msgspec.Struct):
    """The members that bound an answer, and those that ask for several: of the Messages API, of chat completions, of vLLM,
    llama.cpp and Ollama. What is passed on to an upstream is what is reserved, by whichever name.
    """

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    max_new_tokens: int | None = None
    n_predict: int | None = None
    num_predict: int | None = None
    n: int | None = None
    best_of: int | None = None
    num_return_sequences: int | None = None


MULTIPLIERS: Final = ("n", "best_of", "num_return_sequences")
OUTPUT_BOUNDS: Final = tuple(name for name in _Sized.__struct_fields__ if name not in MULTIPLIERS)


def reservation_of(request: bytes) -> Reservation:
    """Four bytes of input are taken for a token. Of an image that is far too much."""
    try:
        sized = msgspec.json.decode(request, type=_Sized)
    except msgspec.DecodeError:  # never one that we took in
        sized = _Sized()
    most = max([getattr(sized, name) or 0 for name in OUTPUT_BOUNDS])
    max_tokens = most * max([getattr(sized, name) or 1 for name in MULTIPLIERS])
    return Reservation(max_tokens + len(request) // 4 + 1, max_tokens)


def argument_of(limits: CallerLimits) -> str:
    """As the scripts take them."""
    return " ".join([str(getattr(limits, name)) for name in LIMITS])
