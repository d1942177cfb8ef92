"""Prints the figures after the results, and gives end-to-end tests the event loop of production."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop
from _pytest.terminal import TerminalReporter

import worker.providers.anthropic  # takes seconds, which no test should spend
import worker.providers.openai  # noqa: F401 - as above
from tests.support.facts import fact, print_facts

__all__ = ["fact"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of worker/app.py."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Prints what each campaign saw."""
    print_facts(terminalreporter, "tests/mutations")
