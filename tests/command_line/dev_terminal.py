"""Runs `tokenspool dev` in its own terminal, as a person does: keys go in, the screen comes out."""

import os
import pty
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.wait import wait_until

#: The first terminal that a session leader opens becomes its controlling terminal, so that Ctrl-C reaches it.
_IN_A_TERMINAL = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"
_START_S = 40

CTRL_C = "\x03"


class DevTerminal:
    """Runs at most until the end of the ``async with`` block. ``screen`` is everything it has printed."""

    def __init__(self, *arguments: str | Path, **environment: str) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._environment = environment
        self._output = b""
        self._ours = -1

    async def __aenter__(self) -> Self:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.process = psutil.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _IN_A_TERMINAL, os.ttyname(theirs)),
                *(str(Path(sys.executable).with_name("tokenspool")), "dev", *self._arguments),
            ],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={"PATH": os.defpath, **self._environment},
            start_new_session=True,
        )
        os.close(theirs)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.is_running():
            self.process.kill()  # its children end with it
        self.process.wait()
        self.close()

    @property
    def screen(self) -> str:
        """The output so far, with the line ends of a file."""
        with suppress(BlockingIOError, OSError):  # EIO: the process has closed its side
            while self._ours >= 0 and (piece := os.read(self._ours, 65_536)):
                self._output += piece
        return self._output.decode().replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        """Types keys, of which CTRL_C is one."""
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        """Closes the terminal's window."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    async def until(self, predicate: Callable[[], bool], what: str, *, timeout_s: float = 10) -> None:
        """Waits; the error message contains the screen."""
        try:
            await wait_until(lambda: predicate() or not self.process.is_running(), what, timeout_s=timeout_s)
            assert predicate(), f"it ended before {what}"
        except AssertionError as error:
            raise AssertionError(f"{error}; on the screen:\n{self.screen}") from None

    async def shows(self, text: str, *, timeout_s: float = 10) -> None:
        """Waits until the text is on the screen."""
        await self.until(lambda: text in self.screen, f"{text!r} on the screen", timeout_s=timeout_s)

    async def is_up(self) -> None:
        """Waits for the last of the lines that show that it runs."""
        await self.shows("/v1/jobs?limit=3'\n", timeout_s=_START_S)

    async def ends(self) -> int:
        """Waits for the exit code."""
        await self.until(
            lambda: not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE,
            "its end",
            timeout_s=20,
        )
        code: int = self.process.wait()
        return code

    @property
    def url(self) -> str:
        """The API's URL."""
        found = re.search(r"^ +API +(http://127\.0\.0\.1:\d+)", self.screen, re.MULTILINE)
        assert found is not None
        return found[1]

    def pid_of(self, row: str) -> int:
        """The process in a row of the screen, or its latest replacement."""
        found = re.findall(rf"^ +{row} .*\(pid (\d+)\)|{row}.* was restarted \(pid (\d+)\)", self.screen, re.MULTILINE)
        return int(next(filter(None, found[-1])))

    def family(self) -> list[psutil.Process]:
        """The process and its running descendants."""
        return [self.process, *self.process.children(recursive=True)]


def kill(pid: int) -> None:
    """Sends SIGKILL, as `kill -9` does."""
    os.kill(pid, signal.SIGKILL)
