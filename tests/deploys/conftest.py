"""Deploys of real processes; the figures are printed behind the results."""

from _pytest.terminal import TerminalReporter

from tests.support.facts import fact, print_facts

__all__ = ["fact"]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """The figures, behind the results."""
    print_facts(terminalreporter, "tests/deploys")
