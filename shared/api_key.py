"""API keys: what one looks like, what it may do, and whose it is.

Pure. Keys are kept by ``shared/store/api_keys.py`` and believed for moments by ``api/state/key_ring.py``. The text of a key is shown
once, to whoever makes it; we keep its SHA-256, which is enough for a secret that nobody can guess.
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
    """Read and follow jobs, batches, usage and webhook deliveries; see how the service is."""
    CANCEL = "cancel"
    """Cancel and erase."""
    ADMIN = "admin"
    """Manage the tenant's keys and its webhook secret; not with a secret that was replaced, or it could stay for ever."""


ALL_SCOPES: Final = frozenset(Scope)
DEFAULT_SCOPES: Final = frozenset({Scope.SUBMIT, Scope.READ, Scope.CANCEL})
"""Of a key that is made without a word about them."""
REPLACED: Final = "This secret of the key is being replaced, and manages nothing any more: use the new one."


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request, as far as anybody needs to know."""

    tenant: str
    key_id: str | None = None
    """None where no keys are used."""
    scopes: frozenset[Scope] = ALL_SCOPES
    limits: CallerLimits = CallerLimits()
    """The key's own; the tenant's hold beside them."""
    is_retiring: bool = False
    """It came with the secret before the key's last rotation, which is taken for a while yet."""


class ApiKey(msgspec.Struct, frozen=True):
    """A key as its record stands, without what would let anybody in. Times are milliseconds since 1970 by Redis's clock."""

    id: str
    """``key_01m84bdq4tyw9k2p``; the part behind ``key_`` is the third part of its text."""
    tenant: str
    env: str
    """``live``, ``test``, …: a word for people and for those who scan for leaked keys. It changes nothing."""
    name: str
    scopes: frozenset[Scope]
    limits: CallerLimits
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None
    """To the minute, or thereabouts."""
    rotated_ms: int | None = None
    """When it was given its secret, if that is not its first."""
    retiring_ms: int | None = None
    """Until when the secret before it is taken too."""
    made_by: str | None = None
    """The id of the key that made it. None: the command line, or a version that did not write it down."""

    @property
    def caller(self) -> Caller:
        """Who sends what comes with it."""
        return Caller(self.tenant, self.id, self.scopes, self.limits)

    def has_ended(self, now_ms: int) -> bool:
        """Whether it is revoked or expired: for ever."""
        return self.revoked_ms is not None or (self.expires_ms is not None and self.expires_ms <= now_ms)


# --- the text ----------------------------------------------------------------------------------------------------------

TENANT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
ENV: Final = re.compile(r"[a-z0-9]{1,16}", re.ASCII)
KEY_ID: Final = re.compile(r"key_[0-9a-hjkmnp-tv-z]{16}", re.ASCII)
DEFAULT_ENV: Final = "live"

KEY_PREFIX: Final = "ts_"
"""Of every key: what does not begin so is somebody else's."""
_TEXT: Final = re.compile(rb"ts_([a-z0-9]{1,16})_([0-9a-hjkmnp-tv-z]{16})_[0-9A-Za-z]{33}")
_MOST_CHARS: Final = 128
_BASE_32: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_BASE_62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS: Final = 27
"""160 bits."""
_CHECKSUM_CHARS: Final = 6


class PresentedKey(NamedTuple):
    """A text that could be a key, for whoever looks whether it is one."""

    id: str
    digest: str


def new_key_id() -> str:
    """Sorts by time of birth (50 bits of milliseconds). 30 bits of chance keep it unique; the secret is elsewhere."""
    number = time.time_ns() // 1_000_000 << 30 | secrets.randbits(30)
    return "key_" + "".join([_BASE_32[number >> shift & 31] for shift in range(75, -1, -5)])


def new_key_text(key_id: str, env: str) -> str:
    """``ts_<env>_<id>_<secret><checksum>``, with a secret that never was before."""
    secret = "".join([secrets.choice(_BASE_62) for _ in range(_SECRET_CHARS)])
    text = f"{KEY_PREFIX}{env}_{key_id.removeprefix('key_')}_{secret}"
    return text + _checksum_of(text.encode())


def digest_of(text: bytes) -> str:
    """What is kept of a key: its SHA-256."""
    return hashlib.sha256(text).hexdigest()


def read_key_text(text: bytes) -> PresentedKey | None:
    """None if no key of ours looks like that: a typo, or somebody else's key, costs no look into Redis."""
    if len(text) > _MOST_CHARS or (found := _TEXT.fullmatch(text)) is None:
        return None
    if _checksum_of(text[:-_CHECKSUM_CHARS]).encode() != text[-_CHECKSUM_CHARS:]:
        return None
    return PresentedKey("key_" + found[2].decode(), digest_of(text))


def _checksum_of(text: bytes) -> str:
    """CRC-32 in six characters. Against typos, and for those who scan for leaked keys; it is no secret."""
    number = binascii.crc32(text)
    digits = []
    for _ in range(_CHECKSUM_CHARS):
        number, digit = divmod(number, 62)
        digits.append(_BASE_62[digit])
    return "".join(reversed(digits))


# --- what one key may give to another ------------------------------------------------------------------------------------


def is_within(limits: CallerLimits, own: CallerLimits) -> bool:
    """Whether no limit is wider than the own. 0 is none."""
    pairs = zip(msgspec.structs.astuple(limits), msgspec.structs.astuple(own), strict=True)
    return all(not most or 0 < limit <= most for limit, most in pairs)
