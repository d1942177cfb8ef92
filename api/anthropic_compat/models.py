"""``GET /v1/models`` and ``GET /v1/models/{id}``: the default model, the routes' models, and those of the upstreams."""

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from api.dependencies import Api, Reader
from api.http.invalid import refuse
from api.http.pages import DEFAULT_LIMIT, DIGITS
from api.http.responses import json_response
from api.openapi import json_of, operation
from api.state.api_state import ApiState
from shared.errors import FieldError, NotFound
from shared.model_info import UNKNOWN_TIME, ModelDetails, ModelInfo, distinct

router = APIRouter()

# Of a list of this surface.
Limit = Annotated[int, Query(ge=1, le=1000), DIGITS]
AfterId = Annotated[str | None, Query(description="The last_id of the page before.")]
BeforeId = Annotated[str | None, Query(description="The first_id of the page after; not together with after_id.")]

_PATTERN_MARKS: Final = frozenset("*?[")


class Model(ModelDetails, frozen=True, kw_only=True):
    """A model, as Anthropic's SDK expects it, with the details that its upstream gives."""

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


def refuse_both(after_id: str | None, before_id: str | None) -> None:
    """Raises InvalidRequest if both cursors were sent."""
    if after_id and before_id:
        raise refuse(FieldError("before_id", "cannot be combined with after_id"))


@router.get("/v1/models", operation_id="list_models")
@operation({200: json_of(ModelPage, "A page.")}, (400, 401, 503))
async def list_models(
    api: Api, _: Reader, limit: Limit = DEFAULT_LIMIT, after_id: AfterId = None, before_id: BeforeId = None
) -> Response:
    """The available models, in pages."""
    refuse_both(after_id, before_id)
    models = await _models(api)
    if before_id:
        end = _place_of(before_id, "before_id", models)
        start = max(0, end - limit)
        page, has_more = models[start:end], start > 0
    else:
        start = _place_of(after_id, "after_id", models) + 1 if after_id else 0
        page, has_more = models[start : start + limit], start + limit < len(models)
    ids = [model.id for model in page]
    return json_response(
        msgspec.json.encode(
            ModelPage(
                data=[_model_of(model) for model in page],
                has_more=has_more,
                first_id=ids[0] if ids else None,
                last_id=ids[-1] if ids else None,
            )
        )
    )


@router.get("/v1/models/{model_id:path}", operation_id="read_model")  # ids of other upstreams' models may have slashes
@operation({200: json_of(Model, "The model.")}, (400, 401, 404, 503))
async def read_model(api: Api, _: Reader, model_id: str) -> Response:
    """One model."""
    for model in await _models(api):
        if model.id == model_id:
            return json_response(msgspec.json.encode(_model_of(model)))
    raise NotFound("There is no such model.")


async def _models(api: ApiState) -> list[ModelInfo]:
    """All models, each once. A model that we name is shown with its upstream's details, if there are any."""
    upstream = await api.runtime.workers.models()
    by_id = {model.id: model for model in upstream}
    names = [api.settings.model, *(name for name in api.settings.routes if not _PATTERN_MARKS & set(name))]
    named = [by_id.get(name) or ModelInfo(name, name, UNKNOWN_TIME) for name in names]
    return distinct([*named, *upstream])


def _model_of(model: ModelInfo) -> Model:
    details = msgspec.structs.asdict(model.details)
    return Model(type="model", id=model.id, display_name=model.display_name, created_at=model.created_at, **details)


def _place_of(model_id: str, name: str, models: list[ModelInfo]) -> int:
    for place, model in enumerate(models):
        if model.id == model_id:
            return place
    raise refuse(FieldError(name, "must be the id of a model"))
