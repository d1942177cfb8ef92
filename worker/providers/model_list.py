"""Reads the upstreams' lists of their models. Entries that are no models are skipped; a body that is no list has none."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

import msgspec

from shared.completion import GarbledStream
from shared.model_info import NO_DETAILS, UNKNOWN_TIME, ModelDetails, ModelInfo, distinct, is_name
from worker.outcome import Breakage, How, UpstreamError, classify
from worker.providers.answer_stream import failure_of_call
from worker.providers.members import MISFITS
from worker.rate_limit_headers import Allowance

MOST_BYTES: Final = 8 << 20
"""The largest page."""
_MOST_DETAILS_BYTES: Final = 8 << 10
"""The most details of a model: all models of an upstream are one value in Redis. Anthropic's own take a quarter of it."""
_MOST_S: Final = 10.0


class Page(NamedTuple):
    """One page of a list."""

    models: list[ModelInfo]
    after_id: str | None = None
    """The id after which the next page begins. None: there are no more."""


_Row = TypeVar("_Row", bound=msgspec.Struct)


class _List(msgspec.Struct):
    data: list[msgspec.Raw] = []
    has_more: bool = False
    last_id: str | None = None


class _Message(ModelDetails, frozen=True, kw_only=True):
    id: str
    display_name: str = ""
    created_at: str = ""


class _Chat(msgspec.Struct):
    id: str
    created: float | None = None


async def listed(
    models: Awaitable[list[ModelInfo]], allowance_of: Callable[[Mapping[str, str]], Allowance | None]
) -> list[ModelInfo]:
    """Waits for an upstream's models, 10 s at most. Raises UpstreamError for whatever prevents that."""
    try:
        async with asyncio.timeout(_MOST_S):
            return distinct(await models)
    except TimeoutError as error:
        raise UpstreamError(classify(Breakage(How.UNANSWERED))) from error
    except GarbledStream as error:
        raise UpstreamError(classify(Breakage(How.GARBLED, str(error)))) from error
    except Exception as error:
        raise UpstreamError(failure_of_call(error, allowance_of)) from error


def anthropic_page(body: bytes) -> Page:
    """Reads a page of ``GET /v1/models`` of the Messages API."""
    page = _list_of(body)
    rows = _rows(page, _Message)
    models = [
        ModelInfo(
            row.id,
            row.display_name if is_name(row.display_name) else row.id,
            row.created_at if _is_time(row.created_at) else UNKNOWN_TIME,
            _details_of(row),
        )
        for row in rows
    ]
    return Page(models, page.last_id if page.has_more and page.last_id and is_name(page.last_id) else None)


def _details_of(row: _Message) -> ModelDetails:
    details = ModelDetails(**{name: getattr(row, name) for name in ModelDetails.__struct_fields__})
    return details if len(msgspec.json.encode(details)) <= _MOST_DETAILS_BYTES else NO_DETAILS


def openai_models(body: bytes) -> list[ModelInfo]:
    """Reads ``GET /models`` of an OpenAI-compatible server, which has all models in one page."""
    return [ModelInfo(row.id, row.id, _time_of(row.created)) for row in _rows(_list_of(body), _Chat)]


def _list_of(body: bytes) -> _List:
    try:
        return msgspec.json.decode(body, type=_List)
    except MISFITS:
        return _List()


def _rows(page: _List, kind: type[_Row]) -> list[_Row]:
    rows = []
    for raw in page.data:
        try:
            rows.append(msgspec.json.decode(raw, type=kind))
        except MISFITS:
            continue
    return rows


def _is_time(text: str) -> bool:
    try:
        return len(text) <= 64 and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _time_of(unix_s: float | None) -> str:
    try:
        return datetime.fromtimestamp(unix_s or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return UNKNOWN_TIME
