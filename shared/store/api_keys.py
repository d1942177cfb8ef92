"""API keys as records: created, looked up, listed, rotated, revoked. Only the SHA-256 of a secret is stored."""

import hmac
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from shared.api_key import (
    ALL_SCOPES,
    REPLACED,
    ApiKey,
    PresentedKey,
    Scope,
    digest_of,
    new_key_id,
    new_key_text,
)
from shared.errors import Forbidden, KeyEnded, NotFound, TooManyKeys, Unauthenticated
from shared.limits import CallerLimits
from shared.store import redis_keys
from shared.store.commands import Commands
from shared.store.page import Sized, read_page, sized, stretches_of
from shared.store.reads import Reads

MOST_KEYS: Final = 10_000
"""Keys of one tenant, including those that ended within 90 days. Only the command line may create more."""

_KEPT_MS: Final = 90 * 86_400_000
"""How long a key that has ended can still be listed."""
_CHECKED_AT_ONCE: Final = 250
_NO_DIGEST: Final = b"0" * 64
"""No key has this digest. It stands in for that of an unknown id, so that the look-up takes as long as for a known one."""

_FIELDS: Final = (
    "tenant", "env", "name", "scopes", "limits", "created_ms", "expires_ms", "revoked_ms", "last_used_ms", "rotated_ms", "old_until_ms",
    "made_by", "changes",
)  # fmt: skip


class NewKey(NamedTuple):
    """A key and its text, which cannot be read again."""

    key: ApiKey
    text: str

    def __repr__(self) -> str:
        """Without the text: a log or a traceback must not hold it."""
        return f"NewKey({self.key.id})"


class Standing(NamedTuple):
    """How long a valid text stays valid."""

    left_ms: int | None
    """For how many more milliseconds, if nobody revokes or rotates the key. None: it has no end."""
    is_retiring: bool
    """Whether its secret is the one before the key's last rotation."""
    changes: int = 0
    """How often the key's rights were changed."""


class FoundKey(NamedTuple):
    """The key of a valid text."""

    key: ApiKey
    standing: Standing


class KeyPage(NamedTuple):
    """Keys, newest first, and where the next page begins."""

    keys: list[ApiKey]
    next_after: str | None


