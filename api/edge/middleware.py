"""What every response has, whichever route it comes from: a request id, the security headers, and an end.

Pure ASGI, since Starlette's BaseHTTPMiddleware hides disconnects. Three kinds of requests end here. A target that two
readers could read in two ways is refused. A preflight gets its response, since it carries no key. An exception that no
route expected becomes a 500: its type and place are logged, but not its message, which may quote what a user sent.
"""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.edge.cors import Cors
from api.http import anthropic_errors
from api.http.errors import REQUEST_ID, error_response
from api.http.security_headers import security_headers
from api.state.api_state import ApiState
from shared.errors import InternalError, InvalidRequest, NotFound, Problem
from shared.job import new_id
from shared.telemetry import get_logger

_ID: Final = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_MODELS: Final = b"/v1/models/"
"""The only paths with %2F, since model ids have slashes. Elsewhere %2F is a slash to us, but not to a proxy's rules."""
_NO_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class _HeadSent(Exception):
    """Ends the route of a HEAD request, once the headers are sent."""


class Envelope:
    """Middleware. ``cors_origins``: those whose pages may call from a browser."""

    def __init__(self, app: ASGIApp, cors_origins: Sequence[str] = ()) -> None:
        self._app = app
        self._cors = Cors(cors_origins)
        self._log = get_logger("api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id_of(scope)
        is_head = scope["method"] == "HEAD"
        added = [(b"x-request-id", request_id.encode())]
        if anthropic_errors.is_on_surface(scope["path"]):
            added.append((b"request-id", request_id.encode()))  # the name that Anthropic's SDK reads
        if not self._cors.is_off:
            added += self._cors.headers_for(_header(scope, b"origin"))
        # A copy: the server reads HEAD in its own scope, and then leaves the body out.
        scope = {**scope, REQUEST_ID: request_id} | ({"method": "GET"} if is_head else {})
        has_begun = False
        api: ApiState = scope["state"]["api"]
        drain = api.drain

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = message["headers"]
                message["headers"] = [*headers, *security_headers(headers), *added]
                if drain.is_begun:
                    message["headers"].append((b"connection", b"close"))
                await send(message)
                if is_head:
                    await send({"type": "http.response.body", "body": b""})
                    raise _HeadSent
                return
            await send(message)

        drain.open_requests += 1
        try:
            if (problem := _problem_of_target(scope)) is not None:
                await error_response(scope, problem)(scope, receive, send_on)
            elif scope["method"] == "OPTIONS" and not self._cors.is_off and _header(scope, _ASKED) is not None:
                await self._respond_to_preflight(scope, send, added)
            else:
                await self._app(scope, receive, send_on)
        except (_HeadSent, ClientDisconnect):
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the process goes on
            self._log.error("request_failed", request_id=request_id, method=scope["method"], exc_info=error)
            # A response that has begun can only be broken off: the server then closes the connection.
            if not has_begun:
                await error_response(scope, InternalError())(scope, receive, send_on)
        finally:
            drain.open_requests -= 1
            api.occupancy.leave(scope)

    async def _respond_to_preflight(self, scope: Scope, send: Send, added: list[tuple[bytes, bytes]]) -> None:
        wanted = _header(scope, b"access-control-request-headers") or b""
        headers = self._cors.preflight_for(_header(scope, b"origin"), wanted)
        ids = [(name, value) for name, value in added if name.endswith(b"request-id")]
        start = {"type": "http.response.start", "status": 204, "headers": [*headers, *security_headers(headers), *ids]}
        await send(start)
        await send({"type": "http.response.body", "body": b""})


_ASKED: Final = b"access-control-request-method"


def _problem_of_target(scope: Scope) -> Problem | None:
    """Refuses an ambiguous path or query, and one that is no text. Reads raw bytes: the server decodes leniently."""
    path: bytes = scope.get("raw_path") or b""
    query: bytes = scope["query_string"]
    if b"%2f" in path.lower() and not path.startswith(_MODELS):
        return NotFound("There is no such path: do not encode / as %2F, except in a model's id.")
    for part in (path, query):
        if b"%" in part:
            if _NO_ESCAPE.search(part):
                return InvalidRequest("Each % in the path and the query must be followed by two hexadecimal digits.")
            try:
                unquote_to_bytes(part).decode()
            except UnicodeDecodeError:
                return InvalidRequest("The path and the query must be UTF-8.")
    return None


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            found: bytes = value
            return found
    return None


def _request_id_of(scope: Scope) -> str:
    """The client's own, if it is safe in logs and headers; else a new one."""
    value = _header(scope, b"x-request-id")
    return value.decode() if value is not None and _ID.fullmatch(value) else new_id("req")
