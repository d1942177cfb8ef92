"""Deploys of real processes; prints the figures after the results."""

from _pytest.terminal import TerminalReporter

from tests.support.facts import fact, print_facts

__all__ = ["fact"]


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    print_facts(terminalreporter, "tests/deploys")
