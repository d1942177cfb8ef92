"""Who is calling. Each route that belongs to a tenant asks here, and nothing is open by accident.

Under TOKENSPOOL_AUTH=keys a caller shows a key, as ``Authorization: Bearer`` or as ``x-api-key``, and is its tenant; the key
ring knows it. A key in the URL is never looked for: URLs end up in logs. Under ``off`` a caller says which tenant it is, and
is believed.
"""

from typing import Final

from starlette.requests import Request

from api.http.headers import one
from api.http.invalid import refuse
from api.state.key_ring import KeyRing
from shared.api_key import KEY_PREFIX, REPLACED, TENANT, Caller, Scope
from shared.errors import FieldError, Forbidden, Unauthenticated
from shared.settings import Auth, Settings

DEFAULT_TENANT: Final = "default"

_OURS: Final = KEY_PREFIX.encode()
_OF_ANOTHER_SCHEME: Final = b"-"
"""Something was sent, but no key of ours, whatever it looks like."""


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
    """The key that a request shows, whatever it is. Raises Unauthenticated, InvalidRequest.

    Clients send what they find in their environment: another vendor's key in the header that they do not use for ours, or
    an empty one. So of two the one counts that is ours, in whichever header it is.
    """
    shown = [
        key for key in (_bearer_of(_sent_once(request, b"authorization")), _sent_once(request, b"x-api-key")) if key
    ]
    ours = {key for key in shown if key.startswith(_OURS)}
    if len(ours) > 1:
        raise refuse(FieldError("X-Api-Key", "must be the key that Authorization has: send one of the two"))
    if not shown:
        raise Unauthenticated("Send an API key, as Authorization: Bearer or as x-api-key.")
    return ours.pop() if ours else shown[0]


def _sent_once(request: Request, wanted: bytes) -> bytes:
    """Empty if it was not sent. Raises InvalidRequest."""
    found: bytes | None = None
    for name, value in request.scope["headers"]:
        if name == wanted:
            if found is not None:
                raise refuse(FieldError(wanted.decode().title(), "must be sent once"))
            found = value.strip(b" \t")
    return found or b""


def _bearer_of(authorization: bytes) -> bytes:
    """Empty if there is none."""
    scheme, _, key = authorization.partition(b" ")
    if scheme.lower() == b"bearer" or not scheme:
        return key.strip(b" \t")
    return _OF_ANOTHER_SCHEME


def _named_caller(request: Request) -> Caller:
    tenant = one(request, b"x-tenant")
    if tenant is None:
        return Caller(DEFAULT_TENANT)
    if not TENANT.fullmatch(tenant):
        raise refuse(FieldError("X-Tenant", "must be 1 to 64 of A-Z, a-z, 0-9, _, . and -"))
    return Caller(tenant)