class ApiKeys:
    """All keys of all tenants. With ``tenant`` a call sees only that tenant's keys; None, for the command line, sees all."""

    def __init__(self, urgent: Commands, reads: Reads) -> None:
        self._commands = urgent
        self._reads = reads

    @property
    def is_connected(self) -> bool:
        """Whether Redis is connected now."""
        return self._commands.is_connected

    async def create(
        self,
        tenant: str,
        *,
        env: str,
        name: str,
        scopes: frozenset[Scope],
        limits: CallerLimits,
        expires_in_s: float | None = None,
        latest_end_ms: int | None = None,
        maker: PresentedKey | None = None,
    ) -> NewKey | None:
        """Creates a key. ``maker`` is the key that creates it; None is the command line. ``latest_end_ms`` is the maker's end:
        a key without an end of its own gets it, and for a key that would outlive it None is returned.

        Raises TooManyKeys, StorageFull, StorageUnavailable; after the last, a key may exist whose text nobody has. Raises
        Unauthenticated if the maker ended meanwhile, Forbidden if its secret was replaced.
        """
        key_id, text, reply = "", "", [b"taken"]
        while reply == [b"taken"]:  # another key has that id: only 30 bits of it are random within a millisecond
            key_id = new_key_id()
            text = new_key_text(key_id, env)
            reply = await self._commands.run(
                "create_api_key",
                id=key_id,
                tenant=tenant,
                env=env,
                name=name,
                scopes=_scopes_text(scopes),
                limits=msgspec.json.encode(limits),
                digest=digest_of(text.encode()),
                expires_in_ms="" if expires_in_s is None else int(expires_in_s * 1000),
                latest_end_ms="" if latest_end_ms is None else latest_end_ms,
                kept_ms=_KEPT_MS,
                most_keys=MOST_KEYS,
                maker=maker.id if maker else "",
                maker_digest=maker.digest if maker else "",
            )
        match reply:
            case [b"outlives"]:
                return None
            case [b"full"]:
                raise TooManyKeys
            case [b"maker_ended"]:
                raise Unauthenticated
            case [b"maker_replaced"]:
                raise Forbidden(REPLACED)
        created_ms, expires_ms = reply
        key = ApiKey(key_id, tenant, env, name, scopes, limits, int(created_ms), _int(expires_ms))
        return NewKey(msgspec.structs.replace(key, made_by=maker.id if maker else None), text)

    async def look_up(self, presented: PresentedKey) -> FoundKey | None:
        """The key of that text. None for an unknown id, a wrong secret, or a revoked or expired key, all in the same time."""
        found = self._commands.call("HMGET", redis_keys.api_key(presented.id), "digest", "old_digest", *_FIELDS)
        time = self._commands.call("TIME")
        digest, old_digest, *record = await found
        seconds, microseconds = await time
        # Both comparisons are always made, and each takes the same time whatever it compares.
        own = presented.digest.encode()
        is_newest = hmac.compare_digest(own, digest or _NO_DIGEST)
        is_old = hmac.compare_digest(own, old_digest or _NO_DIGEST)
        if not (is_newest or is_old) or record[0] is None:
            return None
        key = _key_of(presented.id, record)
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        ends = [key.expires_ms] if is_newest else [key.expires_ms, key.retiring_ms]
        left_ms = min([end_ms - now_ms for end_ms in ends if end_ms is not None], default=None)
        if key.revoked_ms is not None or (left_ms is not None and left_ms <= 0):
            return None
        return FoundKey(key, Standing(left_ms, is_retiring=not is_newest, changes=key.changes))

    async def signers(self, key_id: str) -> tuple[int, list[str]]:
        """Redis's time, and the digests that the key's follow tokens are signed with; random ones if it has none."""
        found = self._commands.call("HMGET", redis_keys.api_key(key_id), "digest", "old_digest")
        now_ms = self.now_ms()
        # As many as a key has at most, so that an unknown key takes as long to be refused.
        return await now_ms, [digest.decode() if digest else secrets.token_hex(32) for digest in await found]

    async def check(self, believed: Sequence[PresentedKey]) -> list[Standing | None]:
        """How long keys that were looked up before stay valid; None for each that is no longer valid."""
        calls = [self._commands.run("check_api_keys", keys=portion) for portion in _portions(believed)]
        rows = [row for call in calls for row in await call]
        return [
            None if left == 0 else Standing(None if left < 0 else left, bool(old), changes)
            for left, old, changes in rows
        ]

    async def note_use(self, used: Sequence[PresentedKey]) -> None:
        """Notes that these keys were used within the last minute."""
        for call in [self._commands.run("use_api_keys", keys=portion) for portion in _portions(used)]:
            await call

    async def get(self, key_id: str, tenant: str | None) -> ApiKey:
        """The key, read from its record. Raises NotFound, also for another tenant's key."""
        record = await self._commands.call("HMGET", redis_keys.api_key(key_id), *_FIELDS)
        if record[0] is None or tenant not in (None, record[0].decode()):
            raise NotFound
        return _key_of(key_id, record)

    async def page(self, tenant: str, *, after: str | None, limit: int) -> KeyPage:
        """The tenant's keys, newest first, including those that ended within 90 days."""
        index = redis_keys.api_keys(tenant)

        async def read(ids: Sequence[str]) -> Sequence[Sized | None]:
            records = await self._reads.small(tenant, [redis_keys.api_key(key_id) for key_id in ids], _FIELDS)
            gone = [key_id for key_id, record in zip(ids, records, strict=False) if record[0] is None]
            if gone:
                await self._commands.call("ZREM", index, *gone)
            return sized(ids, records, lambda key_id, record: record[0] and _key_of(key_id, record))

        stretches = stretches_of(self._commands, index, count=limit + 1)
        return KeyPage(*await read_page(stretches, read, after=after, limit=limit, most_stretches=MOST_KEYS))

    async def tenants(self) -> list[str]:
        """The tenants that have keys."""
        found = [name.decode() for name in await self._commands.call("SMEMBERS", redis_keys.plain("api_key_tenants"))]
        sizes = [self._commands.call("ZCARD", redis_keys.api_keys(tenant)) for tenant in found]
        having = []
        for tenant, size in zip(found, sizes, strict=True):
            if await size:
                having.append(tenant)
            else:
                await self._commands.call("SREM", redis_keys.plain("api_key_tenants"), tenant)
        return sorted(having)

    async def is_empty(self) -> bool:
        """Whether no tenant has a key."""
        return not await self._commands.call("EXISTS", redis_keys.plain("api_key_tenants"))

    async def rotate(
        self, key_id: str, tenant: str | None, *, grace_s: float, maker: PresentedKey | None = None
    ) -> NewKey:
        """Gives the key a new secret; the old one stays valid for ``grace_s`` more.

        ``maker`` is the key that asks for it; None is the command line.

        Raises NotFound, KeyEnded; Unauthenticated and Forbidden as ``create``.
        """
        before = await self.get(key_id, tenant)
        text = new_key_text(key_id, before.env)
        reply = await self._commands.run(
            "rotate_api_key",
            id=key_id,
            tenant=tenant or "",
            digest=digest_of(text.encode()),
            grace_ms=int(grace_s * 1000),
            maker=maker.id if maker else "",
            maker_digest=maker.digest if maker else "",
        )
        _raise_if_refused(reply)
        return NewKey(await self.get(key_id, tenant), text)

    async def change(
        self,
        key_id: str,
        tenant: str,
        changed: Callable[[ApiKey], ApiKey],
        *,
        maker: PresentedKey | None,
        maker_tenant: str,
    ) -> ApiKey:
        """Gives the key the name, scopes and limits that ``changed`` returns for it as it is. Other processes follow within 5 s.

        ``changed`` may raise what forbids it, and is called again if the key was changed meanwhile. ``maker``: the key
        that asks. Raises NotFound, KeyEnded; Unauthenticated and Forbidden as ``create``.
        """
        while True:
            before = await self.get(key_id, tenant)
            after = changed(before)
            reply = await self._commands.run(
                "change_api_key",
                id=key_id,
                tenant=tenant,
                changes=before.changes,
                name=after.name,
                scopes=_scopes_text(after.scopes),
                limits=msgspec.json.encode(after.limits),
                maker=maker.id if maker else "",
                maker_digest=maker.digest if maker else "",
                maker_tenant=maker_tenant,
            )
            if reply != b"other":
                break
        _raise_if_refused(reply)
        await self._commands.run(
            "change_key_limits",
            key=key_id,
            running=after.limits.running_jobs,
            a_day=after.limits.nano_usd_per_day,
            a_month=after.limits.nano_usd_per_month,
        )
        return await self.get(key_id, tenant)

    async def revoke(self, key_id: str, tenant: str | None) -> ApiKey:
        """Revokes the key: it is refused within 5 s. A second call changes nothing. Raises NotFound."""
        if await self._commands.run("revoke_api_key", id=key_id, tenant=tenant or "", kept_ms=_KEPT_MS) < 0:
            raise NotFound
        return await self.get(key_id, tenant)

    async def erase_all_of(self, tenant: str) -> None:
        """Erases the records of the tenant's keys, and what the queue knows of each. They must be revoked."""
        index = redis_keys.api_keys(tenant)
        ids = [key_id.decode() for key_id in await self._commands.call("ZRANGE", index, 0, -1)]
        for start in range(0, len(ids), _CHECKED_AT_ONCE):
            some = ids[start : start + _CHECKED_AT_ONCE]
            await self._commands.call("UNLINK", *[redis_keys.api_key(key_id) for key_id in some])
            await self._commands.call("ZREM", redis_keys.plain("parked"), *[f"key:{key_id}" for key_id in some])
        await self._commands.call("DEL", index)
        await self._commands.call("SREM", redis_keys.plain("api_key_tenants"), tenant)

    async def now_ms(self) -> int:
        """Redis's time, which decides what has expired."""
        seconds, microseconds = await self._commands.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000


