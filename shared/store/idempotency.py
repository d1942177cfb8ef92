"""Idempotency keys: how a key and a body are named in Redis. The record itself is written by SUBMIT, with its job."""

import hashlib
from typing import Any

import msgspec


def key_hash(idempotency_key: str) -> str:
    """Keys of callers may be long, or secrets: Redis sees their hash."""
    return hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]


def fingerprint_of(body: Any) -> str:
    """Of a parsed body: equal JSON is the same body, whatever its spacing and the order of its members."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()[:32]
