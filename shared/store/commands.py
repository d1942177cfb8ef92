"""Commands to Redis, over one connection that all tasks of a process share.

All commands of one turn of the event loop are sent in one write, and the replies come back in order. A command costs
about 100 µs of client CPU through redis-py's pool and 11 µs in a batch of 100 (measured): under load, every command is
one of such a batch. Redis runs commands in the order of the calls.

One task owns the connection, and goes on while Redis is away. A call whose reply is late fails. Time alone does not prove
that a reply is late: if a turn of the event loop takes a second, the reply may already be in the socket at the deadline,
and we are late. So the looks of ``_watch`` are counted too, of which there is at most one per turn. A late reply does not
prove that Redis is away: while replies to other calls arrive, Redis is busy with our commands. The connection is dropped
only when Redis is both late and silent.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from shared.errors import Problem, StorageUnavailable
from shared.store.connect import (
    CONNECT_TIMEOUT_S,
    FOREIGN_ERRORS,
    MakeConnection,
    connect_problem_of,
    drop,
    is_not_primary,
    problem_of,
    refusal_of,
    takes_more,
    write,
)
from shared.store.redis_problems import RedisProblems
from shared.store.script import Argument, Script, script
from shared.telemetry import get_logger

_TICK_S = 0.05
_SILENT_LOOKS = 6
"""After so many looks without a reply Redis is silent: a quarter of a second, if the loop is idle."""
_MOST_UNSENT_BYTES = 64 << 20
"""How much may wait while Redis takes nothing; beyond it a call fails at once. Its deadline bounds how long a call waits."""
_RECONNECT_S = (0.02, 0.05, 0.1, 0.25, 0.5)


class _Call:
    """A command on its way, or several that are sent together."""

    __slots__ = (
        "arguments",
        "count",
        "deadline_look",
        "deadline_s",
        "future",
        "is_impatient",
        "on",
        "packed",
        "replies",
        "script",
    )

    def __init__(
        self,
        packed: bytes,
        arguments: tuple[Argument, ...],
        script: Script | None,
        future: asyncio.Future[Any],
        deadline_s: float,
        deadline_look: int,
        is_impatient: bool,
        on: int | None = None,
        count: int = 1,
    ) -> None:
        self.packed = packed
        self.arguments = arguments
        self.script = script
        self.future = future
        self.deadline_s = deadline_s
        self.deadline_look = deadline_look
        self.is_impatient = is_impatient
        self.on = on
        """The number of the only connection that it may be sent on. None: any."""
        self.count = count
        """How many commands it is."""
        self.replies: list[Any] = []
        """The replies so far, if it is several."""


class Commands:
    """Awaitable commands. Each raises StorageUnavailable or StorageFull; Redis may have run such a command all the same."""

    def __init__(
        self,
        make_connection: MakeConnection,
        *,
        timeout_s: float,
        scripts: Iterable[Script] = (),
        problems: RedisProblems | None = None,
        follows: "Commands | None" = None,
    ) -> None:
        """``follows``: when those commands find another primary, this connection is replaced too, since a demoted Redis keeps
        it open and replies to reads with old data.
        """
        self._follows = follows
        self._followed_moves = 0
        self._make_connection = make_connection
        self._problems = problems or RedisProblems()
        self._unreached = ""
        """Why there is no connection, if that is known."""
        self._timeout_s = timeout_s
        self._scripts = tuple(scripts)
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[_Call] = deque()
        self._unsent_bytes = 0
        self._sent: deque[_Call] = deque()
        self._will_flush = False
        self._looks = 0
        self._silent_looks = 0
        """Looks since the last reply, while a reply was due."""
        self._connection: AbstractConnection | None = None
        self.connection_number = 0
        """Counts the connections. Redis can only have lost what it acknowledged if this has changed since."""
        self._is_retired = False
        """Whether its Redis said that it is no primary: nothing more is sent to it, but its replies are still read."""
        self._seeks_primary = False
        self.moves = 0
        """How often a primary was found again. Other connections may still lead to the one before: see Subscriber."""
        self._owner: asyncio.Task[None] | None = None
        self._is_over = False
        self._logger = get_logger("commands")

    async def __aenter__(self) -> Self:
        self._owner = asyncio.create_task(self._run(), name="redis commands")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        if self._owner:
            self._owner.cancel()
            await asyncio.wait([self._owner])
        self._end()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up right now."""
        return self._connection is not None

    @property
    def is_answering(self) -> bool:
        """Whether the connection is up, and Redis is not silent while replies are due."""
        return self._connection is not None and self._silent_looks < _SILENT_LOOKS

    def call(self, *arguments: Argument) -> asyncio.Future[Any]:
        """One command, e.g. ``call("GET", key)``. Replies are bytes, integers, None and lists of these.

        Raises TypeError or ValueError at once for an argument that cannot be sent.
        """
        return self._ask(arguments, None)

    def run(self, name: str, /, **given: Argument | Iterable[Argument]) -> asyncio.Future[Any]:
        """Runs the script of that name, with its arguments by name. Raises TypeError for a missing or unknown argument."""
        return self._run_script(name, given, is_impatient=False)

    def run_impatiently(self, name: str, /, **given: Argument | Iterable[Argument]) -> asyncio.Future[Any]:
        """As ``run``, but fails as soon as Redis is away or silent. A script that was sent may still run later."""
        return self._run_script(name, given, is_impatient=True)

    def together(self, commands: Iterable[tuple[Argument, ...]], *, on: int) -> asyncio.Future[list[Any]]:
        """Several commands in one write, on the connection with the number ``on`` or not at all.

        The list has a reply for each; an error is one of them, and is not raised. Raises StorageUnavailable.
        """
        packed = [_packed(arguments) for arguments in commands]
        return self._ask_packed(b"".join(packed), (), None, on=on, count=len(packed))

    def _run_script(
        self, name: str, given: Mapping[str, Argument | Iterable[Argument]], *, is_impatient: bool
    ) -> asyncio.Future[Any]:
        found = script(name)
        arguments = ("EVALSHA", found.sha, 1, found.prefix, *found.in_order(given))
        return self._ask(arguments, found, is_impatient=is_impatient)

    def _ask(
        self, arguments: tuple[Argument, ...], script: Script | None, *, is_impatient: bool = False
    ) -> asyncio.Future[Any]:
        # Encoded here, so that an argument that cannot be sent fails its caller and not the connection. hiredis encodes an
        # APPEND in 6 µs, redis-py's own encoder in 31 (measured).
        return self._ask_packed(_packed(arguments), arguments, script, is_impatient=is_impatient)

    def _ask_packed(
        self,
        packed: bytes,
        arguments: tuple[Argument, ...],
        script: Script | None,
        *,
        is_impatient: bool = False,
        on: int | None = None,
        count: int = 1,
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        deadline_s, deadline_look = self._loop.time() + self._timeout_s, self._looks + _SILENT_LOOKS
        call = _Call(packed, arguments, script, future, deadline_s, deadline_look, is_impatient, on, count)
        if self._is_over or self._is_full_for(call):
            self._fail_one(call)
        else:
            self._send_soon(call)
        return future

    def _is_full_for(self, call: _Call) -> bool:
        if not self._unsent or self._unsent_bytes + len(call.packed) <= _MOST_UNSENT_BYTES:
            return False
        return self._connection is None or not takes_more(self._connection)

    def _send_soon(self, call: _Call) -> None:
        self._unsent.append(call)
        self._unsent_bytes += len(call.packed)
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what was asked for in this turn. What cannot be sent now waits: for a connection, or for ``_watch``."""
        self._will_flush = False
        if self._connection is None or self._is_retired or not takes_more(self._connection):
            return
        for call in self._unsent:
            if call.on is not None and call.on != self.connection_number:
                self._fail_one(call)
        calls = [call for call in self._unsent if not call.future.done()]
        self._unsent.clear()
        self._unsent_bytes = 0
        if calls:
            self._sent.extend(calls)
            write(self._connection, [call.packed for call in calls])
            for call in calls:
                call.packed = b""  # keep no second copy of a prompt until the reply

    async def _run(self) -> None:
        try:
            await self._serve()
        finally:
            self._end()  # also after a bug of ours, so that no caller waits without end

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="redis deadlines")
            failures = 0
            while True:
                try:
                    await self._serve_one_connection()
                except FOREIGN_ERRORS:
                    pass
                except Exception:
                    self._logger.exception("commands_failed")  # a bug of ours: logged, and the next connection is made
                if self._is_over:  # the connection broke in the moment in which __aexit__ cancelled us
                    raise asyncio.CancelledError
                failures = 0 if self._sent else failures + 1
                self._fail(self._sent)
                await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])

    async def _serve_one_connection(self) -> None:
        connection = self._make_connection()
        try:
            await self._open(connection)
            self._connection = connection
            self.connection_number += 1
            self._is_retired = False
            self._silent_looks = 0
            self._flush()
            await self._read(connection)
        finally:
            self._connection = None
            await drop(connection)

    async def _open(self, connection: AbstractConnection) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                # In one write: if Redis is far away, a round trip for each script would take longer than the timeout.
                loads = [_packed(("SCRIPT", "LOAD", script.text)) for script in self._scripts]
                await connection.send_packed_command(loads, check_health=False)
                for _ in loads:
                    await connection.read_response()
        except FOREIGN_ERRORS as error:
            problem = connect_problem_of(error, connection)
            self._unreached = problem.detail
            self._problems.note(problem)
            raise
        self._unreached = ""
        self._problems.connected()

    async def _read(self, connection: AbstractConnection) -> None:
        """Reads until the connection breaks, or until a Redis that is no primary has replied to everything."""
        while not (self._is_retired and not self._sent):
            reply: Any
            try:
                reply = await connection.read_response(disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._silent_looks = 0
            if not self._sent:
                raise InvalidResponse("a reply that nobody asked for")
            call = self._sent[0]
            if call.on is None:
                self._answer(call, reply)
            elif self._is_complete(call, reply):
                self._answer(call, call.replies)
            else:
                continue
            self._sent.popleft()  # only now: a call whose reply could not be handled is still there to be failed
            del reply, call  # a local name would keep the last one in memory until the next comes

    def _is_complete(self, call: _Call, reply: Any) -> bool:
        """Adds a reply to those of several commands. Whether it was the last one."""
        if isinstance(reply, Exception) and is_not_primary(reply):
            self._is_retired = self._seeks_primary = True
        call.replies.append(reply)
        return len(call.replies) == call.count

    def _answer(self, call: _Call, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._refused(call, reply)
            return
        if self._seeks_primary and call.script is not None:
            self._seeks_primary = False
            self.moves += 1
            self._problems.wrote()
        if not call.future.done():
            call.future.set_result(reply)

    def _refused(self, call: _Call, error: Exception) -> None:
        if isinstance(error, NoScriptError) and call.script is not None:
            # Redis has lost its scripts. Send this one again with its text, which Redis then keeps.
            if not call.future.done():
                call.packed = _packed(("EVAL", call.script.text, *call.arguments[2:]))
                self._send_soon(call)
            return
        problem = problem_of(error)
        if isinstance(problem, StorageUnavailable):
            self._problems.note(refusal_of(error))
        if is_not_primary(error):
            # A failover may leave us connected to the demoted Redis, which keeps connections open. So we connect to our
            # URL again, until the server that it leads to accepts writes.
            self._is_retired = self._seeks_primary = True
        self._fail_one(call, problem)

    async def _watch(self) -> None:
        """Fails calls that have waited too long. If one is overdue and Redis is silent, drops the half-open connection."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._looks += 1
            self._silent_looks = self._silent_looks + 1 if self._sent else 0
            while self._unsent and self._is_overdue(self._unsent[0]):
                late = self._unsent.popleft()
                self._unsent_bytes -= len(late.packed)
                self._fail_one(late)
            if self._follows is not None and self._follows.moves != self._followed_moves:
                self._followed_moves = self._follows.moves
                if self._connection is not None:
                    await drop(self._connection)
                continue
            if not self.is_answering:
                self._fail_impatient()
            if self._sent and self._is_overdue(self._sent[0]) and self._connection is not None:
                if not self.is_answering:
                    await drop(self._connection)
                    continue
                self._fail_late()
            if self._unsent:
                self._flush()

    def _is_overdue(self, call: _Call) -> bool:
        return call.deadline_look <= self._looks and call.deadline_s <= self._loop.time()

    def _fail_late(self) -> None:
        """Fails overdue calls. They keep their places, as in ``_fail_impatient``."""
        for call in self._sent:
            if not self._is_overdue(call):
                return
            self._fail_one(call)

    def _fail_impatient(self) -> None:
        """Fails impatient calls. They keep their places, because replies come in order."""
        for call in (*self._sent, *self._unsent):
            if call.is_impatient:
                self._fail_one(call)

    def _end(self) -> None:
        self._is_over = True
        self._fail(self._sent)
        self._fail(self._unsent)
        self._unsent_bytes = 0

    def _fail(self, calls: deque[_Call]) -> None:
        while calls:
            self._fail_one(calls.popleft())

    def _fail_one(self, call: _Call, problem: Problem | None = None) -> None:
        if not call.future.done():
            call.future.set_exception(problem or StorageUnavailable(reason=self._unreached))
            call.future.exception()  # its caller may be gone: asyncio shall not warn of an exception that nobody read


def _packed(arguments: tuple[Argument, ...]) -> bytes:
    return cast("bytes", hiredis.pack_command(cast("Any", arguments)))
