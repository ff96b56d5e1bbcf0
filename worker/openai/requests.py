"""The body of an embeddings request, as a model: it checks and makes the OpenAPI document.

Shape: platform.openai.com/docs/api-reference/embeddings/create.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from worker.contract.jobs import EncodingFormat, Long, Name

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

    #: Checked by `calls`, so that a fault is named by its index.
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
    long: Long | None = Field(
        default=None,
        description="What becomes of a text past the model's limit: `cut`, the default, or `mean`: "
        "read in windows and given the mean of their vectors.",
    )
    normalize: bool | None = Field(
        default=None, description="Scale every vector to unit length, the default."
    )
