"""The upstreams. The only importers of LLM SDKs."""

from shared.settings import Settings
from worker.providers.base import Provider


def open_provider(settings: Settings) -> Provider:
    """The upstream that the settings name. Close it at the end."""
    from worker.providers.anthropic import AnthropicProvider  # takes 1.5 s and 37 MB: only where it is used

    return AnthropicProvider(settings)
