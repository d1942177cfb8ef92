"""Clients that disconnect: work that is done only while its client is connected, and connections that we close."""

import asyncio
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from api.state.key_ring import credential_of, not_valid

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Cancels it and raises ClientDisconnect if the client disconnects first, Unauthenticated
    if its key ends first. The request's body must have been read.
    """
    working = asyncio.create_task(work, name="work for a client")
    leaving = asyncio.create_task(until_gone(request.receive), name="client leaves")
    credential = credential_of(request.scope)
    try:
        with nullcontext() if credential is None else credential.held(leaving.cancel):
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if credential is not None and credential.is_over:
            raise not_valid()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def until_gone(receive: Receive) -> None:
    """Returns once the client has disconnected. The body must have been read, or this would drop it."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def abort(scope: Scope, receive: Receive) -> bool:
    """Closes the connection at once, and drops what is unsent. False if it could not: the server is not uvicorn."""
    if not scope["state"]["api"].abort(receive):
        return False
    await asyncio.sleep(0)  # lets the server notice it, or it would log that the response has no end
    return True
