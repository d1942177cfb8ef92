"""One pub/sub connection for a process, owned by one task.

Pub/sub is only there for latency: a dropped connection silently loses what is published meanwhile. So ``on_confirmed`` is
called whenever a channel's subscription is confirmed, also after a reconnect, and the channel's reader then reads the log.

redis-py's PubSub class is not used: concurrent first subscribes each check out a connection and orphan all but one
(measured on 5.3.1 and 8.1.0), and ``get_message`` costs a timeout object and several task switches per message.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Self

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from shared.store.connect import (
    CONNECT_TIMEOUT_S,
    FOREIGN_ERRORS,
    MakeConnection,
    connect_problem_of,
    drop,
    refusal_of,
    send,
)
from shared.store.redis_problems import RedisProblems
from shared.telemetry import get_logger

_LOOK_S = 0.5
_PING_S = 5.0
_SILENCE_S = 11.0
_RECONNECT_S = (0.02, 0.05, 0.1, 0.25, 0.5)
_CHANNELS_PER_COMMAND = 500
"""After a reconnect all channels are subscribed in portions, so that the followers of one catch up before the next arrives."""


class Subscriber:
    """Subscribe and unsubscribe at will; messages and confirmations arrive by callback, in order."""

    def __init__(
        self,
        make_connection: MakeConnection,
        *,
        on_message: Callable[[str, bytes], None],
        on_confirmed: Callable[[str], None],
        moves: Callable[[], int] = lambda: 0,
        problems: RedisProblems | None = None,
    ) -> None:
        """``moves``: how often another primary was found. Each time the connection is replaced, since a demoted Redis keeps it
        open, and publishes nothing, or only late what its primary publishes.
        """
        self._moves = moves
        self._problems = problems or RedisProblems()
        self._make_connection = make_connection
        self._on_message = on_message
        self._on_confirmed = on_confirmed
        self._wanted: dict[str, None] = {}
        self._standing: set[str] = set()
        self._unsent: deque[tuple[str, str]] = deque()
        self._asked = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._heard_s = 0.0
        self._logger = get_logger("subscriber")
        self._owner: asyncio.Task[None] | None = None
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._owner = asyncio.create_task(self._run(), name="redis subscriptions")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        if self._owner:
            self._owner.cancel()
            await asyncio.wait([self._owner])

    def subscribe(self, channel: str) -> None:
        """Subscribes to a channel; ``on_confirmed`` is called when it is confirmed. A second call changes nothing."""
        if channel not in self._wanted:
            self._wanted[channel] = None
            self._unsent.append(("SUBSCRIBE", channel))
            self._asked.set()

    def unsubscribe(self, channel: str) -> None:
        """Unsubscribes from a channel. A second call changes nothing."""
        if channel in self._wanted:
            del self._wanted[channel]
            self._standing.discard(channel)
            self._unsent.append(("UNSUBSCRIBE", channel))
            self._asked.set()

    def stands(self, channel: str) -> bool:
        """Whether messages of the channel arrive right now."""
        return channel in self._standing

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                # In a task of its own: if a child fails while its TaskGroup waits, the group's task still counts as being
                # cancelled, and on CPython 3.11.2 the next timeout in that task then ends it (seen there).
                await asyncio.create_task(self._serve_one_connection(), name="redis channel")
            except FOREIGN_ERRORS:
                pass
            except BaseExceptionGroup as errors:
                if errors.split(FOREIGN_ERRORS)[1] is not None:
                    self._logger.exception("subscriber_failed")  # a bug of ours: logged, and the channels come back
            # A TaskGroup that is cancelled in the moment in which a child fails raises only the failure.
            if self._is_over:
                return
            failures = 0 if self._standing else failures + 1
            self._standing.clear()
            await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])

    async def _serve_one_connection(self) -> None:
        connection = self._make_connection()
        moves = self._moves()
        try:
            await self._open(connection)
            self._heard_s = asyncio.get_running_loop().time()
            self._unsent.clear()
            self._unsent.extend(("SUBSCRIBE", channel) for channel in self._wanted)
            self._asked.set()
            self._connection = connection
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(connection), name="redis subscribes")
                group.create_task(self._read(connection), name="redis messages")
                group.create_task(self._watch(connection, moves), name="redis pings")
        finally:
            self._connection = None
            await drop(connection)

    async def _open(self, connection: AbstractConnection) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
        except FOREIGN_ERRORS as error:
            self._problems.note(connect_problem_of(error, connection))
            raise

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            requests = list(self._unsent)
            self._unsent.clear()
            commands = list(_grouped(requests))
            if commands:
                await send(connection, connection.pack_commands(commands))

    async def _read(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                frame = await connection.read_response(disconnect_on_error=False)
            except ResponseError as error:  # a channel is forbidden; asked for again with the next connection
                self._problems.note(refusal_of(error))
                raise
            self._heard_s = loop.time()
            if not isinstance(frame, list) or len(frame) < 3:
                continue  # a pong
            try:
                self._tell(frame[0], frame[1].decode(), frame[2])
            except Exception:
                # A message that its reader cannot read, maybe of another release, must not stop the other channels.
                self._logger.exception("message_dropped")

    def _tell(self, kind: bytes, channel: str, message: bytes) -> None:
        if kind == b"message":
            self._on_message(channel, message)
        elif kind == b"subscribe" and channel in self._wanted:
            self._standing.add(channel)
            self._on_confirmed(channel)

    async def _watch(self, connection: AbstractConnection, moves: int) -> None:
        """Pings, and drops the connection if it stays silent, as a half-open one does, or if the primary moved."""
        loop = asyncio.get_running_loop()
        pinged_s = loop.time()
        while True:
            await asyncio.sleep(min(_LOOK_S, _PING_S))
            if self._moves() != moves:
                raise ConnectionResetError("the primary is another")
            if loop.time() - pinged_s < _PING_S:
                continue
            pinged_s = loop.time()
            if pinged_s - self._heard_s > _SILENCE_S:
                raise TimeoutError
            # Also without channels, so that an idle connection is not taken for a half-open one.
            await send(connection, connection.pack_command("PING"))


def _grouped(requests: Iterable[tuple[str, str]]) -> Iterable[tuple[str, ...]]:
    """Joins neighbouring requests with the same verb into one command."""
    verb, channels = "", list[str]()
    for next_verb, channel in requests:
        if next_verb != verb or len(channels) == _CHANNELS_PER_COMMAND:
            if channels:
                yield verb, *channels
            verb, channels = next_verb, []
        channels.append(channel)
    if channels:
        yield verb, *channels
