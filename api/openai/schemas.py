"""What `/v1` takes and answers, as models: they check requests and make the OpenAPI document.

Shapes: platform.openai.com/docs/api-reference/embeddings and /models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from api.schemas import Usage
from worker.contract.jobs import EncodingFormat, Name

#: Texts of one request.
MOST_INPUTS = 2048
#: Tokens of one request, estimated.
MOST_TOKENS = 300_000

_TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_TEXT = {"type": "string"}
_INPUT = {
    "anyOf": [
        _TEXT,
        _TOKEN_IDS | {"minItems": 1},
        {
            "type": "array",
            "items": {"anyOf": [_TEXT, _TOKEN_IDS]},
            "minItems": 1,
            "maxItems": MOST_INPUTS,
        },
    ]
}


class EmbeddingsRequest(BaseModel):
    """The body of `POST /v1/embeddings`; members that are not known are ignored."""

    # Errors without their inputs: those may be texts.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)

    #: Checked by `calls`: a fault is to be named by its index.
    input: Annotated[Any, WithJsonSchema(_INPUT)] = Field(
        description="One text, a list of texts, or cl100k token ids in place of texts."
    )
    model: Name = Field(description="Served name of a model.")
    encoding_format: EncodingFormat | None = Field(
        default=None, description="Vectors as lists of numbers, the default, or as base64."
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Length of a vector; smaller than native only for a Matryoshka model.",
    )
    user: str | None = Field(default=None, description="Taken and not looked at.")
    prompt_name: Name | None = Field(
        default=None, description="One of the model's own prompts; not in OpenAI's API."
    )
    input_type: Name | None = Field(default=None, description="Another word for `prompt_name`.")
    truncate: bool | None = Field(
        default=None,
        description="Cut a text at the model's limit, the default; where false, it is an error.",
    )
    normalize: bool | None = Field(
        default=None, description="Scale every vector to unit length, the default."
    )


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(
        description="Numbers, or base64 of them as little-endian float32."
    )


class EmbeddingList(BaseModel):
    """The vectors of a request, in the order of its input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Always 0: nobody knows.")
    owned_by: str
    dimensions: int = Field(description="Length of a vector; this and the rest are embedq's own.")
    max_tokens: int = Field(description="Longest text in tokens; a longer one is cut.")
    prompt_names: list[str]


class ModelList(BaseModel):
    """The served models, the default first."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The part of the request at fault.")
    code: str | None = Field(description="Stable, for programs.")


class ErrorDocument(BaseModel):
    """An error."""

    error: ErrorDetail
