"""What every answer has, whichever route it comes from: a request id, and an end.

The outermost layer of ours: a pure ASGI middleware (Starlette's BaseHTTPMiddleware hides disconnects). What no route
expected ends here, logged by its type and place alone: its message may quote what a user sent, and the server's own
log would print it.
"""

import re
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.anthropic_compat import wire
from api.errors import REQUEST_ID, error_answer
from shared.errors import InternalError
from shared.job import new_id
from shared.telemetry import get_logger

_ID: Final = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class _HeadAnswered(Exception):
    """The headers are out, and HEAD wants no more: ends the route."""


class Envelope:
    """Wraps the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = get_logger("api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id_of(scope)
        is_head = scope["method"] == "HEAD"
        added = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if wire.is_on_surface(scope["path"]):
            added.append((b"request-id", request_id.encode()))  # where the SDK of that API looks
        # A copy: the server looks at the method to leave the body out.
        scope = {**scope, REQUEST_ID: request_id} | ({"method": "GET"} if is_head else {})
        has_begun = False

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message["headers"], *added]
                await send(message)
                if is_head:
                    await send({"type": "http.response.body", "body": b""})
                    raise _HeadAnswered
                return
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except (_HeadAnswered, ClientDisconnect):
            pass
        except Exception as error:  # noqa: BLE001 - the last net: whatever it is, the process goes on
            self._log.error("request_failed", request_id=request_id, method=scope["method"], exc_info=error)
            # Once it has begun, an answer can only break off: the server then closes the connection.
            if not has_begun:
                await error_answer(scope, InternalError())(scope, receive, send_on)


def _request_id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _ID.fullmatch(value) else new_id("req")
    return new_id("req")
