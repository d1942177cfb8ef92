"""The API keys that a process has looked up: a cache, so that not every request costs a look-up in Redis.

A key is found by the SHA-256 of all of it, never by its id: a wrong secret for a known id finds nothing. A key is
believed for 2 s and then looked up again, once for all requests with it. So a revoked key is refused within 5 s, and
its open streams end within that time too. The same holds for a key that was changed: its streams end only if it lost a
scope.

While Redis is away, a known key is believed for TOKENSPOOL_AUTH_CACHE_S after its last look-up: without Redis its
caller can only get a 503, and that must not become a 401. Redis counts as away if there is no connection to it, not if
a look-up is late: everything else works then, and the holder of a revoked key may be the one who makes it late.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, Self

import msgspec

from shared.api_key import ApiKey, Caller, PresentedKey, read_key_text
from shared.errors import Problem, StorageUnavailable, Unauthenticated
from shared.store.api_keys import FoundKey, Standing
from shared.store.runtime import Runtime
from shared.telemetry import get_logger

_BELIEVED_S: Final = 2.0
"""After this a key is looked up again, while its request goes on."""
_WAITED_FOR_S: Final = 3.0
"""After this the request waits for the look-up. Together with the time that Redis may take, that is below 5 s."""
_BELIEVED_AT_MOST_S: Final = 5.0
"""The bound of TOKENSPOOL_AUTH_CACHE_S while Redis is connected, for look-ups that are late."""
_AFTER_A_LATE_LOOK_S: Final = 0.5
"""For this long after a late look-up, requests with known keys do not wait for another one."""
_WATCH_S: Final = 1.0
_USE_NOTED_S: Final = 60.0
_MOST_KNOWN: Final = 10_000
_MOST_USES: Final = 10_000

_NEVER_S: Final = float("inf")
_SCOPE_MEMBER: Final = "tokenspool.credential"

_log = get_logger("api")


class Credential:
    """A key that Redis knows, as a request sent it: whose it is, and until when that is believed."""

    __slots__ = ("_ring", "caller", "changes", "confirmed_s", "digest", "ends_ms", "ends_s", "fresh_until_s", "holders", "is_over", "presented", "use_noted_s")  # fmt: skip

    def __init__(self, ring: "KeyRing", digest: bytes, presented: PresentedKey, key: ApiKey) -> None:
        self._ring = ring
        self.digest = digest
        self.presented = presented
        self.caller = key.caller
        self.changes = key.changes
        self.ends_ms = key.expires_ms
        """When the key expires, by Redis's clock."""
        self.ends_s = _NEVER_S
        """When this secret expires, by the loop's clock."""
        self.confirmed_s = -_NEVER_S
        self.fresh_until_s = -_NEVER_S
        self.use_noted_s = -_NEVER_S
        self.is_over = False
        self.holders: set[Callable[[], object]] = set()
        """Callbacks of what goes on only while the key is valid: called when it ends."""

    def follow(self, key: ApiKey) -> None:
        """Takes over the rights that the key has now."""
        self.caller, self.changes = key.caller, key.changes

    def confirm(self, asked_s: float, standing: Standing) -> None:
        """Notes that Redis, asked at ``asked_s``, confirmed the key."""
        self.confirmed_s = asked_s
        self.ends_s = _NEVER_S if standing.left_ms is None else asked_s + standing.left_ms / 1000
        self.fresh_until_s = min(asked_s + _BELIEVED_S, self.ends_s)
        if standing.is_retiring is not self.caller.is_retiring:
            self.caller = msgspec.structs.replace(self.caller, is_retiring=standing.is_retiring)

    def hold(self, on_over: Callable[[], object]) -> None:
        """Calls ``on_over`` within 5 s of the key's end, unless ``release`` comes first. If it has ended: now."""
        self.holders.add(on_over)
        self._ring.watch(self)
        if self.is_over:
            on_over()

    def release(self, on_over: Callable[[], object]) -> None:
        """Ends ``hold``. Calls after the first change nothing."""
        self.holders.discard(on_over)
        if not self.holders:
            self._ring.unwatch(self)

    @contextmanager
    def held(self, on_over: Callable[[], object]) -> Iterator[None]:
        """``hold`` at the start of the block, ``release`` at its end."""
        self.hold(on_over)
        try:
            yield
        finally:
            self.release(on_over)

    def end(self) -> None:
        """Notes that the key is no longer valid, and calls all holders."""
        self.is_over = True
        for on_over in list(self.holders):
            on_over()


