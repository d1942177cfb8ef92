"""The single place that knows Redis URLs and redis-py's connection objects.

redis-py opens a connection (TLS, unix sockets, ACL, database) and encodes and parses for it; pools, retries and its
PubSub class are not used: see commands.py and subscriber.py for why.
"""

from collections.abc import Callable

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from shared.errors import Problem, StorageFull, StorageUnavailable

MakeConnection = Callable[[], AbstractConnection]

CONNECT_TIMEOUT_S = 1.0
_MOST_BUFFERED_BYTES = 8 << 20

_OUT_OF_MEMORY = "OOM command not allowed when used memory"

FOREIGN_ERRORS = (RedisError, OSError, EOFError, TimeoutError)
"""What connecting, sending and reading can raise; refused connections surface as a builtin OSError (redis-py 5.3.1)."""


def connection_maker(url: str, *, name: str) -> MakeConnection:
    """Makes unopened connections that name themselves ``name`` in ``CLIENT LIST``."""
    pool = ConnectionPool.from_url(
        url,
        client_name=name,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        lib_name=None,
        lib_version=None,
        **({} if url.startswith("unix:") else {"socket_keepalive": True}),
    )
    return pool.make_connection


def write(connection: AbstractConnection, parts: list[bytes]) -> None:
    """Sends, in one write; what the socket does not take at once is buffered. A broken connection shows when it is read."""
    writer = getattr(connection, "_writer", None)  # redis-py's own sending is a coroutine with two checks
    if writer is not None:
        writer.writelines(parts)


def takes_more(connection: AbstractConnection) -> bool:
    """Whether the buffer of unsent bytes has room: a Redis that does not read must not fill our memory.

    A connection that is closing takes nothing.
    """
    transport = getattr(getattr(connection, "_writer", None), "transport", None)  # fakeredis has none
    if transport is None:
        return True
    return not transport.is_closing() and transport.get_write_buffer_size() < _MOST_BUFFERED_BYTES


async def send(connection: AbstractConnection, packed: list[bytes]) -> None:
    """Sends, and waits while the socket's buffer is full. Raises what FOREIGN_ERRORS names.

    uvloop raises RuntimeError for a transport that is closing, a turn before its reader hears of it.
    """
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if transport is not None and transport.is_closing():
        raise ConnectionResetError("closed a moment ago")
    await connection.send_packed_command(packed, check_health=False)


async def drop(connection: AbstractConnection) -> None:
    """Closes at once, with whatever is unsent: an orderly close waits until the other side has read it, and a half-open
    connection would wait for ever.
    """
    transport = getattr(getattr(connection, "_writer", None), "transport", None)  # redis-py has no name for it
    if transport is not None:
        transport.abort()
    try:
        await connection.disconnect(nowait=True)
    except FOREIGN_ERRORS:
        pass


def problem_of(error: BaseException) -> Problem:
    """Our error for one of redis-py's. The message never quotes a command: it may hold a prompt."""
    # Redis 6.2 wraps what a script ran into: "Error running script (call to …): … -OOM command not allowed …".
    if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and _OUT_OF_MEMORY in str(error)):
        return StorageFull("Redis is at its maxmemory.")
    if isinstance(error, (BusyLoadingError, ReadOnlyError)):
        return StorageUnavailable("Redis is not ready to write.")
    if isinstance(error, ResponseError):
        return StorageUnavailable(f"Redis refused a command ({str(error).split(' ', 1)[0][:20]}).")
    return StorageUnavailable()
