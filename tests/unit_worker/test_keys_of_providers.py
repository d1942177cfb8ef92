"""A worker that would fail all its jobs does not start."""

from typing import Any

import pytest

from shared.errors import SettingsError
from shared.routes import ProviderName, RouteRule
from shared.settings import load_settings
from worker.app import refuse_without_key

TO_OPENAI = {"gpt-*": RouteRule(provider=ProviderName.OPENAI)}


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({}, "ANTHROPIC_API_KEY"),
        ({"provider": "openai"}, "OPENAI_API_KEY"),
        ({"anthropic_api_key": "k", "routes": TO_OPENAI}, "OPENAI_API_KEY"),
    ],
)
def test_a_key_that_is_needed_is_asked_for(given: dict[str, Any], variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        refuse_without_key(load_settings(**given))


@pytest.mark.parametrize(
    "given",
    [
        {"anthropic_api_key": "k"},
        {"provider": "openai", "openai_api_key": "k"},
        {"provider": "openai", "openai_base_url": "http://127.0.0.1:11434/v1"},
    ],
)
def test_a_server_of_ones_own_may_want_none(given: dict[str, Any]) -> None:
    refuse_without_key(load_settings(**given))
