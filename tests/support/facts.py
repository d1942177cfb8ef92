"""What was measured in a test, told at the end of the run. Bounds in assertions are generous; the figures are here."""

from typing import Protocol

import pytest
from _pytest.terminal import TerminalReporter


class Fact(Protocol):
    """Tells one measured fact."""

    def __call__(self, text: str) -> None: ...


@pytest.fixture
def fact(record_property: "RecordProperty") -> Fact:
    """Notes a figure for the summary."""

    def tell(text: str) -> None:
        record_property("fact", text)

    return tell


class RecordProperty(Protocol):
    """pytest's own fixture, which also travels from xdist's workers."""

    def __call__(self, name: str, value: object) -> None: ...


def print_facts(reporter: TerminalReporter, folder: str) -> None:
    """For ``pytest_terminal_summary``: the facts of the tests below a folder."""
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
