"""Who calls: what a key may do, and whose it is.

Pure. Keys are kept by ``shared/store/api_keys.py`` and checked by ``api/auth.py``.
"""

from enum import StrEnum
from typing import Final

import msgspec

from shared.limits import CallerLimits


class Scope(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"
    """Submit jobs and batches, and retry them."""
    READ = "read"
    """Read and follow jobs, batches, usage and webhook deliveries; see how the service is."""
    CANCEL = "cancel"
    """Cancel and erase."""
    ADMIN = "admin"
    """Manage the tenant's keys and its webhook secret."""


ALL_SCOPES: Final = frozenset(Scope)


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request, as far as anybody needs to know."""

    tenant: str
    key_id: str | None = None
    """None where no keys are used."""
    scopes: frozenset[Scope] = ALL_SCOPES
    limits: CallerLimits = CallerLimits()
    """The key's own; the tenant's hold beside them."""
