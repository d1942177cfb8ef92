"""Processes that never outlive the one that started them, however it ends.

Each runs in a session of its own, so Ctrl-C in a terminal reaches only us, and we choose the order in which they stop.
On Linux the kernel signals them when we die (PR_SET_PDEATHSIG); elsewhere a small watcher process does. Used by the
embedded Redis and by `tokenspool dev`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

# Runs in the new process and then becomes the command, so the pid stays. A preexec_fn would do the same after a fork of
# our whole process, for which Python >= 3.12 warns in processes with threads (pytest's workers have some).
_LAUNCHER = """
import ctypes, os, sys
parent_pid, death_signal, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
ctypes.CDLL(None).prctl(1, death_signal)
if os.getppid() != parent_pid:  # it died before the line above
    sys.exit(1)
os.execv(path, sys.argv[3:])
"""

# Reads from a pipe whose other end only we hold: end of file means that we are dead.
_WATCHER = """
import os, sys
os.read(0, 1)
try:
    os.kill(int(sys.argv[1]), int(sys.argv[2]))
except ProcessLookupError:
    pass
"""

_PYTHON = (sys.executable, "-I", "-S", "-c")  # bare: starts in 15 ms

# -P: the current directory is not searched. It may be another project's, with its own `api` or `shared`.
OWN_PYTHON = (sys.executable, "-P", "-m")
"""Runs a module of ours, in own_environment()."""


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which OWN_PYTHON finds our packages where this process found them, installed or not."""
    root = str(Path(__file__).resolve().parent.parent)
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(environment)
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))}


class Child:
    """One running process. ``pid`` is the command's own, ``name`` is for messages."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], watcher: subprocess.Popen[bytes] | None) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._watcher = watcher

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing once the process has ended."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if it still runs after ``timeout_s``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.exit_code

    def stop(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL after ``timeout_s``. A stopped (SIGSTOP) process is continued first. Returns the exit code."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if self.wait(timeout_s) is None:
            self.signal(signal.SIGKILL)
        return self.reap()

    def kill(self) -> int:
        """SIGKILL, and wait until it is gone. Returns the exit code."""
        self.signal(signal.SIGKILL)
        return self.reap()

    def reap(self) -> int:
        """Wait for its end without a deadline: call it only when the end is certain."""
        exit_code = self._process.wait()
        if self._watcher is not None:
            # Before another process can get the pid. Its stdin is our end of the pipe.
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        return exit_code


def start_child(
    name: str,
    command: Sequence[str | Path],
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    pass_fds: Iterable[int] = (),
) -> Child:
    """Start ``command`` (an absolute path and its arguments) with stdout and stderr going to ``output``.

    ``death_signal`` is sent to it when we die. Call this from a thread that lives as long as the child should: on Linux
    the signal is sent when that thread ends. Raises OSError when the command cannot be started.
    """
    arguments = [str(argument) for argument in command]
    on_linux = sys.platform == "linux"
    if on_linux:
        if not os.access(arguments[0], os.X_OK):
            raise PermissionError(f"{arguments[0]} cannot be executed")
        arguments = [*_PYTHON, _LAUNCHER, str(os.getpid()), str(int(death_signal)), *arguments]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=tuple(pass_fds),
    )
    return Child(name, process, None if on_linux else _watch(process.pid, death_signal))


def _watch(pid: int, death_signal: signal.Signals) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*_PYTHON, _WATCHER, str(pid), str(int(death_signal))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
