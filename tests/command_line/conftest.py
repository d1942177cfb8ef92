"""Runs the command line as a person does: what it prints, where, and its exit code."""

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
    """Prints the figures after the results."""
    print_facts(terminalreporter, "tests/command_line")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    exit_code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error message. Fails unless that was the only output: one line, one sentence, no traceback."""
        assert self.out == ""
        line = self.err.removesuffix("\n")
        assert "\n" not in line
        assert line.startswith("tokenspool: ")
        assert "Traceback" not in line
        return line.removeprefix("tokenspool: ")


class Tokenspool(Protocol):
    """Runs the command in this process: everything but the start of an interpreter."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture
def tokenspool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tokenspool:
    """``tokenspool("follow", job_id)`` runs what a shell would run."""

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
    """Replaces the module ``time``: a sleep takes no time, but the clock advances."""

    pauses_s: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        assert len(self.pauses_s) < 500, "it comes back for ever"

    def monotonic(self) -> float:
        return time.monotonic() + sum(self.pauses_s)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    """Records the pauses between connections instead of waiting; they are at their longest, without jitter."""
    patience = Patience()
    for module in ("cli.follow", "cli.api_client"):
        monkeypatch.setattr(f"{module}.time", patience)
    monkeypatch.setattr("cli.follow.random.uniform", lambda _low, high: high)
    return patience


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Asserts that every process which a test started has ended."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    yield
    left = set(me.children(recursive=True)) - before
    try:
        assert [" ".join(process.cmdline()) for process in left if process.is_running()] == []
    finally:
        for process in left:
            process.kill()
