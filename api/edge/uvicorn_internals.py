"""What we need of uvicorn that neither ASGI nor uvicorn's own API offers: see docs/decisions/0019.

Under another server both functions find nothing.
"""

import signal
from typing import Any

import uvicorn
from starlette.types import Receive


def abort(receive: Receive) -> bool:
    """Closes a request's connection at once, and drops what is unsent. ``receive`` must be the server's own. False if
    it cannot find the connection.

    An orderly close would wait until the client has read everything, and some clients never read.
    """
    # ``receive`` is a method of uvicorn's request cycle, which has its connection's transport.
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        return False
    transport.abort()
    return True


def running_server() -> uvicorn.Server | None:
    """The server whose method handles SIGTERM in this process; None without one. (sse-starlette finds it
    this way too.)
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None
