"""Who is calling. Each route that belongs to a tenant asks here, and nothing is open by accident.

API keys do not exist yet: under TOKENSPOOL_AUTH=keys every call is refused. Under ``off`` a caller says which tenant it
is, and is believed.
"""

import re
from typing import Final

from starlette.requests import Request

from api.fields import refuse
from api.headers import one
from shared.api_key import Caller, Scope
from shared.errors import FieldError, Unauthenticated
from shared.settings import Auth, Settings

DEFAULT_TENANT: Final = "default"

_TENANT: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


async def authenticate(request: Request, settings: Settings, scope: Scope) -> Caller:  # noqa: ARG001
    """The caller, who may do what the scope says. Raises Unauthenticated, Forbidden, InvalidRequest."""
    if settings.auth is not Auth.OFF:
        raise Unauthenticated
    tenant = one(request, b"x-tenant")
    if tenant is None:
        return Caller(DEFAULT_TENANT)
    if not _TENANT.fullmatch(tenant):
        raise refuse(FieldError("X-Tenant", "must be 1 to 64 of A-Z, a-z, 0-9, _, . and -"))
    return Caller(tenant)
