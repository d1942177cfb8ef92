"""How much an API key or a tenant may do. The scripts in ``shared/store/lua/`` enforce it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec


class CallerLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limits of a key or a tenant. 0 means no limit. The fields in Redis have the same names."""

    requests_per_minute: int = 0
    """Submits that are accepted in any 60 s. A batch counts as one."""
    tokens_per_minute: int = 0
    """Tokens of submits in any 60 s. A submit reserves ``max_tokens`` and an estimate of its input; at the job's end, the real
    usage replaces that. Batches do not count: the next three limits bound their pace."""
    running_jobs: int = 0
    """Jobs that run at once, over all workers. More jobs wait; none fails."""
    queued_jobs: int = 0
    """Jobs that may wait, items of batches included."""
    nano_usd_per_day: int = 0
    """Billionths of a dollar that calls may cost in a day (UTC). Once they are spent, submits are refused and waiting jobs are
    parked. Running jobs go on. Each holds its estimated cost in reserve, so that at most one job exceeds the budget."""
    nano_usd_per_month: int = 0
    """The same for a calendar month (UTC)."""

    @property
    def hold_back_claims(self) -> bool:
        """Whether CLAIM may have to pass over a job although it is its turn."""
        return bool(self.running_jobs or self.nano_usd_per_day or self.nano_usd_per_month)


NANO_USD: Final = 1_000_000_000
"""Billionths of a dollar in a dollar."""

NO_LIMITS: Final = CallerLimits()

LIMITS: Final = CallerLimits.__struct_fields__
"""In the order in which the scripts take them."""


class TenantSettings(CallerLimits, frozen=True, omit_defaults=True):
    """One tenant's settings. 0 means what holds for all tenants."""

    end_user_running_jobs: int = 0
    """Jobs of each of its end users that run at once."""
    end_user_nano_usd_per_day: int = 0
    """The budget of each of its end users for a day (UTC). Counted from when it is set."""
    end_user_nano_usd_per_month: int = 0
    """The same for a calendar month (UTC)."""
    waiting_bytes: int = 0
    """Bytes of its requests that wait, run, or are kept for a retry; overrides TOKENSPOOL_TENANT_WAITING_SHARE."""
    log_retention_ms: int = 0
    """How long the events of an ended job are kept; overrides TOKENSPOOL_LOG_RETENTION_S."""
    result_retention_ms: int = 0
    """How long an ended job or batch and its results are kept; overrides TOKENSPOOL_RESULT_RETENTION_S."""


TENANT_OPTIONS: Final = {
    "requests_per_minute": "requests_per_minute",
    "tokens_per_minute": "tokens_per_minute",
    "running_jobs": "running_jobs",
    "queued_jobs": "queued_jobs",
    "waiting_bytes": "waiting_bytes",
    "usd_per_day": "nano_usd_per_day",
    "usd_per_month": "nano_usd_per_month",
    "end_user_running_jobs": "end_user_running_jobs",
    "end_user_usd_per_day": "end_user_nano_usd_per_day",
    "end_user_usd_per_month": "end_user_nano_usd_per_month",
    "log_retention_s": "log_retention_ms",
    "result_retention_s": "result_retention_ms",
}
"""Option of the command line and member of ``/v1/tenants`` → name in the record."""
_UNITS: Final = {"nano_usd": NANO_USD, "_ms": 1000}


def stored_settings(chosen: Mapping[str, float | None]) -> dict[str, int]:
    """Options as the record has them; None is 0, no limit."""
    # A value that rounds to 0 becomes 1: a 0 would remove the limit.
    return {
        TENANT_OPTIONS[option]: round((value or 0) * _unit_of(TENANT_OPTIONS[option])) or int((value or 0) > 0)
        for option, value in chosen.items()
    }


def shown_settings(settings: TenantSettings) -> dict[str, float | None]:
    """The settings as options; None is no limit."""
    pairs = [(option, getattr(settings, name), _unit_of(name)) for option, name in TENANT_OPTIONS.items()]
    return {option: None if not value else value if unit == 1 else value / unit for option, value, unit in pairs}


def _unit_of(name: str) -> int:
    """How many of the stored unit are one of the option's."""
    return next((unit for part, unit in _UNITS.items() if part in name), 1)


WINDOW_S: Final = 60


class Measured(StrEnum):
    """What a response reports in its ``RateLimit`` fields."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    QUEUED_JOBS = "queued_jobs"
    USD_PER_DAY = "usd_per_day"
    USD_PER_MONTH = "usd_per_month"


class LimitState(NamedTuple):
    """State of a limit after a submit: the key's or the tenant's, whichever leaves less."""

    measured: Measured
    limit: int
    remaining: int
    reset_ms: int | None
    """Milliseconds until the whole limit is free again if no more is submitted. None if time alone does not free it."""
    window_s: int = WINDOW_S
    """The length of the time for which the limit holds, if time frees it."""


class LimitOf(StrEnum):
    """Whose limit it is."""

    TENANT = "tenant"
    KEY = "key"
    END_USER = "end_user"
    ADDRESS = "address"


class LimitUse(NamedTuple):
    """How much of a limit is used. Budgets are in billionths of a dollar."""

    limit: int
    used: int
    """Of a budget: what was spent."""
    held: int
    """Of a budget: what running jobs may still cost."""
    resets_ms: int | None
    """When the whole limit is free again if no more is submitted. None if time alone does not free it."""


class ReachedLimit(NamedTuple):
    """The limit that refused a submit. Of several, the one that refuses it for the longest."""

    of: LimitOf
    name: str
    """``usd_per_day`` and ``usd_per_month`` are in billionths of a dollar, the others as their fields of TenantSettings."""
    limit: int
    used: int
    needed: int
    """What the submit needs of it; 0 for a budget, which is charged later."""
    opens_ms: int | None
    """When the same submit would be accepted if nothing else came. None if that is not a matter of time."""


class Reservation(NamedTuple):
    """The tokens that a submit reserves where tokens per minute are limited, until its usage is known."""

    tokens: int = 0
    """``max_tokens`` plus an estimate of the input."""
    max_tokens: int = 0
    """The most tokens that the LLM may generate, over all answers if the request asks for several."""


class _Sized(msgspec.Struct):
    """The members that bound an answer, and those that ask for several answers, by their names in the Messages API, chat
    completions, vLLM, llama.cpp and Ollama. All are passed on and an upstream may obey any, so the largest is reserved.
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
    """Counts four bytes of input as one token, which is far too much for an image."""
    try:
        sized = msgspec.json.decode(request, type=_Sized)
    except msgspec.DecodeError:  # cannot happen: such a request is refused at its submit
        sized = _Sized()
    most = max([getattr(sized, name) or 0 for name in OUTPUT_BOUNDS])
    max_tokens = most * max([getattr(sized, name) or 1 for name in MULTIPLIERS])
    return Reservation(max_tokens + len(request) // 4 + 1, max_tokens)


def argument_of(limits: CallerLimits) -> str:
    """The limits as the scripts take them: in the order of LIMITS, separated by blanks."""
    return " ".join([str(getattr(limits, name)) for name in LIMITS])
