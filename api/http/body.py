"""A request's body: its bytes counted as they arrive, its JSON read strictly (see strict_json.py)."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from api.http.headers import JSON, one
from api.http.strict_json import decode
from api.state.api_state import ApiState, api_of
from shared.api_key import Caller
from shared.errors import InvalidRequest, QueueFull, TooLarge, UnsupportedMediaType

T = TypeVar("T")

_SLOWEST_S: Final = 60.0
"""The longest that a body may take: a client that sends a byte a second would hold its connection for a year."""
_PATIENCE_S: Final = 15.0
_LEAST_BYTES_PER_S: Final = 1024
"""A body must keep up this rate, with _PATIENCE_S in addition."""
MOST_FEW_BYTES: Final = 64 << 10
"""The bound of a body without a prompt."""
_FREE_BYTES: Final = 64 << 10
"""Bytes of each body that do not count: clients with small bodies never wait for those with large ones."""
_AGAIN_S: Final = 5

_JSON_TYPE: Final = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?;?', re.IGNORECASE)


async def read_json(request: Request, caller: Caller) -> Any:
    """A small body as plain data. Raises what ``read_body`` does."""
    return await read_body(request, caller, MOST_FEW_BYTES, decode)


async def read_json_if_sent(request: Request, caller: Caller) -> Any:
    """The same for a body that may be left out; ``{}`` without one. Raises what ``read_body`` does."""
    is_chunked = any(name == b"transfer-encoding" for name, _ in request.scope["headers"])
    # By its length alone: clients send Content-Type with no body too.
    is_sent = is_chunked or one(request, b"content-length") not in (None, "0")
    return await read_json(request, caller) if is_sent else {}


async def read_body(request: Request, caller: Caller, max_bytes: int, parse: Callable[[bytes], T]) -> T:
    """``parse(body)``, if the caller's key is still valid once the whole body has come. For ``parse`` see ``Parsers``.

    Raises what ``parse`` does, TooLarge, UnsupportedMediaType, InvalidRequest, QueueFull, ClientDisconnect,
    Unauthenticated, StorageUnavailable.
    """
    content_type = one(request, b"content-type")
    if content_type != JSON and not _JSON_TYPE.fullmatch(content_type or ""):
        raise UnsupportedMediaType(f"The body must be {JSON}: send it with that Content-Type.")
    if (one(request, b"content-encoding") or "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed: send it without Content-Encoding.")
    api = api_of(request)
    with Held(api) as held:
        raw = await read_bytes(request, max_bytes, held)
        await api.key_ring.still(request.scope)  # checked here, so that no route forgets it
        return await api.parsers.parse(caller.tenant, raw, parse)


class Held:
    """One body's part of the memory that all bodies share, until the block ends."""

    __slots__ = ("_all", "_bytes", "_most_bytes")

    def __init__(self, api: ApiState) -> None:
        self._all = api.bodies
        self._most_bytes = api.settings.max_bodies_bytes
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.bytes -= self._bytes

    def grow_to(self, size: int) -> None:
        """Takes memory for the ``size`` bytes that have come so far. Raises QueueFull if there is none.

        Counts what has come and not what Content-Length announces: announcing costs a stranger nothing.
        """
        more = size - _FREE_BYTES - self._bytes
        if more > 0:
            if self._all.bytes + more > self._most_bytes:
                raise QueueFull("Too many large request bodies are being read; retry in 5 s.", retry_after_s=_AGAIN_S)
            self._all.bytes += more
            self._bytes += more


async def read_bytes(request: Request, max_bytes: int, held: Held) -> bytes | bytearray:
    """The whole body. Raises TooLarge, InvalidRequest if it is too slow, QueueFull, ClientDisconnect."""
    announced = one(request, b"content-length")
    if announced is not None and announced.isdecimal() and (len(announced) > 15 or int(announced) > max_bytes):
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(min(_PATIENCE_S, _SLOWEST_S)) as deadline:
            return await _read(request, max_bytes, deadline, held)
    except TimeoutError:
        raise InvalidRequest("The body did not arrive in time.") from None


async def _read(request: Request, max_bytes: int, deadline: asyncio.Timeout, held: Held) -> bytes | bytearray:
    body: bytes | bytearray = b""
    more = True
    begun_s: float | None = None
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size = len(body) + len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        held.grow_to(size)
        if not body:
            body = chunk
        else:  # it grows in its place: to join 31 MB at the end would take 12 ms (measured)
            body = body if isinstance(body, bytearray) else bytearray(body)
            body += chunk
        more = message.get("more_body", False)
        if more:
            if begun_s is None:
                begun_s = asyncio.get_running_loop().time()
            deadline.reschedule(begun_s + min(_SLOWEST_S, _PATIENCE_S + size / _LEAST_BYTES_PER_S))
    return body


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body must have at most {max_bytes} bytes.")
