"""Responses whose JSON is already encoded."""

from collections.abc import Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.headers import JSON
from api.state.api_state import ApiState, tenant_of

NO_TRANSFORM: Final = "no-store, no-transform"
"""For streams: a proxy that compresses would hold data back until it has enough."""
_NO_STORE: Final = {"Cache-Control": "no-store"}
_LARGE_BYTES: Final = 64 << 10
"""How much of a response waits in its connection at once. A larger one is counted until its client has read it."""


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response that no cache may keep: a job's state is private, and soon another."""
    kind = Response if len(body) <= _LARGE_BYTES else _LargeResponse
    return kind(body, status, {**_NO_STORE, **headers} if headers else _NO_STORE, JSON)


class _LargeResponse(Response):
    """Sent in pieces, as its client reads. Raises QueueFull if too many bytes already wait to be read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api: ApiState = scope["state"]["api"]
        body = bytes(self.body)
        with api.unsent.held(tenant_of(scope), len(body)):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for place in range(0, len(body), _LARGE_BYTES):
                piece = body[place : place + _LARGE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
