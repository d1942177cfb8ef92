"""How often an address may come, before anybody asks who it is. Pure ASGI, inside the envelope; only there if it is set.

Open while Redis is away: the limit is there against guessing and floods, and must not be what stops everybody. Then it is
counted how many requests went past it, and told once a minute. Whether it is away is known where its replies are read: in a
flood a request waits for long with Redis healthy, and a deadline of its own would open the limit to the very flood.
"""

import time
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.errors import error_answer
from api.state.api_state import ApiState, api_of
from shared.errors import Problem, RateLimited

_OPEN: Final = frozenset({"/health/live", "/health/ready"})
"""Whoever looks after the process asks these, often, and from one address."""
_TOLD_EVERY_S: Final = 60.0


class AddressLimit:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, requests_per_minute: int) -> None:
        self._app = app
        self._requests_per_minute = requests_per_minute
        self._told_s = -_TOLD_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            try:
                await self._admit(scope)
            except RateLimited as problem:
                await error_answer(scope, problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        """Raises RateLimited."""
        api = api_of(Request(scope))
        addresses = api.runtime.addresses
        client = scope.get("client")
        if addresses.can_count:
            try:
                # Without an address (a unix socket) all are one: a proxy stands before us, and should say who comes.
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
        if time.monotonic() - self._told_s >= _TOLD_EVERY_S:
            self._told_s = time.monotonic()
            api.log.warning("limit_open", requests=api.let_past.count)
