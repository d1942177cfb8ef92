"""API keys: what one looks like, what it may do, and whose it is.

Pure. ``shared/store/api_keys.py`` stores keys, and ``api/state/key_ring.py`` caches them for seconds. The text of a key is shown
once, to whoever creates it; only its SHA-256 is stored, which is enough for a secret that nobody can guess.
"""

import binascii
import hashlib
import re
import secrets
import time
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from shared.limits import CallerLimits


class Scope(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"
    """Submit jobs and batches, and retry them."""
    READ = "read"
    """Read and follow jobs, batches, usage and webhook deliveries; read the details of ``/health``."""
    CANCEL = "cancel"
    """Cancel and erase jobs and batches."""
    ADMIN = "admin"
    """Manage the tenant's keys and its webhook secret. A secret that was replaced cannot: a thief could extend its life."""
    OPERATOR = "operator"
    """Read over all tenants; create, change and erase tenants. The command line alone gives it; a replaced secret lacks it."""


ALL_SCOPES: Final = frozenset(Scope)
"""Those of every caller under TOKENSPOOL_AUTH=off, which names its tenant itself."""
TENANT_SCOPES: Final = ALL_SCOPES - {Scope.OPERATOR}
"""Those that end at the key's own tenant, and that a key may give to another."""
DEFAULT_SCOPES: Final = frozenset({Scope.SUBMIT, Scope.READ, Scope.CANCEL})
"""The scopes of a key that is created without any."""
REPLACED: Final = "This secret of the key is being replaced and cannot manage keys or tenants: use the new one."


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request: the tenant, and the key with its rights."""

    tenant: str
    key_id: str | None = None
    """None under TOKENSPOOL_AUTH=off."""
    scopes: frozenset[Scope] = ALL_SCOPES
    limits: CallerLimits = CallerLimits()
    """The key's own limits; the tenant's apply as well."""
    is_retiring: bool = False
    """The request carries the secret from before the key's last rotation, which stays valid for a grace period."""


class ApiKey(msgspec.Struct, frozen=True):
    """A key's record, without its secret. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    """``key_01m84bdq4tyw9k2p``; the part after ``key_`` is the third part of its text."""
    tenant: str
    env: str
    """``live``, ``test``, …: a label for people and for scanners of leaked keys. It has no effect."""
    name: str
    scopes: frozenset[Scope]
    limits: CallerLimits
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None
    """Accurate to about a minute."""
    rotated_ms: int | None = None
    """When it got its current secret, if that is not its first."""
    retiring_ms: int | None = None
    """Until when the previous secret is accepted too."""
    made_by: str | None = None
    """The id of the key that created it; None for the command line."""
    changes: int = 0
    """How often its name, scopes or limits were changed."""

    @property
    def caller(self) -> Caller:
        """The caller of a request that carries this key."""
        return Caller(self.tenant, self.id, self.scopes, self.limits)

    def has_ended(self, now_ms: int) -> bool:
        """Whether it is revoked or expired; both are final."""
        return self.revoked_ms is not None or (self.expires_ms is not None and self.expires_ms <= now_ms)


# --- the text ----------------------------------------------------------------------------------------------------------

TENANT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
ENV: Final = re.compile(r"[a-z0-9]{1,16}", re.ASCII)
KEY_ID: Final = re.compile(r"key_[0-9a-hjkmnp-tv-z]{16}", re.ASCII)
DEFAULT_ENV: Final = "live"

KEY_PREFIX: Final = "ts_"
"""Every tokenspool key begins with it: a text without it is another vendor's key."""
_TEXT: Final = re.compile(rb"ts_([a-z0-9]{1,16})_([0-9a-hjkmnp-tv-z]{16})_[0-9A-Za-z]{33}")
_MOST_CHARS: Final = 128
_BASE_32: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_BASE_62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS: Final = 27
"""160 bits."""
_CHECKSUM_CHARS: Final = 6


class PresentedKey(NamedTuple):
    """A text with the form of a key, still to be looked up."""

    id: str
    digest: str


def new_key_id() -> str:
    """Ids sort by creation time (50 bits of milliseconds). 30 random bits make them unique; they are no secret."""
    number = time.time_ns() // 1_000_000 << 30 | secrets.randbits(30)
    return "key_" + "".join([_BASE_32[number >> shift & 31] for shift in range(75, -1, -5)])


def new_key_text(key_id: str, env: str) -> str:
    """``ts_<env>_<id>_<secret><checksum>``, with a fresh secret."""
    secret = "".join([secrets.choice(_BASE_62) for _ in range(_SECRET_CHARS)])
    text = f"{KEY_PREFIX}{env}_{key_id.removeprefix('key_')}_{secret}"
    return text + _checksum_of(text.encode())


def digest_of(text: bytes) -> str:
    """SHA-256 of a key's text, which is what Redis stores."""
    return hashlib.sha256(text).hexdigest()


def read_key_text(text: bytes) -> PresentedKey | None:
    """None if it lacks the form of a key: a typo, or another vendor's key, costs no look-up in Redis."""
    if len(text) > _MOST_CHARS or (found := _TEXT.fullmatch(text)) is None:
        return None
    if _checksum_of(text[:-_CHECKSUM_CHARS]).encode() != text[-_CHECKSUM_CHARS:]:
        return None
    return PresentedKey("key_" + found[2].decode(), digest_of(text))


def _checksum_of(text: bytes) -> str:
    """CRC-32 in six characters, to catch typos and to help scanners of leaked keys; it is no secret."""
    number = binascii.crc32(text)
    digits = []
    for _ in range(_CHECKSUM_CHARS):
        number, digit = divmod(number, 62)
        digits.append(_BASE_62[digit])
    return "".join(reversed(digits))


# --- what one key may grant to another ------------------------------------------------------------------------------------


def is_within(limits: CallerLimits, own: CallerLimits) -> bool:
    """Whether each limit in ``limits`` is at most the same limit in ``own``. 0 means no limit."""
    pairs = zip(msgspec.structs.astuple(limits), msgspec.structs.astuple(own), strict=True)
    return all(not most or 0 < limit <= most for limit, most in pairs)
