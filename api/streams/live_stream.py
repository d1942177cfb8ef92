"""The stream of ``/v1/live``, by sse-starlette: it has few clients, and needs none of what the relay's followers need."""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from api.http.responses import NO_TRANSFORM
from api.state.key_ring import credential_of
from api.state.viewers import KEY_ENDED, Viewer, Viewers


class LiveResponse(EventSourceResponse):
    """Sends a viewer its frames, and ``first`` before them. Ends with its key, at a drain, and when it leaves."""

    def __init__(self, first: bytes, viewer: Viewer, viewers: Viewers, *, ping_s: float) -> None:
        super().__init__(self._frames(first), headers={"Cache-Control": NO_TRANSFORM}, sep="\n", ping=ping_s)
        self._viewer = viewer
        self._viewers = viewers

    async def _frames(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        async for frame in self._viewer.frames():
            yield frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        drain = scope["state"]["api"].drain
        credential = credential_of(scope)

        def on_key_end() -> None:
            self._viewer.end(KEY_ENDED)

        if credential is not None:
            credential.hold(on_key_end)
        self._viewers.open(self._viewer)
        drain.open_requests -= 1  # a drain asks it to connect elsewhere, and does not wait for it
        try:
            await super().__call__(scope, receive, send)
        finally:
            drain.open_requests += 1
            self._viewers.close(self._viewer)
            if credential is not None:
                credential.release(on_key_end)

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        """Overrides sse-starlette's own, which would start a task that never ends: Viewers.dismiss ends the stream."""
        await asyncio.get_running_loop().create_future()
