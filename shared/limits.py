"""How much a key or a tenant may do. Written down once; the scripts of ``shared/store`` hold callers to it."""

import msgspec


class CallerLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Each 0 is no limit. The names are those of the records' fields in Redis too."""

    requests_per_minute: int = 0
    """Submits admitted in any 60 s. A batch is one."""
    tokens_per_minute: int = 0
    """Tokens of submits in any 60 s: reserved as ``max_tokens`` and an estimate of the input, settled by the real usage. Those
    of batches are not counted: their pace is bounded by the next three."""
    running_jobs: int = 0
    """At once, over all workers; more wait, none fails."""
    queued_jobs: int = 0
    """That may wait, items of batches included."""
    nano_usd_per_day: int = 0
    """Billionths of a dollar that calls may cost in a day (UTC). Once spent, submits are refused and what waits is parked; what
    runs goes on, so this is passed by at most what was running."""
    nano_usd_per_month: int = 0
    """The same for a calendar month (UTC)."""
