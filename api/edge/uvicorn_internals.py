"""What we need of uvicorn that neither ASGI nor uvicorn offers; see docs/decisions/0020. Under another server both find nothing."""

import signal
from typing import Any

import uvicorn
from starlette.types import Receive


def abort(receive: Receive) -> bool:
    """Closes the connection of a request with all that waits in it; ``receive`` is the server's own. False: it cannot be found.

    An orderly close would wait until a client that does not read has read it.
    """
    # ``receive`` is a method of uvicorn's request cycle, which has its connection's transport.
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    if transport is None:
        return False
    transport.abort()
    return True


def running_server() -> uvicorn.Server | None:
    """The server that handles this process's signals: its handler is a method of the server (sse-starlette finds it so too)."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None
