"""How an Idempotency-Key and a body are identified in Redis. SUBMIT and START_BATCH write the record."""

import hashlib
from typing import Any

import msgspec


def key_hash(idempotency_key: str) -> str:
    """Hash of an Idempotency-Key. Redis sees only the hash, because the text may be long or a secret."""
    return hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]


def fingerprint_of(body: Any) -> str:
    """Hash of a parsed body: equal JSON has the same one, whatever its spacing and the order of its members."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()[:32]
