"""Who is calling. Each route that belongs to a tenant asks here, and nothing is open by accident.

Under TOKENSPOOL_AUTH=keys a caller shows a key, as ``Authorization: Bearer`` or as ``x-api-key``, and is its tenant; the key
ring knows it. A key in the URL is never looked for: URLs end up in logs. Under ``off`` a caller says which tenant it is, and
is believed.
"""

from typing import Final

from starlette.requests import Request

from api.fields import refuse
from api.headers import one
from api.key_ring import KeyRing, not_valid
from shared.api_key import REPLACED, TENANT, Caller, Scope
from shared.errors import FieldError, Forbidden, Unauthenticated
from shared.settings import Auth, Settings

DEFAULT_TENANT: Final = "default"

_BEARER: Final = b"bearer "


async def authenticate(request: Request, settings: Settings, ring: KeyRing, scope: Scope) -> Caller:
    """The caller, who may do what the scope says. Raises Unauthenticated, Forbidden, InvalidRequest, StorageUnavailable."""
    if settings.auth is Auth.OFF:
        return _named_caller(request)
    caller = await ring.admit(request.scope, _presented(request))
    if scope not in caller.scopes:
        raise Forbidden(f"The key lacks the scope {scope}.")
    if scope is Scope.ADMIN and caller.is_retiring:
        raise Forbidden(REPLACED)
    return caller


def _presented(request: Request) -> bytes:
    """The key that a request shows, whatever it is. Raises Unauthenticated, InvalidRequest."""
    authorization: bytes | None = None
    key: bytes | None = None
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            if authorization is not None:
                raise refuse(FieldError("Authorization", "must be sent once"))
            authorization = value
        elif name == b"x-api-key":
            if key is not None:
                raise refuse(FieldError("X-Api-Key", "must be sent once"))
            key = value.strip(b" \t")
    if authorization is not None:
        bearer = authorization[len(_BEARER) :].strip(b" \t")
        if authorization[: len(_BEARER)].lower() != _BEARER or (key is not None and key != bearer):
            raise not_valid()
        return bearer
    if key is None:
        raise Unauthenticated("Send an API key, as Authorization: Bearer or as x-api-key.")
    return key


def _named_caller(request: Request) -> Caller:
    tenant = one(request, b"x-tenant")
    if tenant is None:
        return Caller(DEFAULT_TENANT)
    if not TENANT.fullmatch(tenant):
        raise refuse(FieldError("X-Tenant", "must be 1 to 64 of A-Z, a-z, 0-9, _, . and -"))
    return Caller(tenant)
