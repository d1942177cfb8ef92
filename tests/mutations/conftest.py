"""The figures, after the results; and the loop of production for what runs end to end."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop
from _pytest.terminal import TerminalReporter

import worker.providers.anthropic  # takes seconds, which are no test's
import worker.providers.openai  # noqa: F401 - as above
from tests.support.facts import fact, print_facts

__all__ = ["fact"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What worker/app.py runs on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """What each campaign saw."""
    print_facts(terminalreporter, "tests/mutations")
