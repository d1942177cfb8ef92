"""The routes' FastAPI dependencies: the process's state, the authenticated caller, and ids in paths.

With TOKENSPOOL_AUTH=keys a caller sends an API key, as ``Authorization: Bearer`` or as ``x-api-key``, and acts for the
key's tenant. Keys in URLs are ignored, since URLs end up in logs. With ``off`` a caller names its tenant in
``X-Tenant``, and is believed. Only a follow token may be in a URL, and only on the two paths of its one job.
"""

import re
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from fastapi import Depends, Path, Query
from fastapi.routing import APIRoute
from starlette.requests import Request

from api.http.anthropic_errors import is_on_surface
from api.http.headers import is_of_openais_sdk, one
from api.http.invalid import is_known, refuse, unknown_parameter
from api.openapi import query_names
from api.state.api_state import ApiState, api_of, set_tenant
from api.state.key_ring import KeyRing
from shared.api_key import KEY_ID, KEY_PREFIX, REPLACED, TENANT, Caller, PresentedKey, Scope
from shared.errors import FieldError, Forbidden, InvalidRequest, NotFound, Unauthenticated
from shared.follow_token import read_follow_token
from shared.settings import Auth, Settings

JOB_ID: Final = re.compile(r"job_[0-9a-hjkmnp-tv-z]{26}", re.ASCII)
BATCH_ID: Final = re.compile(r"batch_[0-9a-hjkmnp-tv-z]{26}", re.ASCII)

_IGNORED_BY_THE_MESSAGES_API: Final = ("beta",)
"""Query parameters that mean nothing: the beta clients of older SDKs add this one to each path."""
_OWN_BATCHES: Final = "/v1/batches"
_NOT_OPENAIS: Final = (
    "This path is tokenspool's own batch API, not OpenAI's, and OpenAI's SDK would misread its responses. "
    "OpenAI's API is not served here yet; its base URL will be /openai/v1. Until then call this path with another HTTP client."
)
"""OpenAI's API has other objects on the same path: its SDK's list, retrieve and cancel would seem to succeed, and its
polling would never end."""


async def _api(request: Request) -> ApiState:
    return api_of(request)  # a coroutine: FastAPI runs plain functions in threads


async def caller_of(
    request: Request, scope: Scope, *, query: Collection[str] = (), follow_token: str | None = None
) -> Caller:
    """Authenticates the caller, checks its scope, and counts the request as one of its tenant's.

    ``query``: the query parameters that the request may have. Any other is refused: its sender means it as a filter, and
    would get, or change, everything. Only an operator may name a ``tenant``. ``follow_token``: what the caller sent instead of
    a key. Raises Unauthenticated, Forbidden, InvalidRequest, StorageUnavailable, TooManyConnections.
    """
    api = api_of(request)
    if follow_token is None:
        caller = await authenticate(request, api.settings, api.key_ring, scope)
    else:
        caller = await _follower(request, api, scope, follow_token)
    set_tenant(request.scope, caller.tenant)
    api.occupancy.enter(request.scope, caller.tenant)
    if request.scope["path"].startswith(_OWN_BATCHES) and is_of_openais_sdk(request.scope):
        raise InvalidRequest(_NOT_OPENAIS)
    if request.scope["query_string"]:
        if "tenant" in query and "tenant" in request.query_params:
            _must_have(caller, Scope.OPERATOR)
        _refuse_unknown(request, query)
    return caller


def _refuse_unknown(request: Request, query: Collection[str]) -> None:
    ignored = _IGNORED_BY_THE_MESSAGES_API if is_on_surface(request.scope["path"]) else ()
    known = {*query, *ignored}
    unknown = [name for name in dict.fromkeys(request.query_params) if not is_known(name, known)]
    if unknown:
        raise refuse(*[unknown_parameter(name, query) for name in unknown])


def _declared(request: Request) -> Collection[str]:
    """The query parameters that the matching FastAPI route declares, itself, by a dependency, or by its ``@operation``."""
    if not request.scope["query_string"]:
        return ()
    route: APIRoute = request.scope["route"]
    parts = (route.dependant, *route.dependant.dependencies)
    return [*(parameter.alias for part in parts for parameter in part.query_params), *query_names(route.endpoint)]


async def _submitter(request: Request) -> Caller:
    return await caller_of(request, Scope.SUBMIT, query=_declared(request))


async def _reader(request: Request) -> Caller:
    return await caller_of(request, Scope.READ, query=_declared(request))


async def _canceller(request: Request) -> Caller:
    return await caller_of(request, Scope.CANCEL, query=_declared(request))


_Token = Annotated[str | None, Query(description="A follow token of the job, instead of an API key.")]


async def _job_reader(request: Request, token: _Token = None) -> Caller:
    return await caller_of(request, Scope.READ, query=_declared(request), follow_token=token)


async def _job_canceller(request: Request, token: _Token = None) -> Caller:
    return await caller_of(request, Scope.CANCEL, query=_declared(request), follow_token=token)


async def _admin(request: Request) -> Caller:
    return await caller_of(request, Scope.ADMIN, query=_declared(request))


async def _operator(request: Request) -> Caller:
    return await caller_of(request, Scope.OPERATOR, query=_declared(request))


async def _job_id(job_id: Annotated[str, Path()]) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise NotFound
    return job_id


async def _batch_id(batch_id: Annotated[str, Path()]) -> str:
    if not BATCH_ID.fullmatch(batch_id):
        raise NotFound
    return batch_id


