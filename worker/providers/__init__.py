"""The upstreams' APIs. Only these modules import LLM SDKs."""

from collections.abc import Iterable, Mapping

from shared.routes import ProviderName
from shared.settings import Settings
from worker.providers.base import Provider


def open_providers(settings: Settings, names: Iterable[ProviderName]) -> Mapping[ProviderName, Provider]:
    """Opens these providers. The caller closes each of them."""
    return {name: _open(settings, name) for name in sorted(names)}


def _open(settings: Settings, name: ProviderName) -> Provider:
    # Imported only if used: an SDK takes 1.5 s and 37 MB.
    match name:
        case ProviderName.ANTHROPIC:
            from worker.providers.anthropic import AnthropicProvider

            return AnthropicProvider(settings)
        case ProviderName.OPENAI:
            from worker.providers.openai import OpenAIProvider

            return OpenAIProvider(settings)
