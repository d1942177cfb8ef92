"""The single place that knows Redis URLs and redis-py's connection objects.

redis-py opens a connection (TLS, unix sockets, ACL, database) and encodes and parses for it; pools, retries and its
PubSub class are not used: see commands.py and subscriber.py for why.
"""

import re
import ssl
from collections.abc import Callable, Iterator
from typing import Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import Problem, StorageFull, StorageUnavailable
from shared.store.redis_problems import (
    INFO_REFUSED,
    LOGIN_REFUSED,
    NO_DATABASE,
    NO_PERMISSION,
    NOT_PRIMARY,
    REFUSED,
    TLS_FAILED,
    TOO_MANY_CLIENTS,
    UNREACHABLE,
    RedisProblem,
)

MakeConnection = Callable[[], AbstractConnection]

CONNECT_TIMEOUT_S = 1.0
_MOST_BUFFERED_BYTES = 8 << 20

_OUT_OF_MEMORY = "OOM command not allowed when used memory"
# What a command gets, and what a script gets from Redis 6.2: "Error running script (call to f_…): @user_script:1: … -READONLY …".
_NOT_PRIMARY: Final = re.compile(r"(?:Error running script [^\n]*: -)?(?:READONLY|MASTERDOWN|NOREPLICAS|LOADING) ")
_INFO: Final = re.compile(r"run the 'info' command|unknown command ['`]info\b", re.IGNORECASE)
_COMMAND: Final = re.compile(r"run the '([a-z]{1,20}(?:\|[a-z-]{1,20})?)' command", re.IGNORECASE)
_FORBIDDEN_TO_SCRIPT = "The user executing the script can't"  # Redis 6.2 to 7.0; since then "ACL failure in script"

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
    """Sends in one write, and buffers what the socket does not take. Only a read notices that the connection is broken."""
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

    A closing transport is checked for here: uvloop raises RuntimeError for it, a turn before the reader notices.
    """
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if transport is not None and transport.is_closing():
        raise ConnectionResetError("closed a moment ago")
    await connection.send_packed_command(packed, check_health=False)


async def drop(connection: AbstractConnection) -> None:
    """Closes at once and discards what is unsent: an orderly close waits until the other side has read it, which never
    happens on a half-open connection.
    """
    transport = getattr(getattr(connection, "_writer", None), "transport", None)  # redis-py does not expose it
    if transport is not None:
        transport.abort()
    try:
        await connection.disconnect(nowait=True)
    except FOREIGN_ERRORS:
        pass


def is_not_primary(error: BaseException) -> bool:
    """Whether the error says that this server accepts no writes, like one that a failover has demoted."""
    if isinstance(error, (ReadOnlyError, BusyLoadingError)):
        return True
    return isinstance(error, ResponseError) and _NOT_PRIMARY.match(str(error)) is not None


def problem_of(error: BaseException) -> Problem:
    """Our error for one of redis-py's. The message never quotes a command: it may hold a prompt."""
    # Redis 6.2 wraps the error of a script: "Error running script (call to …): … -OOM command not allowed …".
    if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and _OUT_OF_MEMORY in str(error)):
        return StorageFull("Redis has reached its maxmemory.")
    reason = refusal_of(error).detail
    if is_not_primary(error):
        return StorageUnavailable("Redis is not ready for writes.", reason=reason)
    if isinstance(error, ResponseError):
        return StorageUnavailable(f"Redis refused a command ({_code_of(error)}).", reason=reason)
    return StorageUnavailable()


def refusal_of(error: BaseException) -> RedisProblem:
    """What Redis refused, for operators."""
    text = str(error)
    if is_not_primary(error):
        return RedisProblem(
            NOT_PRIMARY, "This Redis accepts no writes: it is not the primary, is loading its data, or lacks replicas."
        )
    if _INFO.search(text):
        return INFO_REFUSED
    if isinstance(error, NoPermissionError) or "ACL failure in script" in text or _FORBIDDEN_TO_SCRIPT in text:
        return RedisProblem(
            NO_PERMISSION, f"The user in TOKENSPOOL_REDIS_URL lacks rights in Redis: {_right_in(text)} (NOPERM)."
        )
    if text.startswith("MISCONF"):
        return RedisProblem(
            REFUSED, "Redis refuses writes, because it cannot save to its disk (MISCONF): check that disk."
        )
    return RedisProblem(REFUSED, f"Redis refused a command ({_code_of(error)}).")


def connect_problem_of(error: BaseException, connection: AbstractConnection) -> RedisProblem:
    """Why there is no connection, for operators."""
    chain = list(_chain_of(error))
    text = str(error)
    if tls := next((each for each in chain if isinstance(each, ssl.SSLError)), None):
        return RedisProblem(TLS_FAILED, f"TLS with Redis{_place_of(connection)} fails: {_tls_reason_of(tls)}.")
    if isinstance(error, AuthenticationError):
        wants_one = "Authentication required" in text
        return RedisProblem(
            LOGIN_REFUSED,
            "Redis requires a password: add it to TOKENSPOOL_REDIS_URL."
            if wants_one
            else "Redis refuses the user or the password in TOKENSPOOL_REDIS_URL.",
        )
    if "max number of clients" in text:
        return RedisProblem(TOO_MANY_CLIENTS, "Redis accepts no more clients: raise its maxclients.")
    if "DB index" in text:
        return RedisProblem(NO_DATABASE, "Redis has no database with the number in TOKENSPOOL_REDIS_URL.")
    if isinstance(error, (ResponseError, BusyLoadingError)):
        return refusal_of(error)
    reason = next((each.strerror for each in chain if isinstance(each, OSError) and each.strerror), None)
    if reason is None:
        is_late = any(isinstance(each, (TimeoutError, RedisTimeoutError)) for each in chain)
        reason = "no reply in time" if is_late else "it closed the connection; does it need TLS (rediss://)?"
    return RedisProblem(
        UNREACHABLE,
        f"Redis cannot be reached{_place_of(connection)} ({reason}): start it, or set TOKENSPOOL_REDIS_URL to its address.",
    )


def _chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: redis-py wraps the original one."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tls_reason_of(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); name the file of its CA with ?ssl_ca_certs= in "
            "TOKENSPOOL_REDIS_URL"
        )
    return f"{(error.reason or 'no TLS').replace('_', ' ').lower()}; is it a TLS port?"


def _place_of(connection: AbstractConnection) -> str:
    """Where the server is, for a message. No part of it is a secret."""
    if path := getattr(connection, "path", ""):
        return f" at {path}"
    host, port = getattr(connection, "host", ""), getattr(connection, "port", "")
    return f" at {host}:{port}" if host else ""


def _right_in(text: str) -> str:
    """Which right is missing. Redis names no key and no channel, only a command, which is safe to quote."""
    if found := _COMMAND.search(text):
        return f"the command {found[1]}"
    return "channels (&ts:*)" if "channel" in text else "keys (~ts:*)" if "key" in text else "some command"


def _code_of(error: BaseException) -> str:
    """``WRONGTYPE``, ``MISCONF``, …; redis-py removes the codes that it knows from the message."""
    if isinstance(error, NoPermissionError):
        return "NOPERM"
    word = str(error).split(" ", 1)[0]
    return word if re.fullmatch(r"[A-Z]{2,20}", word) else "ERR"