Api = Annotated[ApiState, Depends(_api)]
Submitter = Annotated[Caller, Depends(_submitter)]
Reader = Annotated[Caller, Depends(_reader)]
Canceller = Annotated[Caller, Depends(_canceller)]
JobReader = Annotated[Caller, Depends(_job_reader)]
JobCanceller = Annotated[Caller, Depends(_job_canceller)]
"""Of the paths that take a follow token of their job instead of a key."""
Admin = Annotated[Caller, Depends(_admin)]
Operator = Annotated[Caller, Depends(_operator)]
JobId = Annotated[str, Depends(_job_id)]
BatchId = Annotated[str, Depends(_batch_id)]
"""Path parameters. A malformed id is a 404, like an absent one."""


# --- who is calling ---

DEFAULT_TENANT: Final = "default"
TENANT_FORM: Final = "must be 1 to 64 characters of A-Z, a-z, 0-9, _, . and -"

_OURS: Final = KEY_PREFIX.encode()
_OF_ANOTHER_SCHEME: Final = b"-"
"""Stands for credentials of a scheme other than Bearer: never a key of ours, whatever they look like."""


async def authenticate(request: Request, settings: Settings, ring: KeyRing, scope: Scope) -> Caller:
    """The caller, if it has the scope. Raises Unauthenticated, Forbidden, InvalidRequest, StorageUnavailable."""
    if settings.auth is Auth.OFF:
        return _named_caller(request)
    return await _with_scope(request, ring, _presented(request), scope)


async def _with_scope(request: Request, ring: KeyRing, presented: bytes | PresentedKey, scope: Scope) -> Caller:
    caller = await ring.authenticate(request.scope, presented)
    _must_have(caller, scope)
    return caller


def _must_have(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise Forbidden(f"The key lacks the scope {scope}.")
    if caller.is_retiring and scope in (Scope.ADMIN, Scope.OPERATOR):
        raise Forbidden(REPLACED)


NamedTenant = Annotated[
    str | None, Query(alias="tenant", description="Another tenant; only for keys with the scope operator.")
]
ALL_TENANTS: Final = "*"


def tenant_asked(caller: Caller, named: str | None, *, may_be_all: bool = False) -> str:
    """The tenant that a request is about: the caller's own, or the one that an operator names; ALL_TENANTS if that may be.

    Raises InvalidRequest. ``caller_of`` has refused others than operators, whatever they name.
    """
    if named is None:
        return caller.tenant
    if not TENANT.fullmatch(named) and not (may_be_all and named == ALL_TENANTS):
        raise refuse(FieldError("tenant", TENANT_FORM))
    return named


async def _follower(request: Request, api: ApiState, scope: Scope, text: str) -> Caller:
    """The caller that a follow token of this path's job stands for. Raises as ``authenticate`` does."""
    token = read_follow_token(text)
    has_keys = api.settings.auth is Auth.KEYS
    if token is None or (has_keys and not KEY_ID.fullmatch(token.owner)):
        raise _token_not_valid()
    keys = api.runtime.api_keys
    now_ms, digests = await keys.signers(token.owner) if has_keys else (await keys.now_ms(), [""])
    signers = [digest for digest in digests if token.is_for(request.path_params["job_id"], digest)]
    if not signers or token.expires_ms <= now_ms:
        raise _token_not_valid()
    if scope not in token.scopes:
        raise Forbidden("The follow token was not made for that: make one with events or cancel set to true.")
    if not has_keys:
        return Caller(token.owner, scopes=token.scopes)
    caller = await _with_scope(request, api.key_ring, PresentedKey(token.owner, signers[0]), scope)
    return msgspec.structs.replace(caller, scopes=caller.scopes & token.scopes)


def _token_not_valid() -> Unauthenticated:
    return Unauthenticated(
        "The follow token is not valid: it has expired, is another job's, or its API key has ended. Make a new one."
    )


def _presented(request: Request) -> bytes:
    """The key that a request carries, still unchecked. Raises Unauthenticated, InvalidRequest.

    Clients send what they find in their environment: together with our key in one header, another vendor's key or an
    empty one in the other. So if there are two, the one with our prefix counts, whichever header it is in.
    """
    shown = [
        key for key in (_bearer_of(_sent_once(request, b"authorization")), _sent_once(request, b"x-api-key")) if key
    ]
    ours = {key for key in shown if key.startswith(_OURS)}
    if len(ours) > 1:
        raise refuse(FieldError("X-Api-Key", "differs from the key in Authorization: send only one of them"))
    if not shown:
        raise Unauthenticated("An API key is needed: send it as Authorization: Bearer or as x-api-key.")
    return ours.pop() if ours else shown[0]


def _sent_once(request: Request, wanted: bytes) -> bytes:
    """The value of a header, empty if it was not sent. Raises InvalidRequest if it was sent twice."""
    found: bytes | None = None
    for name, value in request.scope["headers"]:
        if name == wanted:
            if found is not None:
                raise refuse(FieldError(wanted.decode().title(), "must be sent once"))
            found = value.strip(b" \t")
    return found or b""


def _bearer_of(authorization: bytes) -> bytes:
    """The key in an ``Authorization`` header; empty if there is none."""
    scheme, _, key = authorization.partition(b" ")
    if scheme.lower() == b"bearer" or not scheme:
        return key.strip(b" \t")
    return _OF_ANOTHER_SCHEME


def _named_caller(request: Request) -> Caller:
    tenant = one(request, b"x-tenant")
    if tenant is None:
        return Caller(DEFAULT_TENANT)
    if not TENANT.fullmatch(tenant):
        raise refuse(FieldError("X-Tenant", TENANT_FORM))
    return Caller(tenant)
