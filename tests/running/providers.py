"""Marks tests that hold for every upstream API, and lists where the APIs differ."""

from collections.abc import Iterable
from typing import Final

import pytest

from shared.routes import ProviderName

on_each_provider = pytest.mark.parametrize("provider", list(ProviderName))
"""Runs a test once for each provider; the ``crew`` uses it."""

HARMLESS: Final = {
    (ProviderName.OPENAI, "no message_start"): "any chunk may be the first",
    (ProviderName.OPENAI, "two beginnings"): "servers repeat the role, and change the id, at will",
    (ProviderName.OPENAI, "a delta without an index"): "a choice without one is the first",
    (ProviderName.OPENAI, "a clean end before message_stop"): "some servers never send [DONE]",
    (ProviderName.ANTHROPIC, "no message_start"): "it holds nothing that is needed",
    (ProviderName.ANTHROPIC, "a delta without an index"): "one block is open",
    (ProviderName.ANTHROPIC, "a clean end before message_stop"): "the reason of the end was said, and no block is open",
}
"""Oddities that leave the answer certain, each with the reason."""


def pairs(fault_names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrizes ``provider`` and ``fault_name`` with the faults of each provider."""
    cases = [
        pytest.param(provider, name, id=f"{provider}-{name}")
        for name in fault_names
        for provider in ProviderName
        if (provider, name) not in HARMLESS
    ]
    return pytest.mark.parametrize(("provider", "fault_name"), cases)
