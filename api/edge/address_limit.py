"""Limits the requests of each client address, before API keys are checked. Not installed without a limit.

While Redis is away all requests pass: the limit is against guessing and floods, and must not shut out everybody. The
requests that pass unchecked are counted, and logged once a minute. Redis counts as away when its connection is lost,
not when it is slow: in a flood requests wait long although Redis is healthy, and a deadline would let the flood pass.
"""

import time
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.errors import error_response
from api.state.api_state import ApiState, api_of
from shared.errors import Problem, RateLimited

_OPEN: Final = frozenset({"/health/live", "/health/ready"})
"""Health probes call these often, and from one address."""
_LOGGED_EVERY_S: Final = 60.0


class AddressLimit:
    """Pure ASGI middleware, inside the envelope."""

    def __init__(self, app: ASGIApp, requests_per_minute: int) -> None:
        self._app = app
        self._requests_per_minute = requests_per_minute
        self._logged_s = -_LOGGED_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            try:
                await self._count(scope)
            except RateLimited as problem:
                await error_response(scope, problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _count(self, scope: Scope) -> None:
        """Raises RateLimited."""
        api = api_of(Request(scope))
        addresses = api.runtime.addresses
        client = scope.get("client")
        if addresses.can_count:
            try:
                # Clients of a unix socket have no address, and count as one.
                await addresses.admit(client[0] if client else "", self._requests_per_minute)
            except RateLimited:
                raise
            except Problem:
                pass
            else:
                return
        self._let_past(api)

    def _let_past(self, api: ApiState) -> None:
        api.let_past.count += 1
        if time.monotonic() - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = time.monotonic()
            api.log.warning("limit_open", requests=api.let_past.count)
