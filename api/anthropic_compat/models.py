"""``GET /v1/models`` and ``GET /v1/models/{id}``: the default model, those that routes name, and what the upstreams serve."""

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from api.dependencies import caller_of
from api.http.invalid import refuse
from api.http.responses import json_answer
from api.state.api_state import ApiState, api_of
from shared.api_key import Scope
from shared.errors import FieldError, NotFound
from shared.model_info import UNKNOWN_TIME, ModelDetails, ModelInfo, distinct

DEFAULT_LIMIT: Final = 20
MOST_LIMIT: Final = 1000
PAGE_QUERY: Final = ("limit", "after_id", "before_id")
"""Of a list of this surface."""

_PATTERN_MARKS: Final = frozenset("*?[")


class Model(ModelDetails, frozen=True, kw_only=True):
    """As the SDK knows it; with what its upstream said of it."""

    type: str
    id: str
    display_name: str
    created_at: str


class ModelPage(msgspec.Struct, frozen=True):
    """``last_id`` is the ``after_id`` of the next page, ``first_id`` the ``before_id`` of the one before."""

    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None


async def list_models(request: Request) -> Response:
    """A page of them."""
    api = api_of(request)
    await caller_of(request, Scope.READ, query=PAGE_QUERY)
    limit = limit_of(request)
    after_id, before_id = request.query_params.get("after_id"), request.query_params.get("before_id")
    if after_id and before_id:
        raise refuse(FieldError("before_id", "must not stand beside after_id"))
    models = await _models(api)
    if before_id:
        end = _place_of(before_id, "before_id", models)
        start = max(0, end - limit)
        page, has_more = models[start:end], start > 0
    else:
        start = _place_of(after_id, "after_id", models) + 1 if after_id else 0
        page, has_more = models[start : start + limit], start + limit < len(models)
    ids = [model.id for model in page]
    return json_answer(
        msgspec.json.encode(
            ModelPage(
                data=[_told(model) for model in page],
                has_more=has_more,
                first_id=ids[0] if ids else None,
                last_id=ids[-1] if ids else None,
            )
        )
    )


async def read_model(request: Request) -> Response:
    """One of them."""
    api = api_of(request)
    await caller_of(request, Scope.READ)
    model_id = request.path_params["model_id"]
    for model in await _models(api):
        if model.id == model_id:
            return json_answer(msgspec.json.encode(_told(model)))
    raise NotFound("There is no such model here.")


router = Router(
    [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/{model_id:path}", read_model, methods=["GET"]),  # names of other upstreams may have slashes
    ]
)


async def _models(api: ApiState) -> list[ModelInfo]:
    """What an upstream tells of a model is better than its name alone."""
    upstream = await api.runtime.queue.models()
    by_id = {model.id: model for model in upstream}
    names = [api.settings.model, *(name for name in api.settings.routes if not _PATTERN_MARKS & set(name))]
    named = [by_id.get(name) or ModelInfo(name, name, UNKNOWN_TIME) for name in names]
    return distinct([*named, *upstream])


def _told(model: ModelInfo) -> Model:
    details = msgspec.structs.asdict(model.details)
    return Model(type="model", id=model.id, display_name=model.display_name, created_at=model.created_at, **details)


def limit_of(request: Request) -> int:
    """``limit`` of a list of this surface. Raises InvalidRequest."""
    text = request.query_params.get("limit", str(DEFAULT_LIMIT))
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) <= 4 else 0
    if not 1 <= limit <= MOST_LIMIT:
        raise refuse(FieldError("limit", f"must be a whole number from 1 to {MOST_LIMIT}"))
    return limit


def _place_of(model_id: str, name: str, models: list[ModelInfo]) -> int:
    for place, model in enumerate(models):
        if model.id == model_id:
            return place
    raise refuse(FieldError(name, "must be the id of a model"))
