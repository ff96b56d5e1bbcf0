"""What `/v1` answers, as models: they make the OpenAPI document.

Shapes: platform.openai.com/docs/api-reference/embeddings and /models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas import Usage


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
