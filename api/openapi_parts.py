"""Pieces that the OpenAPI document is made of."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]


def parameter(name: str, about: str, schema: JsonObject, place: str = "query") -> JsonObject:
    """A parameter; one of the path is always required."""
    return {
        "name": name,
        "in": place,
        "description": about,
        "required": place == "path",
        "schema": schema,
    }


def answer(about: str, model: str, headers: JsonObject | None = None) -> JsonObject:
    """An answer in JSON, in the form of a model."""
    answer: JsonObject = {"description": about, "content": {"application/json": ref(model)}}
    return answer | ({"headers": headers} if headers else {})


def retry_after() -> JsonObject:
    """The header that says when to come back."""
    return {"Retry-After": header("Seconds after which to ask again.", "integer")}


def header(about: str, kind: str = "string") -> JsonObject:
    """A header of an answer."""
    return {"description": about, "schema": {"type": kind}}


def ref(model: str) -> JsonObject:
    """The media type object of a model."""
    return {"schema": {"$ref": f"#/components/schemas/{model}"}}