def _raise_if_refused(reply: bytes) -> None:
    """For what ROTATE_API_KEY and CHANGE_API_KEY reply."""
    match reply:
        case b"absent":
            raise NotFound
        case b"ended":
            raise KeyEnded
        case b"maker_ended":
            raise Unauthenticated
        case b"maker_replaced":
            raise Forbidden(REPLACED)


def _scopes_text(scopes: frozenset[Scope]) -> str:
    return ",".join([scope for scope in Scope if scope in scopes])


def _key_of(key_id: str, record: Sequence[Any]) -> ApiKey:
    tenant, env, name, scopes, limits, created_ms, expires_ms, revoked_ms, used_ms, *more = record
    rotated_ms, old_ms, maker, changes = more
    words = scopes.decode().split(",")  # a newer version may have stored a scope that we do not know
    return ApiKey(
        id=key_id,
        tenant=tenant.decode(),
        env=env.decode(),
        name=name.decode(),
        scopes=frozenset(scope for scope in ALL_SCOPES if scope in words),
        limits=msgspec.json.decode(limits, type=CallerLimits),
        created_ms=int(created_ms),
        expires_ms=_int(expires_ms),
        revoked_ms=_int(revoked_ms),
        last_used_ms=_int(used_ms),
        rotated_ms=_int(rotated_ms),
        retiring_ms=_int(old_ms),
        made_by=maker.decode() if maker else None,
        changes=int(changes or 0),
    )


def _int(value: bytes | None) -> int | None:
    return int(value) if value else None


def _portions(keys: Sequence[PresentedKey]) -> list[list[str]]:
    """The keys as a script takes them, some at a time."""
    starts = range(0, len(keys), _CHECKED_AT_ONCE)
    return [[part for key in keys[start : start + _CHECKED_AT_ONCE] for part in key] for start in starts]
