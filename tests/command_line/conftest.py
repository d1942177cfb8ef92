"""The command line as a person meets it: what it prints, where, and its exit code."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from _pytest.terminal import TerminalReporter

import cli.app
from tests.support.facts import fact, print_facts

__all__ = ["fact"]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """The figures, behind the results."""
    print_facts(terminalreporter, "tests/command_line")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What it was refused with. Fails unless that is all it said: one line, one sentence, no traceback."""
        assert self.out == ""
        line = self.err.removesuffix("\n")
        assert "\n" not in line
        assert line.startswith("tokenspool: ")
        assert "Traceback" not in line
        return line.removeprefix("tokenspool: ")


class Tokenspool(Protocol):
    """The command, in this process: everything but the start of an interpreter."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture
def tokenspool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tokenspool:
    """``tokenspool("follow", job_id)`` is what a shell would run."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tokenspool", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.app.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, out, err)

    return run


@dataclass
class Patience:
    """Stands for the module ``time``: a sleep takes none, and the clock goes on as if it had."""

    pauses_s: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        assert len(self.pauses_s) < 500, "it comes back for ever"

    def monotonic(self) -> float:
        return time.monotonic() + sum(self.pauses_s)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    """The pauses between connections, noted instead of waited for; at their longest, without the jitter."""
    patience = Patience()
    for module in ("cli.follow", "cli.api_client"):
        monkeypatch.setattr(f"{module}.time", patience)
    monkeypatch.setattr("cli.follow.random.uniform", lambda _low, high: high)
    return patience


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever a test started has ended with it."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    yield
    left = set(me.children(recursive=True)) - before
    try:
        assert [" ".join(process.cmdline()) for process in left if process.is_running()] == []
    finally:
        for process in left:
            process.kill()
