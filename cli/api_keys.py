"""`tokenspool keys`: API keys made, listed, rotated and revoked, straight in Redis.

Anyone who reaches Redis can do everything anyway: so the first key of all is made here. A key is printed once, alone on standard
output, so that a shell can keep it in a variable; all other words go to standard error.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from cli.errors import CommandError
from cli.output import put_json, put_table, relative
from cli.tenants import ask_redis, check_tenant
from cli.terminal import note, put
from shared.api_key import DEFAULT_SCOPES, ENV, KEY_ID, ApiKey, Scope
from shared.clock import to_rfc3339
from shared.errors import KeyEnded, NotFound
from shared.limits import CallerLimits
from shared.store.api_keys import ApiKeys, NewKey
from shared.store.runtime import Runtime

T = TypeVar("T")

_NANO: Final = 1_000_000_000
_DAY_S: Final = 86_400
_PAGE: Final = 100
_MOST_NAME_CHARS: Final = 128
_HEAD: Final = ("id", "tenant", "name", "scopes", "status", "limits", "used", "made by")


def create_key(
    tenant: str,
    *,
    name: str,
    scopes: Sequence[str],
    env: str,
    expires_in_days: float | None,
    limits: Mapping[str, float | None],
    as_json: bool,
) -> None:
    """Print a new key. Raises CommandError."""
    check_tenant(tenant)
    if not ENV.fullmatch(env):
        raise CommandError("--env must be 1 to 16 characters of a-z and 0-9.", 2)
    if len(name) > _MOST_NAME_CHARS or not name.isprintable():
        raise CommandError(f"--name must be at most {_MOST_NAME_CHARS} printable characters.", 2)
    wanted = _scopes_of(scopes)
    chosen = {
        (f"nano_{option}" if option.startswith("usd") else option): round(
            value * (_NANO if option.startswith("usd") else 1)
        )
        for option, value in limits.items()
        if value is not None
    }
    made = _run(
        lambda keys: keys.create(
            tenant,
            env=env,
            name=name,
            scopes=wanted,
            limits=CallerLimits(**chosen),
            expires_in_s=None if expires_in_days is None else expires_in_days * _DAY_S,
        )
    )
    assert made is not None  # None only for a key that may not outlive its maker
    _show_once(made, f"a key of {tenant}", as_json=as_json)


def list_keys(tenant: str | None, *, as_json: bool) -> None:
    """Print a line for each key, of one tenant or of all. Raises CommandError."""
    if tenant is not None:
        check_tenant(tenant)
    found = _run(lambda keys: _all_of(keys, tenant))
    if as_json:
        for key in found:
            _put_json(key)
    elif found:
        put_table(_HEAD, map(_row, found), cut=("tenant", "name", "scopes", "limits"))
    else:
        note("there are no keys" if tenant is None else f"{tenant} has no keys")


def _row(key: ApiKey) -> Sequence[str]:
    return (
        key.id,
        key.tenant,
        key.name,
        ",".join(scope for scope in Scope if scope in key.scopes),
        _status_of(key, _now_ms()),
        _limits_text(key.limits),
        "never" if key.last_used_ms is None else relative(to_rfc3339(key.last_used_ms)),
        key.made_by or "",
    )


def _put_json(key: ApiKey, text: str | None = None) -> None:
    """The key as the API sends it, and its tenant."""
    from api.ops.api_keys import view_of  # takes half a second

    put_json({**msgspec.to_builtins(view_of(key, _now_ms(), text)), "tenant": key.tenant})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000  # near enough for a list


def rotate_key(key_id: str, *, grace_s: int, as_json: bool) -> None:
    """Print the key with a new secret. Raises CommandError."""
    made = _run(lambda keys: keys.rotate(_checked(key_id), None, grace_s=grace_s))
    until = f"the old one stays valid for {grace_s} s" if grace_s else "the old one is revoked"
    _show_once(made, f"a new secret for a key of {made.key.tenant}; {until}", as_json=as_json)


def revoke_key(key_id: str, *, as_json: bool) -> None:
    """Revoke a key. Raises CommandError."""
    key = _run(lambda keys: keys.revoke(_checked(key_id), None))
    if as_json:
        _put_json(key)
    note(f"{key.id} of {key.tenant} is revoked; every process refuses it within 5 s")


def _show_once(made: NewKey, what: str, *, as_json: bool) -> None:
    key = made.key
    end = "does not expire" if key.expires_ms is None else f"expires {to_rfc3339(key.expires_ms)}"
    scopes = ", ".join(scope for scope in Scope if scope in key.scopes)
    note(f"{what}: {key.id}, scopes {scopes}, {end}. It is shown only once, here:")
    _put_json(key, made.text) if as_json else put(made.text + "\n")


async def keys_of(tenant: str, keys: ApiKeys) -> AsyncIterator[ApiKey]:
    after: str | None = None
    while True:
        page = await keys.page(tenant, after=after, limit=_PAGE)
        for key in page.keys:
            yield key
        after = page.next_after
        if after is None:
            return


async def _all_of(keys: ApiKeys, tenant: str | None) -> list[ApiKey]:
    tenants = await keys.tenants() if tenant is None else [tenant]
    return [key for name in tenants async for key in keys_of(name, keys)]


def _status_of(key: ApiKey, now_ms: int) -> str:
    if key.revoked_ms is not None:
        return f"revoked {relative(to_rfc3339(key.revoked_ms))}"
    if key.expires_ms is None:
        return "active"
    return f"{'expired' if key.has_ended(now_ms) else 'expires'} {relative(to_rfc3339(key.expires_ms))}"


def _limits_text(limits: CallerLimits) -> str:
    shown = [
        f"{name.removeprefix('nano_')}={value / _NANO if name.startswith('nano') else value:.12g}"
        for name in CallerLimits.__struct_fields__
        if (value := getattr(limits, name))
    ]
    return ",".join(shown)


def _scopes_of(words: Sequence[str]) -> frozenset[Scope]:
    """Given one at a time, or separated by commas."""
    names = {name.strip() for word in words for name in word.split(",")} - {""}
    try:
        return frozenset(Scope(name) for name in names) or DEFAULT_SCOPES
    except ValueError:
        raise CommandError(f"--scope must be one of: {', '.join(Scope)}.", 2) from None


def _checked(key_id: str) -> str:
    """The id. Anything else may be a key itself, so it is not repeated."""
    if not KEY_ID.fullmatch(key_id):
        raise CommandError("A key id must be key_ and 16 characters, as shown by `tokenspool keys list`.", 2)
    return key_id


def _run(ask: Callable[[ApiKeys], Awaitable[T]]) -> T:
    async def asked(runtime: Runtime) -> T:
        try:
            return await ask(runtime.api_keys)
        except NotFound:
            raise CommandError("There is no key with this id: see `tokenspool keys list`.") from None
        except KeyEnded:
            raise CommandError("The key is revoked or expired and cannot be rotated: create a new key.") from None

    return ask_redis(asked, process_name="tokenspool-keys")
