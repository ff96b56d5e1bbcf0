"""`GET /v1/models`: the models of the live workers."""

from __future__ import annotations

from flask import Blueprint, Response

from api.backend import backend
from api.dialects.openai.errors import HEADERS, OPENAI
from api.dialects.openai.schemas import Model, ModelList
from api.errors import Problem
from api.operations import Answer, Operation, path_parameter
from api.responses import json_response
from worker.contract.models import ModelInfo

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
@Operation(OPENAI, {200: Answer("The models.", ModelList, HEADERS)}, errors=[503])
def list_models() -> Response:
    """The models of the live workers, the default first."""
    served = backend().liveness.workers().models
    return json_response(ModelList(data=[_model(info) for info in served.values()]).model_dump())


@blueprint.get("/models/<path:model_id>")
@Operation(
    OPENAI,
    {200: Answer("The model.", Model, HEADERS)},
    errors=(404, 503),
    parameters=[path_parameter("The model's name, which may hold slashes.")],
)
def read_model(model_id: str) -> Response:
    """One served model."""
    info = backend().liveness.workers().models.get(model_id)
    if info is None:
        raise Problem("model_not_found", f"model {model_id!r} is not served here", field="model")
    return json_response(_model(info).model_dump())


def _model(info: ModelInfo) -> Model:
    return Model(
        id=info.name,
        created=0,
        owned_by="embedq",
        dimensions=info.dimensions,
        max_tokens=info.max_tokens,
        prompt_names=list(info.prompts),
    )
