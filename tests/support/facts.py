"""Prints what tests measured at the end of the run. The bounds in assertions are generous; here are the figures."""

from typing import Protocol

import pytest
from _pytest.terminal import TerminalReporter


class Fact(Protocol):
    """Records one measured fact."""

    def __call__(self, text: str) -> None: ...


@pytest.fixture
def fact(record_property: "RecordProperty") -> Fact:
    """Records a figure for the summary."""

    def tell(text: str) -> None:
        record_property("fact", text)

    return tell


class RecordProperty(Protocol):
    """pytest's own fixture; xdist passes its values on from the workers."""

    def __call__(self, name: str, value: object) -> None: ...


def print_facts(reporter: TerminalReporter, folder: str) -> None:
    """Prints the facts of a folder's tests; for ``pytest_terminal_summary``."""
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {value}"
        for reports in reporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call" and report.nodeid.startswith(folder)
        for name, value in report.user_properties
        if name == "fact"
    ]
    if lines:
        reporter.section(f"measured in {folder}")
        for line in lines:
            reporter.write_line(line)