def credential_of(scope: MutableMapping[str, Any]) -> Credential | None:
    """The key of an authenticated request; None if no keys are used."""
    found: Credential | None = scope.get(_SCOPE_MEMBER)
    return found


class KeyRing:
    """One for each API process; use it with ``async with``."""

    def __init__(self, runtime: Runtime) -> None:
        self._keys = runtime.api_keys
        self._spared_s = runtime.settings.auth_cache_s
        self._known: OrderedDict[bytes, Credential] = OrderedDict()
        self._watched: dict[bytes, Credential] = {}
        self._looks: dict[bytes, asyncio.Task[FoundKey | Problem | None]] = {}
        self._used: dict[bytes, PresentedKey] = {}
        self._late_s = -_NEVER_S
        self._has_hinted = False
        self._clock = asyncio.get_running_loop().time

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        if looks:
            await asyncio.wait(looks)

    # Called by requests

    async def authenticate(self, scope: MutableMapping[str, Any], presented: bytes | PresentedKey) -> Caller:
        """The caller with that key, or with the text of one. Raises Unauthenticated; StorageUnavailable if only Redis
        could say.
        """
        if isinstance(presented, PresentedKey):
            digest = bytes.fromhex(presented.digest)
        else:
            digest = hashlib.sha256(presented).digest()
        credential = self._known.get(digest)
        now_s = self._clock()
        if credential is None or now_s >= credential.fresh_until_s:
            credential = await self._found(digest, presented, credential, now_s)
        else:
            self._known.move_to_end(digest)
        if now_s >= credential.use_noted_s + _USE_NOTED_S and len(self._used) < _MOST_USES:
            credential.use_noted_s = now_s
            self._used[digest] = credential.presented
        scope[_SCOPE_MEMBER] = credential
        return credential.caller

    async def still(self, scope: MutableMapping[str, Any]) -> None:
        """Checks the key again at the end of a long request. Raises Unauthenticated, StorageUnavailable."""
        credential = credential_of(scope)
        if credential is not None:
            now_s = self._clock()
            if credential.is_over:
                raise not_valid()
            if now_s >= credential.fresh_until_s:
                await self._again(credential, now_s)
                if credential.is_over:
                    raise not_valid()

    async def _found(
        self, digest: bytes, shown: bytes | PresentedKey, credential: Credential | None, now_s: float
    ) -> Credential:
        if credential is not None:
            await self._again(credential, now_s)
            return credential
        presented = shown if isinstance(shown, PresentedKey) else read_key_text(shown)
        if presented is None:
            raise not_valid()
        await self._outcome_of(self._look(digest, presented))
        found = self._known.get(digest)
        if found is None:
            raise not_valid()
        return found

    async def _again(self, credential: Credential, now_s: float) -> None:
        """Looks a known key up again, and waits for that only if it must."""
        if now_s >= credential.ends_s:
            self._forget(credential)
            raise not_valid()
        if self._keys.is_connected and now_s >= self._late_s + _AFTER_A_LATE_LOOK_S:
            look = self._look(credential.digest, credential.presented)
            if now_s < credential.confirmed_s + _WAITED_FOR_S:
                return
            try:
                found = await self._outcome_of(look)
            except StorageUnavailable:
                pass
            else:
                # The look-up ends the credential that it finds in the cache. This one may have been evicted meanwhile.
                if found is None or self._is_gone(credential):
                    raise not_valid()
                return
        spared_s = min(self._spared_s, _BELIEVED_AT_MOST_S) if self._keys.is_connected else self._spared_s
        if self._clock() >= min(credential.confirmed_s + spared_s, credential.ends_s):
            raise StorageUnavailable

    def _is_gone(self, credential: Credential) -> bool:
        return credential.is_over and self._known.get(credential.digest) in (None, credential)

    async def _outcome_of(self, look: "asyncio.Task[FoundKey | Problem | None]") -> FoundKey | None:
        outcome = await asyncio.shield(look)
        if isinstance(outcome, Problem):
            raise StorageUnavailable from None
        return outcome

    def _look(self, digest: bytes, presented: PresentedKey) -> "asyncio.Task[FoundKey | Problem | None]":
        """Starts a look-up, or joins the one that another request with that key has started."""
        look = self._looks.get(digest)
        if look is None:
            look = self._looks[digest] = asyncio.create_task(self._look_up(digest, presented), name="look up a key")
            look.add_done_callback(lambda _: self._looks.pop(digest, None))
        return look

    async def _look_up(self, digest: bytes, presented: PresentedKey) -> FoundKey | Problem | None:
        asked_s = self._clock()
        try:
            found = await self._keys.look_up(presented)
        except Problem as problem:
            if self._keys.is_connected:
                self._late_s = self._clock()
            return problem
        credential = self._known.get(digest) or self._watched.get(digest)
        if credential is not None and (found is None or not credential.caller.scopes <= found.key.scopes):
            self._forget(credential)
            credential = None
        if found is None:
            return None
        if credential is None:
            credential = Credential(self, digest, presented, found.key)
        elif credential.changes != found.key.changes:
            credential.follow(found.key)
        credential.confirm(asked_s, found.standing)
        self._known[digest] = credential
        self._known.move_to_end(digest)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return found

    def _forget(self, credential: Credential) -> None:
        self._known.pop(credential.digest, None)
        self._watched.pop(credential.digest, None)
        credential.end()

    # Called by credentials

    def watch(self, credential: Credential) -> None:
        """Checks it in the background, since something goes on only while it is valid."""
        if not credential.is_over:
            self._watched[credential.digest] = credential

    def unwatch(self, credential: Credential) -> None:
        """Ends ``watch``. Calls after the first change nothing."""
        if self._watched.get(credential.digest) is credential:
            del self._watched[credential.digest]

    # The loop

    async def attend(self) -> None:
        """Ends what goes on with keys that are no longer valid, and writes down which keys were used.

        Never returns; raises Problem if Redis fails.
        """
        if not self._has_hinted:
            await self._hint()
        while True:
            await self._check_watched()
            await self._note_uses()
            await asyncio.sleep(_WATCH_S)

    async def _check_watched(self) -> None:
        """Checks all watched keys in few calls, however many streams they have.

        While Redis is away open streams stay: nothing new comes on them.
        """
        asked_s = self._clock()
        watched = list(self._watched.values())
        for credential in watched:
            if asked_s >= credential.ends_s:
                self._forget(credential)
        due = [one for one in watched if not one.is_over and asked_s >= one.fresh_until_s]
        standings = await self._keys.check([one.presented for one in due])
        for credential, standing in zip(due, standings, strict=True):
            if standing is None:
                self._forget(credential)
                continue
            credential.confirm(asked_s, standing)
            if standing.changes != credential.changes:
                self._look(credential.digest, credential.presented)

    async def _note_uses(self) -> None:
        used, self._used = self._used, {}
        if used:
            await self._keys.note_use(list(used.values()))

    async def _hint(self) -> None:
        if await self._keys.is_empty():
            _log.warning("no_api_keys", hint=f"Create the first key: {FIRST_KEY}")
        self._has_hinted = True


FIRST_KEY: Final = "tokenspool keys create --tenant NAME --scope submit,read,cancel,admin"


def not_valid() -> Unauthenticated:
    """The same error for whatever is wrong with a key, at the start of a request and during it."""
    return Unauthenticated("The API key is not valid: there is no such key, or it is revoked or expired.")
