"""What an upstream reports about a model that it serves."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

UNKNOWN_TIME: Final = "1970-01-01T00:00:00Z"
"""``created_at`` if the upstream sends none; the Messages API uses the same value."""

_MOST_MODELS: Final = 2_000
_LONGEST_CHARACTERS: Final = 256


class ModelDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """Members that an upstream of the Messages API may report for a model, passed on unchecked."""

    max_input_tokens: Any = msgspec.UNSET
    max_tokens: Any = msgspec.UNSET
    lifecycle: Any = msgspec.UNSET
    deprecated_at: Any = msgspec.UNSET
    retires_at: Any = msgspec.UNSET
    line: Any = msgspec.UNSET
    capabilities: Any = msgspec.UNSET


NO_DETAILS: Final = ModelDetails()


class ModelInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model, as callers see it."""

    id: str
    display_name: str
    created_at: str
    """RFC 3339."""
    details: ModelDetails = NO_DETAILS


def distinct(models: Iterable[ModelInfo]) -> list[ModelInfo]:
    """Keeps the first model of each id, in order, and at most 2,000; drops ids that ``is_name`` rejects."""
    by_id: dict[str, ModelInfo] = {}
    for model in models:
        if is_name(model.id) and model.id not in by_id:
            by_id[model.id] = model
        if len(by_id) == _MOST_MODELS:
            break
    return list(by_id.values())


def is_name(text: str) -> bool:
    """Whether the text is printable and has 1 to 256 characters."""
    return 0 < len(text) <= _LONGEST_CHARACTERS and text.isprintable()
